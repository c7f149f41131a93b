"""Fixtures of the op suite: every case runs at every instruction-set level that the machine has."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from ggml_rpc.devices.cpu import CpuDevice, CpuPool, levels
from tests.ops import tolerances
from tests.support.device import Bench

THREADS = 2


@cache
def device(level: str, threads: int = THREADS) -> CpuDevice:
    """Return the one CPU device of a level."""
    return CpuPool(threads, level).device()


@pytest.fixture(params=levels())
def level(request: pytest.FixtureRequest) -> str:
    """Name of an instruction-set level."""
    return request.param


@pytest.fixture
def bench(level: str) -> Bench:
    """Return memory and a device at one level."""
    return Bench(device(level))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator seeded by the test's name."""
    return np.random.default_rng(list(request.node.name.encode()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tolerances were overridden."""
    used = tolerances.used_overrides
    if used:
        terminalreporter.write_line(f"tolerance overrides used: {sum(used.values())} checks by {len(used)} entries")
        for name, count in sorted(used.items()):
            bound, reason = tolerances.OVERRIDES[name]
            terminalreporter.write_line(f"  {name}: {bound:g}, {count} checks: {reason}")
