"""Convolutions, pooling and images."""

from __future__ import annotations

from tests.graph.examples.case import ANY, FLOATS, HALF, RESULT, multiple, simple, words
from tests.graph.examples.elementwise import SHAPE

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
