"""Cases of tests/ops with every node left to the CPU: what is copied in and out, moments and gaps among it."""

from __future__ import annotations

import pytest

from tests.ops.test_copy import test_in_place, test_later_nodes_see_the_copy, test_permuted_destination
from tests.ops.test_gradient import *
from tests.ops.test_recurrent import *
from tests.ops.test_rows import test_indices_are_read_at_each_run, test_set, test_set_bad_index, test_set_planes


@pytest.fixture
def level() -> str:
    """Name of the device."""
    return "left to the CPU"
