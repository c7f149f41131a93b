"""The thread pool: plans of shared and serial steps with hazards, more threads than cores, failures in the middle."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.errors import ComputeError
from tests.support.device import Bench
from tests.support.wiretensor import Tensor

LARGE, SMALL = 20_000, 16  # elements of a step that is shared and of one that is not


def chains(bench: Bench, length: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the nodes of two counters, a large and a small one, that take turns; and where each counts."""
    one = {n: bench.put(np.ones(n, np.float32)) for n in (LARGE, SMALL)}
    last = {n: bench.put(np.zeros(n, np.float32)) for n in (LARGE, SMALL)}
    nodes = []
    for i in range(length):
        n = LARGE if i % 3 == 0 else SMALL
        last[n] = bench.node("ADD", "F32", (n,), [last[n], one[n]], out=last[n])
        nodes.append(last[n])
    return nodes, last[LARGE], last[SMALL]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_steps_with_hazards_keep_their_order(threads: int) -> None:
    bench = Bench(CpuPool(threads).device())
    nodes, large, small = chains(bench, 90)
    plan = bench.compile(nodes)
    for run in range(1, 21):
        plan.run()
        assert np.all(bench.read(large) == 30 * run)
        assert np.all(bench.read(small) == 60 * run)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_failure_in_the_middle_ends_the_run_for_all(threads: int) -> None:
    bench = Bench(CpuPool(threads).device())
    nodes, large, small = chains(bench, 30)
    rows = bench.put(np.ones((4, SMALL), np.float32))
    bad = bench.node("GET_ROWS", "F32", (1, SMALL), [rows, bench.put(np.array([4], np.int32), name="ids")])
    failing = bench.compile([*nodes[:15], bad, *nodes[15:]])
    good = bench.compile(nodes)
    for _ in range(5):
        with pytest.raises(ComputeError, match="index 4"):
            failing.run()
    before_large, before_small = bench.read(large), bench.read(small)
    good.run()
    assert np.all(bench.read(large) == before_large + 10)
    assert np.all(bench.read(small) == before_small + 20)


def test_queues_share_the_threads() -> None:
    """Devices of one pool have a queue each; plans of all come out right when they run at once."""
    pool = CpuPool(3)
    benches = [Bench(pool.device()) for _ in range(4)]
    parts = [chains(bench, 60) for bench in benches]

    def work(bench: Bench, nodes: list[Tensor]) -> None:
        plan = bench.compile(nodes)
        for _ in range(5):
            plan.run()

    users = [threading.Thread(target=work, args=(b, p[0])) for b, p in zip(benches, parts, strict=True)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    for bench, (_, large, small) in zip(benches, parts, strict=True):
        assert np.all(bench.read(large) == 100)
        assert np.all(bench.read(small) == 200)
