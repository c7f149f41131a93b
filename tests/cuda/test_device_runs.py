"""Runs on the CUDA device: launches, captured graphs, nodes of the CPU in between, faults, time-outs, two devices."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ggml_rpc.devices.cuda import CudaDevice, plan_counts
from ggml_rpc.errors import ComputeError, DeadlineExceeded, DeviceError, OutOfMemory
from tests.cuda.host.bench import Bench
from tests.cuda.host.device import EmulatedDriver
from tests.support.wiretensor import Tensor

OUT_OF_MEMORY, ILLEGAL_ADDRESS, CAPTURE_UNSUPPORTED = 2, 700, 900
SHAPE = (3, 40)
LEFT = "CUMSUM"  # to the CPU


def chain(bench: Bench, x: Tensor, length: int) -> list[Tensor]:
    """Return x + x, that + x, ..."""
    nodes = []
    last = x
    for _ in range(length):
        last = bench.node("ADD", "F32", SHAPE, [last, x])
        nodes.append(last)
    return nodes


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def test_a_run_sees_what_was_uploaded_and_a_download_what_was_computed(driver: EmulatedDriver) -> None:
    bench = Bench(driver.device(), 1 << 20)
    x = bench.put(values())
    nodes = chain(bench, x, 3)
    plan = bench.compile(nodes)
    assert plan_counts(plan) == (3, 0)
    for seed in range(4):
        bench.write(x, values(seed).tobytes())
        plan.run()
        np.testing.assert_allclose(bench.read(nodes[-1]), 4 * values(seed), rtol=1e-6)


def test_the_second_run_is_one_graph_and_other_addresses_update_it(driver: EmulatedDriver) -> None:
    device = driver.device()
    bench = Bench(device, 1 << 20)
    x = bench.put(values())
    nodes = chain(bench, x, 10)
    plan = bench.compile(nodes)
    plan.run()
    assert device.gpu.counts()["graph_launches"] == 0
    for _ in range(3):
        plan.run()
    counts = device.gpu.counts()
    assert (counts["graph_launches"], counts["graph_updates"], counts["launches"]) == (3, 0, 40)
    del plan
    again = Bench(device, 1 << 20)
    y = again.put(values(1))
    nodes = chain(again, y, 10)
    again.compile(nodes).run()
    counts = device.gpu.counts()
    assert (counts["graph_launches"], counts["graph_updates"]) == (4, 1)
    np.testing.assert_allclose(again.read(nodes[-1]), 11 * values(1), rtol=1e-5)


@pytest.mark.parametrize("code", [OUT_OF_MEMORY, CAPTURE_UNSUPPORTED])
@pytest.mark.parametrize(
    "function", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphExecUpdate"]
)
def test_without_graphs_runs_are_the_same(driver: EmulatedDriver, function: str, code: int) -> None:
    device = driver.device()
    driver.inject(function, code, times=100)
    for seed in range(3):
        bench = Bench(device, 1 << 20)
        x = bench.put(values(seed))
        nodes = chain(bench, x, 5)
        plan = bench.compile(nodes)
        for _ in range(2):
            plan.run()
        np.testing.assert_allclose(bench.read(nodes[-1]), 6 * values(seed), rtol=1e-5)


def test_what_has_no_kernel_runs_on_the_cpu_between_launches(driver: EmulatedDriver) -> None:
    said: list[str] = []
    device = driver.gpu(log=said.append, without=[LEFT]).device("CUDA0", "emulated GPU", host_memory=True)
    bench = Bench(device, 1 << 20)
    x = bench.put(values())
    first = bench.node("ADD", "F32", SHAPE, [x, x])
    second = bench.node(LEFT, "F32", SHAPE, [first])
    third = bench.node("ADD", "F32", SHAPE, [second, first])
    plan = bench.compile([first, second, third])
    assert plan_counts(plan) == (2, 1)
    for seed in range(3):
        v = values(seed)
        bench.write(x, v.tobytes())
        plan.run()
        np.testing.assert_allclose(bench.read(third), 2 * (np.cumsum(v, axis=1) + v), rtol=1e-4, atol=1e-4)
    assert device.gpu.counts()["cpu_nodes"] == 3
    assert list(device.gpu.fallbacks().values()) == [1]
    bench.compile([first, second, third])
    assert list(device.gpu.fallbacks().values()) == [2]
    assert len(said) == 1
    assert said[0].startswith(f"no CUDA kernel for {LEFT} (F32 -> F32), as in tensor ")


def test_the_cpu_gets_views_and_gaps_as_they_are(driver: EmulatedDriver) -> None:
    """A node of the CPU that writes every other row leaves the rows between as they are."""
    bench = Bench(driver.gpu(without=[LEFT]).device("CUDA0", "emulated GPU", host_memory=True), 8 << 20)
    x = np.random.default_rng(3).standard_normal((600, 700)).astype(np.float32)  # more than a chunk for the copies
    source = bench.put(x)
    base = bench.put(np.full((1200, 700), 5, np.float32))
    out = bench.view(base, "F32", (600, 700), (2 * 700 * 4, 4))
    node = bench.node(LEFT, "F32", (600, 700), [source])
    node.data, node.nb = out.data, list(out.nb)
    plan = bench.compile([node])
    assert plan_counts(plan) == (0, 1)
    plan.run()
    got = bench.read(base)
    np.testing.assert_allclose(got[::2], np.cumsum(x, axis=1), rtol=1e-3, atol=1e-3)
    assert (got[1::2] == 5).all()


def test_what_the_cpu_writes_besides_its_result_is_converted_anew(driver: EmulatedDriver) -> None:
    """A product, a step of an optimiser that changes its activations, and the product again."""
    bench = Bench(driver.gpu(without=["OPT_STEP_ADAMW"]).device("CUDA0", "emulated GPU", host_memory=True), 1 << 20)
    rng = np.random.default_rng(5)
    weights = bench.put_raw("Q8_0", (8, 64), b"\0\x3c" + bytes(range(32)) + (b"\0\x3c" + bytes(range(32))) * 15)
    w, g, m, v = (bench.put(rng.uniform(n, n + 1, (1, 64)).astype(np.float32)) for n in range(1, 5))
    params = bench.put(np.array([0.1, 0.5, 0.5, 1e-8, 0, 1, 1], np.float32))
    first = bench.node("MUL_MAT", "F32", (1, 8), [weights, m])
    step = bench.node("OPT_STEP_ADAMW", "F32", (1, 64), [w, g, m, v, params], out=w)
    second = bench.node("MUL_MAT", "F32", (1, 8), [weights, m])
    before = bench.read(m) * 0.5 + bench.read(g) * 0.5
    plan = bench.compile([first, step, second])
    assert plan_counts(plan)[1] == 1
    plan.run()
    np.testing.assert_allclose(bench.read(m), before, rtol=1e-6)
    expected = (before.reshape(64) * np.tile(np.arange(32), 2)).sum()
    np.testing.assert_allclose(bench.read(second), np.full((1, 8), expected), rtol=1e-2)
    assert not np.allclose(bench.read(first), bench.read(second), rtol=3e-2)


def bad_rows(bench: Bench, value: int) -> Tensor:
    table = bench.put(np.ones((4, 8), np.float32), name="table")
    return bench.node("GET_ROWS", "F32", (3, 8), [table, bench.put(np.array([0, value, 1], np.int32), name="rows")])


@pytest.mark.parametrize("value", [4, -1, 2**31 - 1])
def test_an_index_out_of_range_is_named(driver: EmulatedDriver, value: int) -> None:
    bench = Bench(driver.device(), 1 << 20)
    node = bad_rows(bench, value)
    plan = bench.compile([node])
    for _ in range(2):  # the fault of the first run does not stay
        with pytest.raises(ComputeError) as error:
            plan.run()
        assert "op GET_ROWS" in str(error.value)
        assert f"index {value} in 'rows' is out of range (0 .. 3)" in str(error.value)
    index = node.src[1]
    assert index is not None
    bench.write(index, np.array([0, 3, 1], np.int32).tobytes())
    plan.run()
    assert (bench.read(node) == 1).all()


def test_an_error_of_the_context_ends_its_sessions_only(driver: EmulatedDriver) -> None:
    device = driver.device()
    bench = Bench(device, 1 << 20)
    nodes = chain(bench, bench.put(values()), 2)
    plan = bench.compile(nodes)
    driver.inject("cuLaunchKernel", ILLEGAL_ADDRESS, sticky=True)
    with pytest.raises(DeviceError, match=r"op ADD.*illegal memory access"):
        plan.run()
    with pytest.raises(DeviceError, match="earlier error"):
        bench.buffer.read(0, 1)
    with pytest.raises(DeviceError):
        plan.run()
    # The next one gets a new context.
    after = Bench(device, 1 << 20)
    assert device.gpu.counts()["contexts"] == 2
    nodes = chain(after, after.put(values()), 2)
    after.run(*nodes)
    np.testing.assert_allclose(after.read(nodes[-1]), 3 * values(), rtol=1e-6)


def test_an_error_that_ends_the_context_is_not_taken_for_the_want_of_a_graph(driver: EmulatedDriver) -> None:
    bench = Bench(driver.device(), 1 << 20)
    plan = bench.compile(chain(bench, bench.put(values()), 5))
    plan.run()
    driver.inject("cuGraphInstantiateWithFlags", ILLEGAL_ADDRESS, sticky=True)
    with pytest.raises(DeviceError, match=r"cuGraphInstantiateWithFlags failed: an illegal memory access"):
        plan.run()


def test_a_lost_context_that_nobody_noticed_does_not_hurt_the_next_session(driver: EmulatedDriver) -> None:
    device = driver.device()
    driver.inject("cuMemGetInfo", ILLEGAL_ADDRESS, sticky=True)
    buffer = device.alloc(100)
    assert buffer.read(0, 100) == bytes(100)
    assert device.gpu.counts()["contexts"] == 2


def test_no_memory_for_scratch_or_kernels_is_an_error(driver: EmulatedDriver) -> None:
    device = driver.device()
    bench = Bench(device, 1 << 20)
    nodes = chain(bench, bench.put(values()), 2)
    driver.inject("cuModuleLoadData", OUT_OF_MEMORY)
    with pytest.raises(DeviceError, match="kernels cannot be made"):
        bench.compile(nodes)
    bench.run(*nodes)
    np.testing.assert_allclose(bench.read(nodes[-1]), 3 * values(), rtol=1e-6)
    # The activations of a quantised product are converted in scratch.
    weights = bench.put_raw("Q8_0", (8, 64), bytes(8 * 2 * 34))
    product = bench.node("MUL_MAT", "F32", (1, 8), [weights, bench.put(np.ones((1, 64), np.float32))])
    plan = bench.compile([product])
    driver.inject("cuMemAlloc", OUT_OF_MEMORY, times=1)
    with pytest.raises(OutOfMemory, match="scratch"):
        plan.run()
    plan.run()
    assert (bench.read(product) == 0).all()


def test_a_run_that_takes_too_long_ends(driver: EmulatedDriver) -> None:
    device = driver.gpu(graph_timeout=1e-9).device("CUDA0", "emulated GPU", host_memory=True)
    bench = Bench(device, 1 << 20)
    plan = bench.compile(chain(bench, bench.put(values()), 5))
    with pytest.raises(DeadlineExceeded, match="graph timeout"):
        plan.run()


def devices_of(driver: EmulatedDriver, one_gpu: bool) -> list[CudaDevice]:
    if one_gpu:
        gpu = driver.gpu()
        return [gpu.device(f"CUDA{i}", "emulated GPU", host_memory=True) for i in range(2)]
    return [driver.device(i) for i in range(2)]


@pytest.mark.parametrize("one_gpu", [True, False])
def test_two_devices_at_once(driver: EmulatedDriver, one_gpu: bool) -> None:
    fresh = EmulatedDriver(devices=2, memory_bytes=1 << 30, lazy=True, queries=2)
    benches = [Bench(device, 1 << 20) for device in devices_of(fresh, one_gpu)]
    errors: list[BaseException] = []

    def work(bench: Bench, seed: int) -> None:
        try:
            x = bench.put(values(seed))
            nodes = chain(bench, x, 4)
            plan = bench.compile(nodes)
            for _ in range(5):
                plan.run()
                np.testing.assert_allclose(bench.read(nodes[-1]), 5 * values(seed), rtol=1e-5)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(bench, seed)) for seed, bench in enumerate(benches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_device_that_is_dropped_while_it_works_waits(driver: EmulatedDriver) -> None:
    begin = time.monotonic()
    for _ in range(3):
        bench = Bench(driver.device(), 1 << 20)
        bench.run(*chain(bench, bench.put(values()), 5))
        del bench
    assert driver.counts().contexts == 0
    assert time.monotonic() > begin
