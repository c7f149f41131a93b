"""Ops that change shapes."""

from __future__ import annotations

from ggml_rpc.spec.enums import TriKind
from tests.graph.examples.case import ANY_OR_NONE, INF, NAN, RESULT, simple, words
from tests.graph.examples.elementwise import SHAPE

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
