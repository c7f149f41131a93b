"""The dialects that the tests of the wire run on."""

from __future__ import annotations

import pytest

KINDS = ("8.0.0", "7.0.0", "5.0.0", "4.0.0", "3.0.0", "2.0.0", "ik-3.5.2", "ik-5.5.5")
"""One of each kind of frame: record sizes, device fields, replies, flags. The rest differ in numbers only."""

HEAVY_KINDS = ("8.0.0", "2.0.0", "ik-3.5.2")
"""For tests of a second or more each: the first, the last and the odd one."""

heavy = pytest.mark.parametrize("dialect", HEAVY_KINDS, indirect=True, scope="module")
"""Run a test on these only."""
