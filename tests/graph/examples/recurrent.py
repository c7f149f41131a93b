"""Recurrent layers."""

from __future__ import annotations

from tests.graph.examples.case import ANY, EPS, NAN, RESULT, at_least, into, simple, words
from tests.graph.examples.elementwise import SHAPE

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
