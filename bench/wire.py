"""Time the wire itself: round trips, uploads and downloads, by a plain socket client that treats all servers alike."""

from __future__ import annotations

import socket
import struct
import time
from types import TracebackType

ALLOC_BUFFER, GET_ALIGNMENT, BUFFER_GET_BASE, FREE_BUFFER, SET_TENSOR, GET_TENSOR, HELLO = 0, 1, 3, 4, 6, 8, 14
HEADER = struct.Struct("<BQ")
TENSOR = struct.Struct("<QIQ4I4II64si80sQQQ64si")
MIB = 1 << 20
ROUND_TRIPS = 2000
TRANSFER = 256 * MIB
MESSAGE = 16 * MIB  # about the size of one weight of a 1B model
CAPS = bytes(24)  # TCP only


class WireClient:
    """Speak as much of protocol 7.0 and 8.0 as the measurements need; the two do not differ in it.

    Parameters
    ----------
    endpoint : str
        The server's ``host:port``.
    """

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.version = tuple(self._call(HELLO, CAPS)[:3])

    def __enter__(self) -> WireClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def _send(self, command: int, payload: bytes, data: memoryview | None = None) -> None:
        self._socket.sendall(HEADER.pack(command, len(payload) + (len(data) if data is not None else 0)) + payload)
        if data is not None:
            self._socket.sendall(data)

    def _receive(self, target: memoryview) -> None:
        at = 0
        while at < len(target):
            count = self._socket.recv_into(target[at:])
            if count == 0:
                raise ConnectionError("the server closed the connection")
            at += count

    def _call(self, command: int, payload: bytes) -> bytes:
        self._send(command, payload)
        head = bytearray(8)
        self._receive(memoryview(head))
        reply = bytearray(int.from_bytes(head, "little"))
        self._receive(memoryview(reply))
        return bytes(reply)

    def round_trip(self) -> float:
        """Return the median seconds of a request with a small reply."""
        request = HEADER.pack(GET_ALIGNMENT, 4) + bytes(4)
        reply = memoryview(bytearray(16))
        times = []
        for _ in range(ROUND_TRIPS):
            start = time.perf_counter()
            self._socket.sendall(request)
            self._receive(reply)
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    def transfer(self) -> tuple[float, float]:
        """Return the bytes a second of uploads and of downloads of 256 MiB in messages of 16 MiB."""
        pointer, size = struct.unpack("<QQ", self._call(ALLOC_BUFFER, struct.pack("<IQ", 0, TRANSFER)))
        if size < TRANSFER:
            raise MemoryError("the server has no memory for the measurement")
        (base,) = struct.unpack("<Q", self._call(BUFFER_GET_BASE, struct.pack("<Q", pointer)))
        n = TRANSFER // 4
        strides = (4, TRANSFER, TRANSFER, TRANSFER)
        tensor = TENSOR.pack(1, 0, pointer, n, 1, 1, 1, *strides, 0, b"", 0, b"", 0, 0, base, b"bench", 0)
        data = memoryview(bytearray(MESSAGE))
        data[:] = bytes(range(256)) * (MESSAGE // 256)
        offsets = range(0, TRANSFER, MESSAGE)
        rates = []
        for _ in range(2):  # the first touch of the buffer's pages is not the wire's
            start = time.perf_counter()
            for offset in offsets:
                self._send(SET_TENSOR, tensor + struct.pack("<BQ", 0, offset), data)
            self._call(GET_ALIGNMENT, struct.pack("<I", 0))  # answered when all has arrived
            rates.append(TRANSFER / (time.perf_counter() - start))
        reply = memoryview(bytearray(8 + MESSAGE))
        start = time.perf_counter()
        for offset in offsets:
            self._send(GET_TENSOR, tensor + struct.pack("<QQ", offset, MESSAGE))
            self._receive(reply)
        down = TRANSFER / (time.perf_counter() - start)
        if reply[8:] != data:
            raise ValueError("the server returned other bytes than it was given")
        self._send(FREE_BUFFER, struct.pack("<Q", pointer))
        self._call(GET_ALIGNMENT, struct.pack("<I", 0))
        return rates[-1], down
