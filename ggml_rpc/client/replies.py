"""Replies of one connection: matched with their requests in order, read in whatever pieces they come."""

from __future__ import annotations

import struct
from collections import deque

from ggml_rpc.errors import ProtocolError
from ggml_rpc.spec.commands import Command

_LENGTH = struct.Struct("<Q")
# One read takes the header, a small reply and what follows; larger bodies go straight to their place.
_AHEAD_BYTES = 1 << 16


class Awaited:
    """A reply that is due.

    Parameters
    ----------
    command : Command
        What it answers.
    size : int
        Bytes that it must have.
    memory : memoryview, optional
        Where it goes, `size` bytes; by default it is kept as bytes, for sizes of less than 64 KiB.
    """

    __slots__ = ("command", "memory", "number", "size", "value")

    def __init__(self, command: Command, size: int, memory: memoryview | None = None) -> None:
        self.command = command
        self.size = size
        self.memory = memory
        self.number = 0  # which of the connection's requests this answers
        self.value: bytes | memoryview | None = None


class Replies:
    """Assemble replies. Never more is written to a reply's memory than it holds.

    Requests are noted with `expect` before they are sent. The owner receives into `room()` and then says with `took`
    how much came. `expect` may be called beside these two from another thread.

    Parameters
    ----------
    peer : str
        Who sends, for error messages.
    """

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._due: deque[Awaited] = deque()
        self._ahead = memoryview(bytearray(_AHEAD_BYTES))
        self._begin = self._end = 0  # what lies unread in `_ahead`
        self._rest: memoryview | None = None  # of the body that is being read
        self.answered = 0  # number of the last request whose reply is complete

    @property
    def due(self) -> Awaited | None:
        """Return the next reply, None if nothing is awaited."""
        return self._due[0] if self._due else None

    @property
    def midway(self) -> bool:
        """Tell whether a reply has begun and is not complete."""
        return self._rest is not None or self._begin < self._end

    def expect(self, awaited: Awaited) -> None:
        """Note the reply of the request that is sent next."""
        self._due.append(awaited)

    def room(self) -> memoryview:
        """Return where to receive; never empty."""
        if self._rest is not None:
            return self._rest
        kept = self._end - self._begin
        if self._begin:
            self._ahead[:kept] = self._ahead[self._begin : self._end]
            self._begin, self._end = 0, kept
        return self._ahead[kept:]

    def took(self, n_bytes: int) -> bool:
        """Take `n_bytes` that now lie in what `room` returned; tell whether a reply became complete.

        Raises
        ------
        ProtocolError
            If the peer sends what nobody asked for, or a reply of a wrong size.
        """
        if self._rest is not None:
            self._rest = self._rest[n_bytes:]
            if len(self._rest):
                return False
            self._rest = None
            self._complete(self._due[0].memory)
            return True
        self._end += n_bytes
        answered = self.answered
        while self._begin < self._end and self._next():
            pass
        return self.answered != answered

    def _next(self) -> bool:
        """Take the next reply out of `_ahead`; False if there is not enough of it."""
        if not self._due:
            raise ProtocolError(f"{self._peer} sent {self._end - self._begin} bytes that nobody asked for")
        have = self._end - self._begin - _LENGTH.size
        if have < 0:
            return False
        awaited = self._due[0]
        (size,) = _LENGTH.unpack_from(self._ahead, self._begin)
        if size != awaited.size:
            raise ProtocolError(
                f"{self._peer} answered {awaited.command.name} with {size} bytes instead of {awaited.size}"
            )
        body = self._begin + _LENGTH.size
        if awaited.memory is None:
            if have < size:
                return False
            self._begin = body + size
            self._complete(bytes(self._ahead[body : self._begin]))
            return True
        part = min(have, size)
        awaited.memory[:part] = self._ahead[body : body + part]
        self._begin = body + part
        if part < size:
            self._rest = awaited.memory[part:]
            return False
        self._complete(awaited.memory)
        return True

    def _complete(self, value: bytes | memoryview | None) -> None:
        awaited = self._due.popleft()
        self.answered = awaited.number
        awaited.value = value
