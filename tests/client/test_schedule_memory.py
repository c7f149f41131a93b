"""What nodes overwrite, and what must outlive them: in-place results, writes into inputs, outputs that are views."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ggml_rpc.client.device import Device
from ggml_rpc.client.local import local_devices
from ggml_rpc.client.schedule import _Scheduler, compile_graph
from ggml_rpc.errors import GraphError
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.graph.builder import Graph

X = np.arange(16, dtype=np.float32).reshape(4, 4)
FULL = (16, 64, 64)  # strides of X


@pytest.fixture
def devices() -> list[Device]:
    return [local_devices(threads=1)[0] for _ in range(2)]


@pytest.mark.parametrize("which", ["row", "turned", "reshaped"])
def test_no_result_overwrites_what_it_reads_elsewhere(devices: list[Device], which: str) -> None:
    graph = Graph()
    y = graph.scale(graph.input("x", "F32", (4, 4)), 1.0)
    views = {
        "row": (graph.view(y, (4, 1), nb=(16,), offset=16), X[1:2]),
        "turned": (graph.transpose(y), X.T),
        "reshaped": (graph.reshape(y, 4, 4), X),
    }
    view, expected = views[which]
    out = graph.output(graph.sub(y, view))
    plan = devices[0].compile(graph)
    plan.set("x", X)
    plan.run()
    np.testing.assert_array_equal(plan.read(out), X - expected)


@pytest.mark.parametrize(("op", "expected"), [("acc", 11 * X), ("set", 10 * X)])
def test_the_second_source_is_not_overwritten_before_it_is_read(
    devices: list[Device], op: str, expected: np.ndarray
) -> None:
    graph = Graph()
    a, b = graph.input("a", "F32", (4, 4)), graph.scale(graph.input("b", "F32", (4, 4)), 1.0)
    out = graph.output(getattr(graph, op)(a, b, FULL))
    plan = devices[0].compile(graph)
    plan.set("a", X)
    plan.set("b", 10 * X)
    plan.run()
    np.testing.assert_array_equal(plan.read(out), expected)


def test_an_input_may_be_written_to(devices: list[Device]) -> None:
    graph = Graph()
    x, b = graph.input("x", "F32", (4, 4)), graph.input("b", "F32", (4, 1))
    changed = graph.set(x, b, FULL, offset=16, inplace=True)
    out = graph.output(graph.scale(graph.view(changed, (4, 2), nb=(16,)), 2.0))
    plan = devices[0].compile(graph)
    for _ in range(2):
        plan.set("x", X)
        plan.set("b", [9, 9, 9, 9])
        plan.run()
        assert plan.read(out).tolist() == [[0, 2, 4, 6], [18, 18, 18, 18]]
        assert plan.read(changed)[1].tolist() == [9, 9, 9, 9]


@pytest.mark.parametrize("read_first", [True, False])
def test_an_input_is_not_written_to_on_one_device_and_read_on_another(
    devices: list[Device], *, read_first: bool
) -> None:
    graph = Graph()
    x, b = graph.input("x", "F32", (4, 4)), graph.input("b", "F32", (4, 1))
    reader, writer = devices
    with graph.on(reader):
        before = graph.output(graph.scale(x, 1.0)) if read_first else None
    with graph.on(writer):
        changed = graph.set(x, b, FULL, inplace=True)
    with graph.on(reader):
        if before is None:
            graph.output(graph.scale(changed, 1.0))
    with pytest.raises(GraphError, match="input 'x' is written to on CPU and read on CPU"):
        compile_graph(graph, reader)


def test_writes_run_where_the_memory_is(devices: list[Device]) -> None:
    here, there = devices
    graph = Graph()
    with graph.on(here):
        y = graph.scale(graph.input("x", "F32", (4, 4)), 1.0)
    with graph.on(there):
        changed = graph.set(y, graph.input("b", "F32", (4, 1)), FULL, inplace=True)
        out = graph.output(graph.scale(changed, 2.0))
    plan = compile_graph(graph, here)
    assert [(s.device, [t.op for t in s.nodes]) for s in plan.splits] == [(here, ["SCALE", "SET"]), (there, ["SCALE"])]
    plan.set("x", X)
    plan.set("b", [9, 9, 9, 9])
    plan.run()
    assert plan.read(out)[0].tolist() == [18, 18, 18, 18]


def test_what_is_written_into_an_output_counts(devices: list[Device]) -> None:
    graph = Graph()
    out = graph.output(graph.scale(graph.input("x", "F32", (4, 4)), 1.0))
    graph.set(out, graph.input("b", "F32", (4, 1)), FULL, inplace=True)
    plan = devices[0].compile(graph)
    plan.set("x", X)
    plan.set("b", [9, 9, 9, 9])
    plan.run()
    assert plan.read(out)[0].tolist() == [9, 9, 9, 9]


def test_servers_may_not_fuse_away_what_is_read_later(devices: list[Device]) -> None:
    """A norm that one product reads is fused with it unless it is an output itself: a view of it does not say so."""
    here, there = devices
    graph = Graph()
    with graph.on(here):
        normed = graph.rms_norm(graph.input("x", "F32", (4, 4)), 1e-5)
        by_host = graph.rms_norm(graph.scale(normed, 2.0), 1e-5)
    with graph.on(there):
        away = graph.scale(normed, 3.0)
    with graph.on(here):
        graph.output(graph.add(away, graph.sqr(by_host)))
    graph.output(graph.reshape(by_host, 16))
    compile_graph(graph, here)
    assert normed.is_output
    assert by_host.is_output


def test_a_tensor_marked_for_another_device_is_still_an_output_when_asked(devices: list[Device]) -> None:
    graph = Graph()
    y = graph.scale(graph.input("x", "F32", (4,)), 2.0)
    y.flags |= 2
    graph.output(y)
    graph.output(y)
    assert graph.outputs == [y]
    assert devices[0].compile(graph).where(y)[1] is y


def test_results_that_are_no_outputs_are_not_read(devices: list[Device]) -> None:
    graph = Graph()
    y = graph.scale(graph.input("x", "F32", (4,)), 2.0)
    graph.output(graph.scale(y, 3.0))
    plan = devices[0].compile(graph)
    with pytest.raises(GraphError, match="'scale-0' is no output"):
        plan.read(y)


def test_a_graph_is_compiled_once(devices: list[Device]) -> None:
    graph = Graph()
    graph.output(graph.scale(graph.input("x", "F32", (4,)), 2.0))
    devices[0].compile(graph)
    with pytest.raises(GraphError, match="compiled before"):
        devices[1].compile(graph)


def test_leaves_with_gaps_cross_too(devices: list[Device]) -> None:
    here, there = devices
    gapped = Tensor("F32", (4, 2), nb=(4, 32, 64, 64))
    here.place([gapped], clear=0)
    here.write(gapped, np.arange(12, dtype=np.float32))
    graph = Graph()
    out = graph.output(graph.add(there.tensor(np.zeros((2, 4), np.float32)), gapped))
    plan = compile_graph(graph, there)
    plan.run()
    assert plan.read(out).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]


def test_many_splits_are_marked_in_one_pass(devices: list[Device]) -> None:
    """Each node's sources are looked at once, however many splits there are."""
    looked = 0

    class Counted(list[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            nonlocal looked
            looked += len(self)
            return super().__iter__()

    graph = Graph()
    x = graph.input("x", "F32", (4,))
    for i in range(200):
        with graph.on(devices[i % 2]):
            x = graph.scale(x, 1.0)
    graph.output(x)
    scheduler = _Scheduler(graph, devices[0])
    scheduler._cut()
    assert len(scheduler.splits) == 200
    for split in scheduler.splits:
        split.nodes = Counted(split.nodes)
    scheduler._mark_shared()
    assert looked == 200
