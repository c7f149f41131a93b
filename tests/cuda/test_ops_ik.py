"""The cases of tests/ops/test_ik.py on a CUDA device.

MUL_MAT and MUL_MAT_ID are kernels, which round activations and weights as test_ops_matmul.py says; fused ops with
gates run on the CPU.
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

# One product here is a kernel's and the other the CPU's: there is nothing that they could share.
del test_up_and_gate_share_activations  # noqa: F821

# Cases of kernels -> whether the product has few columns or pairs.
FEW: dict[str, Callable[[dict[str, Any]], bool]] = {
    "test_product": lambda case: case["n"] <= FEW_COLUMNS,
    "test_product_with_each_expert": lambda case: True,
    "test_absent_experts_of_a_product": lambda case: 4 * case["tokens"] <= FEW_PAIRS,
}


@pytest.fixture(autouse=True)
def own_rounding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let products of kernels expect this device's rounding in place of the CPU's."""
    if request.function.__name__ not in FEW:
        return
    few = FEW[request.function.__name__](request.node.callspec.params)

    def weights(rng: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
        data, values = test_matmul.weights(rng, type_name, shape)
        return data, Rounded(values, type_name).weights(values, few)

    monkeypatch.setattr(cases, "weights", weights)
    monkeypatch.setattr(cases, "on_grid", lambda x, type_name: Rounded(x, type_name).of(few))
