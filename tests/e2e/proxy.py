"""Stand between a client and a server and count the bytes of each direction, and requests by command."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from types import TracebackType

CHUNK = 1 << 20
_HEADER = struct.Struct("<BQ")


class _Requests:
    """Count the requests of one connection in a table of all; every dialect has the same header."""

    def __init__(self, counts: Counter[int]) -> None:
        self._counts = counts
        self._head = b""
        self._payload_left = 0

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._payload_left:
                step = min(self._payload_left, len(data) - at)
                self._payload_left -= step
                at += step
                continue
            piece = data[at : at + _HEADER.size - len(self._head)]
            self._head += piece
            at += len(piece)
            if len(self._head) == _HEADER.size:
                command, self._payload_left = _HEADER.unpack(self._head)
                self._counts[command] += 1
                self._head = b""


class CountingProxy:
    """Forward every connection to a server.

    Parameters
    ----------
    target : str
        The server's ``host:port``.
    source : str
        The address that the server sees; all of 127.0.0.0/8 are this machine's.

    Attributes
    ----------
    endpoint : str
        Where clients connect.
    sent, received : int
        Bytes from clients to the server and back.
    requests : Counter of int
        Requests to the server by the byte of their command.
    """

    def __init__(self, target: str, source: str = "127.0.0.1") -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._source = (source, 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self.received = 0
        self.requests: Counter[int] = Counter()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _address = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._target, source_address=self._source) as far:
            for side in (near, far):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._pump, args=(far, near, False), daemon=True)
            back.start()
            self._pump(near, far, True)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, outbound: bool) -> None:
        requests = _Requests(self.requests)
        with suppress(OSError):  # one side went away
            while data := source.recv(CHUNK):
                if outbound:
                    self.sent += len(data)
                    requests.feed(data)
                else:
                    self.received += len(data)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)  # the other side shall notice

    def __enter__(self) -> CountingProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._listener.close()
