"""The cases of tests/ops/test_ik.py on a CUDA device.

Products round activations and weights as test_ops_matmul.py says, with gates and without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.cuda.test_ops_matmul import FEW_COLUMNS, FEW_PAIRS, Rounded
from tests.ops import test_ik as cases
from tests.ops import test_matmul
from tests.ops.test_ik import *

Few = Callable[[dict[str, Any], int], bool]


def few_pairs(used: int) -> Few:
    """Return the test for products by id with so many experts of a token."""
    return lambda case, m: case["tokens"] * used <= FEW_PAIRS


# Cases of products -> whether few columns or pairs are multiplied with weights of m rows.
FEW: dict[str, Few] = {
    "test_product": lambda case, m: case["n"] <= FEW_COLUMNS,
    "test_product_with_each_expert": lambda case, m: True,
    "test_absent_experts_of_a_product": few_pairs(4),
    "test_up_and_gate": lambda case, m: case["n"] <= FEW_COLUMNS,
    "test_activations_of_up_and_gate": lambda case, m: m < 33,
    "test_up_and_gate_share_activations": lambda case, m: True,
    "test_experts": few_pairs(4),
    "test_only_up_is_biased": few_pairs(2),
    "test_absent_experts_leave_zeros": few_pairs(4),
}


@pytest.fixture(autouse=True)
def own_rounding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let products of kernels expect this device's rounding in place of the CPU's."""
    name = request.function.__name__
    if name not in FEW:
        return
    few = False

    def weights(rng: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
        nonlocal few
        few = FEW[name](request.node.callspec.params, shape[-2])
        data, values = test_matmul.weights(rng, type_name, shape)
        return data, Rounded(values, type_name).weights(values, few)

    monkeypatch.setattr(cases, "weights", weights)
    monkeypatch.setattr(cases, "on_grid", lambda x, type_name: Rounded(x, type_name).of(few))
