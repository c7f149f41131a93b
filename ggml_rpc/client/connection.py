"""One connection to a server: requests go out in order and pipelined, replies are matched as they come."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from types import TracebackType

from ggml_rpc.errors import ConnectionLost, DeadlineExceeded, ProtocolError, RpcError, ServerRefused
from ggml_rpc.spec import dialects, limits
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.transport import tcp

from .callbacks import CloseCallbacks
from .handshake import greet
from .history import History
from .replies import Awaited, Replies
from .requests import Part, Request, Requests

# Requests below this are gathered and leave in one system call; parts from here on are sent from where they lie.
SMALL_BYTES = 1 << 16
# A kernel takes at most 1024 pieces in a call.
_MAX_PIECES = 512
# How often a sender that cannot go on looks whether it must now read replies, which another thread did until then; and
# how long a small send waits for another thread's.
_TICK_SECONDS = 0.01
LEAVE_SECONDS = 2.0
"""The longest wait in `Connection.close`, for replies that are due."""

# Waits are cut into pieces of this, which every platform's poll and lock can take.
_LONGEST_WAIT_SECONDS = 3600.0
# Sockets take no endless time.
_LONGEST_CONNECT_SECONDS = 24 * 3600.0


class Pending(Awaited):
    """A reply that is on its way. Made by `Connection.call`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection, command: Command, size: int, memory: memoryview | None) -> None:
        super().__init__(command, size, memory)
        self._connection = connection

    def result(self, timeout: float | None = None) -> bytes | memoryview:
        """Wait for the reply and return its payload.

        Parameters
        ----------
        timeout : float, optional
            Seconds without a byte from the server after which it is given up; by default the connection's.

        Returns
        -------
        bytes or memoryview
            The payload; where the caller gave memory for it, a view of that memory's bytes.

        Raises
        ------
        ServerRefused
            If the server closed the connection after a request.
        DeadlineExceeded
            If it sent nothing for so long. The connection is closed then.
        ProtocolError
            If it answered with a wrong size. The connection is closed then.
        ConnectionLost
            If the connection ended otherwise, or had ended before.
        """
        if self.value is None:
            self._connection._wait(self, timeout)
        assert self.value is not None
        return self.value


class Connection:
    """Hold one connection to a server. It is ordered, pipelined and safe to use from several threads.

    There is no thread behind it: replies are read while somebody waits for one, or while sending has to wait. A server
    that cannot get rid of a reply may give the connection up (this package's after 30 s), so take large results soon.
    Once it has failed, all else on it fails at once.

    Parameters
    ----------
    endpoint : str
        `host:port`, `[v6]:port`, or without the port for 50052.
    dialect : Dialect or str, optional
        Which table to speak. By default the one that the server announces; some numbers stand for several, then the
        newest is taken, and `candidates` lists all.
    connect_timeout : float
        Seconds for connecting and HELLO, each time that it has to be tried.
    timeout : float
        The longest time without any progress while a reply is awaited or the server does not take what is sent.

    Attributes
    ----------
    endpoint : str
        `host:port` or `[v6]:port`.
    announced : tuple of int
        Major, minor and patch number that the server announced.
    dialect : Dialect
        The table in use.
    candidates : tuple of Dialect
        All tables that the announced number can mean; `dialect` is the first.
    on_close : CloseCallbacks
        Append functions to be told of the end.

    Raises
    ------
    ValueError
        If the endpoint is malformed, the dialect is not known or a time is not positive.
    VersionMismatch, ServerRefused, ConnectionLost, DeadlineExceeded
        If the server cannot be reached, or the two do not speak the same.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        dialect: Dialect | str | None = None,
        connect_timeout: float = 10.0,
        timeout: float = 60.0,
    ) -> None:
        host, port = tcp.parse_endpoint(endpoint, limits.DEFAULT_PORT)
        if isinstance(dialect, str):
            if dialect not in dialects.ALL_NAMES:
                raise ValueError(f"unknown dialect {dialect!r}; known are {', '.join(dialects.NAMES)}")
            dialect = dialects.find(dialect)
        if not (connect_timeout > 0 and timeout > 0):
            raise ValueError(f"times must be positive: connect_timeout {connect_timeout}, timeout {timeout}")
        self.endpoint = tcp.format_endpoint(host, port)
        self.timeout = timeout
        greeting = greet(host, port, dialect, min(connect_timeout, _LONGEST_CONNECT_SECONDS))
        self.announced = greeting.announced
        self.candidates = greeting.candidates
        self.dialect = greeting.candidates[0]
        self.on_close = CloseCallbacks()
        self._peer = f"the server at {self.endpoint}"
        self._sock = greeting.sock
        self._sock.setblocking(False)
        self._process = os.getpid()
        # Not shutdown: a copy of the descriptor in a forked process must not end the parent's connection.
        self._close_socket = weakref.finalize(self, self._sock.close)
        self._requests = Requests(self.dialect)
        self._replies = Replies(self._peer)
        # Sending. A finalizer may free a buffer at any moment, also while this very thread sends, reads or holds a
        # lock: so small commands are gathered without one, and the lock is reentrant.
        self._send_lock = threading.RLock()
        self._sending = False
        self._gathered: deque[tuple[Command, bytes, Awaited | None]] = deque()
        self._n_gathered = 0  # bytes, about: threads may overtake each other
        self._history = History()
        # Receiving: one thread at a time reads, the others wait for their turn or their reply.
        self._turn = threading.Condition()
        self._reader = 0
        self._followers = 0
        self._progress = time.monotonic()
        self._closed = False
        self._error: RpcError | None = None
        # A poll object serves one thread at a time: the first is the reader's, the others the sender's.
        self._readable, self._writable, self._either = select.poll(), select.poll(), select.poll()
        self._readable.register(self._sock, select.POLLIN)
        self._writable.register(self._sock, select.POLLOUT)
        self._either.register(self._sock, select.POLLIN | select.POLLOUT)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Connection to {self.endpoint}, {self.dialect.name}{', closed' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        """Tell whether the connection has ended, by `close` or by a failure."""
        return self._closed

    # ---- Requests ------------------------------------------------------------------------------------------------

    def send(self, command: Command, *parts: Part) -> None:
        """Send a command that has no reply, or an empty one; the answer is not waited for.

        Small commands are gathered until `flush`, `call` or a graph. The parts may be reused when this returns. An
        empty reply is checked when later replies are read. Safe in a finalizer, even one that runs within another send.

        Parameters
        ----------
        command : Command
            What to do.
        parts : bytes or memoryview
            The payload in pieces; large ones are sent from where they lie.

        Raises
        ------
        ValueError
            If the dialect lacks the command, the payload's size is not the command's, or it has a reply to wait for.
        ServerRefused, DeadlineExceeded, ConnectionLost, ProtocolError
            As `Pending.result`, if the connection fails or has failed.
        """
        request = self._requests.without_result(command, parts)
        awaited = Awaited(command, 0) if request.rule.answered else None
        if request.urgent or request.size >= SMALL_BYTES:
            self._submit(request, awaited)
            return
        self._check()
        self._gather(request, awaited)
        if self._n_gathered >= SMALL_BYTES:
            # Another thread that sends may need what this one holds, so no longer than that; it is only gathered then.
            self._submit(None, None, patience=_TICK_SECONDS)

    def call(self, command: Command, *parts: Part, into: memoryview | None = None) -> Pending:
        """Send a command that has a reply, and all that was gathered before; do not wait for the reply.

        Parameters
        ----------
        command : Command
            What to ask.
        parts : bytes or memoryview
            The payload in pieces.
        into : memoryview, optional
            Where GET_TENSOR and GET_TENSOR_2D put their data: writable, contiguous, of exactly the bytes asked for. It
            belongs to the connection until the result is there. Without it memory is made.

        Returns
        -------
        Pending
            Its `result` is the reply's payload.

        Raises
        ------
        ValueError
            If the dialect lacks the command, the payload's size is not the command's, it has no reply, or `into` does
            not fit.
        ServerRefused, DeadlineExceeded, ConnectionLost, ProtocolError
            As `Pending.result`, if the connection fails or has failed.
        """
        request, size, memory = self._requests.with_result(command, parts, into)
        pending = Pending(self, command, size, memory)
        self._submit(request, pending)
        return pending

    def flush(self) -> None:
        """Send what is gathered; return when the kernel has it."""
        self._submit(None, None)

    def close(self) -> None:
        """Leave. What is gathered and not sent is dropped: whatever it would have done ends with the connection.

        A server need not have taken all that was sent; end with a `call` where that matters (a tensor for its cache).
        If replies are due, this waits for them for a short while.
        """
        if self._process != os.getpid():
            self._closed = True
            self._close_socket()
            return
        with self._turn:
            was_open, self._closed = not self._closed, True
            self._turn.notify_all()
        if was_open:
            self._take_leave()
        with self._turn:
            self._wake()
        self._bury()

    def abandon(self, error: RpcError) -> RpcError:
        """End the connection because an answer on it makes no sense; return what to raise.

        Parameters
        ----------
        error : RpcError
            What is wrong. It is returned, and all later uses of the connection tell of it, unless it had ended before.
        """
        try:
            return self._break(error)
        finally:
            self._bury()

    def _take_leave(self) -> None:
        """Say that nothing more comes, and hear what the server still has to say.

        Stock servers of protocols that answer FREE_BUFFER are ended by SIGPIPE if nobody is there for the answer. And
        a server that finds out what its clients speak takes one that leaves right after HELLO for one that did not like
        the number, and offers another one next: so something is asked first.
        """
        if not self._send_lock.acquire(blocking=False):
            return
        try:
            if self._sending or not self._lead():
                return
            try:
                with contextlib.suppress(OSError):  # it left first
                    if self._history.n_sent == 0:
                        self._sock.send(self._requests.harmless())
                    elif self._replies.due is None:
                        return
                    self._sock.shutdown(socket.SHUT_WR)
                    self._hear_out()
            finally:
                self._unlead()
        finally:
            self._send_lock.release()

    def _hear_out(self) -> None:
        """Read until the server closes the connection, for a short while."""
        end = time.monotonic() + LEAVE_SECONDS
        unheard = bytearray(SMALL_BYTES)
        while (left := end - time.monotonic()) > 0:
            if self._readable.poll(_milliseconds(left)) and not self._sock.recv_into(unheard):
                return

    # ---- Sending -------------------------------------------------------------------------------------------------

    def _gather(self, request: Request, awaited: Awaited | None) -> None:
        data = b"".join((request.header, *request.parts))
        self._gathered.append((request.rule.command, data, awaited))
        self._n_gathered += len(data)

    def _submit(self, request: Request | None, awaited: Awaited | None, patience: float = -1) -> None:
        """Send what is gathered and then a request; within this thread's own send or read (a finalizer), gather it."""
        self._check()
        try:
            if not self._send_lock.acquire(timeout=patience):
                return
            try:
                if not self._sending and self._reader != threading.get_ident():
                    self._send_all(request, awaited)
                elif request is not None:
                    self._gather(request, awaited)
            finally:
                self._send_lock.release()
        finally:
            if self._closed:
                self._bury()

    def _send_all(self, request: Request | None, awaited: Awaited | None) -> None:
        self._sending = True
        clean = False
        try:
            self._check()
            out = bytearray()
            self._n_gathered = 0
            while self._gathered:
                command, data, due = self._gathered.popleft()
                self._note(command, due)
                out += data
            pieces: list[Part] = [out] if out else []
            if request is not None:
                self._note(request.rule.command, awaited)
                pieces = request.pieces(out, SMALL_BYTES)
            self._write(pieces)
            clean = True
        finally:
            self._sending = False
            if not clean:
                self._break(ConnectionLost(f"sending to {self.endpoint} was interrupted"))

    def _note(self, command: Command, awaited: Awaited | None) -> None:
        """Note a request that is sent next, before its reply can come."""
        number = self._history.add(command)
        if awaited is not None:
            awaited.number = number
            self._replies.expect(awaited)

    def _write(self, pieces: list[Part]) -> None:
        sock = self._sock
        while pieces:
            try:
                n_bytes = sock.send(pieces[0]) if len(pieces) == 1 else sock.sendmsg(pieces[:_MAX_PIECES])
            except BlockingIOError:
                self._wait_for_room()
                continue
            except OSError as e:
                raise self._after_failed_send(e) from e
            self._progress = time.monotonic()
            while pieces and n_bytes >= len(pieces[0]):
                n_bytes -= len(pieces.pop(0))
            if n_bytes:
                pieces[0] = memoryview(pieces[0])[n_bytes:]

    def _wait_for_room(self) -> None:
        """Wait until the socket takes more; read replies meanwhile: the server may take nothing until we do."""
        begin = time.monotonic()
        while True:
            left = max(begin, self._progress) + self.timeout - time.monotonic()
            if left <= 0:
                names = self._history.after(self._replies.answered)
                raise self._break(DeadlineExceeded(f"{self._peer} did not take {names} for {self.timeout:g} s"))
            reading = self._lead()
            try:
                poll, wait = (self._either, left) if reading else (self._writable, min(left, _TICK_SECONDS))
                events = poll.poll(_milliseconds(wait))
                if reading and events and events[0][1] & ~select.POLLOUT:
                    self._receive()
            finally:
                if reading:
                    self._unlead()
            if events and events[0][1] & ~select.POLLIN:
                return

    def _after_failed_send(self, cause: OSError) -> RpcError:
        """Take the answers that came before the end, and return the error to raise."""
        if self._lead():
            try:
                while not self._closed and self._readable.poll(0):
                    self._receive()
            except RpcError as e:
                return e
            finally:
                self._unlead()
        return self._break(self._ended(cause))

    # ---- Receiving -----------------------------------------------------------------------------------------------

    def _wait(self, pending: Pending, timeout: float | None) -> None:
        """Read replies in order, or let another thread do so, until this one is there."""
        self._check()
        limit = self.timeout if timeout is None else timeout
        begin = time.monotonic()
        clean = False
        try:
            while pending.value is None:
                self._check()
                if self._lead():
                    try:
                        while pending.value is None:
                            if self._readable.poll(_milliseconds(self._left(begin, limit))):
                                self._receive()
                    finally:
                        self._unlead()
                else:
                    self._follow(pending, begin, limit)
            clean = True
        finally:
            if not clean:
                self._break(ConnectionLost(f"waiting for {pending.command.name} from {self.endpoint} was interrupted"))
            if self._closed:
                self._bury()

    def _left(self, begin: float, limit: float) -> float:
        """Return the seconds that are left of a wait; give up if there are none."""
        left = max(begin, self._progress) + limit - time.monotonic()
        if left > 0:
            return left
        names = self._history.after(self._replies.answered)
        raise self._break(DeadlineExceeded(f"no answer to {names} from {self._peer} for {limit:g} s"))

    def _follow(self, pending: Pending, begin: float, limit: float) -> None:
        """Wait while another thread reads and the reply is not there."""
        with self._turn:
            self._followers += 1
            try:
                while pending.value is None and self._reader and not self._closed:
                    self._turn.wait(min(self._left(begin, limit), _LONGEST_WAIT_SECONDS))
            finally:
                self._followers -= 1

    def _lead(self) -> bool:
        """Become the thread that reads, unless another is."""
        with self._turn:
            if self._reader:
                return False
            self._reader = threading.get_ident()
            return True

    def _unlead(self) -> None:
        with self._turn:
            self._reader = 0
            self._turn.notify_all()

    def _receive(self) -> None:
        """Read once, without waiting. For the thread that leads."""
        try:
            n_bytes = self._sock.recv_into(self._replies.room())
        except BlockingIOError:
            return
        except OSError as e:
            raise self._break(self._ended(e)) from e
        if n_bytes == 0:
            raise self._break(self._ended(None))
        self._progress = time.monotonic()
        try:
            complete = self._replies.took(n_bytes)
        except ProtocolError as e:
            raise self._break(e) from None
        if complete and self._followers:
            with self._turn:
                self._turn.notify_all()

    # ---- The end -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise if the connection cannot be used."""
        if self._process != os.getpid():
            raise ConnectionLost(f"the connection to {self.endpoint} belongs to the process that was forked")
        if self._closed:
            raise self._gone()

    def _gone(self) -> ConnectionLost:
        cause = "it was closed" if self._error is None else str(self._error)
        return ConnectionLost(f"the connection to {self.endpoint} has ended: {cause}")

    def _break(self, error: RpcError) -> RpcError:
        """End the connection; return what to raise: the error if it is the first, else one that names the first."""
        with self._turn:
            if self._closed:
                return self._gone()
            self._error = error
            self._closed = True
            self._wake()
            return error

    def _wake(self) -> None:
        """Make all waits of other threads fail at once."""
        with contextlib.suppress(OSError):  # the peer was first, or the socket is closed already
            self._sock.shutdown(socket.SHUT_RDWR)
        self._turn.notify_all()

    def _bury(self) -> None:
        """Close the socket once no thread uses it, and tell those who want to know. Called outside of all locks."""
        if self._send_lock.acquire(blocking=False):
            try:
                if not self._sending and self._lead():
                    self._close_socket()
                    self._unlead()
            finally:
                self._send_lock.release()
        self.on_close.call(self._error)

    def _ended(self, cause: OSError | None) -> RpcError:
        """Return the error for a connection that the other side ended."""
        how = "closed the connection" if cause is None else f"broke the connection ({cause.strerror})"
        due = self._replies.due
        if self._replies.midway and due is not None:
            return ConnectionLost(f"{self._peer} {how} within its answer to {due.command.name}")
        names = self._history.after(self._replies.answered)
        if names:
            return ServerRefused(f"{self._peer} {how} after {names}; its log may say why")
        return ConnectionLost(f"{self._peer} {how}")


def _milliseconds(seconds: float) -> int:
    return int(min(seconds, _LONGEST_WAIT_SECONDS) * 1000) + 1


__all__ = ["CloseCallbacks", "Connection", "Pending"]
