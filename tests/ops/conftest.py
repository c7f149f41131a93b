"""Fixtures of the op suite: every case runs at every instruction-set level that the machine has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from ggml_rpc.devices.cpu import CpuDevice, CpuPool, levels
from tests.ops import tolerances
from tests.support.device import Bench

THREADS = 2
# Other devices that run the same cases, by the name that they go by as a level.
DEVICES: dict[str, Callable[[], Any]] = {}


@cache
def _cpu(level: str, threads: int) -> CpuDevice:
    return CpuPool(threads, level).device()


def device(level: str, threads: int = THREADS) -> Any:
    """Return the one CPU device of a level, or what was entered under its name."""
    return DEVICES[level]() if level in DEVICES else _cpu(level, threads)


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
