"""Graphs over several devices give what one device gives, and only what must cross does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggml_rpc.client.device import Device
from ggml_rpc.client.local import local_devices
from ggml_rpc.client.remote import connect
from ggml_rpc.client.schedule import Workspace, compile_graph
from ggml_rpc.errors import GraphError
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.graph.builder import Graph
from tests.support.servers import running_server

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def devices() -> Iterator[list[Device]]:
    """Provide the CPU here, one of a server, and two of another server."""
    with (
        running_server(threads=1) as one,
        running_server(devices="CPU,CPU", threads=1) as two,
        connect(one.endpoint) as a,
        connect(two.endpoint) as b,
    ):
        yield [*local_devices(threads=1), *a.devices, *b.devices]


def test_layers_over_devices(devices: list[Device]) -> None:
    weights = [normal(32, 32) / 6 for _ in devices]
    graph = Graph()
    x = hidden = graph.input("x", "F32", (32, 5))
    for device, w in zip(devices, weights, strict=True):
        with graph.on(device):
            normed = graph.rms_norm(hidden, 1e-5)
            hidden = graph.add(graph.silu(graph.mul_mat(device.tensor(w), normed)), hidden)
    graph.output(hidden)
    plan = compile_graph(graph, devices[0])
    # One split a device, and the hidden state is all that crosses.
    assert [s.device for s in plan.splits] == devices
    assert [len(s.transfers) for s in plan.splits] == [0, 1, 1, 1]
    for _ in range(3):
        values = normal(5, 32)
        plan.set("x", values)
        plan.run()
        for w in weights:
            y = values / np.sqrt(np.mean(values**2, -1, keepdims=True) + 1e-5) @ w.T
            values = y / (1 + np.exp(-y)) + values
        np.testing.assert_allclose(plan.read(hidden), values, rtol=1e-4, atol=1e-5)
    assert x.shape == (5, 32)


def test_an_input_reaches_every_device_that_reads_it(devices: list[Device]) -> None:
    graph = Graph()
    x = graph.input("x", "F32", (8,))
    sums = []
    for device in devices:
        with graph.on(device):
            sums.append(graph.output(graph.scale(graph.view(x, (4,), offset=16), 2.0)))
    plan = compile_graph(graph, devices[0])
    assert not any(s.transfers for s in plan.splits)
    plan.set("x", np.arange(8))
    plan.run()
    for t in sums:
        assert plan.read(t).tolist() == [8, 10, 12, 14]


def test_views_cross_with_their_strides(devices: list[Device]) -> None:
    a, b = devices[1], devices[2]
    graph = Graph()
    x = graph.input("x", "F32", (6, 4))
    with graph.on(a):
        doubled = graph.scale(x, 2.0)
        turned = graph.transpose(doubled)
    with graph.on(b):
        out = graph.output(graph.cont(turned))
    plan = compile_graph(graph, a)
    values = normal(4, 6)
    plan.set("x", values)
    plan.run()
    np.testing.assert_array_equal(plan.read(out), 2 * values.T)


def test_weights_put_elsewhere_take_along_what_stands_between(devices: list[Device]) -> None:
    home, away = devices[1], devices[0]
    graph = Graph()
    x = graph.input("x", "F32", (32, 3))
    with graph.on(home):
        w = home.tensor(normal(32, 32))
        h = graph.mul_mat(w, x)
        up, down = away.tensor(normal(64, 32)), away.tensor(normal(32, 64))
        ffn = graph.mul_mat(down, graph.silu(graph.mul_mat(up, h)))
        out = graph.output(graph.add(ffn, h))
    plan = compile_graph(graph, home)
    assert [(s.device, len(s.nodes)) for s in plan.splits] == [(home, 1), (away, 3), (home, 1)]
    assert out.name


def test_a_cache_is_written_where_it_lies(devices: list[Device]) -> None:
    device = devices[2]
    cache = Tensor("F16", (4, 8), name="cache")
    device.place([cache], clear=0)
    graph = Graph()
    rows, ids = graph.input("rows", "F32", (4, 2)), graph.input("ids", "I64", (2,))
    graph.set_rows(cache, rows, ids)
    plan = compile_graph(graph, devices[0])
    assert [s.device for s in plan.splits] == [device]
    plan.set("rows", [[1, 2, 3, 4], [5, 6, 7, 8]])
    plan.set("ids", [6, 1])
    plan.run()
    expected = np.zeros((8, 4))
    expected[[6, 1]] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    np.testing.assert_array_equal(device.read(cache), expected)


def test_plans_share_a_workspace(devices: list[Device]) -> None:
    device = devices[1]
    workspace = Workspace(device)

    def squares(n: int) -> tuple[object, Tensor]:
        graph = Graph()
        out = graph.output(graph.sqr(graph.input("x", "F32", (n,))))
        return device.compile(graph, workspace=workspace), out

    large, of_large = squares(1000)
    size = workspace.size
    small, of_small = squares(10)
    assert workspace.size == size
    for plan, t, n in ((large, of_large, 1000), (small, of_small, 10), (large, of_large, 1000)):
        plan.set("x", np.arange(n))
        plan.run()
        np.testing.assert_array_equal(plan.read(t), np.arange(n, dtype=np.float32) ** 2)


def test_what_is_missing_is_named(devices: list[Device]) -> None:
    device = devices[0]
    graph = Graph()
    with pytest.raises(GraphError, match="no node"):
        compile_graph(graph, device)
    lost = Tensor("F32", (4,), name="lost")
    graph.output(graph.sqr(lost))
    with pytest.raises(GraphError, match="'lost' has no place"):
        compile_graph(graph, device)
    graph = Graph()
    graph.output(graph.sqr(graph.input("x", "F32", (4,))))
    plan = compile_graph(graph, device)
    with pytest.raises(GraphError, match="no input 'y'; it has x"):
        plan.set("y", [1])
    with pytest.raises(GraphError, match="4 elements, 3 were given"):
        plan.set("x", [1, 2, 3])
    with pytest.raises(GraphError, match=r"shape \(4,\), an array of \(2, 2\) was given"):
        plan.set("x", [[1, 2], [3, 4]])
    plan.set("x", [[1, 2, 3, 4]])
    with pytest.raises(GraphError, match="no output"):
        plan.read(Tensor("F32", (4,), name="stranger"))


@settings(max_examples=60)
@given(st.data())
def test_any_graph_gives_the_same_on_any_devices(devices: list[Device], choices: st.DataObject) -> None:
    """Random elementwise graphs with views, over all devices, against one in NumPy."""
    graph = Graph()
    known: list[tuple[Tensor, np.ndarray]] = []
    values = {}
    for i in range(choices.draw(st.integers(1, 3))):
        values[f"x{i}"] = normal(4, 8)
        known.append((graph.input(f"x{i}", "F32", (8, 4)), values[f"x{i}"]))
    known.append((choices.draw(st.sampled_from(devices)).tensor(w := normal(4, 8)), w))
    made = []
    for _ in range(choices.draw(st.integers(1, 20))):
        t, v = choices.draw(st.sampled_from(known))
        s, u = choices.draw(st.sampled_from(known))
        device = choices.draw(st.sampled_from([None, *devices]))
        kind = choices.draw(st.sampled_from(["add", "mul", "scale", "norm", "half", "turn"]))
        with graph.on(device):
            if kind == "add":
                pair = graph.add(t, s), v + u
            elif kind == "mul":
                pair = graph.mul(t, s), v * u
            elif kind == "scale":
                pair = graph.scale(t, 0.5), v * np.float32(0.5)
            elif kind == "norm":
                pair = graph.rms_norm(t, 1.0), v / np.sqrt(np.mean(v.astype("f8") ** 2, -1, keepdims=True) + 1)
            elif kind == "half":
                half = graph.view(t, (8, 2), nb=(t.nb[1],), offset=t.nb[1])
                pair = graph.repeat(graph.cont(half), (8, 4)), np.tile(v[1:3], (2, 1))
            else:
                pair = graph.reshape(graph.cont(graph.transpose(t)), 8, 4), v.T.reshape(4, 8)
        made.append(pair)
        known.append((pair[0], pair[1].astype(np.float32)))
    wanted = choices.draw(st.lists(st.sampled_from(made), min_size=1, max_size=4))
    for t, _ in wanted:
        graph.output(t)
    plan = compile_graph(graph, choices.draw(st.sampled_from(devices)))
    for _ in range(2):
        for name in plan.inputs:
            plan.set(name, values[name])
        plan.run()
        for t, v in wanted:
            np.testing.assert_allclose(plan.read(t), v, rtol=1e-4, atol=1e-5)
