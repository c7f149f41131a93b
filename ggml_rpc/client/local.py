"""The devices of this machine behind the interface that remote ones have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.devices import DeviceBuffer, NativeDevice, available, open_devices
from ggml_rpc.devices import DevicePlan as NativePlan
from ggml_rpc.graph._encoder import Encoder
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.spec.dialects import DEFAULT

from .device import Buffer, BytesLike, Device, DevicePlan, byte_view


class Done:
    """A transfer that has ended."""

    def result(self, timeout: float | None = None) -> None:
        """Return at once."""


class LocalBuffer(Buffer):
    """Memory of this process."""

    def __init__(self, native: DeviceBuffer, device: LocalDevice) -> None:
        held: list[Any] = [native, np.frombuffer(memoryview(native), np.uint8)]
        # What the collector clears must not refer to this object.
        super().__init__(native.handle, native.base, native.size, device, held.clear)
        self._held = held

    @property
    def native(self) -> DeviceBuffer:
        """The device's own object."""
        buffer: DeviceBuffer = self._held[0]
        return buffer

    @property
    def memory(self) -> NDArray[np.uint8]:
        """All bytes."""
        array: NDArray[np.uint8] = self._held[1]
        return array


class LocalDevice(Device):
    """A device of this machine; graphs run when they are asked to, before `run` returns."""

    def __init__(self, native: NativeDevice) -> None:
        self._native = native
        self._encoder = Encoder((DEFAULT,))
        self.name = native.name
        self.description = native.description
        self.endpoint = None
        self.alignment = native.alignment
        self.max_size = 1 << 62

    def memory(self) -> tuple[int, int]:
        """Return free and total memory in bytes."""
        return self._native.memory()

    def allocate(self, size: int) -> LocalBuffer:
        """Reserve a buffer; raises `OutOfMemory` if the machine has no room."""
        return LocalBuffer(self._native.alloc(max(size, 1)), self)

    def alloc_size(self, t: Tensor) -> int:
        """Return the tensor's own size."""
        return t.nbytes

    def bytes_of(self, t: Tensor) -> NDArray[np.uint8]:
        """Return a tensor's memory, first to last byte."""
        return self._part_of(t, 0, t.nbytes)

    def _part_of(self, t: Tensor, offset: int, size: int) -> NDArray[np.uint8]:
        self.check_range(t, offset, size)
        buffer = t.buffer
        assert isinstance(buffer, LocalBuffer)
        begin = t.offset + offset
        return buffer.memory[begin : begin + size]

    def write(self, t: Tensor, data: BytesLike, offset: int = 0) -> None:
        """Copy bytes into a tensor."""
        source = np.frombuffer(byte_view(data), np.uint8)
        self._part_of(t, offset, source.size)[:] = source

    def start_read(self, t: Tensor, out: BytesLike) -> Done:
        """Copy a tensor's bytes."""
        to = np.frombuffer(byte_view(out), np.uint8)
        to[:] = self._part_of(t, 0, to.size)
        return Done()

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        """Copy between two tensors of this process."""
        self._part_of(dst, 0, src.nbytes)[:] = self._part_of(src, 0, dst.nbytes)
        return True

    def shares_with(self, other: Device) -> bool:
        """Tell whether the other device is in this process too."""
        return isinstance(other, LocalDevice)

    def clear(self, buffer: Buffer, value: int = 0) -> None:
        """Fill a buffer with one byte value."""
        assert isinstance(buffer, LocalBuffer)
        buffer.memory[:] = value

    def speaks(self, op: str, kind: str | None = None, value: int = 0) -> bool:
        """Tell whether an op has a number; whether there is a kernel for it shows when a graph is compiled."""
        return self._encoder.speaks(op, kind, value)

    def has_type(self, name: str) -> bool:
        """Tell whether a type has a number."""
        return self._encoder.has_type(name)

    def prepare(self, nodes: Sequence[Tensor]) -> LocalPlan:
        """Compile a graph; raises `CompileError` where a kernel is missing."""
        buffers: dict[int, DeviceBuffer] = {}
        for t in nodes:
            for s in (t, *t.src):
                if s is not None and isinstance(s.buffer, LocalBuffer):
                    buffers[s.buffer.handle] = s.buffer.native
        payload = self._encoder.graph(nodes)
        return LocalPlan(self._native.compile(self._encoder.codec, payload, list(buffers.values())))


class LocalPlan(DevicePlan):
    """A compiled graph."""

    def __init__(self, native: NativePlan) -> None:
        self._native = native

    def run(self) -> None:
        """Run the graph to its end; raises `ComputeError` if an index in a tensor is out of range."""
        self._native.run()


def local_devices(*, threads: int | None = None, names: Sequence[str] | None = None) -> list[LocalDevice]:
    """Return the compute devices of this machine, accelerators first.

    Parameters
    ----------
    threads : int, optional
        Threads of the CPU device; by default half the cores.
    names : sequence of str, optional
        Which ones; by default all.

    Raises
    ------
    DeviceError
        If a name is not known.
    """
    return [LocalDevice(native) for native in open_devices(names or available(), threads=threads)]
