"""Start the server under test in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ggml_rpc.server import Server, cache_directory


class RunningServer(Protocol):
    """What tests need of a running server."""

    @property
    def endpoint(self) -> str:
        """Return `host:port`."""
        ...


@contextmanager
def running_server(
    *, proto: str = "8.0.0", devices: str = "CPU", cache: bool = False, **options: Any
) -> Iterator[RunningServer]:
    """Run a server on a free loopback port for the time of the block; `cache` as its flag -c."""
    cache_dir = cache_directory() if cache else None
    with Server(devices=devices, port=0, protocols=proto, cache_dir=cache_dir, **options) as server:
        yield server
