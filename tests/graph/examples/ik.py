"""ik_llama.cpp's own ops, and what it sends in other forms."""

from __future__ import annotations

from ggml_rpc.spec.enums import UnaryKind
from tests.graph.examples.case import (
    ANY,
    EPS,
    FLOATS,
    HALF,
    IK_3_5,
    INF,
    INTERLEAVED,
    NAN,
    QUANTIZED,
    RESULT,
    at_least,
    into,
    simple,
    words,
)
from tests.graph.examples.elementwise import SHAPE

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
