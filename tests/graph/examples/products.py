"""Products of matrices."""

from __future__ import annotations

from tests.graph.examples.case import ANY, FLOATS, QUANTIZED, RESULT, into, simple

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
