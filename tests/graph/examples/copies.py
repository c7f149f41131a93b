"""Copies and casts."""

from __future__ import annotations

from collections.abc import Callable

from tests.graph.examples.case import ANY, ANY_OR_NONE, FLOATS, QUANTIZED, RESULT, add, into, multiple, simple, words
from tests.graph.examples.elementwise import SHAPE
from tests.support.wiretensor import Arena, Tensor

for _op in ("DUP", "CONT"):
    simple(_op, ("F32", SHAPE), ("F32", SHAPE), strides={RESULT: "any", 0: "any"})


def _cpy(kind: str) -> Callable[[Arena], Tensor]:
    def build(a: Arena) -> Tensor:
        x = a.leaf("F32", (64, 4, 3), "source 0")
        into = a.leaf(kind, (64, 12), "source 1")
        node = a.node("CPY", kind, (64, 12), [x, into], name="subject")
        node.data, node.view_src = into.data, into
        return node

    return build


def _cast(a: Arena) -> Tensor:
    node = a.node("CPY", "F16", (64, 4, 3), [a.leaf("F32", (64, 4, 3), "source 0")], name="subject")
    node.src.append(node)
    return node


add("CPY", "f16", _cpy("F16"), types={0: FLOATS}, strides={0: "any"}, tied=(RESULT, 1))
add("CPY", "q8_0", _cpy("Q8_0"), types={0: FLOATS | {"Q8_0"}}, strides={0: "any"}, tied=(RESULT, 1))
add(
    "CPY",
    "cast",
    _cast,
    types={0: FLOATS, RESULT: FLOATS | QUANTIZED | {"I32"}},
    strides={0: "any", RESULT: "any"},
)
simple(
    "REPEAT",
    ("F32", SHAPE),
    ("F32", (32, 1, 3, 1)),
    sizes={**{(0, d): into(SHAPE[d]) for d in range(4)}, (RESULT, 0): multiple(32), (RESULT, 1): ANY_OR_NONE}
    | {(RESULT, 2): multiple(3), (RESULT, 3): ANY_OR_NONE},
)
simple(
    "REPEAT_BACK",
    ("F32", (32, 1, 3, 1)),
    ("F32", SHAPE),
    sizes={**{(RESULT, d): into(SHAPE[d]) for d in range(4)}, (0, 0): multiple(32), (0, 1): ANY}
    | {(0, 2): multiple(3), (0, 3): ANY},
)
for _dim in range(4):
    _joined = tuple(2 * n if d == _dim else n for d, n in enumerate(SHAPE))
    simple(
        "CONCAT",
        ("F32", _joined),
        ("F32", SHAPE),
        ("F32", SHAPE),
        params=words(_dim),
        name=f"dim{_dim}",
        strides={RESULT: "any", 0: "any", 1: "any"},
        bad={0: (-1, 4, 2**31 - 1, -(2**31), (_dim + 1) % 4)},
    )
_REGION = words(256, 1024, 3072, 16, 0)
for _op in ("ACC", "SET"):
    simple(
        _op,
        ("F32", SHAPE),
        ("F32", SHAPE),
        ("F32", (16, 2, 3)),
        params=_REGION,
        sizes={(1, 0): lambda n: 0 <= n <= 60, (1, 1): lambda n: 0 <= n <= 4, (1, 2): lambda n: 0 <= n <= 6}
        | {(1, 3): lambda n: 0 <= n <= 2},
        strides={RESULT: "whole", 0: "whole"},
        bad={
            0: (-256, 2, 0, 4, 2**31 - 4),
            1: (-4, 1022, 0, 2**31 - 4),
            3: (-16, 3, 6144, 2**31 - 4),
            4: (1, 2, -1),
        },
    )
simple(
    "SET",
    ("I32", SHAPE),
    ("I32", SHAPE),
    ("I32", (16,)),
    params=words(256, 1024, 3072, 16, 0),
    name="i32",
    sizes={
        (1, 0): lambda n: 0 <= n <= 1532,
        (1, 1): lambda n: n <= 24,
        (1, 2): lambda n: n <= 6,
        (1, 3): lambda n: n <= 2,
    },
    strides={RESULT: "whole", 0: "whole"},
    bad={3: (-16, 1, 6144)},
)
