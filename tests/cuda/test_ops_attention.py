"""The cases of tests/ops/test_attention.py on a CUDA device."""

import sys

import pytest

from tests.ops import test_attention
from tests.ops.test_attention import *

# F16 V is summed up in f32 here: how the CPU rounds its sums is not asked of it.
del test_half_sums  # noqa: F821


@pytest.fixture(autouse=True)
def halves_for_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect queries and weights rounded to half, however many queries there are."""
    monkeypatch.setattr(test_attention, "HALF_QUERIES", sys.maxsize)
