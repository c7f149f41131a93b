"""Devices behind one interface: this machine's and those of servers of every dialect."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from ggml_rpc.client.device import Buffer, Device
from ggml_rpc.client.local import local_devices
from ggml_rpc.client.remote import Server, connect
from ggml_rpc.errors import DeviceError, GraphError, OutOfMemory
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.graph.builder import Graph
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import NAMES, find
from tests.e2e.proxy import CountingProxy
from tests.support.servers import running_server

# One table of several with one number is found out by probes; these cannot be told apart by any.
UNCERTAIN = ("ik-3.5.2",)
RNG = np.random.default_rng(1)


@pytest.fixture(params=["local", "8.0.0", "7.0.0", "5.0.0", "4.0.1", "3.6.1", "3.0.0", "2.0.0", "ik-3.5.1@2025-11-30"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "local":
        yield local_devices(threads=1)[0]
        return
    with running_server(proto=request.param, threads=1) as server, connect(server.endpoint) as remote:
        assert remote.dialect.announce == find(request.param).announce
        yield remote.devices[0]


@pytest.mark.parametrize("proto", NAMES)
def test_every_table_runs_a_product(proto: str) -> None:
    with running_server(proto=proto, threads=1) as server, connect(server.endpoint) as remote:
        device = remote.devices[0]
        a, b = RNG.standard_normal((8, 64), np.float32), RNG.standard_normal((3, 64), np.float32)
        ta, tb = device.tensor(a), device.tensor(b)
        product = Tensor("F32", (8, 3), op="MUL_MAT", src=(ta, tb))
        device.place([product])
        plan = device.prepare([product])
        for _ in range(3):
            plan.run()
            np.testing.assert_allclose(device.read(product), b @ a.T, rtol=1e-5, atol=1e-5)
            b = RNG.standard_normal((3, 64), np.float32)
            device.write(tb, b)
        if not proto.startswith(UNCERTAIN):
            assert remote.encoder.speaks("UNARY")
            assert remote.encoder.speaks("FLASH_ATTN_EXT")


@pytest.mark.parametrize(
    ("proto", "again"),
    [("3.0.0", 0), ("3.5.0", 2), ("7.0.0", 2), ("8.0.0", 2), ("ik-3.5.1", 0), ("ik-3.5.2@2026-04-13", 2)],
)
def test_a_graph_is_run_again_by_name_where_servers_can(proto: str, again: int) -> None:
    with (
        running_server(proto=proto, threads=1) as server,
        CountingProxy(server.endpoint) as proxy,
        connect(proxy.endpoint) as remote,
    ):
        device = remote.devices[0]
        x = device.tensor(np.array([-2.0, 3.0], np.float32))
        y = Tensor("F32", (2,), op="SQR", src=(x,))
        device.place([y])
        plan = device.prepare([y])
        sent = Counter(proxy.requests)
        for _ in range(3):
            plan.run()
            np.testing.assert_array_equal(device.read(y), [4, 9])
        commands = find(proto).commands
        assert proxy.requests[commands[Command.GRAPH_COMPUTE]] - sent[commands[Command.GRAPH_COMPUTE]] == 3 - again
        assert proxy.requests[commands.get(Command.GRAPH_RECOMPUTE, -1)] == again


def test_a_named_table_is_taken() -> None:
    with (
        running_server(proto="3.6.0@2026-01-19", threads=1) as server,
        connect(server.endpoint, dialect="3.6.0@2026-01-19") as remote,
    ):
        device = remote.devices[0]
        x = device.tensor(np.array([-2.0, 3.0], np.float32))
        y = Tensor("F32", (2,), op="UNARY", src=(x,), params=[6])
        device.place([y])
        device.prepare([y]).run()
        assert device.read(y).tolist() == [0.0, 3.0]


@pytest.mark.parametrize("type", ["F32", "F16", "F64", "I8", "I16", "I32", "I64"])
def test_arrays_come_back(device: Device, type: str) -> None:
    array = RNG.integers(-100, 100, (2, 3, 5)).astype(np.dtype({"F": "f", "I": "i"}[type[0]] + str(int(type[1:]) // 8)))
    t = device.tensor(array, name="x")
    assert (t.type, t.ne, t.shape) == (type, (5, 3, 2, 1), (2, 3, 5))
    back = device.read(t)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_parts_can_be_written(device: Device) -> None:
    t = device.tensor(np.zeros(8, np.int32))
    device.write(t, np.array([7, 8], np.int32), offset=8)
    assert device.read(t).tolist() == [0, 0, 7, 8, 0, 0, 0, 0]


def test_copies_stay_on_the_device(device: Device) -> None:
    a, b = device.tensor(np.arange(6, dtype=np.float32)), device.empty("F32", (6,))
    assert device.shares_with(device)
    assert device.copy(a, b)
    np.testing.assert_array_equal(device.read(b), np.arange(6))


def test_buffers_are_cleared(device: Device) -> None:
    t = Tensor("I8", (100,))
    (buffer,) = device.place([t], clear=5)
    assert (device.read(t) == 5).all()
    device.clear(buffer)
    assert not device.read(t).any()


def test_large_tensors_travel_whole(device: Device) -> None:
    array = RNG.integers(0, 255, 12 << 20).astype(np.int8)
    t = Tensor("I8", array.shape)
    device.place([t])
    assert device.write_cached(t, array) is False  # no server here keeps tensors
    np.testing.assert_array_equal(device.read(t), array)


def test_many_tensors_share_a_buffer(device: Device) -> None:
    tensors = [Tensor("F32", (n,), name=f"t{n}") for n in (1, 100, 3)]
    buffers = device.place(tensors)
    assert len(buffers) == 1
    assert all(t.buffer is buffers[0] and t.offset % device.alignment == 0 for t in tensors)
    ends = [t.offset + t.nbytes for t in tensors]
    assert all(t.offset >= end for t, end in zip(tensors[1:], ends, strict=False))


def test_what_is_too_large_is_refused(device: Device) -> None:
    _, total = device.memory()
    with pytest.raises((OutOfMemory, DeviceError), match="bytes"):
        device.allocate(4 * total)
    assert device.tensor(np.ones(3, np.float32)).nbytes == 12


def test_memory_is_freed_with_its_last_reference(device: Device) -> None:
    size = 256 << 20
    free, _ = device.memory()
    t = device.empty("I8", (size,))
    assert device.memory()[0] < free - size // 2
    del t
    gc.collect()
    assert device.memory()[0] > free - size // 2


def test_unknown_array_types_are_named(device: Device) -> None:
    with pytest.raises(GraphError, match="complex64"):
        device.tensor(np.zeros(3, np.complex64))


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server(devices="CPU,CPU", threads=1) as running, connect(running.endpoint) as remote:
        yield remote


def test_a_server_shows_its_devices(server: Server) -> None:
    assert [d.name for d in server.devices] == ["RPC0", "RPC1"]
    assert server.devices[0].shares_with(server.devices[1])
    assert not server.devices[0].shares_with(local_devices(threads=1)[0])
    assert server.endpoint in str(server.devices[1])
    assert server.dialect.name in repr(server)
    assert 0 < server.ping() < 10


def test_more_graphs_than_the_server_keeps(server: Server) -> None:
    """Both sides forget all at 1024 graphs: every run must still be the right one."""
    device = server.devices[0]
    x = device.tensor(np.array([1.0], np.float32))
    plans = []
    for i in range(1100):
        y = Tensor("F32", (1,), op="SCALE", src=(x,), params=[int(np.float32(i).view(np.int32))])
        if i % 100 == 0:
            device.place([y])
            plans.append((i, y, device.prepare([y])))
        else:
            y.put(plans[-1][1].buffer, plans[-1][1].offset)
            plans.append((i, y, device.prepare([y])))
    for i, y, plan in (*plans, *plans[::50], *plans[:100:7]):
        plan.run()
        assert device.read(y)[0] == i


def test_graphs_are_sent_again_after_a_buffer_was_freed(server: Server) -> None:
    device = server.devices[0]
    x = device.tensor(np.array([3.0], np.float32))
    y = Tensor("F32", (1,), op="SQR", src=(x,))
    device.place([y])
    plan = device.prepare([y])
    plan.run()
    for _ in range(3):
        other = device.empty("F32", (1000,))
        plan.run()
        del other
        gc.collect()
        device.memory()
        plan.run()
    assert device.read(y)[0] == 9


def test_synchronizing_after_the_last_graphs_memory_was_freed() -> None:
    with running_server(threads=1) as server, connect(server.endpoint) as remote:
        device = remote.devices[0]
        x = device.tensor(np.ones(4, np.float32))
        y = Tensor("F32", (4,), op="UNARY", src=(x,), params=[6])
        (buffer,) = device.place([y])
        plan = device.prepare([y])
        plan.run()
        buffer.free()
        device.memory()
        device.synchronize()
        assert device.read(x).tolist() == [1.0] * 4
        del plan


def test_tensors_that_cannot_be_reached_are_refused_before_the_server_ends_the_connection(device: Device) -> None:
    t = device.tensor(np.arange(4, dtype=np.float32), name="t")
    values = np.zeros(5, np.float32)
    nowhere = Tensor("F32", (4,), name="nowhere")
    for reach in (lambda x: device.write(x, values[:4]), device.read, lambda x: device.copy(t, x)):
        with pytest.raises(GraphError, match="'nowhere' has no place"):
            reach(nowhere)
    with pytest.raises(GraphError, match="'t' has 16 bytes, not the 20 from 0 on"):
        device.write(t, values)
    with pytest.raises(GraphError, match="'t' has 16 bytes, not the 8 from 12 on"):
        device.write(t, values[:2], 12)
    with pytest.raises(GraphError, match="'t' has 16 bytes, not the 20"):
        device.start_read(t, values)
    with pytest.raises(GraphError, match="'t' has 16 bytes, not the 20"):
        device.copy(t, device.tensor(values))
    freed = device.tensor(values[:4], name="freed")
    assert isinstance(freed.buffer, Buffer)
    freed.buffer.free()
    with pytest.raises(GraphError, match="memory of tensor 'freed' was freed"):
        device.read(freed)
    graph = Graph()
    graph.output(graph.sqr(freed))
    with pytest.raises(GraphError, match="memory of tensor 'freed' was freed"):
        device.compile(graph)
    if device.endpoint is not None:
        with pytest.raises(GraphError, match="'away' lies on CPU"):
            device.read(local_devices(threads=1)[0].tensor(values, name="away"))
    assert device.read(t).tolist() == [0, 1, 2, 3]
