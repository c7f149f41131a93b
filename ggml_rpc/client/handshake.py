"""The first exchange on a connection: which protocol the server speaks, and by which table.

A server announces a number and nothing else, and some numbers stand for several tables. Only tables whose number is the
announced one are spoken: a number between or beyond the known ones belongs to a fork or to the future, and its op
numbers may be others, which would compute something else without a word. The patch number is the exception, as in stock
clients: an unknown one is taken for the nearest known, with a warning.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from dataclasses import dataclass

from ggml_rpc.errors import ConnectionLost, DeadlineExceeded, ServerRefused, VersionMismatch
from ggml_rpc.spec import limits
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import DIALECTS, Dialect
from ggml_rpc.spec.types import TYPE_BY_NAME
from ggml_rpc.transport import tcp

log = logging.getLogger(__name__)

_REQUEST = struct.Struct("<BQ")
_LENGTH = struct.Struct("<Q")
_HELLO_BYTE = int(Command.HELLO)  # the same in every dialect
_HELLO_LENGTHS = (limits.CONN_CAPS_BYTES, 0)  # the later protocols first
_REPLY_LENGTHS = frozenset(d.hello_reply for d in DIALECTS)

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Greeting:
    """A connected socket after HELLO.

    Parameters
    ----------
    sock : socket.socket
        Blocking; nothing but HELLO (and a query, where the record's size had to be found out) has crossed it.
    announced : tuple of int
        What the server said.
    candidates : tuple of Dialect
        The tables that this can mean, the newest first.
    """

    sock: socket.socket
    announced: Version
    candidates: tuple[Dialect, ...]


@dataclass(frozen=True)
class _Address:
    """Where a server is, and the seconds for each attempt."""

    host: str
    port: int
    seconds: float

    def __str__(self) -> str:
        return tcp.format_endpoint(self.host, self.port)


class _Link:
    """A fresh connection for a few questions, which one deadline bounds together."""

    def __init__(self, address: _Address) -> None:
        self.peer = f"the server at {address}"
        self._seconds = address.seconds
        self._deadline = time.monotonic() + address.seconds
        try:
            self.sock = tcp.connect(address.host, address.port, address.seconds)
        except TimeoutError:
            raise DeadlineExceeded(f"{self.peer} did not take the connection within {self._seconds:g} s") from None
        except OSError as e:
            hint = "; is a server running there?" if isinstance(e, ConnectionRefusedError) else ""
            raise ConnectionLost(f"cannot connect to {address}: {e.strerror or e}{hint}") from e

    def __enter__(self) -> _Link:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.sock.close()

    def ask(self, command: Command, payload: bytes, allowed: frozenset[int]) -> bytes | None:
        """Return the reply's payload; None if the server closed the connection instead.

        Raises
        ------
        VersionMismatch
            If the reply's length is none of `allowed`.
        ConnectionLost
            If the connection ended within the reply.
        DeadlineExceeded
            If the reply took too long.
        """
        try:
            self.sock.settimeout(self._left())
            self.sock.sendall(_REQUEST.pack(command, len(payload)) + payload)
            head = self._receive(_LENGTH.size)
            if not head:
                return None
            (length,) = _LENGTH.unpack(head) if len(head) == _LENGTH.size else (0,)
            if length not in allowed and len(head) == _LENGTH.size:
                raise VersionMismatch(
                    f"{self.peer} does not speak this protocol: it answered {command.name} with {head!r}"
                )
            body = self._receive(length)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.peer} did not answer {command.name} within {self._seconds:g} s; it may be hung, or serving "
                "another client: stock servers serve one at a time"
            ) from None
        except (ConnectionResetError, BrokenPipeError):
            return None
        if len(head) + len(body) != _LENGTH.size + length:
            raise ConnectionLost(f"{self.peer} closed the connection within its answer to {command.name}")
        return body

    def leave(self) -> None:
        """Close, and wait (within the deadline) until the server has noticed: some serve one client at a time."""
        with self.sock:
            try:
                self.sock.shutdown(socket.SHUT_WR)
                self.sock.settimeout(self._left())
                self.sock.recv(1)
            except OSError as e:
                log.debug("%s: %s", self.peer, e)

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 1e-3)

    def _receive(self, size: int) -> bytes:
        """Return `size` bytes, or fewer if the connection ends."""
        data = b""
        while len(data) < size:
            self.sock.settimeout(self._left())
            more = self.sock.recv(size - len(data))
            if not more:
                break
            data += more
        return data


def greet(host: str, port: int, dialect: Dialect | None, seconds: float) -> Greeting:
    """Connect, say HELLO and find the table to speak.

    Parameters
    ----------
    host, port : str and int
        Where to.
    dialect : Dialect, optional
        The table to speak. The server must announce its major number. By default what the server announces decides.
    seconds : float
        Limit for each attempt, from connecting to the answer.

    Raises
    ------
    VersionMismatch
        If the server announces what is not known or not wanted, or does not speak the protocol.
    ServerRefused
        If it closes the connection whatever HELLO says.
    ConnectionLost, DeadlineExceeded
        If it cannot be reached, or does not answer in time.
    """
    address = _Address(host, port, seconds)
    if dialect is not None:
        return _greet_as(address, dialect)
    link, announced, tables = _hello(address, _HELLO_LENGTHS)
    with link:
        candidates = _choose(link.peer, announced, tables)
    if len({t.record.size for t in candidates}) > 1:
        return _with_right_record(link, address, announced, candidates)
    return Greeting(link.sock, announced, candidates)


def _hello(address: _Address, lengths: tuple[int, ...]) -> tuple[_Link, Version, tuple[Dialect, ...]]:
    """Say HELLO in each of the lengths until one is answered; return the number and the tables with such an answer."""
    for length in lengths:
        with _Link(address) as link:
            reply = link.ask(Command.HELLO, bytes(length), _REPLY_LENGTHS)
            if reply is not None:
                announced = (reply[0], reply[1], reply[2])
                return link, announced, tuple(d for d in DIALECTS if d.hello_reply == len(reply))
            link.sock.close()
    raise ServerRefused(
        f"{link.peer} closed the connection after HELLO; it may not speak this protocol, or have too many clients"
    )


def _greet_as(address: _Address, dialect: Dialect) -> Greeting:
    """Speak the table that the caller names.

    A server that finds out what its clients speak offers them another number each time they leave, so one that stock
    clients of this table would not take (another major, a later minor) is asked again. If it insists on a later minor
    number, the caller's word counts.
    """
    own = dialect.announce
    seen: list[Version] = []
    while True:
        link, announced, _ = _hello(address, (dialect.hello_request,))
        with link:
            # Each table that is known, and once more the first: what goes on beyond that never ends.
            insists = announced in seen or len(seen) > len(DIALECTS)
            if announced[0] == own[0] and (announced[1] <= own[1] or insists):
                if announced[1] > own[1]:
                    log.warning("%s announces protocol %s; speaking %s", link.peer, _dotted(announced), dialect.name)
                return Greeting(link.sock, announced, (dialect,))
            link.leave()
        if insists:
            raise VersionMismatch(
                f"{link.peer} announces protocol {_dotted(announced)}, which is no {dialect.name}; without a dialect "
                "given, what it announces is spoken if it is known"
            )
        seen.append(announced)


def _choose(peer: str, announced: Version, tables: tuple[Dialect, ...]) -> tuple[Dialect, ...]:
    """Return the tables that a number can mean, the newest first."""
    newest_first = tables[::-1]
    exact = tuple(t for t in newest_first if t.announce == announced)
    if exact:
        return exact
    near = [t for t in newest_first if t.announce[:2] == announced[:2]]
    # ik_llama.cpp took numbers next to llama.cpp's: there a patch number tells the two apart.
    if not near or any(t.ik_meaning for t in near):
        raise VersionMismatch(
            f"{peer} announces protocol {_dotted(announced)}, which is not known; known are {_spoken()}. If it "
            "speaks one of these nevertheless, name it as the dialect"
        )
    patch = max((t.announce[2] for t in near if t.announce[2] < announced[2]), default=near[-1].announce[2])
    chosen = tuple(t for t in near if t.announce[2] == patch)
    log.warning("%s announces protocol %s, which is not known; speaking %s", peer, _dotted(announced), chosen[0].name)
    return chosen


def _with_right_record(link: _Link, address: _Address, announced: Version, candidates: tuple[Dialect, ...]) -> Greeting:
    """Find the size of the tensor record: a server closes after a query of the wrong length, and answers the right one.

    The connection on which it answered is the one that stays, so that a server of one client at a time is served too.
    """
    by_size: dict[int, list[Dialect]] = {}
    for table in candidates:
        by_size.setdefault(table.record.size, []).append(table)
    for i, tables in enumerate(by_size.values()):
        if i:
            link, again, _ = _hello(address, (tables[0].hello_request,))
            if again != announced:
                link.sock.close()
                raise VersionMismatch(f"{link.peer} announces {_dotted(announced)} and then {_dotted(again)}")
        with link:
            reply = link.ask(Command.GET_ALLOC_SIZE, _probe(tables[0]), frozenset({_LENGTH.size}))
            if reply is not None:
                return Greeting(link.sock, announced, tuple(tables))
            link.sock.close()
    sizes = ", ".join(map(str, by_size))
    raise VersionMismatch(f"{link.peer} announces {_dotted(announced)} but takes no tensor record of {sizes} bytes")


def _probe(dialect: Dialect) -> bytes:
    """Return a GET_ALLOC_SIZE of 32 floats that are nowhere yet."""
    ne, nb = (32, 1, 1, 1), (4, 128, 128, 128)
    layout = dialect.record
    none = (0,) * (limits.OP_PARAMS_WORDS + 1 + layout.max_src + 3)  # parameters, flags, sources, view, data
    tail = 0 if layout.has_use_count else b""
    kind = dialect.type_numbers[TYPE_BY_NAME["F32"].id]
    record = struct.pack(layout.struct_format, 1, kind, 0, *ne, *nb, 0, *none, b"", tail)
    return bytes(4) + record if dialect.has_devices else record


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _spoken() -> str:
    numbers = dict.fromkeys((d.ik_meaning, d.announce) for d in DIALECTS)
    return ", ".join(f"{'ik ' if ik else ''}{_dotted(version)}" for ik, version in numbers)
