"""What a server's devices send, and in which order, when several threads use them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ggml_rpc.client.connection import Pending
from ggml_rpc.client.device import Device
from ggml_rpc.client.remote import connect
from ggml_rpc.client.schedule import Plan
from ggml_rpc.errors import ComputeError
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.graph.builder import Graph
from ggml_rpc.spec.commands import Command
from tests.support.servers import running_server


def doubling(device: Device) -> tuple[Plan, Tensor]:
    graph = Graph()
    out = graph.output(graph.scale(graph.input("x", "F32", (4,)), 2.0))
    plan = device.compile(graph)
    plan.set("x", [1, 2, 3, 4])
    return plan, out


def test_no_graph_runs_between_forgetting_and_freeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server forgets stored graphs with a buffer: one that came just before would be asked for in vain."""
    with running_server(threads=1) as process, connect(process.endpoint) as server:
        plan, out = doubling(server.devices[0])
        plan.run()
        sent: list[Command] = []
        send = server.connection.send
        other = threading.Thread(target=plan.run)

        def recorded(command: Command, *parts: bytes) -> None:
            if command is Command.FREE_BUFFER:
                other.start()
                other.join(0.1)
            sent.append(command)
            send(command, *parts)

        spare = server.devices[0].allocate(64)
        monkeypatch.setattr(server.connection, "send", recorded)
        spare.free()
        server.free_dead()
        other.join()
        plan.run()
        assert plan.read(out).tolist() == [2, 4, 6, 8]
        assert sent == [Command.FREE_BUFFER, Command.GRAPH_COMPUTE, Command.GRAPH_RECOMPUTE]


def test_threads_that_free_together_free_each_buffer_once() -> None:
    with running_server(threads=1) as process, connect(process.endpoint) as server:
        device = server.devices[0]
        errors: list[BaseException] = []

        def free() -> None:
            try:
                for _ in range(200):
                    server.free_dead()
            except BaseException as e:  # the test's own thread raises it
                errors.append(e)

        for buffer in [device.allocate(64) for _ in range(200)]:
            buffer.free()
        threads = [threading.Thread(target=free) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        device.synchronize()
        assert not errors
        assert not server._dead


def test_statuses_of_old_servers_are_kept_no_longer_than_needed() -> None:
    with running_server(proto="3.0.0", threads=1) as process, connect(process.endpoint) as server:
        plan, out = doubling(server.devices[0])
        device, placed = plan.where(out)
        data = np.zeros(4, np.float32)
        for _ in range(20):
            plan.run()
            device.start_read(placed, data.data).result()
        assert data.tolist() == [2, 4, 6, 8]
        assert len(server._statuses) == 0
        plan.run()
        failed = Pending(server.connection, Command.GRAPH_COMPUTE, 1, None)
        failed.value = b"\1"
        server._statuses.append(failed)
        with pytest.raises(ComputeError, match="status is 1"):
            device.start_read(placed, data.data).result()
