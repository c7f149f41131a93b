"""The device interface of programs: memory, transfers, graphs. Remote and local devices implement it alike."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggml_rpc.errors import DeviceError, GraphError
from ggml_rpc.graph._tensor import Place, Tensor
from ggml_rpc.graph.quantise import dequantise, quantise

if TYPE_CHECKING:
    from ggml_rpc.graph.builder import Graph

    from .schedule import Plan, Workspace

BytesLike: TypeAlias = "bytes | bytearray | memoryview | NDArray[Any]"
"""What holds bytes: the buffer protocol, read as one run."""

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
"""Types that NumPy has too."""

_TYPE_OF = {dtype: name for name, dtype in NUMPY_TYPES.items()}


class Waiting(Protocol):
    """A transfer under way."""

    def result(self, timeout: float | None = None) -> Any:
        """Wait for its end."""


class Buffer(Place):
    """Memory on a device. It is freed with its last reference; tensors that lie in it hold one.

    Parameters
    ----------
    handle, base, size : int
        As the device names it.
    device : Device
        Where it lies.
    release : callable
        Called once, by `free` or by the collector: must not wait and must not raise.
    """

    def __init__(self, handle: int, base: int, size: int, device: Device, release: Callable[[], None]) -> None:
        super().__init__(handle, base, size)
        self.device = device
        self._release = weakref.finalize(self, release)
        # At the end of the process connections end by themselves.
        self._release.atexit = False

    @property
    def is_free(self) -> bool:
        """Whether it was given back."""
        return not self._release.alive

    def free(self) -> None:
        """Give the memory back: tensors in it are of no more use. A server is told at the next allocation or flush."""
        self._release()

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class DevicePlan(ABC):
    """A graph that one device is ready to run."""

    @abstractmethod
    def run(self) -> None:
        """Start it. A remote device has not finished when this returns; what follows on it comes after."""


class Device(ABC):
    """One compute device, here or behind a server.

    Attributes
    ----------
    name : str
        Short name: `CPU`, `RPC0`.
    description : str
        The hardware, or where the server is.
    endpoint : str or None
        The server's `host:port`; None for a device of this machine.
    alignment : int
        Alignment of tensors in bytes.
    max_size : int
        Largest buffer in bytes.
    """

    name: str
    description: str
    endpoint: str | None
    alignment: int
    max_size: int

    # ---- What an implementation provides -----------------------------------------------------------------------

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Return free and total memory in bytes."""

    @abstractmethod
    def allocate(self, size: int) -> Buffer:
        """Reserve a buffer of at least `size` bytes; its contents are undefined.

        Raises
        ------
        OutOfMemory
            If the device refuses.
        """

    @abstractmethod
    def alloc_size(self, t: Tensor) -> int:
        """Return the bytes that a tensor needs on this device: its own size, or more where the device pads."""

    @abstractmethod
    def write(self, t: Tensor, data: BytesLike, offset: int = 0) -> None:
        """Copy bytes into a tensor. `data` may be reused when this returns; the device may not have them yet.

        Raises
        ------
        GraphError
            If the tensor does not lie here, or ends before the bytes do.
        """

    def digest(self, data: BytesLike) -> int | None:
        """Return the hash by which `write_cached` would ask for these bytes, None where it would not ask."""
        return None

    def write_cached(self, t: Tensor, data: BytesLike, *, digest: int | None = None) -> bool:
        """Fill a tensor, by its hash alone where the server has the bytes already; return whether it had.

        `digest` saves hashing them again: what `digest` returned for the same bytes.
        """
        self.write(t, data)
        return False

    @abstractmethod
    def start_read(self, t: Tensor, out: BytesLike) -> Waiting:
        """Start copying a tensor's bytes from the first on into writable memory; raises like `write`."""

    @abstractmethod
    def copy(self, src: Tensor, dst: Tensor) -> bool:
        """Copy between two tensors of this device's server or process; False if it cannot: then go through the host."""

    @abstractmethod
    def clear(self, buffer: Buffer, value: int = 0) -> None:
        """Fill a buffer with one byte value."""

    @abstractmethod
    def prepare(self, nodes: Sequence[Tensor]) -> DevicePlan:
        """Make nodes that have their places runnable, in this order."""

    @abstractmethod
    def speaks(self, op: str, kind: str | None = None, value: int = 0) -> bool:
        """Tell whether the device knows an op, and the value of an enumeration (`"unary"`, `"glu"`) with it."""

    @abstractmethod
    def has_type(self, name: str) -> bool:
        """Tell whether the device knows a tensor type."""

    @abstractmethod
    def shares_with(self, other: Device) -> bool:
        """Tell whether `copy` can reach the other device."""

    def flush(self) -> None:  # noqa: B027
        """Send what is still held back."""

    def synchronize(self) -> None:  # noqa: B027
        """Wait until everything asked so far is done; raise what went wrong with it."""

    def drop_plans(self) -> None:  # noqa: B027
        """Forget the graphs that were prepared (before their buffers are freed)."""

    # ---- What follows from it ----------------------------------------------------------------------------------

    def place(self, tensors: Iterable[Tensor], *, clear: int | None = None) -> list[Buffer]:
        """Give leaves a place on this device, in as few buffers as its largest allows.

        Parameters
        ----------
        tensors : iterable of Tensor
            Leaves without a place.
        clear : int, optional
            Fill the buffers with this byte.

        Returns
        -------
        list of Buffer
            They stay alive as long as a tensor lies in them.

        Raises
        ------
        OutOfMemory
            If the device refuses; nothing stays reserved.
        DeviceError
            If one tensor is larger than the largest buffer.
        """
        groups: list[list[tuple[Tensor, int]]] = []
        used = self.max_size + 1
        sizes = []
        for t in tensors:
            need = align_up(self.alloc_size(t), self.alignment)
            if need > self.max_size:
                raise DeviceError(
                    f"{self}: tensor {t.name!r} needs {need} bytes, the largest buffer is {self.max_size} bytes"
                )
            if used + need > self.max_size:
                groups.append([])
                sizes.append(0)
                used = 0
            groups[-1].append((t, used))
            used += need
            sizes[-1] = used
        buffers: list[Buffer] = []
        try:
            for size, group in zip(sizes, groups, strict=True):
                buffers.append(self.allocate(size))
                if clear is not None:
                    self.clear(buffers[-1], clear)
                for t, offset in group:
                    t.put(buffers[-1], offset)
                    self.placed(t)
        except BaseException:
            for buffer in buffers:
                buffer.free()
            raise
        return buffers

    def placed(self, t: Tensor) -> None:  # noqa: B027
        """Let the device know of a leaf that has got its place."""

    def check_range(self, t: Tensor, offset: int, size: int) -> None:
        """Raise GraphError unless bytes of a tensor can be reached here: a server would end the connection."""
        buffer = t.buffer
        if buffer is None:
            raise GraphError(f"{self}: tensor {t.name!r} has no place")
        if isinstance(buffer, Buffer):
            if buffer.device is not self and not self.shares_with(buffer.device):
                raise GraphError(f"{self}: tensor {t.name!r} lies on {buffer.device}")
            if buffer.is_free:
                raise GraphError(f"{self}: the memory of tensor {t.name!r} was freed")
        if not 0 <= offset <= offset + size <= t.nbytes:
            raise GraphError(
                f"{self}: tensor {t.name!r} has {t.nbytes} bytes, not the {size} from {offset} on that were asked for"
            )

    def read_bytes(self, t: Tensor) -> bytearray:
        """Return a tensor's bytes, first to last."""
        out = bytearray(t.nbytes)
        self.start_read(t, out).result()
        return out

    def read(self, t: Tensor) -> NDArray[Any]:
        """Return a tensor's elements in NumPy's shape; BF16 and quantised types as float32."""
        return to_array(t, self.read_bytes(t))

    def tensor(self, array: ArrayLike, type: str | None = None, name: str = "") -> Tensor:
        """Copy an array to the device and return the tensor.

        Parameters
        ----------
        array : array_like
            1 to 4 dimensions, last fastest: `ne` is its shape reversed.
        type : str, optional
            Tensor type; by default the array's own. Other types are converted, quantised ones on the way.
        name : str
            For people.

        Raises
        ------
        GraphError
            If the array has a type that ggml lacks, or the shape does not suit the type.
        OutOfMemory
            If the device has no room.
        """
        values = np.asarray(array)
        name_of_type = (type or type_of(values.dtype)).upper()
        t = Tensor(name_of_type, values.shape[::-1] or (1,), name=name)
        self.place([t])
        self.write(t, to_bytes(values, name_of_type))
        return t

    def empty(self, type: str, ne: Sequence[int], name: str = "") -> Tensor:
        """Reserve a tensor of undefined contents; `ne` in ggml's order, dimension 0 fastest."""
        t = Tensor(type, ne, name=name)
        self.place([t])
        return t

    def compile(self, graph: Graph, *, workspace: Workspace | None = None) -> Plan:
        """Make a graph runnable on this device; see `ggml_rpc.client.schedule.compile_graph`."""
        from .schedule import compile_graph  # noqa: PLC0415

        return compile_graph(graph, self, workspaces=None if workspace is None else {self: workspace})

    def __str__(self) -> str:
        return f"{self.name} ({self.endpoint})" if self.endpoint else self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


def byte_view(data: BytesLike) -> memoryview:
    """Return the bytes of what holds bytes, without copying; raises TypeError if they are not one run."""
    return memoryview(cast("bytes", data)).cast("B")


def align_up(size: int, alignment: int) -> int:
    """Return the next multiple of `alignment`."""
    return -(-size // alignment) * alignment


def type_of(dtype: np.dtype[Any]) -> str:
    """Return the tensor type of a NumPy type.

    Raises
    ------
    GraphError
        If there is none.
    """
    found = _TYPE_OF.get(dtype.newbyteorder("<"))
    if found is None:
        raise GraphError(f"no tensor type holds NumPy's {dtype}; convert it to one of {', '.join(map(str, _TYPE_OF))}")
    return found


def to_bytes(values: NDArray[Any], type: str) -> BytesLike:
    """Return an array's contents in a tensor type, rows without gaps."""
    if type in NUMPY_TYPES:
        return np.ascontiguousarray(values, NUMPY_TYPES[type])
    return np.ascontiguousarray(quantise(np.asarray(values, np.float32), type))


def to_array(t: Tensor, data: BytesLike) -> NDArray[Any]:
    """Return the elements of a tensor whose bytes, first to last, are `data`.

    Raises
    ------
    GraphError
        If the type is quantised and the tensor has gaps.
    """
    dtype = NUMPY_TYPES.get(t.type)
    if dtype is not None:
        shape = t.shape
        strides = tuple(reversed(t.nb[: len(shape)]))
        array: NDArray[Any] = np.ndarray(shape, dtype, byte_view(data), 0, strides)
        return array
    if not t.is_contiguous:
        raise GraphError(f"{t!r}: elements of {t.type} with gaps between them cannot be read as an array")
    values: NDArray[Any] = dequantise(np.frombuffer(byte_view(data), np.uint8), t.type, t.shape)
    return values
