"""Stored graphs: what is kept ready, what is kept small, and that both run alike."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from ggml_rpc.server import Server
from ggml_rpc.spec import limits
from ggml_rpc.spec.dialects import find
from tests.support.rawclient import RawClient
from tests.support.wiretensor import Arena, Tensor

MIB = 1 << 20


def scaled(arena: Arena, x: Tensor, factor: float, length: int) -> list[Tensor]:
    """Return a chain of `length` nodes whose last is x * factor."""
    nodes = [arena.node("SCALE", "F32", (8,), [x], params=struct.pack("<2f", factor, 0.0), name=f"by {factor}")]
    for i in range(length - 1):
        one = struct.pack("<2f", 1.0, 0.0)
        nodes.append(arena.node("SCALE", "F32", (8,), [nodes[-1]], params=one, name=f"step {i}"))
    return nodes


def opened(client: RawClient, size: int) -> Arena:
    buffer = client.alloc(size)
    return Arena(buffer.handle, buffer.base, buffer.size)


@pytest.mark.parametrize("budget", [1, limits.MAX_COMPILED_GRAPH_BYTES], ids=["one plan ready", "all ready"])
def test_graphs_run_again_in_any_order(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setattr(limits, "MAX_COMPILED_GRAPH_BYTES", budget)
    rng = random.Random(7)
    with Server(port=0, threads=1) as server, RawClient(server.endpoint, find("8.0")) as client:
        arena = opened(client, MIB)
        x = arena.leaf("F32", (8,), "x")
        client.set(x, struct.pack("<8f", *range(8)))
        results = {uid: scaled(arena, x, float(uid), rng.randint(1, 9)) for uid in range(1, 60)}
        for uid, nodes in results.items():
            client.compute(nodes, uid=uid)
        for value in range(3):
            client.set(x, struct.pack("<8f", *([float(value)] * 8)))
            for uid in rng.sample(sorted(results), len(results)):
                client.recompute(uid=uid)
                got = struct.unpack("<8f", client.get(results[uid][-1]))
                assert got == (float(uid * value),) * 8


def test_graphs_of_a_freed_buffer_are_gone_in_any_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_COMPILED_GRAPH_BYTES", 1)
    with Server(port=0, threads=1) as server, RawClient(server.endpoint, find("8.0")) as client:
        arena = opened(client, MIB)
        x = arena.leaf("F32", (8,), "x")
        client.set(x, bytes(32))
        for uid in (1, 2):
            client.compute(scaled(arena, x, 2.0, 3), uid=uid)
        client.free(arena.handle)
        client.recompute(uid=1)
        with pytest.raises(ConnectionError):
            client.device_count()


def test_many_large_graphs_take_little_memory() -> None:
    """A long conversation of ever new graphs: plans of 400 nodes would take some 200 KiB each."""

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))

    with Server(port=0, threads=1) as server, RawClient(server.endpoint, find("8.0")) as client:
        arena = opened(client, MIB)
        x = arena.leaf("F32", (8,), "x")
        client.set(x, bytes(32))
        nodes = scaled(arena, x, 3.0, 400)
        client.compute(nodes, uid=1)
        client.get(nodes[-1])
        before = resident()
        for uid in range(2, 600):
            client.compute(nodes, uid=uid)
        client.get(nodes[-1])
        assert resident() - before < 64 * MIB
