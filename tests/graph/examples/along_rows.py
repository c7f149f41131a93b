"""Along rows: norms, sums, sorting."""

from __future__ import annotations

from tests.graph.examples.case import ANY, EPS, RESULT, at_least, simple, words
from tests.graph.examples.elementwise import SHAPE

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
