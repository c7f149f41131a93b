"""Servers that do what a test says, step by step, and a client for the tests that speaks over a `Connection`."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

from ggml_rpc.client.connection import Connection
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command, ReplyKind
from tests.support.rawclient import RawClient

SECONDS = 20.0  # far more than any step takes; a test that hangs fails by it


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(SECONDS)

    def receive(self, n_bytes: int) -> bytes:
        """Receive exactly so many bytes."""
        data = bytearray()
        while len(data) < n_bytes:
            more = self.sock.recv(min(n_bytes - len(data), 1 << 20))
            if not more:
                raise ConnectionResetError("the client left")
            data += more
        return bytes(data)

    def request(self) -> tuple[int, bytes]:
        """Receive a request."""
        number, size = struct.unpack("<BQ", self.receive(9))
        return number, self.receive(size)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def reply(self, payload: bytes = b"", length: int | None = None) -> None:
        """Send a reply; `length` overrides what its header says."""
        self.send(struct.pack("<Q", len(payload) if length is None else length) + payload)

    def hello(self, *version: int, size: int | None = None) -> int:
        """Answer HELLO as a server of this number does (24 bytes from 4.0.0 on); return the request's length.

        A request of the other length closes the connection.
        """
        number, payload = self.request()
        assert number == Command.HELLO
        want = 28 if version[0] >= 4 else 3
        size = want if size is None else size
        if len(payload) != (24 if size == 28 else 0):
            raise Leave
        self.reply(bytes(version).ljust(size, b"\0"))
        return len(payload)

    def reset(self) -> None:
        """Break the connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Leave

    def hang(self) -> None:
        """Take what comes and answer nothing until the client leaves."""
        while self.sock.recv(1 << 16):
            pass

    def stall(self, until: threading.Event) -> None:
        """Take nothing and answer nothing until the event is set."""
        assert until.wait(SECONDS)


class Leave(Exception):
    """End a script: the connection is closed."""


Script = Callable[[Peer], None]


class FakeServer:
    """Serve one connection after the other, each by its script; the last script serves all that follow.

    Attributes
    ----------
    endpoint : str
        `host:port`.
    n_served : int
        Connections so far.
    """

    def __init__(self, *scripts: Script, buffer_bytes: int | None = None) -> None:
        self._scripts = scripts
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=8)
        if buffer_bytes is not None:  # inherited by the connections
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.n_served = 0
        self.ended = threading.Semaphore(0)  # once a connection
        self._current: socket.socket | None = None
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        for sock in (self._listener, self._current):
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it had ended
        self._thread.join(SECONDS)
        self._listener.close()
        assert not self._thread.is_alive()
        if self._failure is not None and kind is None:
            raise self._failure

    def _run(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._current = sock
            script = self._scripts[min(self.n_served, len(self._scripts) - 1)]
            self.n_served += 1
            try:
                with sock:
                    script(Peer(sock))
            except (Leave, ConnectionError):
                pass
            except AssertionError as e:
                self._failure = e
            finally:
                self._current = None
                self.ended.release()


def answering(*steps: Script, version: tuple[int, ...] = (8, 0, 0)) -> Script:
    """Return a script that answers HELLO and then takes these steps."""

    def script(peer: Peer) -> None:
        peer.hello(*version)
        for step in steps:
            step(peer)

    return script


class WiredClient(RawClient):
    """All commands of a dialect, packed by the tests' own code and sent over a connection under test."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.dialect: dialects.Dialect = connection.dialect

    def call(self, command: Command, payload: bytes = b"") -> bytes:
        """Send a request and return its reply; empty where there is none or it is empty."""
        if self.dialect.reply_kind(command) in (ReplyKind.NONE, ReplyKind.EMPTY):
            self.connection.send(command, payload)
            return b""
        return bytes(self.connection.call(command, payload).result())
