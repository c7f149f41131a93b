"""ik_llama.cpp's sparse attention, compressed caches, hyper-connections and recurrent layers."""

from __future__ import annotations

from tests.graph.examples.attention import _ROPE_FLOATS
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
    multiple,
    simple,
    words,
)
from tests.graph.examples.elementwise import SHAPE

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
