"""The cases of tests/ops on CUDA devices: emulated, and with `-m gpu` on a real GPU.

A case passes only if kernels did what kernels should do: a node that falls back to the CPU fails it, unless fallbacks.py
says why it may. What the emulator would be too long about is skipped, by the number of accesses to memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from ggml_rpc.devices.cuda import ops_with_kernels
from tests.cuda.fallbacks import may_fall_back
from tests.cuda.host.device import EmulatedDriver
from tests.cuda.host.emulator import library
from tests.ops import conftest as ops
from tests.support.device import Bench

# Accesses to memory of one run, at about ten million a second.
BUDGET = 8_000_000

asked: set[tuple[str, str]] = set()
ran: set[tuple[str, str]] = set()


class _CheckedPlan:
    """A plan whose run is watched."""

    def __init__(self, owner: _CheckedDevice, plan: Any) -> None:
        self._owner, self._plan = owner, plan

    def run(self) -> None:
        """Run; skip the test if that takes too long, fail it if the kernels or the device did wrong."""
        library().ggr_set_budget(BUDGET)
        try:
            self._plan.run()
        finally:
            over = library().ggr_over_budget()
            library().ggr_set_budget(-1)
            misuse = self._owner.driver.misuse()
            self._owner.note()
            if misuse:
                self._owner.renew()
                pytest.fail(f"the emulator found:\n{misuse}")
        if over:
            pytest.skip(f"more than {BUDGET} accesses to memory")


class _CheckedDevice:
    """An emulated device, with an eye on what it leaves to the CPU."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start with a fresh driver: after an error nothing of the old one works."""
        self.driver = EmulatedDriver()
        self.device = self.driver.device()

    def alloc(self, size: int) -> Any:
        """Reserve memory."""
        return self.device.alloc(size)

    def compile(self, codec: Any, payload: Any, buffers: Sequence[Any]) -> _CheckedPlan:
        """Compile a graph; fail if a node is left to the CPU that is not in fallbacks.py."""
        before = self.device.gpu.fallbacks()
        plan = self.device.compile(codec, payload, list(buffers))
        after = self.device.gpu.fallbacks()
        known = ops_with_kernels()
        for text, nodes in after.items():
            if nodes == before.get(text, 0) or text.split(" ")[0] not in known:
                continue
            if not may_fall_back(text):
                pytest.fail(f"left to the CPU: {text}")
        return _CheckedPlan(self, plan)

    def note(self) -> None:
        """Remember which kernels were asked for and which ran."""
        ran.update(self.driver.ran())
        asked.update(self.device.gpu.asked())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)


_emulated: list[_CheckedDevice] = []


def emulated() -> _CheckedDevice:
    """Return the emulated device of this process."""
    if not _emulated:
        _emulated.append(_CheckedDevice())
    return _emulated[0]


ops.DEVICES["emulated"] = emulated


@pytest.fixture(params=["emulated"])
def level(request: pytest.FixtureRequest) -> str:
    """Name of a device, in place of the CPU's instruction-set level."""
    return request.param


@pytest.fixture
def bench(level: str) -> Iterator[Bench]:
    """Return memory and a device."""
    yield Bench(ops.device(level))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator seeded by the test's name."""
    return np.random.default_rng(list(request.node.name.encode()))
