"""Legal graphs of every op that has rules, with what may change in each and stay legal.

`EXAMPLES` holds them. An example's last node is its subject; slot -1 means the subject's result, slot i its source i.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ggml_rpc.spec import dialects
from ggml_rpc.spec.dialects import DEFAULT as LLAMA_8_0
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.spec.enums import GluKind, TriKind, UnaryKind
from ggml_rpc.spec.ops import FIRST_IK_OP, OP_BY_NAME
from ggml_rpc.spec.types import TYPES
from tests.support.wiretensor import Arena, Tensor, tensor

RESULT = -1
FLOATS = frozenset({"F32", "F16", "BF16"})
HALF = frozenset({"F32", "F16"})
QUANTIZED = frozenset(t.name for t in TYPES if t.is_quantized)
INTERLEAVED = frozenset(t.name for t in TYPES if t.row_group > 1)
ONLY: frozenset[str] = frozenset()
NAN = float("nan")
INF = float("inf")
IK_3_5 = dialects.find("ik-3.5.2")

Fits = Callable[[int], bool]
Bad = Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class Example:
    """A legal graph and the freedom that its op's rules leave.

    Parameters
    ----------
    op, name : str
        The subject's op, and what is special here.
    build : callable
        Place the tensors in an arena and return the subject.
    types : mapping of int to set of str
        Types that a slot may have instead, everything else as it is. Slots not named may have no other.
    sizes : mapping of (int, int) to callable
        Dimensions of a slot that may have other sizes, and which.
    strides : mapping of int to str
        What a slot's strides must be: "any", "rows" (elements of a row adjacent, the default), "even" (and rows at one
        distance), "whole" (contiguous).
    tied : tuple of int
        Slots that must be the very same place, type, shape and strides.
    optional : frozenset of int
        Sources that may be missing.
    bad : mapping of int to tuple
        Values that a parameter word must not have; a float stands for its bits.
    dialect : Dialect
        Whose graph it is: enumerations in its parameters are numbered so.
    """

    op: str
    name: str
    build: Callable[[Arena], Tensor]
    types: Mapping[int, frozenset[str]] = field(default_factory=dict)
    sizes: Mapping[tuple[int, int], Fits] = field(default_factory=dict)
    strides: Mapping[int, str] = field(default_factory=dict)
    tied: tuple[int, ...] = ()
    optional: frozenset[int] = frozenset()
    bad: Bad = field(default_factory=dict)
    dialect: Dialect = LLAMA_8_0

    @property
    def id(self) -> str:
        """Name for reports."""
        return f"{self.op}-{self.name}" if self.name else self.op


def words(*values: float) -> bytes:
    """Pack parameter words: ints as i32, floats as f32."""
    return b"".join(struct.pack("<f" if isinstance(v, float) else "<i", v) for v in values)


EXAMPLES: list[Example] = []


def add(op: str, name: str, build: Callable[[Arena], Tensor], **freedom: object) -> None:
    """Append an example."""
    if OP_BY_NAME[op].id >= FIRST_IK_OP:
        freedom.setdefault("dialect", IK_3_5)
    EXAMPLES.append(Example(op, name, build, **freedom))  # type: ignore[arg-type]


def simple(
    op: str,
    result: tuple[str, tuple[int, ...]],
    *sources: tuple[str, tuple[int, ...]] | None,
    params: bytes = b"",
    name: str = "",
    **freedom: object,
) -> None:
    """Append an example of contiguous tensors, each given by type and ne."""

    def build(a: Arena) -> Tensor:
        src = [None if s is None else a.leaf(s[0], s[1], f"source {i}") for i, s in enumerate(sources)]
        return a.node(op, result[0], result[1], src, params=params, name="subject")

    add(op, name, build, **freedom)


def at_least(n: int) -> Fits:
    return lambda m: m >= n


def into(n: int) -> Fits:
    """Sizes that repeat evenly into n."""
    return lambda m: m > 0 and n % m == 0


def multiple(n: int) -> Fits:
    """Sizes that n repeats evenly into: also none."""
    return lambda m: m % n == 0


ANY = at_least(1)
ANY_OR_NONE = at_least(0)
EPS = (-1.0, NAN, INF)

# ---- Element by element ----

SHAPE = (64, 4, 3, 2)
for _op in ("ADD", "SUB", "MUL", "DIV"):
    simple(
        _op,
        ("F32", SHAPE),
        ("F32", SHAPE),
        ("F32", (64, 1, 3, 1)),
        types={RESULT: FLOATS, 0: FLOATS, 1: FLOATS},
        sizes={(1, d): into(SHAPE[d]) for d in range(4)},
        strides={1: "any"},
    )
simple(
    "ADD",
    ("F32", (256, 4)),
    ("Q4_K", (256, 4)),
    ("F32", (256, 4)),
    name="quantised",
    types={RESULT: frozenset({"Q4_K"}), 0: QUANTIZED | FLOATS},
)
simple("ADD1", ("F32", SHAPE), ("F32", SHAPE), ("F32", (1,)), strides={0: "even"})
simple("ADD1", ("F16", SHAPE), ("F16", SHAPE), ("F32", (1,)), name="f16", types={1: HALF}, strides={0: "even"})
simple(
    "ADD_ID",
    ("F32", (32, 4, 5)),
    ("F32", (32, 4, 5)),
    ("F32", (32, 8)),
    ("I32", (4, 5)),
    sizes={(1, 1): ANY},
    strides={2: "any"},
)
for _op in ("SQR", "SQRT", "LOG", "SIN", "COS"):
    simple(_op, ("F32", SHAPE), ("F32", SHAPE), types={0: FLOATS})
for _kind in (kind for kind in UnaryKind if kind <= UnaryKind.TRUNC):
    simple(
        "UNARY",
        ("F16", SHAPE),
        ("F16", SHAPE),
        params=words(int(_kind), 0.5, 0.5, 0.5, 1e-6),
        name=_kind.name,
        types={RESULT: frozenset({"F32"})},
        bad={0: (-1, 22, 64, 2**31 - 1)},
    )
for _glu in GluKind:
    _words = words(int(_glu), 0, 1.7, 7.0)
    _bad = {0: (-1, 7, 32, 2**31 - 1), 1: (2, -1)}
    simple(
        "GLU",
        ("F32", SHAPE),
        ("F32", SHAPE),
        ("F32", SHAPE),
        params=_words,
        name=f"{_glu.name} split",
        strides={RESULT: "even", 0: "even", 1: "even"},
        bad=_bad,
    )
    simple(
        "GLU",
        ("BF16", SHAPE),
        ("BF16", (128, 4, 3, 2)),
        params=_words,
        name=_glu.name,
        strides={RESULT: "even", 0: "even"},
        bad=_bad,
    )
simple("LEAKY_RELU", ("F32", SHAPE), ("F32", SHAPE), params=words(0.1), strides={RESULT: "even", 0: "even"})
simple("SCALE", ("F32", SHAPE), ("F32", SHAPE), params=words(0.5, 0.0), strides={RESULT: "even", 0: "even"})
simple("CLAMP", ("F32", SHAPE), ("F32", SHAPE), params=words(-1.0, 1.0))
simple("FILL", ("F32", SHAPE), ("F32", SHAPE), params=words(1.0), strides={RESULT: "whole", 0: "whole"})

# ---- Along rows ----

simple("NORM", ("F32", SHAPE), ("F32", SHAPE), params=words(1e-5), strides={0: "any"}, bad={0: EPS})
simple("L2_NORM", ("F32", SHAPE), ("F32", SHAPE), params=words(1e-5), strides={0: "any"}, bad={0: EPS})
simple("RMS_NORM", ("F32", SHAPE), ("F32", SHAPE), params=words(1e-5), bad={0: EPS})
simple("RMS_NORM_BACK", ("F32", SHAPE), ("F32", SHAPE), ("F32", SHAPE), params=words(1e-5), bad={0: EPS})
simple(
    "GROUP_NORM",
    ("F32", (8, 4, 6, 2)),
    ("F32", (8, 4, 6, 2)),
    params=words(3, 1e-5),
    bad={0: (0, -1, 4, 5, 7, 2**31 - 1), 1: EPS},
)
simple("SUM", ("F32", (1,)), ("F32", SHAPE), sizes={(0, d): ANY for d in range(4)})
for _op in ("SUM_ROWS", "MEAN"):
    simple(_op, ("F32", (1, 4, 3, 2)), ("F32", SHAPE), sizes={(0, 0): ANY}, strides={RESULT: "any"})
simple("CUMSUM", ("F32", SHAPE), ("F32", SHAPE))
simple("ARGMAX", ("I32", (5,)), ("F32", (64, 5)), sizes={(0, 0): at_least(1)})
simple("COUNT_EQUAL", ("I64", (1,)), ("I32", SHAPE), ("I32", SHAPE), strides={RESULT: "any", 0: "any", 1: "any"})
simple("ARGSORT", ("I32", SHAPE), ("F32", SHAPE), params=words(1), strides={0: "any"}, bad={0: (-1, 2)})
simple(
    "TOP_K",
    ("I32", (8, 4, 3, 2)),
    ("F32", SHAPE),
    sizes={(RESULT, 0): lambda n: n <= 64, (0, 0): at_least(8)},
    strides={0: "any"},
)

# ---- Products ----

simple(
    "MUL_MAT",
    ("F32", (6, 5, 4, 2)),
    ("F16", (256, 6, 2, 1)),
    ("F32", (256, 5, 4, 2)),
    types={0: FLOATS | QUANTIZED, 1: FLOATS},
    sizes={(0, 2): into(4), (0, 3): into(2)},
    strides={1: "any"},
)
simple(
    "MUL_MAT",
    ("F32", (6, 5)),
    ("Q4_0", (64, 6)),
    ("F32", (64, 5)),
    name="quantised",
    types={0: FLOATS | QUANTIZED, 1: FLOATS},
    strides={1: "any"},
)
simple(
    "MUL_MAT_ID",
    ("F32", (6, 2, 5)),
    ("Q8_0", (64, 6, 8)),
    ("F32", (64, 1, 5)),
    ("I32", (2, 5)),
    types={0: FLOATS | QUANTIZED},
    sizes={(0, 2): ANY, (1, 1): into(2)},
    strides={2: "any"},
)
simple(
    "OUT_PROD",
    ("F32", (8, 6, 4, 2)),
    ("F32", (8, 5, 2, 1)),
    ("F32", (6, 5, 4, 2)),
    sizes={(0, 2): into(4), (0, 3): into(2)},
    strides={1: "any"},
)
simple(
    "SOLVE_TRI",
    ("F32", (3, 8, 2, 2)),
    ("F32", (8, 8, 2, 2)),
    ("F32", (3, 8, 2, 2)),
    strides={RESULT: "whole", 0: "whole", 1: "whole"},
)

# ---- Attention ----

simple(
    "SOFT_MAX",
    ("F32", (32, 5, 4, 2)),
    ("F32", (32, 5, 4, 2)),
    ("F16", (32, 8, 2, 1)),
    ("F32", (4,)),
    params=words(0.125, 8.0),
    types={1: HALF},
    sizes={(1, 1): at_least(5), (1, 2): into(4), (1, 3): into(2)},
    strides={RESULT: "whole", 0: "whole"},
    optional=frozenset({2}),
    bad={0: (NAN, INF), 1: EPS},
)
simple(
    "SOFT_MAX",
    ("F32", SHAPE),
    ("F32", SHAPE),
    params=words(1.0, 0.0),
    name="bare",
    strides={RESULT: "whole", 0: "whole"},
    bad={0: (NAN,), 1: (1.0, *EPS)},
)
simple(
    "SOFT_MAX_BACK",
    ("F32", SHAPE),
    ("F32", SHAPE),
    ("F32", SHAPE),
    params=words(1.0, 0.0),
    strides={RESULT: "whole", 0: "whole", 1: "whole"},
    bad={0: (NAN,), 1: (1.0, NAN)},
)
simple(
    "FLASH_ATTN_EXT",
    ("F32", (32, 4, 5, 2)),
    ("F32", (64, 5, 4, 2)),
    ("F16", (64, 16, 2, 2)),
    ("F16", (32, 16, 2, 2)),
    ("F16", (16, 8, 2, 1)),
    ("F32", (4,)),
    params=words(0.125, 8.0, 0.0, 10, 0),
    types={1: FLOATS | QUANTIZED, 2: FLOATS | QUANTIZED},
    sizes={(1, 2): into(4), (2, 2): into(4), (3, 1): at_least(5), (3, 2): into(4), (3, 3): into(2)},
    strides={RESULT: "whole"},
    optional=frozenset({4}),
    bad={0: (NAN,), 1: EPS, 2: (NAN,), 4: (-1,)},
)


def _rope(mode: int, n_dims: int, sections: tuple[int, ...] = (0, 0, 0, 0), n_offs: int = 0) -> bytes:
    return words(0, n_dims, mode, 0, 4096, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0, *sections, n_offs)


_ROPE_FLOATS: Bad = {5: (0.0, -1.0, NAN), 6: (NAN,), 7: (INF,), 8: (NAN,), 9: (NAN,), 10: (NAN,), 4: (-1,)}
_X = (64, 4, 6, 2)
for _mode, _label in ((0, "normal"), (2, "neox")):
    simple(
        "ROPE",
        ("F32", _X),
        ("F32", _X),
        ("I32", (6,)),
        ("F32", (24,)),
        params=_rope(_mode, 48),
        name=_label,
        sizes={(2, 0): at_least(24)},
        optional=frozenset({2}),
        bad={1: (0, -2, 47, 66, 2**31 - 2), 2: (1, 3, 4, 9, 16, 8, 24, 40, 2**31 - 1), 15: (-2, 1, 18), **_ROPE_FLOATS},
    )
for _mode, _label in ((8, "mrope"), (40, "imrope")):
    simple(
        "ROPE",
        ("F16", _X),
        ("F16", _X),
        ("I32", (24,)),
        params=_rope(_mode, 64, (8, 12, 12, 0)),
        name=_label,
        bad={1: (0, 63, 66), 2: (0, 2, 10, 56), 11: (-1, 41), 14: (-1, 33, 2**31 - 1), 15: (2, -2), **_ROPE_FLOATS},
    )
simple(
    "ROPE",
    ("F32", _X),
    ("F32", _X),
    ("I32", (24,)),
    params=_rope(24, 32, (16, 16, 0, 0)),
    name="vision",
    bad={1: (30, 64), 15: (2,), 11: (-16, 49)},
)
simple("ROPE_BACK", ("F32", _X), ("F32", _X), ("I32", (6,)), params=_rope(2, 64), bad={1: (0, 65), 2: (8,)})
for _op in ("DIAG_MASK_INF", "DIAG_MASK_ZERO"):
    simple(_op, ("F32", SHAPE), ("F32", SHAPE), params=words(3), strides={RESULT: "whole", 0: "whole"}, bad={0: (-1,)})
simple(
    "LIGHTNING_INDEXER",
    ("F32", (16, 5, 1, 2)),
    ("F32", (64, 4, 5, 2)),
    ("F16", (64, 1, 16, 2)),
    ("F32", (4, 5, 1, 2)),
    ("F16", (16, 5, 1, 1)),
    types={1: FLOATS | QUANTIZED},
    sizes={(3, 3): into(2)},
)

# ---- Rows by index ----

simple(
    "GET_ROWS",
    ("F32", (64, 5, 3, 2)),
    ("Q4_0", (64, 9, 3, 2)),
    ("I32", (5, 3, 2)),
    types={0: FLOATS | QUANTIZED},
    sizes={(0, 1): ANY},
    strides={1: "any"},
)
simple("GET_ROWS", ("I32", (8, 5)), ("I32", (8, 9)), ("I32", (5,)), name="i32", sizes={(0, 1): ANY}, strides={1: "any"})
simple(
    "GET_ROWS_BACK",
    ("F32", (8, 9)),
    ("F32", (8, 5)),
    ("I32", (5,)),
    types={0: HALF},
    sizes={(RESULT, 1): ANY},
    strides={RESULT: "whole"},
)


def _set_rows(kind: str, index: str) -> Callable[[Arena], Tensor]:
    def build(a: Arena) -> Tensor:
        values = a.leaf("F32", (64, 5, 4, 2), "source 0")
        ids = a.leaf(index, (5, 2, 1), "source 1")
        cache = a.leaf(kind, (64, 32, 4, 2), "source 2")
        node = a.node("SET_ROWS", kind, (64, 32, 4, 2), [values, ids, cache], name="subject")
        node.data, node.view_src = cache.data, cache
        return node

    return build


for _kind, _index in (("F16", "I64"), ("Q8_0", "I32"), ("F32", "I64")):
    add(
        "SET_ROWS",
        _kind,
        _set_rows(_kind, _index),
        types={0: HALF, 1: frozenset({"I32", "I64"})},
        sizes={(1, 1): into(4), (1, 2): into(2)},
        strides={1: "any"},
        tied=(RESULT, 2),
    )

# ---- Copies ----

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

# ---- Shapes ----

simple("DIAG", ("F32", (8, 8, 3, 2)), ("F32", (8, 1, 3, 2)))
for _tri in TriKind:
    simple(
        "TRI",
        ("F32", (8, 8, 3, 2)),
        ("F32", (8, 8, 3, 2)),
        params=words(int(_tri)),
        name=_tri.name,
        strides={0: "whole"},
        bad={0: (-1, 4)},
    )
simple(
    "PAD",
    ("F32", (67, 7, 4, 3)),
    ("F32", SHAPE),
    params=words(1, 2, 2, 1, 1, 0, 0, 1, 0),
    strides={RESULT: "whole", 0: "any"},
    bad={0: (-1, 2), 1: (-2, 1), 7: (-1, 2**31 - 1), 8: (-1, 2)},
)
simple(
    "PAD",
    ("F32", (67, 7, 4, 3)),
    ("F32", SHAPE),
    params=words(1, 2, 2, 1, 1, 0, 0, 1, 1),
    name="circular",
    strides={RESULT: "whole", 0: "any"},
)
simple(
    "PAD_REFLECT_1D",
    ("F32", (69, 4, 3, 2)),
    ("F32", SHAPE),
    params=words(2, 3),
    strides={0: "whole"},
    bad={0: (-1, 3, 64), 1: (-3, 2, 64)},
)
simple(
    "ROLL",
    ("F32", SHAPE),
    ("F32", SHAPE),
    params=words(-5, 3, 0, -1),
    bad={0: (64, -64, -(2**31)), 1: (4,), 3: (2, -2)},
)
simple(
    "ARANGE",
    ("F32", (10,)),
    params=words(0.0, 5.0, 0.5),
    bad={0: (5.0, NAN, -1.0), 1: (0.0, INF, 6.0), 2: (0.0, -0.5, NAN, 1e-30, 1.0)},
)
simple("TIMESTEP_EMBEDDING", ("F32", (33, 4)), ("F32", (4,)), params=words(33, 10000), bad={0: (0, -1, 32), 1: (0, -1)})
simple(
    "UPSCALE",
    ("F32", (128, 8, 3, 2)),
    ("F32", SHAPE),
    params=words(0),
    sizes={(s, d): ANY_OR_NONE for s in (RESULT, 0) for d in range(4)},
    strides={0: "any"},
    bad={0: (3, 255, -1, 1024, 512)},
)
simple(
    "WIN_PART",
    ("F32", (8, 4, 4, 6)),
    ("F32", (8, 7, 9)),
    params=words(2, 3, 4),
    strides={RESULT: "whole", 0: "whole"},
    sizes={(0, 1): lambda n: 5 <= n <= 8, (0, 2): lambda n: 9 <= n <= 12},
    bad={0: (1, 3, -1), 1: (2, -1), 2: (0, -1, 3, 2**31 - 1)},
)
simple(
    "WIN_UNPART",
    ("F32", (8, 7, 9)),
    ("F32", (8, 4, 4, 6)),
    params=words(4),
    strides={RESULT: "whole", 0: "whole"},
    sizes={(RESULT, 1): lambda n: 5 <= n <= 8, (RESULT, 2): lambda n: 9 <= n <= 12},
    bad={0: (0, -4, 3, 5)},
)
simple("GET_REL_POS", ("F16", (8, 5, 5)), ("F16", (8, 9)), strides={RESULT: "whole", 0: "whole"})
simple(
    "ADD_REL_POS",
    ("F32", (16, 15, 2)),
    ("F32", (16, 15, 2)),
    ("F32", (4, 3, 5, 2)),
    ("F32", (4, 3, 5, 2)),
    params=words(0),
    strides=dict.fromkeys((RESULT, 0, 1, 2), "whole"),
    bad={0: (1, 2)},
)

# ---- Convolutions ----

simple(
    "IM2COL",
    ("F16", (27, 8, 6, 2)),
    ("F16", (3, 3, 3, 5)),
    ("F32", (8, 6, 3, 2)),
    params=words(1, 1, 1, 1, 1, 1, 1),
    types={RESULT: HALF, 0: FLOATS | {"I32", "I64", "I8", "I16", "F64"}, 1: HALF},
    sizes={(0, 3): ANY},
    strides={RESULT: "whole", 0: "any"},
    bad={0: (0, -1, 2), 1: (0, 2), 2: (-1, 0), 3: (2,), 4: (0, 2), 5: (-1,), 6: (0, 2)},
)
simple(
    "IM2COL",
    ("F32", (9, 8, 2)),
    ("F32", (3, 3, 5)),
    ("F32", (8, 3, 2)),
    params=words(1, 0, 1, 0, 1, 0, 0),
    name="1d",
    types={RESULT: HALF, 0: FLOATS | {"I32", "I64", "I8", "I16", "F64"}},
    sizes={(0, 2): ANY, (0, 3): ANY},
    strides={RESULT: "whole", 0: "any"},
    bad={0: (0, 2), 2: (0,), 4: (0,), 6: (1,)},
)
simple(
    "IM2COL_3D",
    ("F16", (54, 6, 5, 8)),
    ("F16", (3, 3, 3, 4)),
    ("F32", (6, 5, 4, 4)),
    params=words(1, 1, 1, 1, 1, 1, 1, 1, 1, 2),
    types={RESULT: HALF, 0: FLOATS | {"I32", "I64", "I8", "I16", "F64"}},
    sizes={(0, 3): multiple(2)},
    strides={RESULT: "whole", 0: "any"},
    bad={**dict.fromkeys(range(3), (0, -1, 2)), 4: (0, -1), 7: (0, 2), 9: (0, -2, 1, 3)},
)
simple(
    "CONV_2D",
    ("F32", (8, 6, 5, 2)),
    ("F16", (3, 3, 3, 5)),
    ("F32", (8, 6, 3, 2)),
    params=words(1, 1, 1, 1, 1, 1),
    types={0: HALF},
    strides={RESULT: "whole", 0: "whole", 1: "any"},
    bad={0: (0, 2), 1: (-1,), 2: (0, -1), 4: (0,), 5: (2,)},
)
simple(
    "CONV_2D_DW",
    ("F32", (8, 6, 5, 2)),
    ("F32", (3, 3, 1, 5)),
    ("F32", (8, 6, 5, 2)),
    params=words(1, 1, 1, 1, 1, 1),
    types={0: HALF},
    strides={RESULT: "any", 0: "any", 1: "any"},
    bad={0: (0, 2), 3: (0, -1), 4: (0,)},
)
simple(
    "CONV_3D",
    ("F32", (6, 5, 4, 6)),
    ("F16", (3, 3, 3, 6)),
    ("F32", (6, 5, 4, 4)),
    params=words(1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3),
    types={0: HALF},
    strides={RESULT: "whole", 0: "whole", 1: "any"},
    bad={0: (0, 2), 3: (-1, 0), 6: (0,), 9: (0, 1), 10: (1, 3), 11: (0, 2, 2**31 - 1)},
)
simple(
    "CONV_TRANSPOSE_1D",
    ("F32", (17, 5)),
    ("F16", (3, 5, 4)),
    ("F32", (8, 4)),
    params=words(2, 0, 1),
    types={0: HALF},
    strides={RESULT: "whole"},
    bad={0: (0, -1, 1, 2**31 - 1), 1: (1,), 2: (0, 2)},
)
simple(
    "CONV_TRANSPOSE_2D",
    ("F32", (17, 13, 5, 2)),
    ("F16", (3, 3, 5, 4)),
    ("F32", (8, 6, 4, 2)),
    params=words(2),
    types={0: HALF},
    strides={RESULT: "whole"},
    bad={0: (0, -1, 1, 2**31 - 1)},
)
simple(
    "COL2IM_1D",
    ("F32", (15, 4)),
    ("F32", (12, 8)),
    params=words(2, 4, 1),
    strides={RESULT: "whole", 0: "whole"},
    bad={0: (0, -2, 1), 1: (0, -4, 5, 3), 2: (-1, 0, 2**31 - 1)},
)
simple(
    "POOL_1D",
    ("F32", (32, 4, 3, 2)),
    ("F32", SHAPE),
    params=words(0, 2, 2, 0),
    types={0: HALF},
    sizes={(0, 0): lambda n: n in (64, 65)},
    strides={RESULT: "whole"},
    bad={0: (-1, 2), 1: (0, -1, 70), 2: (0, 1), 3: (-1, 5)},
)
simple(
    "POOL_2D",
    ("F32", (32, 2, 3, 2)),
    ("F16", SHAPE),
    params=words(1, 2, 2, 2, 2, 0, 0),
    types={0: HALF},
    sizes={(0, 0): lambda n: n in (64, 65), (0, 1): lambda n: n in (4, 5)},
    strides={RESULT: "whole"},
    bad={0: (-1, 2), 1: (0,), 2: (-1, 5), 3: (0, 1), 4: (0,), 5: (-1, 2), 6: (1,)},
)

simple(
    "IM2COL_BACK",
    ("F32", (8, 6, 3, 2)),
    ("F32", (27, 8, 6, 2)),
    ("F16", (3, 3, 3, 5)),
    params=words(1, 1, 1, 1, 1, 1, 1),
    types={1: HALF},
    sizes={(1, 3): ANY},
    strides={0: "whole", 1: "any"},
    bad={0: (0, -1, 2), 1: (0, 2), 2: (-1, 0), 3: (2,), 4: (0, 2), 5: (-1,), 6: (0, 2)},
)
simple(
    "IM2COL_BACK",
    ("F32", (8, 3, 2)),
    ("F32", (9, 8, 2)),
    ("F32", (3, 3, 5)),
    params=words(1, 0, 1, 0, 1, 0, 0),
    name="1d",
    types={1: HALF},
    sizes={(1, 2): ANY, (1, 3): ANY},
    strides={0: "whole", 1: "any"},
    bad={0: (0, 2), 2: (0,), 4: (0,), 6: (1,)},
)
for _kind in (0, 1):
    simple(
        "POOL_2D_BACK",
        ("F32", (9, 7, 3, 2)),
        ("F32", (4, 4, 3, 2)),
        ("F32", (9, 7, 3, 2)),
        params=words(_kind, 3, 2, 2, 2, 0, 1),
        name=("largest", "mean")[_kind],
        bad={0: (-1, 2), 1: (0,), 2: (-1, 5), 3: (0, 1), 4: (0,), 5: (-1, 2), 6: (2,)},
    )

# ---- Training ----

simple(
    "CROSS_ENTROPY_LOSS",
    ("F32", (1,)),
    ("F32", SHAPE),
    ("F32", SHAPE),
    strides={RESULT: "any"},
)
simple("CROSS_ENTROPY_LOSS_BACK", ("F32", SHAPE), ("F32", (1,)), ("F32", SHAPE), ("F32", SHAPE), strides={0: "any"})


def _optimiser(op: str, n: int, n_params: int) -> Callable[[Arena], Tensor]:
    def build(a: Arena) -> Tensor:
        sources = [a.leaf("F32", SHAPE, f"source {i}") for i in range(n)]
        node = a.node(op, "F32", SHAPE, [*sources, a.leaf("F32", (n_params,), f"source {n}")], name="subject")
        node.data, node.view_src = sources[0].data, sources[0]
        return node

    return build


add(
    "OPT_STEP_ADAMW",
    "",
    _optimiser("OPT_STEP_ADAMW", 4, 7),
    strides={2: "whole", 3: "whole", 4: "whole"},
    tied=(RESULT, 0),
)
add("OPT_STEP_SGD", "", _optimiser("OPT_STEP_SGD", 2, 2), strides={2: "whole"}, tied=(RESULT, 0))
for _masked in (0, 1):
    simple(
        "FLASH_ATTN_BACK",
        ("F32", (32 * 5 * 4 * 2 + 32 * 9 * 2 * 2 * 2,)),
        ("F32", (32, 5, 4, 2)),
        ("F32", (32, 9, 2, 2)),
        ("F32", (9, 32, 2, 2)),
        ("F32", (32, 5, 4, 2)),
        params=words(_masked),
        name=("", "masked")[_masked],
        strides={3: "any"},
        bad={0: (-1, 2)},
    )

# ---- Recurrent layers ----

simple(
    "SSM_CONV",
    ("F32", (8, 5, 2)),
    ("F32", (8, 8, 2)),
    ("F32", (4, 8)),
    strides={RESULT: "whole", 0: "close", 1: "whole"},
)
simple(
    "SSM_SCAN",
    ("F32", (8 * 4 * 5 * 2 + 2 * 16 * 8 * 4 * 2,)),
    ("F32", (16, 8, 4, 3)),
    ("F32", (8, 4, 5, 2)),
    ("F32", (4, 5, 2)),
    ("F32", (1, 4)),
    ("F32", (16, 2, 5, 2)),
    ("F32", (16, 2, 5, 2)),
    ("I32", (2,)),
    params=words(2),
    sizes={(0, 3): ANY},
    strides={RESULT: "whole", 0: "whole", 1: "close", 2: "whole", 3: "whole", 4: "close", 5: "close"},
    bad={0: (0, -1, 1, 3, 2**31 - 1)},
)
simple(
    "SSM_SCAN",
    ("F32", (8 * 4 * 5 * 2 + 16 * 8 * 4 * 2,)),
    ("F32", (16, 8, 4, 3)),
    ("F32", (8, 4, 5, 2)),
    ("F32", (4, 5, 2)),
    ("F32", (16, 4)),
    ("F32", (16, 2, 5, 2)),
    ("F32", (16, 2, 5, 2)),
    ("I32", (2,)),
    name="before snapshots",
    sizes={(0, 3): ANY, (3, 0): lambda n: n in (1, 16)},
    strides={RESULT: "whole", 0: "whole", 1: "close", 2: "whole", 3: "whole", 4: "close", 5: "close"},
    bad={0: (-1, 2)},
)
_T = (8, 4, 6)
for _op, _n in (("RWKV_WKV6", 5), ("GATED_LINEAR_ATTN", 4), ("RWKV_WKV7", 6)):
    _inputs = [("F32", _T)] * _n
    if _op == "RWKV_WKV6":
        _inputs[3] = ("F32", (8, 4))
    simple(
        _op,
        ("F32", (32, 6 + 8 * 2)),
        *_inputs,
        ("F32", (8 * 8 * 4, 2)),
        params=words(1.0) if _op == "GATED_LINEAR_ATTN" else b"",
        strides=dict.fromkeys(range(-1, _n + 1), "whole"),
        bad={0: (NAN,)} if _op == "GATED_LINEAR_ATTN" else {},
    )
simple(
    "GATED_DELTA_NET",
    ("F32", (8 * 4, 5 * 2 + 2 * 8 * 2)),
    ("F32", (8, 2, 5, 2)),
    ("F32", (8, 2, 5, 2)),
    ("F32", (8, 4, 5, 2)),
    ("F32", (1, 4, 5, 2)),
    ("F32", (1, 4, 5, 2)),
    ("F32", (8, 8, 4, 2)),
    params=words(2),
    sizes={(s, d): into((8, 4, 5, 2)[d]) for s in (0, 1) for d in (1, 3)},
    strides={RESULT: "whole", 3: "whole", 4: "whole", 5: "whole"},
    bad={0: (0, -1, 1, 2**31 - 1)},
)
simple(
    "GATED_DELTA_NET",
    ("F32", (8 * 4, 5 * 2 + 8 * 2)),
    ("F32", (8, 2, 5, 2)),
    ("F32", (8, 2, 5, 2)),
    ("F32", (8, 4, 5, 2)),
    ("F32", (8, 4, 5, 2)),
    ("F32", (1, 4, 5, 2)),
    ("F32", (8 * 8 * 4, 2)),
    name="before snapshots",
    sizes={(3, 0): lambda n: n in (1, 8), **{(s, d): into((8, 4, 5, 2)[d]) for s in (0, 1) for d in (1, 3)}},
    strides={RESULT: "whole", 3: "whole", 4: "whole", 5: "whole"},
    bad={0: (-1, 2)},
)
simple(
    "DSV4_HC_COMB",
    ("F32", (4, 4, 5)),
    ("F32", (24, 5)),
    ("F32", (3,)),
    ("F32", (24,)),
    params=words(1e-6, 20),
    sizes={(1, 0): at_least(3)},
    bad={0: EPS, 1: (0, -1)},
)
simple(
    "DSV4_HC_PRE",
    ("F32", (64, 5)),
    ("F32", (64, 4, 5)),
    ("F32", (4, 5)),
    params=words(1.0, 0),
    bad={0: (NAN,), 1: (1, 2)},
)
simple(
    "DSV4_HC_PRE",
    ("F32", (64, 5)),
    ("F32", (64, 4, 5)),
    ("F32", (64, 4, 5)),
    params=words(1.0, 1),
    name="gated",
    bad={1: (0, -1)},
)
simple(
    "DSV4_HC_POST",
    ("F32", (64, 4, 5)),
    ("F32", (64, 5)),
    ("F32", (64, 4, 5)),
    ("F32", (4, 5)),
    ("F32", (4, 4, 5)),
    optional=frozenset({3}),
)
simple("SILU_BACK", ("F32", SHAPE), ("F32", SHAPE), ("F32", SHAPE), strides=dict.fromkeys((RESULT, 0, 1), "even"))


# ---- ik_llama.cpp's own, and what it sends in other forms ----

simple(
    "GET_ROWS",
    ("Q8_0", (64, 5, 3, 2)),
    ("Q8_0", (64, 9, 3, 2)),
    ("I32", (5, 3, 2)),
    name="as they are",
    types={RESULT: frozenset({"F32"})},
    sizes={(0, 1): ANY},
    strides={1: "any"},
    dialect=IK_3_5,
)
for _op in ("FUSED_RMS_NORM", "FUSED_NORM"):
    simple(
        _op,
        ("F32", SHAPE),
        ("F32", SHAPE),
        ("F32", (64,)),
        params=words(1e-5),
        optional=frozenset({1} if _op == "FUSED_RMS_NORM" else ()),
        bad={0: EPS},
    )
simple(
    "FUSED_RMS_RMS_ADD",
    ("F32", SHAPE),
    ("F32", SHAPE),
    ("F32", (64,)),
    ("F32", SHAPE),
    ("F32", (64,)),
    params=words(1e-5),
    bad={0: EPS},
)
_IK_SILU, _IK_SIGMOID = 10, 7
_NO_GATES = (-1, 0, 9, 13, 16, 19, 2**31 - 1)
simple(
    "FUSED_MUL_UNARY",
    ("F32", SHAPE),
    ("F32", SHAPE),
    ("F32", SHAPE),
    params=words(_IK_SILU, 0.5),
    sizes={(0, 0): into(1)},
    bad={0: (*_NO_GATES, _IK_SIGMOID, 14), 1: (NAN,)},
)
simple(
    "FUSED_MUL_UNARY",
    ("F32", SHAPE),
    ("F32", (1, 4, 3, 2)),
    ("F32", SHAPE),
    params=words(_IK_SIGMOID, 0.0),
    name="row",
    bad={0: (*_NO_GATES, 6, 14, 15), 1: (NAN,)},
)
simple(
    "SOFTCAP",
    ("F32", SHAPE),
    ("F32", SHAPE),
    params=words(0.02, 50.0),
    bad={0: (NAN, INF), 1: (NAN, -INF)},
)
simple(
    "SOFT_CAP_MAX",
    ("F32", SHAPE),
    ("F32", SHAPE),
    ("F16", (64, 32)),
    params=words(1.0, 0.0, 0.02, 50.0),
    types={1: HALF},
    sizes={(1, 1): at_least(4)},
    strides={RESULT: "whole", 0: "whole"},
    optional=frozenset({1}),
    bad={0: (NAN, INF), 1: EPS, 2: (INF,), 3: (NAN,)},
)
simple(
    "HADAMARD",
    ("F32", (256, 4, 3)),
    ("F32", (256, 4, 3)),
    params=words(64),
    types={0: FLOATS | QUANTIZED - INTERLEAVED},
    bad={0: (0, 1, -2, 3, 96, 512, -(2**31))},
)
simple(
    "MUL_MULTI_ADD",
    ("F32", (64, 5)),
    ("F32", (64, 4, 5)),
    ("F32", (1, 4, 5)),
    strides={1: "any"},
)
simple(
    "MUL_MULTI_ADD",
    ("F32", (64, 5)),
    ("F32", (64, 4, 5)),
    ("F32", (1, 4, 5)),
    ("F32", (8,)),
    ("I32", (4, 5)),
    name="scaled",
    sizes={(2, 0): ANY},
    strides={1: "any", 2: "any", 3: "any"},
)
simple("MULTI_ADD", ("F32", (64, 5)), ("F32", (64, 5)), params=words(1), bad={0: (0, -1, 2, 2**31 - 1)})
for _dim in (1, 2, 3):
    simple(
        "SUM_ROWS",
        ("F32", tuple(1 if d == _dim else n for d, n in enumerate(SHAPE))),
        ("F32", SHAPE),
        params=words(_dim),
        name=f"dim{_dim}",
        sizes={(0, _dim): ANY},
        bad={0: (-1, 4, 2**31 - 1, _dim % 3 + 1)},
        dialect=IK_3_5,
    )
simple(
    "FUSED_UP_GATE",
    ("F32", (6, 5)),
    ("Q4_0", (64, 6)),
    ("Q4_0", (64, 6)),
    ("F32", (64, 5)),
    params=words(_IK_SILU, 0.0),
    bad={0: (*_NO_GATES, _IK_SIGMOID), 1: (NAN,)},
)
_MOE = (("Q8_0", (64, 6, 8)), ("F32", (64, 1, 5)), ("I32", (2, 5)))
simple(
    "MOE_FUSED_UP_GATE",
    ("F32", (6, 2, 5)),
    _MOE[0],
    *_MOE,
    ("F32", (6, 8)),
    ("F32", (6, 8)),
    params=words(int(UnaryKind.SWIGLU_OAI), 0.0),
    sizes={(2, 1): into(2)},
    strides={3: "any"},
    optional=frozenset({4, 5}),
    bad={0: (*_NO_GATES, _IK_SIGMOID), 1: (NAN,)},
)
simple(
    "MOE_FUSED_UP_GATE",
    ("F32", (16, 2, 5)),
    ("Q8_0", (64, 32, 8)),
    None,
    *_MOE[1:],
    ("F32", (32, 8)),
    params=words(_IK_SILU, 1.0),
    name="merged",
    types={0: FLOATS | QUANTIZED | INTERLEAVED},
    sizes={(2, 1): into(2)},
    strides={3: "any"},
    optional=frozenset({4}),
    bad={0: (*_NO_GATES, _IK_SIGMOID), 1: (NAN,)},
)
simple(
    "GROUPED_TOPK",
    ("I32", (8, 5)),
    ("F32", (64, 5)),
    params=words(8, 4, 2),
    sizes={(RESULT, 0): lambda n: n <= 64, (0, 0): lambda n: n >= 16 and n % 8 == 0},
    bad={0: (0, -1, 3, 7, 128, 2**31 - 1), 1: (0, -1, 9), 2: (0, -1, 9)},
)
simple(
    "IK_SSM_CONV",
    ("F32", (8 * 5 + 4 * 8 * 2,)),
    ("F32", (3, 8, 2)),
    ("F32", (8, 5)),
    ("F32", (4, 8)),
    ("I32", (2, 5)),
    strides={RESULT: "whole", 0: "close", 2: "whole", 3: "any"},
)
simple(
    "IK_SSM_CONV",
    ("F32", (8 * 5 + 4 * 8,)),
    ("F32", (3, 8, 1)),
    ("F32", (8, 5)),
    ("F32", (4, 8)),
    ("I32", (1, 5)),
    ("F32", (3 * 8 * 5,)),
    name="stored",
    sizes={(4, 0): at_least(3 * 8 * 5), (4, 1): ANY, (4, 2): ANY, (4, 3): ANY},
    strides={RESULT: "whole", 0: "close", 2: "whole", 3: "any", 4: "whole"},
    optional=frozenset({4}),
)
simple(
    "IK_SSM_SCAN",
    ("F32", (8 * 5 + 16 * 8 * 2,)),
    ("F32", (16, 8, 2)),
    ("F32", (8, 5)),
    ("F32", (8, 5)),
    ("F32", (16, 8)),
    ("F32", (16, 5)),
    ("F32", (16, 5)),
    ("I32", (2, 5)),
    strides={RESULT: "whole", 0: "whole", 1: "whole", 2: "whole", 3: "whole", 6: "any"},
)
simple(
    "DELTA_NET",
    ("F32", (8 * 5 * 4 * 2 + 8 * 8 * 4 * 2,)),
    ("F32", (8, 5, 2, 2)),
    ("F32", (8, 5, 2, 2)),
    ("F32", (8, 5, 4, 2)),
    ("F32", (5, 1, 4, 2)),
    ("F32", (1, 5, 4, 2)),
    ("F32", (8, 8 * 4, 1, 2)),
    ("F32", (4 * 8 * 8 * 4 * 2,)),
    params=words(1),
    sizes={(3, 1): lambda n: n in (1, 8), (6, 0): at_least(4 * 8 * 8 * 4 * 2), (6, 1): ANY, (6, 2): ANY, (6, 3): ANY},
    strides={RESULT: "whole", 0: "whole", 1: "whole", 3: "any", 4: "any", 5: "whole", 6: "whole"},
    optional=frozenset({6}),
    bad={0: (-1, 2)},
)

simple(
    "GET_ROWS",
    ("F32", (9, 4, 3, 2)),
    ("F32", (64, 4, 3, 2)),
    ("I32", (9, 4, 3, 2)),
    params=words(1),
    name="elements",
    sizes={(0, 0): ANY},
    strides={0: "any", 1: "any"},
    bad={0: (0, 2, -1)},
    dialect=IK_3_5,
)
simple(
    "BLEND",
    ("F32", SHAPE),
    ("F32", SHAPE),
    ("I32", (8, 4, 3, 2)),
    params=words(-1.0),
    types={1: frozenset({"I32", "I64"})},
    sizes={(1, 0): lambda n: n <= 64},
    strides={1: "any"},
)
simple(
    "ARGSORT_THRESH",
    ("I32", SHAPE),
    ("F32", SHAPE),
    params=words(2, 0.5),
    strides={0: "any"},
    bad={0: (-1,), 1: (NAN, INF)},
)
simple(
    "ROPE_CACHE",
    ("F32", (32, 5)),
    ("I32", (5,)),
    ("F32", (16,)),
    params=words(0, 32, 2, 0, 4096, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0),
    sizes={(RESULT, 0): lambda n: n >= 32 and n % 2 == 0, (1, 0): at_least(16)},
    optional=frozenset({1}),
    bad={1: (0, -2, 31, 34, 66), 2: (1, 8, 24, 40, -1), **_ROPE_FLOATS},
)
simple(
    "ROPE_FAST",
    ("F32", (64, 4, 5, 2)),
    ("F32", (64, 4, 5, 2)),
    ("F32", (64, 5)),
    params=words(32, 2),
    sizes={(1, 0): at_least(64), (1, 1): at_least(5)},
    bad={0: (0, -2, 31, 66), 1: (1, 8, 24, 40, -1)},
)
simple(
    "FLASH_ATTN_EXT",
    ("F32", (32, 4, 5)),
    ("F32", (64, 5, 4)),
    ("F16", (64, 96)),
    ("F16", (32, 96)),
    ("F16", (96, 16)),
    ("F32", (4,)),
    ("I32", (24, 16)),
    name="rows",
    params=words(0.125, 0.0, 0.0, 0, 0),
    types={1: (FLOATS | QUANTIZED) - INTERLEAVED, 2: (FLOATS | QUANTIZED) - INTERLEAVED},
    sizes={
        (3, 1): at_least(5),
        (3, 2): into(4),
        (5, 0): ANY,
        (5, 1): at_least(5),
        (5, 2): ANY,
        (5, 3): ANY,
        (1, 2): into(4),
        (2, 2): into(4),
    },
    strides={RESULT: "whole"},
    optional=frozenset({3, 4, 5}),
    bad={0: (NAN,), 1: EPS, 2: (NAN,)},
    dialect=IK_3_5,
)
simple(
    "INDEXER_TOPK",
    ("I32", (8, 5)),
    ("F16", (64, 96)),
    ("F32", (64, 4, 5)),
    ("F32", (4, 5)),
    ("F32", (96, 5)),
    params=words(6),
    types={0: (FLOATS | QUANTIZED) - INTERLEAVED, 3: HALF},
    sizes={(RESULT, 0): lambda n: n <= 96},
    strides={2: "any"},
    bad={0: (0, 5, 7, 10, 99, -1)},
)
simple(
    "MASK_TOPK",
    ("F32", (64, 16, 3, 2)),
    ("F32", (64, 16, 3, 2)),
    ("I32", (8, 5, 3, 2)),
    sizes={(1, 0): lambda n: n <= 64, (1, 1): lambda n: n <= 16},
    strides={1: "any"},
)
simple(
    "MASK_TO_IDX",
    ("I32", (16, 5, 3, 2)),
    ("F32", (64, 5, 3, 2)),
    types={0: HALF},
    sizes={(RESULT, 0): lambda n: n <= 64, (0, 0): at_least(16)},
)
simple(
    "LATENT_ATTN",
    ("F32", (32, 5, 4)),
    ("F32", (64, 5, 4)),
    ("F16", (64, 96)),
    ("F32", (64, 7)),
    ("F32", (7, 32)),
    ("F32", (96, 8)),
    ("I32", (9, 8)),
    params=words(0.1, 0.0, 32, 16, 1),
    types={1: (FLOATS | QUANTIZED) - INTERLEAVED, 2: HALF, 3: HALF},
    sizes={(4, 1): at_least(5), (5, 0): ANY, (5, 1): at_least(5)},
    strides={2: "whole", 3: "whole"},
    optional=frozenset({4}),
    bad={0: (NAN, INF), 1: (1.0, NAN), 2: (0, -1, 31, 49), 3: (-1, 33), 4: (0, 2, -1)},
)
for _kind in (0, 1):
    simple(
        "DS4_COMP",
        ("F32", (64 if _kind else 32, 3)),
        ("F32", (64, 9)),
        ("F32", (64, 9)),
        ("I32", (12,)),
        name="" if _kind else "overlapping",
        params=words(_kind),
        sizes={(RESULT, 1): into(12 if _kind else 6), (2, 0): multiple(3 if _kind else 6)},
        strides={2: "any"},
        bad={0: (1 - _kind, 2, -1)},
    )
simple(
    "SINKHORN",
    ("F32", (4, 4, 5)),
    ("F32", (16, 5)),
    params=words(4, 20, 1e-6, 1),
    strides={RESULT: "whole"},
    bad={0: (0, -1, 3, 9), 1: (0, -1), 2: EPS, 3: (2, -1)},
)
simple(
    "HC_PRE",
    ("F32", (24 * 5,)),
    ("F32", (24, 5)),
    ("F32", (3,)),
    ("F32", (24,)),
    params=words(4, 20, 1e-6),
    bad={0: (0, -1, 3, 9), 1: (0, -1), 2: EPS},
)
simple(
    "HC_POST",
    ("F32", (64, 4, 5)),
    ("F32", (64, 5)),
    ("F32", (4, 5)),
    ("F32", (64, 4, 5)),
    ("F32", (4, 4, 5)),
    strides={1: "any", 3: "any"},
)


def arena(handle: int = 0xB0FFE, base: int = 0x7F00_0000_0000, size: int = 8 << 20) -> Arena:
    """Return an arena with room between tensors, so that one that grows a little meets no other."""
    a = Arena(handle, base, size, alignment=1 << 16)
    a.place(tensor("F32", (64,)))  # nothing of an example lies at the very start
    return a
