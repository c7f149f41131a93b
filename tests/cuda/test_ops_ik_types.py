"""The cases of tests/ops/test_ik_types.py on a CUDA device, whose products saturate nowhere."""

from __future__ import annotations

import pytest

from tests.ops import ik_types
from tests.ops.test_ik_types import *


@pytest.fixture(autouse=True)
def never_saturated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let products of large neighbours be what they are."""
    monkeypatch.setattr(ik_types, "SATURATED_COLUMNS", 0)
