"""The cases of tests/ops on CUDA devices: emulated, and on a GPU where there is one (`-m gpu` for it alone).

A case passes only if kernels did what kernels should do: a node that falls back to the CPU fails it, unless
fallbacks.py says why it may. What the emulator would be too long about is skipped, by the number of accesses to memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggml_rpc.devices import cuda
from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.devices.cuda import ops_with_kernels
from ggml_rpc.spec.ops import OP_BY_NAME
from tests.cuda.fallbacks import may_fall_back
from tests.cuda.host.device import EmulatedDriver
from tests.cuda.host.emulator import library
from tests.ops import conftest as ops
from tests.support.device import Bench

# Accesses to memory of one run, at about ten million a second.
BUDGET = 8_000_000

asked: set[tuple[str, str]] = set()
ran: set[tuple[str, str]] = set()


def compile_checked(device: Any, codec: Any, payload: Any, buffers: Sequence[Any]) -> Any:
    """Compile a graph; fail the test if a node is left to the CPU that is not in fallbacks.py."""
    before = device.gpu.fallbacks()
    plan = device.compile(codec, payload, list(buffers))
    known = ops_with_kernels()
    for text, nodes in device.gpu.fallbacks().items():
        if nodes != before.get(text, 0) and text.split(" ", maxsplit=1)[0] in known and not may_fall_back(text):
            pytest.fail(f"left to the CPU: {text}")
    return plan


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

    def __init__(self, capability: int = 80, *, blas: bool = False) -> None:
        self._capability, self._blas = capability, blas
        self.renew()

    def renew(self) -> None:
        """Start with a fresh driver: after an error nothing of the old one works."""
        self.driver = EmulatedDriver(capability=self._capability)
        options = {"blas": self.driver.blas} if self._blas else {}
        self.device = self.driver.gpu(**options).device("CUDA0", "emulated GPU", host_memory=True)

    def alloc(self, size: int) -> Any:
        """Reserve memory."""
        return self.device.alloc(size)

    def compile(self, codec: Any, payload: Any, buffers: Sequence[Any]) -> _CheckedPlan:
        """Compile a graph."""
        return _CheckedPlan(self, compile_checked(self.device, codec, payload, buffers))

    def note(self) -> None:
        """Remember which kernels were asked for and which ran."""
        ran.update(self.driver.ran())
        asked.update(self.device.gpu.asked())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)


class _MirroredPlan:
    """A plan around whose run the host's memory travels to the GPU and back."""

    def __init__(self, plan: Any, pairs: Sequence[tuple[Any, np.ndarray]]) -> None:
        self._plan, self._pairs = plan, pairs

    def run(self) -> None:
        """Run."""
        for buffer, memory in self._pairs:
            buffer.write(0, memory)
        self._plan.run()
        for buffer, memory in self._pairs:
            buffer.read_into(0, memory)


class _GpuDevice:
    """A real GPU."""

    def __init__(self) -> None:
        (self.device,) = cuda.open_gpus(cuda.names()[:1], CpuPool(ops.THREADS).device())
        self._mirrors: dict[int, np.ndarray] = {}

    def alloc(self, size: int) -> Any:
        """Reserve memory."""
        return self.device.alloc(size)

    def mirror(self, buffer: Any) -> np.ndarray:
        """Return host memory that stands for a buffer's; one buffer lives at a time."""
        self._mirrors = {buffer.handle: np.zeros(buffer.size, np.uint8)}
        return self._mirrors[buffer.handle]

    def compile(self, codec: Any, payload: Any, buffers: Sequence[Any]) -> _MirroredPlan:
        """Compile a graph."""
        plan = compile_checked(self.device, codec, payload, buffers)
        return _MirroredPlan(plan, [(b, self._mirrors[b.handle]) for b in buffers])


def forget_drivers() -> None:
    """Let go of all devices: making a driver forgets the one before."""
    for device in (emulated, emulated_bytes, emulated_blas, left_to_cpu):
        device.cache_clear()
    gc.collect()


@cache
def emulated() -> _CheckedDevice:
    """Return the emulated device of this process."""
    forget_drivers()
    return _CheckedDevice()


@cache
def emulated_bytes() -> _CheckedDevice:
    """Return one whose tensor cores are much faster with bytes than with halves."""
    forget_drivers()
    return _CheckedDevice(86)


@cache
def emulated_blas() -> _CheckedDevice:
    """Return one that has what stands for cuBLASLt."""
    forget_drivers()
    return _CheckedDevice(blas=True)


@cache
def left_to_cpu() -> Any:
    """Return a device whose GPU has no kernel for any op."""
    forget_drivers()
    return EmulatedDriver().gpu(without=list(OP_BY_NAME)).device("CUDA0", "emulated GPU", host_memory=True)


ops.DEVICES["emulated"] = emulated
ops.DEVICES["emulated 8.6"] = emulated_bytes
ops.DEVICES["emulated with cuBLASLt"] = emulated_blas
ops.DEVICES["left to the CPU"] = left_to_cpu
ops.DEVICES["gpu"] = cache(_GpuDevice)
LEVELS = ["emulated", *([pytest.param("gpu", marks=pytest.mark.gpu)] if cuda.names() else [])]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    """Name of a device, in place of the CPU's instruction-set level."""
    return request.param


@pytest.fixture
def bench(level: str) -> Bench:
    """Return memory and a device."""
    return Bench(ops.device(level))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator seeded by the test's name."""
    return np.random.default_rng(list(request.node.name.encode()))


def whole_suite(config: pytest.Config, items: Sequence[pytest.Item]) -> bool:
    """Return whether all files of this folder that run ops are to run on the emulator, with all their cases."""
    some = ("keyword", "markexpr", "deselect", "lf", "maxfail", "stepwise")
    files = {item.path.name for item in items}
    return (
        not any(getattr(config.option, name, None) for name in some)
        and not any("::" in argument for argument in config.args)
        and all(path.name in files for path in Path(__file__).parent.glob("test_[op][pr]*.py"))
    )


@pytest.fixture(scope="session")
def covered(request: pytest.FixtureRequest) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return the kernels that plans asked for and those that ran, of a session with all the cases."""
    if not whole_suite(request.config, request.session.items):
        pytest.skip("only the whole of tests/cuda runs every kernel")
    return asked, ran


@pytest.fixture
def driver() -> Iterator[EmulatedDriver]:
    """Return a driver of its own, on which everything is done as late as it may be; nothing may be used wrongly."""
    forget_drivers()
    driver = EmulatedDriver(lazy=True, queries=2, memory_bytes=1 << 30)
    yield driver
    ran.update(driver.ran())
    gc.collect()
    assert driver.misuse() == ""
