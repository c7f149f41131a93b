"""Cases of tests/ops with every node left to the CPU: what is copied in and out, moments and gaps among it."""

from __future__ import annotations

import pytest

from tests.ops.test_copy import *
from tests.ops.test_gradient import *
from tests.ops.test_recurrent import *
from tests.ops.test_rows import *


@pytest.fixture
def level() -> str:
    """Name of the device."""
    return "left to the CPU"
