"""What one client asks for must not hold up, starve or end the others."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ggml_rpc.server import Server
from ggml_rpc.spec import limits
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import DEFAULT as LLAMA_8_0
from tests.graph.examples import words
from tests.support.rawclient import RawClient
from tests.support.wiretensor import Arena, Tensor, graph_payload, tensor
from tests.wire.session import Neighbour

MIB = 1 << 20


def arena_of(client: RawClient, size: int) -> Arena:
    """Return an arena over a new buffer of zeros."""
    buffer = client.alloc(size)
    client.clear(buffer.handle, 0)
    return Arena(buffer.handle, buffer.base, size)


def repeated(arena: Arena, type: str, row: int, rows: int, name: str) -> Tensor:
    """Return a matrix whose rows are all the same one."""
    t = arena.leaf(type, (row,), name)
    t.ne[1], t.nb[1:] = rows, [0, 0, 0]
    return t


def long_pool(arena: Arena) -> Tensor:
    """Return a pool of a thousand lines that takes minutes, each of them about a second."""
    x = repeated(arena, "F32", 1024, 1024, "x")
    return arena.node("POOL_2D", "F32", (1025, 1025), [x], params=words(1, 2048, 2048, 1, 1, 1024, 1024))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_op_ends_soon_after_its_client_left(threads: int) -> None:
    with Server(port=0, threads=threads) as server:
        neighbour = Neighbour(server.endpoint, LLAMA_8_0)
        neighbour.check()
        with RawClient(server.endpoint, LLAMA_8_0) as client:
            client.compute([long_pool(arena_of(client, 8 * MIB))])
            client.barrier()
        neighbour.check()
        neighbour.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_op_ends_soon_after_its_time(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        Server(port=0, threads=threads, graph_timeout=0.2) as server,
        RawClient(server.endpoint, LLAMA_8_0) as client,
    ):
        node = long_pool(arena_of(client, 8 * MIB))
        client.compute([node])
        with pytest.raises(ConnectionError):
            client.get(node, size=4)
    assert "graph timeout" in caplog.text


# ---- Scratch ----

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def converted(arena: Arena, scratch: int) -> Tensor:
    """Return a product whose activations, one row repeated, are converted to F32 as a whole."""
    k, n = 1 << 16, scratch >> 18
    w = arena.leaf("F32", (k, 1), "w")
    return arena.node("MUL_MAT", "F32", (1, n), [w, repeated(arena, "F16", k, n, "x")])


def resident_bytes() -> int:
    """Return the memory of this process that holds something."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def wait_until_alone(server: Server) -> None:
    """Wait until the sessions of clients that left are gone."""
    until = time.monotonic() + 20
    while server.n_connections > 0:
        assert time.monotonic() < until
        time.sleep(0.01)


@linux_only
def test_scratch_goes_when_its_client_goes() -> None:
    """What one client's graph needed must not be missing for ever."""
    scratch = 256 * MIB
    with Server(port=0, threads=2) as server:
        before = resident_bytes()
        with RawClient(server.endpoint, LLAMA_8_0) as client:
            node = converted(arena_of(client, 2 * MIB), scratch)
            client.compute([node])
            assert client.get(node) == bytes(node.nbytes())
            assert resident_bytes() - before > scratch // 2
        wait_until_alone(server)
        assert resident_bytes() - before < scratch // 2


def test_scratch_is_taken_from_what_is_free(caplog: pytest.LogCaptureFixture) -> None:
    """When buffers hold all memory, a graph cannot have more of it."""
    with (
        caplog.at_level(logging.WARNING),
        Server(port=0, threads=2) as server,
        RawClient(server.endpoint, LLAMA_8_0) as greedy,
        RawClient(server.endpoint, LLAMA_8_0) as client,
    ):
        scratch = 1024 * MIB
        arena = arena_of(client, 2 * MIB)
        free, _ = greedy.memory()
        greedy.alloc(free - scratch // 2)
        node = converted(arena, scratch)
        client.compute([node])
        with pytest.raises(ConnectionError):
            client.get(node)
        greedy.barrier()
    assert "no memory for" in caplog.text


# ---- Buffers ----


def test_buffers_of_all_clients_have_a_limit() -> None:
    """Each may take a mapping or two, of which a process has 65530."""
    most = 1 << 14
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(port=0, threads=1))
        crowd = [stack.enter_context(RawClient(server.endpoint, LLAMA_8_0)) for _ in range(5)]
        granted = sum(client.alloc_raw(1)[0] != 0 for client in crowd for _ in range(limits.MAX_BUFFERS_PER_SESSION))
        assert granted == most
        crowd[0].close()
        until = time.monotonic() + 20
        while crowd[-1].alloc_raw(1)[0] == 0:
            assert time.monotonic() < until


# ---- Graphs ----


def test_graphs_of_all_clients_have_a_limit(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What a crowd of clients could fill memory with; an ordinary client goes on computing."""
    monkeypatch.setattr(limits, "GRAPH_SHARE", 1 << 60)
    with (
        caplog.at_level(logging.WARNING),
        Server(port=0, threads=1) as server,
        RawClient(server.endpoint, LLAMA_8_0) as client,
    ):
        arena = arena_of(client, MIB)
        node = arena.node("SQR", "F32", (8,), [arena.leaf("F32", (8,))])
        leaves = [tensor("F32", (8,)) for _ in range(20000)]
        payload = graph_payload(LLAMA_8_0, [node], tensors=[*leaves, *(s for s in node.src if s), node])
        with contextlib.suppress(ConnectionError):
            client.send(LLAMA_8_0.commands[Command.GRAPH_COMPUTE], payload)
        assert client.closed_by_peer()
        neighbour = Neighbour(server.endpoint, LLAMA_8_0)
        neighbour.check()
        neighbour.close()
    assert "graphs of all sessions" in caplog.text


# ---- A process that cannot have more memory ----

LIMITED = """
import resource, sys, threading
from ggml_rpc.server import Server
server = Server(port=0, threads=1)
server.start()
print(server.endpoint, flush=True)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (60 << 20),) * 2)
sys.stdin.read()
server.close()
"""


@linux_only
def test_a_graph_that_memory_is_not_enough_for_ends_its_session_only() -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", LIMITED], stdin=pipe, stdout=pipe, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        endpoint = process.stdout.readline().strip()
        with RawClient(endpoint, LLAMA_8_0) as client:
            with contextlib.suppress(ConnectionError):
                client.send(LLAMA_8_0.commands[Command.GRAPH_COMPUTE], bytes(37 * MIB))
            assert client.closed_by_peer()
        neighbour = Neighbour(endpoint, LLAMA_8_0)
        neighbour.check()
        neighbour.close()
        process.stdin.close()
        assert process.wait(30) == 0
