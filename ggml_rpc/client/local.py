"""The devices of this machine behind the interface that remote ones have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """Memory of a device of this machine."""

    def __init__(self, native: DeviceBuffer, device: LocalDevice) -> None:
        held: list[Any] = [native]
        # What the collector clears must not refer to this object.
        super().__init__(native.handle, native.base, native.size, device, held.clear)
        self._held = held

    @property
    def native(self) -> DeviceBuffer:
        """The device's own object."""
        buffer: DeviceBuffer = self._held[0]
        return buffer


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

    def _place_of(self, t: Tensor, offset: int, size: int) -> tuple[DeviceBuffer, int]:
        """Return where a part of a tensor lies: the buffer, and where in it."""
        self.check_range(t, offset, size)
        buffer = t.buffer
        assert isinstance(buffer, LocalBuffer)
        return buffer.native, t.offset + offset

    def write(self, t: Tensor, data: BytesLike, offset: int = 0) -> None:
        """Copy bytes into a tensor."""
        source = byte_view(data)
        native, begin = self._place_of(t, offset, source.nbytes)
        native.write(begin, source)

    def start_read(self, t: Tensor, out: BytesLike) -> Done:
        """Copy a tensor's bytes."""
        to = byte_view(out)
        native, begin = self._place_of(t, 0, to.nbytes)
        native.read_into(begin, to)
        return Done()

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        """Copy between two tensors of this process."""
        source, begin = self._place_of(src, 0, dst.nbytes)
        target, at = self._place_of(dst, 0, src.nbytes)
        target.write(at, source.read(begin, src.nbytes))
        return True

    def shares_with(self, other: Device) -> bool:
        """Tell whether the other device is in this process too."""
        return isinstance(other, LocalDevice)

    def clear(self, buffer: Buffer, value: int = 0) -> None:
        """Fill a buffer with one byte value."""
        assert isinstance(buffer, LocalBuffer)
        buffer.native.fill(value)

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
