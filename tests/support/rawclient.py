"""A small client in plain Python: sockets and struct, layouts from `ggml_rpc.spec`, nothing else of the package.

It checks nothing that it sends, so that tests can send anything; and it shares no code with the codec under test.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command, ReplyKind

from .wiretensor import Tensor, graph_payload

_U64 = struct.Struct("<Q")


class Hello(NamedTuple):
    """The reply to HELLO."""

    version: tuple[int, int, int]
    caps: bytes


class Buffer(NamedTuple):
    """A buffer on the server: handle, size as the server gave it, and base address."""

    handle: int
    size: int
    base: int


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[host]:port`."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def frame(command: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """Return a request; `length` overrides the announced payload length."""
    return struct.pack("<BQ", command, len(payload) if length is None else length) + payload


class RawClient:
    """Speak one dialect over one connection.

    Parameters
    ----------
    endpoint : str
        `host:port`.
    dialect : Dialect
        Layouts and numbers to use.
    timeout : float
        Seconds that any send or receive may take.
    hello : bool
        Send HELLO at once.
    """

    def __init__(
        self,
        endpoint: str,
        dialect: dialects.Dialect = dialects.DEFAULT,
        *,
        timeout: float = 20.0,
        hello: bool = True,
    ) -> None:
        self.dialect = dialect
        self.socket = socket.create_connection(split_endpoint(endpoint), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server: Hello | None = self.hello() if hello else None

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    # ---- Bytes ---------------------------------------------------------------------------------------------------

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def receive_exactly(self, size: int) -> bytes:
        """Receive `size` bytes; raise ConnectionError when the peer closes before."""
        data = bytearray(size)
        view = memoryview(data)
        at = 0
        while at < size:
            n = self.socket.recv_into(view[at:])
            if n == 0:
                raise ConnectionError(f"the peer closed after {at} of {size} bytes")
            at += n
        return bytes(data)

    def send(self, command: int, payload: bytes = b"", length: int | None = None) -> None:
        """Send a request; `length` overrides the announced payload length."""
        self.send_raw(frame(command, payload, length))

    def reply(self) -> bytes:
        """Receive one reply and return its payload."""
        (size,) = _U64.unpack(self.receive_exactly(8))
        return self.receive_exactly(size)

    def call(self, command: Command, payload: bytes = b"") -> bytes:
        """Send a request and return the payload of its reply, empty for commands without one."""
        self.send(self.dialect.commands[command], payload)
        return b"" if self.dialect.reply_kind(command) is ReplyKind.NONE else self.reply()

    def closed_by_peer(self, timeout: float = 10.0) -> bool:
        """Return whether the peer closes (or resets) within `timeout` seconds without sending another byte."""
        self.socket.settimeout(timeout)
        try:
            return self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def barrier(self) -> None:
        """Return when the server has served everything sent so far (a query that always has a reply)."""
        self.memory()

    # ---- Commands ------------------------------------------------------------------------------------------------

    def _pack(self, command: Command, *values: int | bytes | Tensor | list[Tensor | None]) -> bytes:
        """Pack one value for each field of the request, in order."""
        out = []
        given = iter(values)
        for field in self.dialect.request_fields(command):
            value = next(given)
            if isinstance(value, Tensor):
                out.append(value.pack(self.dialect))
            elif isinstance(value, bytes):
                out.append(value.ljust(field.size, b"\0"))
            elif isinstance(value, list):
                zero = bytes(self.dialect.record.size)
                slots = value + [None] * (self.dialect.record.max_src - len(value))
                out.append(b"".join(zero if t is None else t.pack(self.dialect) for t in slots))
            else:
                out.append(value.to_bytes(field.size, "little"))
        return b"".join(out)

    def _device(self, device: int) -> tuple[int, ...]:
        return (device,) if self.dialect.has_devices else ()

    def hello(self) -> Hello:
        """Exchange HELLO."""
        data = self.call(Command.HELLO, bytes(self.dialect.hello_request))
        return Hello((data[0], data[1], data[2]), data[4:])

    def device_count(self) -> int:
        """Return the number of devices; clients without that command know of one."""
        if Command.DEVICE_COUNT not in self.dialect.commands:
            return 1
        return int.from_bytes(self.call(Command.DEVICE_COUNT), "little")

    def alignment(self, device: int = 0) -> int:
        """Return the alignment of a device's buffers."""
        return int.from_bytes(self.call(Command.GET_ALIGNMENT, self._pack_device(device)), "little")

    def max_size(self, device: int = 0) -> int:
        """Return the largest buffer a device allows."""
        return int.from_bytes(self.call(Command.GET_MAX_SIZE, self._pack_device(device)), "little")

    def memory(self, device: int = 0) -> tuple[int, int]:
        """Return free and total bytes of a device."""
        free, total = struct.unpack("<QQ", self.call(Command.GET_DEVICE_MEMORY, self._pack_device(device)))
        return free, total

    def _pack_device(self, device: int) -> bytes:
        return self._pack(Command.GET_ALIGNMENT, *self._device(device))

    def alloc_raw(self, size: int, device: int = 0) -> tuple[int, int]:
        """Return handle and size of a new buffer, both 0 if the server refuses."""
        data = self.call(Command.ALLOC_BUFFER, self._pack(Command.ALLOC_BUFFER, *self._device(device), size))
        handle, got = struct.unpack("<QQ", data)
        return handle, got

    def alloc(self, size: int, device: int = 0) -> Buffer:
        """Allocate a buffer and ask for its base; raise MemoryError if the server refuses."""
        handle, got = self.alloc_raw(size, device)
        if handle == 0:
            raise MemoryError(f"the server refused {size} bytes")
        return Buffer(handle, got, self.base(handle))

    def base(self, handle: int) -> int:
        """Return a buffer's base address."""
        return int.from_bytes(self.call(Command.BUFFER_GET_BASE, self._pack(Command.BUFFER_GET_BASE, handle)), "little")

    def free(self, handle: int) -> None:
        """Free a buffer."""
        self.call(Command.FREE_BUFFER, self._pack(Command.FREE_BUFFER, handle))

    def clear(self, handle: int, value: int = 0) -> None:
        """Fill a buffer with one byte value."""
        self.call(Command.BUFFER_CLEAR, self._pack(Command.BUFFER_CLEAR, handle, value))

    def set(self, tensor: Tensor, data: bytes, offset: int = 0, cache_flag: int = 0) -> None:
        """Write bytes into a tensor."""
        flag = (cache_flag,) if self.dialect.set_tensor_cache_flag else ()
        self.call(Command.SET_TENSOR, self._pack(Command.SET_TENSOR, tensor, *flag, offset, data))

    def set_hash(self, tensor: Tensor, hash: int, offset: int = 0) -> int:
        """Ask the server to fill a tensor from its cache; return 1 if it did."""
        return self.call(Command.SET_TENSOR_HASH, self.hash_payload(tensor, hash, offset))[0]

    def hash_payload(self, tensor: Tensor, hash: int, offset: int = 0) -> bytes:
        """Return what `set_hash` sends."""
        return self._pack(Command.SET_TENSOR_HASH, tensor, offset, hash)

    def get(self, tensor: Tensor, offset: int = 0, size: int | None = None) -> bytes:
        """Read bytes of a tensor, by default all."""
        size = tensor.nbytes() - offset if size is None else size
        return self.call(Command.GET_TENSOR, self._pack(Command.GET_TENSOR, tensor, offset, size))

    def copy(self, src: Tensor, dst: Tensor) -> int:
        """Copy a tensor on the server; return 1 if it was done."""
        return self.call(Command.COPY_TENSOR, self._pack(Command.COPY_TENSOR, src, dst))[0]

    def init(self, tensor: Tensor) -> None:
        """Announce a tensor."""
        self.call(Command.INIT_TENSOR, self._pack(Command.INIT_TENSOR, tensor))

    def alloc_size(self, tensor: Tensor, srcs: list[Tensor | None] | None = None, device: int = 0) -> int:
        """Return the bytes that a tensor needs."""
        tail = (list(srcs or ()),) if self.dialect.alloc_size_has_srcs else ()
        payload = self._pack(Command.GET_ALLOC_SIZE, *self._device(device), tensor, *tail)
        return int.from_bytes(self.call(Command.GET_ALLOC_SIZE, payload), "little")

    def memset(self, tensor: Tensor, value: int, offset: int = 0, size: int | None = None) -> None:
        """Fill bytes of a tensor; clients without that command write them."""
        size = tensor.nbytes() - offset if size is None else size
        if Command.MEMSET_TENSOR not in self.dialect.commands:
            self.set(tensor, bytes([value]) * size, offset)
            return
        self.call(Command.MEMSET_TENSOR, self._pack(Command.MEMSET_TENSOR, tensor, offset, size, value))

    def set_2d(self, tensor: Tensor, data: bytes, *, offset: int, size: int, n_copies: int, stride: int) -> None:
        """Write `n_copies` pieces of `size` bytes, `stride` bytes apart."""
        self.call(
            Command.SET_TENSOR_2D, self._pack(Command.SET_TENSOR_2D, tensor, offset, size, n_copies, stride, data)
        )

    def get_2d(self, tensor: Tensor, *, offset: int, size: int, n_copies: int, stride: int) -> bytes:
        """Read `n_copies` pieces of `size` bytes, `stride` bytes apart."""
        return self.call(
            Command.GET_TENSOR_2D, self._pack(Command.GET_TENSOR_2D, tensor, offset, size, n_copies, stride)
        )

    def compute(self, nodes: list[Tensor], uid: int = 0, device: int = 0) -> None:
        """Send a graph. Where it has no reply, errors show only through the connection: follow with a query.

        Raises
        ------
        RuntimeError
            If there is a reply and it tells of a failure.
        """
        status = self.call(Command.GRAPH_COMPUTE, graph_payload(self.dialect, nodes, uid=uid, device=device))
        if status.strip(b"\0"):
            raise RuntimeError(f"the graph's status is {status[0]}")

    def recompute(self, uid: int = 0, device: int = 0, view_offs: Sequence[int] = ()) -> None:
        """Run a stored graph again; `view_offs`: where its CPY nodes write to, in dialects that say so."""
        tail: tuple[int | bytes, ...] = (uid,) if self.dialect.graph_uid else ()
        if self.dialect.recompute_view_offsets:
            tail = (*tail, len(view_offs), struct.pack(f"<{len(view_offs)}Q", *view_offs))
        self.call(Command.GRAPH_RECOMPUTE, self._pack(Command.GRAPH_RECOMPUTE, *self._device(device), *tail))

    def run_again(self, nodes: list[Tensor], uid: int = 0, device: int = 0) -> None:
        """Run a graph that was computed last, as the dialect's clients do: by its store, or sent once more."""
        if Command.GRAPH_RECOMPUTE in self.dialect.commands:
            self.recompute(uid, device)
        else:
            self.compute(nodes, uid, device)

    def comm_init(self, rank: int, world: int, port: int, host: str, device: int = 0) -> int:
        """Ask the server to link up with another one; return 1 if it did."""
        payload = self._pack(Command.COMM_INIT, device, rank, world, port, host.encode())
        return self.call(Command.COMM_INIT, payload)[0]

    def comm_allreduce(self, tensor: Tensor, device: int = 0) -> None:
        """Add up a tensor with the linked server's."""
        self.call(Command.COMM_ALLREDUCE, self._pack(Command.COMM_ALLREDUCE, device, tensor))

    def comm_free(self, device: int = 0) -> None:
        """Drop the link."""
        self.call(Command.COMM_FREE, self._pack(Command.COMM_FREE, device))
