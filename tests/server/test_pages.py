"""Memory that is made ready ahead of what arrives: contents stay, little is taken, all is given back."""

from __future__ import annotations

import os
from pathlib import Path

from ggml_rpc.server import Server
from ggml_rpc.spec.dialects import find
from tests.support.rawclient import RawClient
from tests.support.wiretensor import tensor

MIB = 1 << 20


def resident() -> int:
    """Return this process's anonymous memory in bytes; the server runs in it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def test_contents_survive_and_little_is_taken() -> None:
    with Server(port=0, threads=1) as server, RawClient(server.endpoint, find("8.0")) as client:
        buffer = client.alloc(512 * MIB)
        before = resident()
        weights = tensor("I8", (512 * MIB,), buffer=buffer.handle, data=buffer.base, name="weights")
        small, large = os.urandom(4096), os.urandom(3 * MIB)
        for at in (0, 9 * MIB + 5, 30 * MIB, 512 * MIB - 4096):
            client.set(weights, small, offset=at)
        client.set(weights, large, offset=5 * MIB)  # from here on pages come ahead, over what was written too
        client.set(weights, large, offset=509 * MIB - 4096)  # and not beyond the buffer
        for at in (0, 9 * MIB + 5, 30 * MIB, 512 * MIB - 4096):
            assert client.get(weights, offset=at, size=4096) == small
        assert client.get(weights, offset=5 * MIB, size=len(large)) == large
        assert resident() - before < 64 * MIB


def test_freed_memory_is_counted_as_free() -> None:
    with Server(port=0, threads=1) as server, RawClient(server.endpoint, find("8.0")) as client:
        before = resident()
        for _ in range(3):
            buffer = client.alloc(128 * MIB)
            weights = tensor("I8", (128 * MIB,), buffer=buffer.handle, data=buffer.base, name="weights")
            client.set(weights, bytes(64 * MIB))
            client.get(weights, size=1)
            client.free(buffer.handle)
            client.memory()  # waits until the pages are the system's again
            assert resident() - before < 16 * MIB
