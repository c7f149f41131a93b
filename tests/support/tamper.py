"""Stand between a client and a server, understand both, and spoil one answer or one request."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command, ReplyKind

SECONDS = 20.0  # far more than any step takes
_REQUEST = struct.Struct("<BQ")
_LENGTH = struct.Struct("<Q")
_RESET = struct.pack("ii", 1, 0)


class Cut(Exception):
    """End the connection."""


class Spoiler:
    """What is done to a request, before the server sees it, or to its reply. By default nothing."""

    def request(self, link: Link) -> None:
        """Act before the request is passed on."""

    def reply(self, link: Link, payload: bytes) -> None:
        """Pass a reply on, or what is to stand in its place."""
        link.send(_LENGTH.pack(len(payload)) + payload)


class Close(Spoiler):
    """Close the connection instead of passing the request on."""

    def request(self, link: Link) -> None:
        raise Cut


class Reset(Spoiler):
    """Break it."""

    def request(self, link: Link) -> None:
        link.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise Cut


class Hang(Spoiler):
    """Swallow the request and all after it."""

    def request(self, link: Link) -> None:
        while link.near.recv(1 << 16):
            pass
        raise Cut


class Announce(Spoiler):
    """Say another length than the payload has; close after the payload if `then_close`."""

    def __init__(self, length: Callable[[int], int], *, then_close: bool = False) -> None:
        self._length = length
        self._then_close = then_close

    def reply(self, link: Link, payload: bytes) -> None:
        link.send(_LENGTH.pack(self._length(len(payload)) % (1 << 64)) + payload)
        if self._then_close:
            link.close()


class Short(Spoiler):
    """Announce the right length, send less and close."""

    def reply(self, link: Link, payload: bytes) -> None:
        link.send(_LENGTH.pack(len(payload)) + payload[: len(payload) // 2])
        link.close()


class Long(Spoiler):
    """Announce the right length and send more."""

    def reply(self, link: Link, payload: bytes) -> None:
        link.send(_LENGTH.pack(len(payload)) + payload + b"\xa5" * 5)


class Lie(Spoiler):
    """Send another payload, which may be of another length."""

    def __init__(self, lie: Callable[[bytes], bytes]) -> None:
        self._lie = lie

    def reply(self, link: Link, payload: bytes) -> None:
        super().reply(link, self._lie(payload))


class Tamper:
    """Forward connections to a server and spoil what a test says. A context manager.

    Parameters
    ----------
    target : str
        The server's ``host:port``.
    command : Command, optional
        What is spoilt; nothing by default.
    nth : int
        From which one on, counted over all connections from 1.
    spoiler : Spoiler, optional
        What is done to them.
    times : int
        How many are spoilt.
    stream : callable, optional
        Given the bytes that go to the client and how many went before, returns what goes in their place.
    ends_at : int, optional
        Connections are closed when so many bytes were to go to clients.
    dialect : str
        What the server speaks.

    Attributes
    ----------
    endpoint : str
        Where clients connect.
    seen : list of Command
        All requests so far.
    fired : int
        How many were spoilt.
    on_fire : callable or None
        Called each time.
    """

    def __init__(
        self,
        target: str,
        command: Command | None = None,
        nth: int = 1,
        spoiler: Spoiler | None = None,
        *,
        times: int = 1 << 30,
        stream: Callable[[bytes, int], bytes] | None = None,
        ends_at: int | None = None,
        dialect: str = "8.0.0",
    ) -> None:
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))
        self.dialect = dialects.find(dialect)
        self.stream = stream
        self.ends_at = ends_at
        self.seen: list[Command] = []
        self.fired = 0
        self.n_sent = 0
        self.on_fire: Callable[[], None] | None = None
        self._command, self._nth, self._spoiler, self._times = command, nth, spoiler, times
        self._counts: Counter[Command] = Counter()
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, name="tamper")

    def spoiler_of(self, command: Command) -> Spoiler:
        """Note a request; return what is to be done to it."""
        with self._lock:
            self.seen.append(command)
            self._counts[command] += 1
            if (
                self._spoiler is not None
                and command == self._command
                and self._counts[command] >= self._nth
                and self.fired < self._times
            ):
                self.fired += 1
                if self.on_fire is not None:
                    self.on_fire()
                return self._spoiler
        return Spoiler()

    @property
    def n_open(self) -> int:
        """Return how many connections clients have open."""
        return sum(link.is_alive() for link in list(self._links))

    def reached(self) -> bool:
        """Wait until a request was spoilt: clients do not wait for one without a reply. False if it takes too long."""
        until = time.monotonic() + SECONDS
        while not self.fired and time.monotonic() < until:
            time.sleep(0.002)
        return self.fired > 0

    def drained(self) -> bool:
        """Wait until clients have closed all connections; False if that takes too long."""
        until = time.monotonic() + SECONDS
        while self.n_open and time.monotonic() < until:
            time.sleep(0.002)
        return not self.n_open

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            link = Link(self, near)
            self._links.append(link)
            link.start()

    def __enter__(self) -> Tamper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._thread.join(SECONDS)
        self._listener.close()
        for link in self._links:
            link.close()
            link.join(SECONDS)
        assert not self.n_open


class Link(threading.Thread):
    """One connection of a client and the one to the server that belongs to it."""

    def __init__(self, owner: Tamper, near: socket.socket) -> None:
        super().__init__(name="tamper link")
        self.near = near
        self._owner = owner
        self._far = socket.create_connection(owner.target)
        for side in (self.near, self._far):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._due: deque[Spoiler] = deque()

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        owner = self._owner
        out = data if owner.stream is None else owner.stream(data, owner.n_sent)
        owner.n_sent += len(data)
        self.near.sendall(out)
        if owner.ends_at is not None and owner.n_sent > owner.ends_at:
            self.close()

    def close(self) -> None:
        """End both connections; what was sent arrives."""
        for side in (self.near, self._far):
            with suppress(OSError):  # it had ended
                side.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Pass requests on, and replies in a thread of their own, until one side leaves."""
        back = threading.Thread(target=self._replies, name="tamper replies")
        back.start()
        with self.near, self._far:
            with suppress(OSError, EOFError, Cut):
                self._requests()
            with suppress(OSError):
                self._far.shutdown(socket.SHUT_RDWR)
            back.join()

    def _requests(self) -> None:
        dialect = self._owner.dialect
        while True:
            head = _exactly(self.near, _REQUEST.size)
            number, size = _REQUEST.unpack(head)
            payload = _exactly(self.near, size)
            command = dialect.command_by_number.get(number)
            if command is not None:  # a client that was misled may speak another dialect
                spoiler = self._owner.spoiler_of(command)
                spoiler.request(self)
                if dialect.reply_kind(command) is not ReplyKind.NONE:
                    self._due.append(spoiler)
            self._far.sendall(head + payload)

    def _replies(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                (size,) = _LENGTH.unpack(_exactly(self._far, _LENGTH.size))
                payload = _exactly(self._far, size)
                # A client that was misled about the dialect has answers to what this does not understand.
                spoiler = self._due.popleft() if self._due else Spoiler()
                spoiler.reply(self, payload)
        # The client shall notice that the server left, after the last reply.
        with suppress(OSError):
            self.near.shutdown(socket.SHUT_RDWR)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(min(size - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return bytes(data)
