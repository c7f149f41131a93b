"""What our client must get from any server that is not ours: shared by the tests with stock servers of all versions."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ggml_rpc.client.device import Device
from ggml_rpc.client.probe import narrow
from ggml_rpc.client.remote import Server, connect
from ggml_rpc.errors import ConnectionLost, ServerRefused
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.graph.builder import Graph
from ggml_rpc.llm.devices import open_devices
from ggml_rpc.llm.generate import LLM
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.sampling import SamplingParams
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.peers.process import ServerProcess
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import Dialect, GraphCache

from .proxy import CountingProxy

STEPS = 16
GREEDY = SamplingParams(temperature=0)
PROMPT = "Monday, Tuesday, Wednesday,"  # what follows is plain enough for any rounding
N_CTX = 1024
CHANGED = ("3.0.0@2025-10-04", "3.6.0@2025-12-05", "3.6.0@2026-01-19", "ik-3.5.1@2025-11-30")
"""Tables that differ from all later ones of their family in what probes find out."""


def _layout(d: Dialect) -> tuple[object, ...]:
    """Return what graphs of two tables must have in common for both to be read by one server."""
    return d.ik_meaning, d.request_fields(Command.GRAPH_COMPUTE), d.record.size, d.compute_flag


def check_table(server: Server, protocol: str) -> None:
    """Assert that a server is spoken to by its own table, and that probes tell it from tables of other versions."""
    own = dialects.find(protocol)
    assert server.connection.announced == own.announce
    assert server.dialect.announce == own.announce
    if not own.ik_meaning:
        assert server.dialect is own
    assert own in server.connection.candidates
    device = server.devices[0]
    layout = _layout(own)
    others = [d for d in map(dialects.find, CHANGED) if _layout(d) == layout]
    print(f"{protocol}: told from {', '.join(d.name for d in others)}")
    assert narrow(device, [own, *others]) == (own,)
    free, total = device.memory()
    assert 0 < free <= total


def mlp(x: NDArray[np.float32], up: NDArray[np.float32], down: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what `check_small_graphs` lets servers compute."""
    hidden = x @ up.T
    return (hidden / (1 + np.exp(-hidden))) @ down.T


def check_small_graphs(device: Device) -> None:
    """Assert that a product and a small network, with weights of several types, give what NumPy gives."""
    rng = np.random.default_rng(7)
    # 96 is no multiple of 512: quantised rows of it are announced and their padding asked for.
    for kind, error in (("F32", 1e-10), ("F16", 1e-6), ("Q8_0", 3e-4), ("Q4_0", 3e-2)):
        up = rng.standard_normal((160, 96), np.float32) / 8
        down = rng.standard_normal((33, 160), np.float32) / 8
        up_t, down_t = device.tensor(up, kind, name="up"), device.tensor(down, kind, name="down")
        graph = Graph()
        x_t = graph.input("x", "F32", (96, 5))
        hidden = graph.mul_mat(up_t, x_t)
        product = graph.output(graph.scale(hidden, 1.0))
        result = graph.output(graph.mul_mat(down_t, graph.silu(hidden)))
        plan = device.compile(graph)
        for _ in range(3):  # the second time and the third it may run by name
            x = rng.standard_normal((5, 96), np.float32)
            plan.set("x", x)
            plan.run()
            for got, want in ((plan.read(product), x @ up.T), (plan.read(result), mlp(x, up, down))):
                assert got.shape == want.shape
                assert np.square(got - want).sum() <= error * np.square(want).sum(), kind


def check_copies(device: Device) -> None:
    """Assert that copying, clearing and strided views do on the server what they do here."""
    rng = np.random.default_rng(8)
    values = rng.standard_normal((6, 8), np.float32)
    source, target = device.tensor(values), device.empty("F32", (8, 6))
    assert device.copy(source, target)
    np.testing.assert_array_equal(device.read(target), values)
    graph = Graph()
    kept = graph.output(graph.cont(graph.view(source, (3, 4), nb=(32,), offset=32 + 8)))
    plan = device.compile(graph)
    plan.run()
    np.testing.assert_array_equal(plan.read(kept), values[1:5, 2:5])
    buffer = device.place([filled := Tensor("F32", (4,))])[0]
    device.clear(buffer, 0x3F)
    assert device.read_bytes(filled) == b"\x3f" * 16
    buffer.free()


def rows_of(
    model: Path, endpoints: Sequence[str], batches: Sequence[Sequence[int]], *, flash: bool
) -> NDArray[np.float32]:
    """Return the logits after each batch, shape ``(batches, n_vocab)``; without endpoints, this machine's."""
    settings = ContextSettings(n_ctx=N_CTX, flash_attn=flash)
    split = [1.0] * len(endpoints) or None  # by layers, so that each server has some
    with (
        open_devices(endpoints, threads=2) as devices,
        Model.open(model, devices, settings=settings, tensor_split=split) as opened,
        opened.context() as context,
    ):
        rows = [context.decode(batch).logits for batch in batches]
    assert all(row is not None for row in rows)
    return np.concatenate([row for row in rows if row is not None])


def written(model: Path, endpoints: Sequence[str], count: int) -> str:
    """Return the prompt with the likeliest tokens that follow."""
    with LLM(model, rpc=endpoints, threads=2, n_ctx=N_CTX) as llm:
        return PROMPT + "".join(token.text for token in llm.generate(PROMPT, max_tokens=count, sampling=GREEDY))


def check_repeats(proxy: CountingProxy, protocol: str, steps: int) -> None:
    """Assert that a proxy saw the graph of a token sent once and run again by name, where the protocol has that."""
    dialect = dialects.find(protocol)
    computed = proxy.requests[dialect.commands[Command.GRAPH_COMPUTE]]
    again = dialect.commands.get(Command.GRAPH_RECOMPUTE)
    if dialect.graph_cache is GraphCache.NONE or again is None:
        assert computed >= steps
        return
    # 16 steps after 300 tokens stay below 512 positions, so their graph is one.
    assert proxy.requests[again] >= steps - 1
    assert computed < steps


def check_serves_on(server: ServerProcess) -> None:
    """Assert that a server has outlived its clients: stock ones end by SIGPIPE if one leaves before an answer."""
    with connect(server.endpoint) as again:
        again.ping()
    with connect(server.endpoint) as again:
        check_copies(again.devices[0])
    assert server.running()


def check_loss(model: Path, server: ServerProcess) -> None:
    """Assert that a server that is killed while it generates is reported by name, and by what happened."""
    with LLM(model, rpc=[server.endpoint], threads=2, n_ctx=N_CTX) as llm:
        tokens = llm.generate(PROMPT, max_tokens=500, sampling=GREEDY, ignore_eos=True)
        for _ in range(3):
            next(tokens)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises((ConnectionLost, ServerRefused), match=server.endpoint):
            for _token in tokens:
                pass
