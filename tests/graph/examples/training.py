"""Gradients, losses and optimisers."""

from __future__ import annotations

from collections.abc import Callable

from tests.graph.examples.case import RESULT, add, simple, words
from tests.graph.examples.elementwise import SHAPE
from tests.support.wiretensor import Arena, Tensor

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
