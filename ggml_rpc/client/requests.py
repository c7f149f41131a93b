"""Requests in a dialect: their header, the checks that catch a caller's mistake, the size of what is answered."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ggml_rpc.spec.commands import Command, ReplyKind
from ggml_rpc.spec.dialects import Dialect

Part = bytes | bytearray | memoryview

_HEADER = struct.Struct("<BQ")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class Rule:
    """What a dialect says of one command.

    Parameters
    ----------
    command : Command
        The command.
    number : int
        Its byte.
    kind : ReplyKind
        What follows it.
    request_size, reply_size : int or None
        Payload bytes; None where they vary (or there is no reply).
    counted : tuple of int
        For replies as long as the request asks: offsets of the u64 fields whose product that is.
    urgent : bool
        It does not wait to be gathered with others: it has a reply to wait for, or work to begin.
    """

    command: Command
    number: int
    kind: ReplyKind
    request_size: int | None
    reply_size: int | None
    counted: tuple[int, ...]
    urgent: bool

    @property
    def answered(self) -> bool:
        """Tell whether any byte follows the request."""
        return self.kind is not ReplyKind.NONE


class Request:
    """A request ready to send: header, and payload in pieces.

    Parameters
    ----------
    rule : Rule
        Of its command.
    size : int
        Payload bytes.
    parts : list of bytes-like
        The payload, each part one-dimensional bytes.
    urgent : bool
        Send it at once.
    """

    __slots__ = ("header", "parts", "rule", "size", "urgent")

    def __init__(self, rule: Rule, size: int, parts: list[Part], urgent: bool) -> None:
        self.rule = rule
        self.header = _HEADER.pack(rule.number, size)
        self.size = size
        self.parts = parts
        self.urgent = urgent

    def pieces(self, out: bytearray, large: int) -> list[Part]:
        """Return pieces to send: `out`, to which the header and small parts are added, and parts from `large` on."""
        out += self.header
        pieces: list[Part] = [out]
        for part in self.parts:
            last = pieces[-1]
            if len(part) >= large:
                pieces.append(part)
            elif isinstance(last, bytearray):  # ours: those of callers are views by now
                last += part
            else:
                pieces.append(bytearray(part))
        return pieces


class Requests:
    """Make the requests of a dialect.

    Parameters
    ----------
    dialect : Dialect
        The table to use.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._rules = {command: _rule(dialect, command) for command in dialect.commands}

    def without_result(self, command: Command, parts: tuple[Part, ...]) -> Request:
        """Return a request with no reply, or an empty one.

        Raises
        ------
        ValueError
            If the dialect lacks it, its payload has a wrong size, or it has a reply to wait for.
        """
        rule = self._rule(command)
        if rule.kind not in (ReplyKind.NONE, ReplyKind.EMPTY):
            raise ValueError(f"{command.name} has a reply in {self._dialect.name}: use call")
        return self._request(rule, parts, rule.urgent)

    def with_result(
        self, command: Command, parts: tuple[Part, ...], into: memoryview | None
    ) -> tuple[Request, int, memoryview | None]:
        """Return a request with a reply, the reply's bytes and the memory for it.

        Raises
        ------
        ValueError
            If the dialect lacks it, its payload has a wrong size, it has no reply, or `into` does not fit.
        """
        rule = self._rule(command)
        if rule.kind is ReplyKind.NONE:
            raise ValueError(f"{command.name} has no reply in {self._dialect.name}: use send")
        request = self._request(rule, parts, urgent=True)
        if rule.kind is not ReplyKind.SIZED:
            if into is not None:
                raise ValueError(f"{command.name} does not fill memory: its reply has {rule.reply_size} bytes")
            assert rule.reply_size is not None
            return request, rule.reply_size, None
        payload = b"".join(request.parts)
        size = 1
        for offset in rule.counted:
            size *= _U64.unpack_from(payload, offset)[0]
        memory = memoryview(bytearray(size)) if into is None else _bytes_of(into)
        if memory.readonly or len(memory) != size:
            raise ValueError(
                f"{command.name} of {size} bytes needs writable memory of that size, not "
                f"{'read-only' if memory.readonly else f'{len(memory)} bytes'}"
            )
        return request, size, memory

    def harmless(self) -> bytes:
        """Return a query, as bytes to send, that every server answers and that changes nothing."""
        payload = bytes(4) if self._dialect.has_devices else b""
        request = self._request(self._rule(Command.GET_ALIGNMENT), (payload,), urgent=True)
        return request.header + payload

    def _rule(self, command: Command) -> Rule:
        rule = self._rules.get(command)
        if rule is None:
            raise ValueError(f"{Command(command).name} is no command of {self._dialect.name}")
        return rule

    def _request(self, rule: Rule, parts: tuple[Part, ...], urgent: bool) -> Request:
        pieces: list[Part] = [part if type(part) is bytes else _bytes_of(part) for part in parts]
        size = sum(map(len, pieces))
        if rule.request_size is not None and size != rule.request_size:
            raise ValueError(f"{rule.command.name} has {rule.request_size} bytes in {self._dialect.name}, not {size}")
        return Request(rule, size, pieces, urgent)


def _bytes_of(part: Part) -> memoryview:
    view = memoryview(part)
    if not view.c_contiguous:
        raise ValueError("memory of a request or reply must be contiguous")
    # A view without elements cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _rule(dialect: Dialect, command: Command) -> Rule:
    kind = dialect.reply_kind(command)
    counted: tuple[int, ...] = ()
    if kind is ReplyKind.SIZED:
        counted = tuple(f.offset for f in dialect.request_fields(command) if f.name in ("size", "n_copies"))
    return Rule(
        command,
        dialect.commands[command],
        kind,
        dialect.request_size(command),
        dialect.reply_size(command),
        counted,
        command in (Command.GRAPH_COMPUTE, Command.GRAPH_RECOMPUTE),
    )
