"""Cases of tests/ops for ops of ik_llama.cpp with every node left to the CPU: stored states, rows of no expert."""

from __future__ import annotations

import pytest

from tests.ops.test_ik import (
    test_absent_experts_leave_zeros,
    test_absent_experts_of_a_product,
    test_absent_rows_are_zero,
    test_experts,
    test_product_with_each_expert,
    test_sum_of_rows_behind_a_view,
)
from tests.ops.test_ik_recurrent import *


@pytest.fixture
def level() -> str:
    """Name of the device."""
    return "left to the CPU"
