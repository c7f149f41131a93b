"""What every hostile test needs: a client with a buffer, a well-behaved neighbour, and the server's log."""

from __future__ import annotations

import logging
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ggml_rpc.spec import dialects
from tests.support.rawclient import RawClient
from tests.support.wiretensor import Arena, Tensor

BUFFER_BYTES = 1 << 20


class Attacker:
    """A client that has said HELLO and owns one buffer; what it does next is up to the test."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.dialect = client.dialect
        self.buffer = client.alloc(BUFFER_BYTES)
        self.arena = Arena(self.buffer.handle, self.buffer.base, BUFFER_BYTES)

    def tensor(self, type: str = "F32", ne: tuple[int, ...] = (8, 4), name: str = "victim") -> Tensor:
        """Return a tensor at the next free place of the buffer."""
        return self.arena.leaf(type, ne, name)


class Neighbour:
    """A well-behaved client beside the hostile ones. It keeps one connection, a buffer and a stored graph."""

    UID = 77

    def __init__(self, endpoint: str, dialect: dialects.Dialect) -> None:
        self.client = RawClient(endpoint, dialect)
        self.random = random.Random(1)
        buffer = self.client.alloc(1 << 14)
        arena = Arena(buffer.handle, buffer.base, 1 << 14)
        self.a = arena.leaf("F32", (16, 4), "a")
        self.b = arena.leaf("F32", (16, 4), "b")
        self.total = arena.node("ADD", "F32", (16, 4), [self.a, self.b], name="total")
        self.stored = False

    def check(self) -> None:
        """Set inputs, run the graph (again), read the sum and compare it."""
        a, b = ([float(self.random.randrange(-1000, 1000)) for _ in range(64)] for _ in range(2))
        self.client.set(self.a, struct.pack("<64f", *a))
        self.client.set(self.b, struct.pack("<64f", *b))
        if self.stored:
            self.client.run_again([self.total], self.UID)
        else:
            self.client.compute([self.total], self.UID)
            self.stored = True
        total = struct.unpack("<64f", self.client.get(self.total))
        assert list(total) == [x + y for x, y in zip(a, b, strict=True)]

    def close(self) -> None:
        """Leave."""
        self.client.close()


class ServerLog(logging.Handler):
    """Collect what the server logs."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        with self.changed:
            self.lines.append(record.getMessage())
            self.changed.notify_all()

    def clear(self) -> None:
        """Forget the lines so far."""
        with self.changed:
            self.lines.clear()

    def wait_for(self, accept: Callable[[str], bool], timeout: float = 10.0) -> str:
        """Return the first line that `accept` likes; fail if none comes in time."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while True:
                for line in self.lines:
                    if accept(line):
                        return line
                rest = deadline - time.monotonic()
                if rest <= 0:
                    raise AssertionError(f"no such line in the log; it holds {self.lines}")
                self.changed.wait(rest)


@contextmanager
def captured_log() -> Iterator[ServerLog]:
    """Collect the package's log for the time of the block."""
    logger = logging.getLogger("ggml_rpc")
    log, level = ServerLog(), logger.level
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)
