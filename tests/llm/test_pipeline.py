"""Ubatches overlap on the servers of a model, arrive in order, and stop at the first error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from ggml_rpc.client.device import Device, DevicePlan
from ggml_rpc.client.local import LocalDevice
from ggml_rpc.client.schedule import compile_graph
from ggml_rpc.devices import open_devices
from ggml_rpc.errors import ConnectionLost
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.graph.builder import Graph
from ggml_rpc.llm.pipeline import Pipeline, Staged

WAIT = 30.0
"""Seconds until a test gives up on what should happen at once."""


class Apart(LocalDevice):
    """A device of this process that stands for a server: it shares nothing and tells when it computes."""

    def __init__(self, name: str, on_run: Callable[[str], None]) -> None:
        super().__init__(open_devices(["CPU"], threads=1)[0])
        self.name = name
        self.on_run = on_run

    def shares_with(self, other: Device) -> bool:
        """Tell whether it is the same one."""
        return other is self

    def prepare(self, nodes: Sequence[Tensor]) -> Any:
        """Return a plan that tells."""
        return _Told(super().prepare(nodes), self)


class _Told(DevicePlan):
    def __init__(self, plan: DevicePlan, device: Apart) -> None:
        self._plan = plan
        self._device = device

    def run(self) -> None:
        self._device.on_run(self._device.name)
        self._plan.run()


def staged_over(devices: Sequence[Device]) -> Staged:
    """Return a plan of one multiplication on each device, in turn."""
    g = Graph()
    x = g.input("x", "F32", (4,))
    y = g.input("y", "F32", (4,))
    for i, device in enumerate(devices):
        with g.on(device):
            x = g.add(g.mul(x, device.tensor(np.full(4, i + 2, np.float32))), y)
    out = g.output(x)
    return Staged(compile_graph(g, devices[0]), [out])


def expected(x: float, y: float, n: int) -> list[float]:
    """Return what such a plan gives."""
    for i in range(n):
        x = x * (i + 2) + y
    return [x] * 4


def values(outputs: Any) -> list[float]:
    """Wait for the one output of a job and return it."""
    ((_, data, arrival),) = outputs
    arrival.result()
    return np.frombuffer(data, np.float32).tolist()


def inputs(x: float, y: float) -> dict[str, np.ndarray]:
    """Return what a job takes."""
    return {"x": np.full(4, x, np.float32).view(np.uint8), "y": np.full(4, y, np.float32).view(np.uint8)}


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """Return what devices append their names to."""
    return []


@pytest.mark.parametrize("n_devices", [1, 2, 3])
def test_jobs_arrive_in_order(n_devices: int, calls: list[str]) -> None:
    staged = staged_over([Apart(str(i), calls.append) for i in range(n_devices)])
    assert staged.flows
    assert len(staged.stages) == n_devices
    with Pipeline() as pipeline:
        jobs = [pipeline.submit(staged, inputs(i, 10 * i)) for i in range(20)]
        pipeline.drain()
        got = [values(job.result()) for job in jobs]
    assert got == [expected(i, 10 * i, n_devices) for i in range(20)]
    assert sorted(calls) == sorted(str(i) for i in range(n_devices) for _ in range(20))
    assert values(staged.run(inputs(1, 2))) == expected(1, 2, n_devices)


def test_the_first_device_goes_on_while_the_second_computes() -> None:
    second_job_began = threading.Event()
    overlapped = []
    runs_of_first = []

    def on_run(name: str) -> None:
        if name == "a":
            runs_of_first.append(name)
            if len(runs_of_first) == 2:
                second_job_began.set()
        elif not overlapped:
            overlapped.append(second_job_began.wait(WAIT))

    staged = staged_over([Apart("a", on_run), Apart("b", on_run)])
    with Pipeline() as pipeline:
        jobs = [pipeline.submit(staged, inputs(i, 1)) for i in range(3)]
        pipeline.drain()
    assert overlapped == [True]
    assert [values(job.result()) for job in jobs] == [expected(i, 1, 2) for i in range(3)]


def test_what_is_under_way_is_bounded() -> None:
    """The first device is never more than a few jobs ahead: each holds its inputs."""
    may_go_on = threading.Event()
    ahead = []

    def on_run(name: str) -> None:
        if name == "b":
            may_go_on.wait(WAIT)
        else:
            ahead.append(name)

    staged = staged_over([Apart("a", on_run), Apart("b", on_run)])
    with Pipeline() as pipeline:
        submitter = threading.Thread(target=lambda: [pipeline.submit(staged, inputs(i, 1)) for i in range(20)])
        submitter.start()
        submitter.join(0.2)
        assert len(ahead) <= 4
        may_go_on.set()
        submitter.join(WAIT)
        pipeline.drain()
    assert len(ahead) == 20


def test_replies_are_taken_while_the_next_server_computes() -> None:
    """A server that cannot get rid of what it made for the next one does nothing else, and gives up in the end."""
    fetched = threading.Semaphore(0)
    in_time = []

    class Fetched(Apart):
        def start_read(self, t: Tensor, out: Any) -> Any:
            super().start_read(t, out)
            return self

        def result(self, timeout: float | None = None) -> None:
            fetched.release()

    def on_run(name: str) -> None:
        if name == "b" and not in_time:
            # Its own wait for the first job, and those of the other thread for all three that are under way.
            in_time.append(all(fetched.acquire(timeout=WAIT / 5) for _ in range(4)))

    staged = staged_over([Fetched("a", on_run), Apart("b", on_run)])
    with Pipeline() as pipeline:
        jobs = [pipeline.submit(staged, inputs(i, 1)) for i in range(5)]
        pipeline.drain()
    assert in_time == [True]
    assert [values(job.result()) for job in jobs] == [expected(i, 1, 2) for i in range(5)]


@pytest.mark.parametrize("broken", ["a", "b", "c"])
def test_an_error_ends_all(broken: str, calls: list[str]) -> None:
    def on_run(name: str) -> None:
        calls.append(name)
        if name == broken and calls.count(name) == 3:
            raise ConnectionLost(f"{name} is gone")

    staged = staged_over([Apart(name, on_run) for name in "abc"])

    def submit_all() -> None:
        with Pipeline() as pipeline:
            for i in range(50):
                pipeline.submit(staged, inputs(i, 1))
            pipeline.drain()

    with pytest.raises(ConnectionLost, match=f"{broken} is gone"):
        submit_all()
    assert calls.count("a") < 10


def test_a_device_that_is_visited_twice_does_not_flow(calls: list[str]) -> None:
    a, b = Apart("a", calls.append), Apart("b", calls.append)
    staged = staged_over([a, b, a])
    assert not staged.flows
    assert values(staged.run(inputs(3, 4))) == expected(3, 4, 3)
    assert calls == ["a", "b", "a"]
