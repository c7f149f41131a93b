"""Element by element."""

from __future__ import annotations

from ggml_rpc.spec.enums import GluKind, UnaryKind
from tests.graph.examples.case import ANY, FLOATS, HALF, QUANTIZED, RESULT, into, simple, words

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
