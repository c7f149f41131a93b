"""Servers in this process for models, and what they hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ggml_rpc.server import Server

PATIENCE = 20.0  # seconds; far more than a session takes to end


@contextmanager
def servers(n: int, **options: Any) -> Iterator[list[Server]]:
    """Run so many servers with a thread each for the time of the block."""
    with ExitStack() as stack:
        yield [stack.enter_context(Server("CPU", port=0, threads=1, **options)) for _ in range(n)]


def endpoints(running: list[Server]) -> list[str]:
    """Return where servers listen."""
    return [server.endpoint for server in running]


def held(server: Server) -> int:
    """Return the bytes that a server holds for all its clients."""
    with server._lock:
        return sum(connection.session.held_bytes for connection in server._connections)


def drained(server: Server) -> bool:
    """Wait until a server has no clients any more; False if that takes too long."""
    until = time.monotonic() + PATIENCE
    while server.n_connections and time.monotonic() < until:
        time.sleep(0.005)
    return server.n_connections == 0
