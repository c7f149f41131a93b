"""Start the server under test in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ggml_rpc.server import Server


class RunningServer(Protocol):
    """What tests need of a running server."""

    @property
    def endpoint(self) -> str:
        """Return `host:port`."""
        ...


@contextmanager
def running_server(*, proto: str = "8.0.0", devices: str = "CPU", **options: Any) -> Iterator[RunningServer]:
    """Run a server on a free loopback port for the time of the block; further options go to `Server`."""
    with Server(devices=devices, host="127.0.0.1", port=0, protocols=proto, **options) as server:
        yield server
