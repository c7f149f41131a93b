"""Cases of tests/ops for ops of ik_llama.cpp with every node left to the CPU: stored states, rows of no expert."""

from __future__ import annotations

import pytest

from tests.ops.test_ik import *
from tests.ops.test_ik_recurrent import *


@pytest.fixture
def level() -> str:
    """Name of the device."""
    return "left to the CPU"
