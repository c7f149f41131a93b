"""Servers and their devices: the commands of the protocol as the device interface."""

from __future__ import annotations

import contextlib
import itertools
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType

from ggml_rpc.errors import ComputeError, DeviceError, OutOfMemory, ProtocolError, RpcError, ServerRefused
from ggml_rpc.graph._encoder import Encoder
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import Dialect, GraphCache
from ggml_rpc.spec.limits import GRAPH_CACHE_MAX, HASH_THRESHOLD_BYTES
from ggml_rpc.spec.types import TYPE_BY_ID
from ggml_rpc.wire._hash import fnv1a_64

from .connection import Connection, Pending
from .device import Buffer, BytesLike, Device, DevicePlan, Waiting, byte_view
from .probe import narrow, reads

MAX_DEVICES = 64
"""A server that announces more is not believed."""

# Padding that devices ask for: rows are rounded up to so many elements.
PADDED_ROW = 512
# For these a device may want room beyond the result; since when clients ask is in the dialect's major number.
ASKED_OPS = frozenset({"FLASH_ATTN_EXT", "MUL_MAT_ID"})
ASKED_OPS_6 = ASKED_OPS | {"MUL_MAT", "CUMSUM", "ARGSORT", "TOP_K"}

# ik_llama.cpp's clients of 3.5.1 send GRAPH_RECOMPUTE, its servers close the connection then.
_IK_RECOMPUTES = (3, 5, 2)

_U8 = struct.Struct("<B")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_2U64 = struct.Struct("<QQ")


class Server:
    """A server and its devices, over one connection. Made by `connect`; a context manager.

    Attributes
    ----------
    endpoint : str
        `host:port`.
    dialect : Dialect
        The protocol table in use.
    devices : tuple of RemoteDevice
        In the server's order.
    """

    def __init__(self, connection: Connection, *, probe: bool = True) -> None:
        self.connection = connection
        self.endpoint = connection.endpoint
        self.dialect = connection.dialect
        # Handles of buffers whose last reference went: freed when the server is next asked for something, since the
        # collector may come in the midst of a message.
        self._dead: deque[int] = deque()
        self.live: set[int] = set()
        self._statuses: deque[Pending] = deque()
        self._n_devices = self._count()
        self._use(connection.candidates)
        if probe and len(connection.candidates) > 1:
            self._use(narrow(self.devices[0], connection.candidates))

    def _use(self, tables: Sequence[Dialect]) -> None:
        self.dialect = tables[0]
        self.encoder = Encoder(tables)
        self.devices = tuple(RemoteDevice(self, number) for number in range(self._n_devices))

    def _count(self) -> int:
        if not self.dialect.has_devices:
            return 1
        count: int = _U32.unpack(self.connection.call(Command.DEVICE_COUNT).result())[0]
        if not 0 < count <= MAX_DEVICES:
            raise self.distrust(self.endpoint, Command.DEVICE_COUNT, f"the server announces {count} devices")
        return count

    def distrust(self, who: str, command: Command, what: str) -> RpcError:
        """End the connection to a server whose answer makes no sense; return what to raise."""
        return self.connection.abandon(ProtocolError(f"{who}: {command.name}: {what}"))

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self.connection.closed

    def ping(self) -> float:
        """Return the seconds of one round trip."""
        start = time.perf_counter()
        self.devices[0].round_trip()
        return time.perf_counter() - start

    def close(self) -> None:
        """End the connection; the server frees what it held for it."""
        self.connection.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        devices = ", ".join(device.name for device in self.devices)
        return f"<Server {self.endpoint}, protocol {self.dialect.name}: {devices}>"

    # ---- Shared by the devices -----------------------------------------------------------------------------------

    def release(self, handle: int) -> None:
        """Note a buffer to be freed; never waits."""
        self._dead.append(handle)

    def free_dead(self) -> None:
        """Free the buffers that nothing refers to any more."""
        while self._dead:
            # The server forgets graphs with the buffer: no other thread may send one between these two.
            with ExitStack() as held:
                for device in self.devices:
                    held.enter_context(device.graphs.forgotten())
                with suppress(IndexError):  # another thread was first
                    handle = self._dead.popleft()
                    if self.connection.closed:
                        return
                    self.live.discard(handle)
                    self.connection.send(Command.FREE_BUFFER, _U64.pack(handle))

    def note_status(self, pending: Pending) -> None:
        """Keep the status of a graph until it is there (2.0.0 and 3.0.0 answer each graph by one byte)."""
        self._statuses.append(pending)
        self.check_statuses(wait=False)

    def check_statuses(self, *, wait: bool = True) -> None:
        """Raise if a graph failed, of those that have ended by now if it is not to wait.

        Raises
        ------
        ComputeError
            With the server's status.
        """
        while self._statuses:
            try:
                if not wait and self._statuses[0].value is None:
                    return
                pending = self._statuses.popleft()
            except IndexError:  # another thread was first
                return
            status = pending.result()[0]
            if status:
                raise ComputeError(f"{self.endpoint}: GRAPH_COMPUTE: the server's status is {status}")


class RemoteDevice(Device):
    """One device of a server."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.name = f"RPC{number}"
        self.endpoint = server.endpoint
        self.description = f"device {number} of {server.endpoint}"
        self._connection = server.connection
        self._encoder = server.encoder
        self._dialect = server.dialect
        self._prefix = _U32.pack(number) if server.dialect.has_devices else b""
        self._sizes: dict[tuple[object, ...], int] = {}
        self._asked = frozenset[str]()
        if self._dialect.alloc_size_has_srcs:
            self._asked = ASKED_OPS_6 if not self._dialect.ik_meaning and self._dialect.announce >= (6,) else ASKED_OPS
        self.alignment = self._number(Command.GET_ALIGNMENT)
        if self.alignment == 0 or self.alignment & (self.alignment - 1) or self.alignment > 1 << 20:
            raise self._distrust(Command.GET_ALIGNMENT, f"{self.alignment} is no sensible power of two")
        self.max_size = self._number(Command.GET_MAX_SIZE)
        if self.max_size == 0:
            raise self._distrust(Command.GET_MAX_SIZE, "no buffer could have 0 bytes at most")
        self.graphs = _StoredGraphs(self)
        self._last_plan: Callable[[], RemotePlan | None] = lambda: None

    def _number(self, command: Command) -> int:
        value: int = _U64.unpack(self._connection.call(command, self._prefix).result())[0]
        return value

    def _distrust(self, command: Command, what: str) -> RpcError:
        return self.server.distrust(str(self), command, what)

    def _flag(self, command: Command, *request: bytes) -> bool:
        """Ask what has yes or no as its answer."""
        value: int = self._connection.call(command, *request).result()[0]
        if value > 1:
            raise self._distrust(command, f"the result is {value}, neither 0 nor 1")
        return value == 1

    # ---- Memory --------------------------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """Return free and total memory in bytes.

        Raises
        ------
        ProtocolError
            If more is free than there is.
        """
        self.server.free_dead()
        free, total = _2U64.unpack(self._connection.call(Command.GET_DEVICE_MEMORY, self._prefix).result())
        if free > total:
            raise self._distrust(Command.GET_DEVICE_MEMORY, f"{free} of {total} bytes are free")
        return free, total

    def allocate(self, size: int) -> Buffer:
        """Reserve a buffer.

        Raises
        ------
        DeviceError
            If it is larger than the largest buffer of the device.
        OutOfMemory
            If the server refuses.
        ProtocolError
            If its answer makes no sense. The connection is closed then.
        """
        self.server.free_dead()
        size = max(size, 1)
        if size > self.max_size:
            raise DeviceError(
                f"{self}: a buffer of {size} bytes is needed, the largest that it gives is {self.max_size} bytes"
            )
        reply = self._connection.call(Command.ALLOC_BUFFER, self._prefix, _U64.pack(size)).result()
        handle, got = _2U64.unpack(reply)
        if handle == 0:
            free, total = self.memory()
            raise OutOfMemory(
                f"{self}: the server refuses a buffer of {size} bytes; {free} of {total} bytes are free there"
            )
        if got < size:
            raise self._distrust(Command.ALLOC_BUFFER, f"{size} bytes were asked for, the server gave {got}")
        if handle in self.server.live:
            raise self._distrust(Command.ALLOC_BUFFER, f"the server gave buffer {handle:#x} twice")
        self.server.live.add(handle)
        base: int = _U64.unpack(self._connection.call(Command.BUFFER_GET_BASE, _U64.pack(handle)).result())[0]
        if base == 0 or base % self.alignment or base + got >= 1 << 64:
            raise self._distrust(Command.BUFFER_GET_BASE, f"{base:#x} is no address for {got} bytes")
        # Bases of two buffers may be equal: where a device has no addresses of its own they are all the same number.
        return Buffer(handle, base, got, self, partial(self.server.release, handle))

    def alloc_size(self, t: Tensor) -> int:
        """Return the bytes that a tensor needs, asking the server where the dialect's clients do."""
        op = t.op
        padded = TYPE_BY_ID[t.type_id].is_quantized and t.ne[0] % PADDED_ROW != 0 and t.view_src is None
        if not padded and op not in self._asked:
            return t.nbytes
        sources = tuple((s.type_id, s.ne, s.nb) if s is not None else None for s in t.src)
        key = (t.type_id, op, t.params, t.ne, t.nb, sources)
        known = self._sizes.get(key)
        if known is None:
            known = self._sizes[key] = self._ask_size(t)
        return known

    def _ask_size(self, t: Tensor) -> int:
        parts = [self._prefix, self._encoder.node(t)]
        if self._dialect.alloc_size_has_srcs:
            absent = bytes(self._dialect.record.size)
            slots = [self._encoder.tensor(s) if s is not None else absent for s in t.src]
            parts += slots + [absent] * (self._dialect.record.max_src - len(slots))
        size: int = _U64.unpack(self._connection.call(Command.GET_ALLOC_SIZE, *parts).result())[0]
        if size < t.nbytes:
            raise self._distrust(Command.GET_ALLOC_SIZE, f"{size} bytes for a tensor of {t.nbytes}")
        if size > self.max_size:
            raise DeviceError(
                f"{self}: tensor {t.name!r} needs {size} bytes, the largest buffer is {self.max_size} bytes"
            )
        return size

    def placed(self, t: Tensor) -> None:
        """Announce a leaf whose rows the device may pad."""
        if TYPE_BY_ID[t.type_id].is_quantized and t.ne[0] % PADDED_ROW != 0 and t.view_src is None:
            self._connection.send(Command.INIT_TENSOR, self._encoder.tensor(t))

    def clear(self, buffer: Buffer, value: int = 0) -> None:
        """Fill a buffer with one byte value."""
        self._connection.send(Command.BUFFER_CLEAR, _U64.pack(buffer.handle), _U8.pack(value))

    # ---- Contents ------------------------------------------------------------------------------------------------

    def _set(self, t: Tensor, data: BytesLike, offset: int, cache: int) -> None:
        view = byte_view(data)
        self.check_range(t, offset, view.nbytes)
        flag = _U8.pack(cache) if self._dialect.set_tensor_cache_flag else b""
        header = self._encoder.tensor(t) + flag + _U64.pack(offset)
        self._connection.send(Command.SET_TENSOR, header, view)

    def write(self, t: Tensor, data: BytesLike, offset: int = 0) -> None:
        """Send bytes of a tensor."""
        self._set(t, data, offset, 0)

    def digest(self, data: BytesLike) -> int | None:
        """Return the hash of bytes that are many enough to be kept by servers."""
        view = byte_view(data)
        return fnv1a_64(view) if view.nbytes > HASH_THRESHOLD_BYTES else None

    def write_cached(self, t: Tensor, data: BytesLike, *, digest: int | None = None) -> bool:
        """Fill a tensor, by its hash alone where the server keeps large tensors and has this one."""
        view = byte_view(data)
        if view.nbytes <= HASH_THRESHOLD_BYTES:
            self._set(t, view, 0, 0)
            return False
        self.check_range(t, 0, view.nbytes)
        request = (self._encoder.tensor(t), _2U64.pack(0, fnv1a_64(view) if digest is None else digest))
        if self._flag(Command.SET_TENSOR_HASH, *request):
            return True
        self._set(t, view, 0, 1)
        return False

    def start_read(self, t: Tensor, out: BytesLike) -> Waiting:
        """Ask for a tensor's bytes; they arrive in `out`."""
        view = byte_view(out)
        self.check_range(t, 0, view.nbytes)
        request = (self._encoder.tensor(t), _2U64.pack(0, view.nbytes))
        pending = self._connection.call(Command.GET_TENSOR, *request, into=view)
        return _CheckedRead(pending, self.server) if self._dialect.graph_status_reply else pending

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        """Let the server copy between two of its tensors."""
        self.check_range(src, 0, dst.nbytes)
        self.check_range(dst, 0, src.nbytes)
        request = (self._encoder.tensor(src), self._encoder.tensor(dst))
        return self._flag(Command.COPY_TENSOR, *request)

    def shares_with(self, other: Device) -> bool:
        """Tell whether the other device is behind the same connection."""
        return isinstance(other, RemoteDevice) and other.server is self.server

    # ---- Graphs --------------------------------------------------------------------------------------------------

    def speaks(self, op: str, kind: str | None = None, value: int = 0) -> bool:
        """Tell whether the server's protocol has an op, and one number for it."""
        return self._encoder.speaks(op, kind, value)

    def has_type(self, name: str) -> bool:
        """Tell whether the server's protocol has a type."""
        return self._encoder.has_type(name)

    def prepare(self, nodes: Sequence[Tensor]) -> RemotePlan:
        """Encode a graph; it is sent when it first runs."""
        self.server.free_dead()
        return RemotePlan(self, nodes)

    def run_encoded(self, payload: bytes | bytearray) -> None:
        """Run a GRAPH_COMPUTE payload."""
        if self._dialect.graph_status_reply:
            self.server.note_status(self._connection.call(Command.GRAPH_COMPUTE, memoryview(payload)))
        else:
            self._connection.send(Command.GRAPH_COMPUTE, memoryview(payload))

    def drop_plans(self) -> None:
        """Send graphs anew from now on: the server may have forgotten them."""
        self.graphs.forget()

    def flush(self) -> None:
        """Send what is still held back, the freeing of buffers included."""
        self.server.free_dead()
        self._connection.flush()

    def round_trip(self) -> None:
        """Ask what costs the server nothing, and wait for the answer."""
        self._connection.call(Command.GET_ALIGNMENT, self._prefix).result()

    def synchronize(self) -> None:
        """Wait until the server has done everything asked so far."""
        plan = self._last_plan()
        memory = None if plan is None else plan.last.buffer
        if plan is None or not plan.last.nbytes or (isinstance(memory, Buffer) and memory.is_free):
            self.round_trip()
        else:
            # A server may answer queries while a graph runs, but not about what the graph is making.
            request = (self._encoder.tensor(plan.last), _2U64.pack(0, 1))
            self._connection.call(Command.GET_TENSOR, *request).result()
        self.server.check_statuses()


class _CheckedRead:
    """A read whose result raises if a graph before it failed."""

    def __init__(self, pending: Pending, server: Server) -> None:
        self._pending = pending
        self._server = server

    def result(self, timeout: float | None = None) -> bytes | memoryview:
        """Wait for the bytes; the statuses of earlier graphs came before them."""
        value = self._pending.result(timeout)
        self._server.check_statuses(wait=False)
        return value


class _StoredGraphs:
    """Count, as the server does, which graphs it can run again by name."""

    def __init__(self, device: RemoteDevice) -> None:
        dialect = device._dialect
        self.lock = threading.Lock()
        self._device = device
        self._kind = dialect.graph_cache if Command.GRAPH_RECOMPUTE in dialect.commands else GraphCache.NONE
        if dialect.ik_meaning and dialect.announce < _IK_RECOMPUTES:
            self._kind = GraphCache.NONE
        self._uids: Iterator[int] = itertools.count(1)
        self._counted = 0
        self._known: weakref.WeakKeyDictionary[RemotePlan, int] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """Forget all. The server's count of uids stays as it is."""
        with self.forgotten():
            pass

    @contextmanager
    def forgotten(self) -> Iterator[None]:
        """Forget all as `forget` does, and let no graph run until the end of the block."""
        with self.lock:
            self._known.clear()
            yield

    def known(self, plan: RemotePlan) -> int | None:
        """Return the uid under which the server has the graph, None if it must be sent."""
        return self._known.get(plan)

    def add(self, plan: RemotePlan) -> int:
        """Count a graph that is sent now and return its uid, 0 where it has none."""
        if self._kind is GraphCache.NONE:
            return 0
        if self._kind is GraphCache.LAST:
            self._known.clear()
            self._known[plan] = 0
            return 0
        if self._counted >= GRAPH_CACHE_MAX:
            self._counted = 0
            self._known.clear()
        self._counted += 1
        self._known[plan] = next(self._uids)
        return self._known[plan]


class RemotePlan(DevicePlan):
    """A graph in the server's dialect."""

    def __init__(self, device: RemoteDevice, nodes: Sequence[Tensor]) -> None:
        self._device = device
        self.last = next((t for t in reversed(nodes) if t.nbytes), nodes[-1])
        self._payload = bytearray(device._encoder.graph(nodes, device.number))
        dialect = device._dialect
        at = {f.name: f.offset for f in dialect.request_fields(Command.GRAPH_COMPUTE)}
        self._uid_at = at.get("uid")
        self._again = device._prefix
        if dialect.recompute_view_offsets:
            copies = [t.view_offs for t in nodes if t.op == "CPY"]
            self._again += struct.pack(f"<I{len(copies)}Q", len(copies), *copies)

    def run(self) -> None:
        """Let the server run the graph, by name if it has it."""
        device, graphs = self._device, self._device.graphs
        connection = device._connection
        with graphs.lock:
            device._last_plan = weakref.ref(self)
            uid = graphs.known(self)
            if uid is not None:
                name = _U64.pack(uid) if self._uid_at is not None else b""
                connection.send(Command.GRAPH_RECOMPUTE, self._again, name)
                return
            uid = graphs.add(self)
            if self._uid_at is not None:
                _U64.pack_into(self._payload, self._uid_at, uid)
            device.run_encoded(self._payload)


def connect(
    endpoint: str, *, dialect: Dialect | str | None = None, timeout: float = 60.0, connect_timeout: float = 10.0
) -> Server:
    """Connect to a server, ours or a stock one of any protocol from 2.0 to 8.0 or of ik_llama.cpp.

    Parameters
    ----------
    endpoint : str
        `host:port`, `host` (port 50052) or `[address]:port`.
    dialect : Dialect or str, optional
        The server's protocol table where its number stands for several, as `--proto` names it: `"ik-3.5.2@2026-05-19"`.
    timeout : float
        Seconds without any progress, while an answer is awaited, after which the server counts as lost.
    connect_timeout : float
        Seconds for connecting and for HELLO, each.

    Raises
    ------
    ConnectionLost, DeadlineExceeded
        If the server cannot be reached or does not answer.
    VersionMismatch
        If it speaks no protocol that is known here.
    """
    try:
        return _open(endpoint, dialect, timeout, connect_timeout, probe=True)
    except ServerRefused:
        # A server that refuses a probe checks what it is sent: there every table can be tried.
        with _open(endpoint, dialect, timeout, connect_timeout, probe=False) as server:
            candidates = server.connection.candidates
    for table in candidates:
        with contextlib.ExitStack() as stack:
            tried = stack.enter_context(_open(endpoint, table, timeout, connect_timeout, probe=False))
            stack.enter_context(contextlib.suppress(ServerRefused))
            if reads(tried.devices[0]):
                stack.pop_all()
                return tried
    return _open(endpoint, dialect, timeout, connect_timeout, probe=False)


def _open(
    endpoint: str, dialect: Dialect | str | None, timeout: float, connect_timeout: float, *, probe: bool
) -> Server:
    connection = Connection(endpoint, dialect=dialect, timeout=timeout, connect_timeout=connect_timeout)
    try:
        return Server(connection, probe=probe)
    except BaseException:
        connection.close()
        raise
