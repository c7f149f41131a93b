"""A session on several devices: a graph's list of tensors may name buffers of a device that does not run it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ggml_rpc.server import Server
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import DEFAULT as LLAMA_8_0
from tests.graph.examples import words
from tests.support.rawclient import RawClient
from tests.support.wiretensor import Arena, Tensor, graph_payload

BYTES = 1 << 23


@pytest.fixture
def client() -> Iterator[RawClient]:
    """Connect to a server of two devices."""
    with Server("CPU,CPU", port=0, threads=1) as server, RawClient(server.endpoint, LLAMA_8_0) as connected:
        yield connected


def arena_on(client: RawClient, device: int) -> Arena:
    """Return an arena over a new buffer of zeros."""
    buffer = client.alloc(BYTES, device)
    client.clear(buffer.handle, 0)
    return Arena(buffer.handle, buffer.base, BYTES)


def square(arena: Arena) -> Tensor:
    """Return a small node."""
    return arena.node("SQR", "F32", (8,), [arena.leaf("F32", (8,))])


def compute_beside(client: RawClient, node: Tensor, stranger: Tensor, uid: int) -> None:
    """Run a node on device 0 with a tensor in the list that no node touches."""
    tensors = [stranger, *(s for s in node.src if s is not None), node]
    payload = graph_payload(LLAMA_8_0, [node], uid=uid, tensors=tensors)
    client.send(LLAMA_8_0.commands[Command.GRAPH_COMPUTE], payload)


def test_runs_of_one_device_are_no_runs_of_another(client: RawClient) -> None:
    """What waits for a buffer's last use waits for the runs of its own device."""
    here, there = arena_on(client, 0), arena_on(client, 1)
    node, other, beside = square(here), square(there), there.leaf("F32", (8,))
    client.compute([other], uid=1, device=1)
    for uid in range(1, 4):
        compute_beside(client, node, beside, uid)
    assert client.get(beside) == bytes(32)


def test_a_buffer_is_freed_when_its_own_device_is_done(client: RawClient) -> None:
    """A run that only names a buffer must not count as its last use while another one uses it."""
    here, there = arena_on(client, 0), arena_on(client, 1)
    client.compute([square(there)], uid=1, device=1)
    x = there.leaf("F32", (1024,), "x")
    x.ne[1], x.nb[1:] = 1024, [0, 0, 0]
    pool = there.node("POOL_2D", "F32", (1025, 5), [x], params=words(1, 2048, 2048, 1, 256, 1024, 1024))
    client.compute([pool], uid=2, device=1)
    compute_beside(client, square(here), x, 1)
    client.free(there.handle)
    client.barrier()


def test_a_freed_buffer_is_forgotten(client: RawClient) -> None:
    """A graph that named a buffer of another device runs again when that is gone."""
    here, there = arena_on(client, 0), arena_on(client, 1)
    node = square(here)
    compute_beside(client, node, there.leaf("F32", (8,)), 5)
    client.free(there.handle)
    for _ in range(100):
        client.recompute(uid=5)
    assert client.get(node) == bytes(32)
