"""Attention and rotary positions."""

from __future__ import annotations

from tests.graph.examples.case import EPS, FLOATS, HALF, INF, NAN, QUANTIZED, RESULT, Bad, at_least, into, simple, words
from tests.graph.examples.elementwise import SHAPE

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
