"""Stand between a client and a server and count the bytes of each direction."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

CHUNK = 1 << 20


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
    """

    def __init__(self, target: str, source: str = "127.0.0.1") -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._source = (source, 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self.received = 0
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
        with suppress(OSError):  # one side went away
            while data := source.recv(CHUNK):
                if outbound:
                    self.sent += len(data)
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
