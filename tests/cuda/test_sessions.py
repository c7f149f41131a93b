"""Sessions of clients on CUDA devices: the wire end to end over the emulated driver."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ggml_rpc.server import Server
from ggml_rpc.spec.dialects import find
from tests.cuda.host.device import EmulatedDriver
from tests.support.rawclient import RawClient
from tests.support.wiretensor import Arena, Tensor

MIB = 1 << 20
ILLEGAL_ADDRESS = 700
SHAPE = (40, 3)  # ne


@pytest.fixture
def server(driver: EmulatedDriver) -> Iterator[Server]:
    gpu = driver.gpu()
    with Server(devices=[gpu.device(f"CUDA{i}", "emulated GPU") for i in range(2)], port=0) as server:
        yield server


def connect(server: Server) -> RawClient:
    return RawClient(server.endpoint, find("8.0"))


def arena_of(client: RawClient, device: int = 0, size: int = MIB) -> Arena:
    buffer = client.alloc(size, device)
    return Arena(buffer.handle, buffer.base, buffer.size)


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE[::-1]).astype(np.float32)


def graph(arena: Arena, length: int = 6) -> tuple[Tensor, list[Tensor]]:
    x = arena.leaf("F32", SHAPE, "x")
    nodes: list[Tensor] = []
    for _ in range(length):
        nodes.append(arena.node("ADD", "F32", SHAPE, [nodes[-1] if nodes else x, x]))
    return x, nodes


def test_a_client_computes_and_computes_again(server: Server) -> None:
    with connect(server) as client:
        assert client.device_count() == 2
        arena = arena_of(client)
        x, nodes = graph(arena)
        client.set(x, values(1).tobytes())
        client.compute(nodes, uid=1)
        np.testing.assert_allclose(np.frombuffer(client.get(nodes[-1]), np.float32), 7 * values(1).ravel(), rtol=1e-5)
        for seed in range(2, 5):
            client.set(x, values(seed).tobytes())
            client.recompute(uid=1)
            got = np.frombuffer(client.get(nodes[-1]), np.float32)
            np.testing.assert_allclose(got, 7 * values(seed).ravel(), rtol=1e-5)


def test_large_tensors_go_both_ways_and_between_devices(server: Server) -> None:
    with connect(server) as client:
        size = 9 * MIB + 64
        data = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
        tensors = [arena_of(client, device, 16 * MIB).leaf("I8", (size,), "t") for device in (0, 1)]
        client.set(tensors[0], data)
        assert client.copy(*tensors) == 1
        assert client.get(tensors[1]) == data
        client.memset(tensors[0], 7)
        assert client.get(tensors[1]) == data
        assert set(client.get(tensors[0])) == {7}


def test_a_lost_context_ends_the_sessions_on_it_and_no_others_after(server: Server, driver: EmulatedDriver) -> None:
    with connect(server) as first:
        x, nodes = graph(arena_of(first))
        first.set(x, values().tobytes())
        driver.inject("cuLaunchKernel", ILLEGAL_ADDRESS, sticky=True)
        first.compute(nodes, uid=1)
        assert first.closed_by_peer()
    with connect(server) as second:
        x, nodes = graph(arena_of(second))
        second.set(x, values().tobytes())
        second.compute(nodes, uid=1)
        np.testing.assert_allclose(np.frombuffer(second.get(nodes[-1]), np.float32), 7 * values().ravel(), rtol=1e-5)


def test_memory_that_is_not_there_is_a_refusal_and_no_more(server: Server) -> None:
    with connect(server) as client:
        free, total = client.memory()
        assert 0 < free < total
        assert client.alloc_raw(total) == (0, 0)
        assert client.alloc_raw(free // 2)[1] == free // 2
        assert client.device_count() == 2


@pytest.mark.parametrize("keep", [None, 0])
def test_weights_of_nodes_on_the_cpu_are_copied_once(driver: EmulatedDriver, keep: int | None) -> None:
    """And again after they were written, by the client or by a graph; each time where there is no room for a copy."""
    gpu = driver.gpu(without=["MUL_MAT"], keep=keep)
    rng = np.random.default_rng(0)
    size = 64 * 512 * 4
    with Server(devices=[gpu.device("CUDA0", "emulated GPU")], port=0) as server, connect(server) as client:
        weights, other = arena_of(client), arena_of(client)
        w = weights.leaf("F32", (64, 512), "w")
        x = other.leaf("F32", (64, 3), "x")
        product = other.node("MUL_MAT", "F32", (512, 3), [w, x])

        def run(expected: np.ndarray, copied: bool) -> None:
            values = rng.standard_normal((3, 64)).astype(np.float32)
            client.set(x, values.tobytes())
            before = driver.counts().downloaded
            client.compute([product], uid=1)
            got = np.frombuffer(client.get(product), np.float32).reshape(3, 512)
            np.testing.assert_allclose(got, values @ expected.T, rtol=1e-4, atol=1e-4)
            assert (driver.counts().downloaded - before >= size) == (copied or keep == 0)

        for seed in range(2):
            matrix = np.random.default_rng(seed).standard_normal((512, 64)).astype(np.float32)
            client.set(w, matrix.tobytes())
            run(matrix, copied=True)
            for _ in range(2):
                run(matrix, copied=False)
        kept = gpu.counts()["kept_bytes"]
        assert kept == (0 if keep == 0 else size)
        scaled = weights.node("SCALE", "F32", (64, 512), [w], params=struct.pack("<ff", 2, 0))
        scaled.data = w.data
        client.compute([scaled], uid=2)
        run(2 * matrix, copied=True)
        run(2 * matrix, copied=False)
    until(lambda: gpu.counts()["kept_bytes"] == 0, 30)


def test_memory_is_freed_when_nothing_runs_or_when_it_is_needed() -> None:
    """To free waits for all that runs on the GPU: another session's run is not held up for it."""
    slow = EmulatedDriver(memory_bytes=256 * MIB, lazy=True, queries=100_000)
    server = Server(devices=[slow.gpu().device("CUDA0", "emulated GPU")], port=0)
    with server, connect(server) as runs, connect(server) as frees:
        before = frees.memory()[0]
        large = frees.alloc(100 * MIB)
        arena = arena_of(runs)
        x, nodes = graph(arena)
        runs.set(x, values().tobytes())
        runs.compute(nodes, uid=1)
        assert runs.device_count() == 1  # the run is on its way
        frees.free(large.handle)
        assert slow.counts().bytes[0] > 100 * MIB
        assert frees.memory()[0] > before - 50 * MIB
        frees.free(frees.alloc(150 * MIB).handle)
        assert 150 * MIB < slow.counts().bytes[0] < 200 * MIB
        np.testing.assert_allclose(np.frombuffer(runs.get(nodes[-1]), np.float32), 7 * values().ravel(), rtol=1e-5)
        assert slow.counts().bytes[0] < 50 * MIB
    assert slow.misuse() == ""


def test_copies_between_gpus_take_the_link(driver: EmulatedDriver) -> None:
    fresh = EmulatedDriver(devices=2, memory_bytes=1 << 30, lazy=True, queries=2)
    devices = [fresh.gpu(i).device(f"CUDA{i}", "emulated GPU") for i in range(2)]
    with Server(devices=devices, port=0) as server:
        for _ in range(2):
            with connect(server) as client:
                tensors = [arena_of(client, device).leaf("I8", (1000,), "t") for device in (0, 1)]
                data = np.random.default_rng(1).integers(0, 256, 1000, np.uint8).tobytes()
                client.set(tensors[0], data)
                assert client.copy(*tensors) == 1
                assert client.get(tensors[1]) == data
    assert fresh.counts().peers == 1
    assert fresh.misuse() == ""


def test_a_client_that_leaves_in_the_middle_takes_nothing_with_it(server: Server, driver: EmulatedDriver) -> None:
    for _ in range(20):  # more than there are chunks of staging memory
        client = connect(server)
        tensor = arena_of(client).leaf("I8", (1000,), "t")
        payload = bytes(100)
        client.send_raw(half_of_a_set(client, tensor, payload))
        client.close()
    with connect(server) as client:
        x, nodes = graph(arena_of(client))
        client.set(x, values().tobytes())
        client.compute(nodes, uid=1)
        np.testing.assert_allclose(np.frombuffer(client.get(nodes[-1]), np.float32), 7 * values().ravel(), rtol=1e-5)
    deadline = time.monotonic() + 30
    while driver.counts().allocations > 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert driver.counts().allocations == 0


def sent_by(client: RawClient, call: Callable[[], object]) -> bytes:
    """Return what a call would send, whose reply nobody waits for."""
    sent: list[bytes] = []
    send_raw, reply = client.send_raw, client.reply
    client.send_raw = sent.append  # type: ignore[method-assign]
    client.reply = bytes  # type: ignore[method-assign]
    try:
        call()
    finally:
        client.send_raw = send_raw  # type: ignore[method-assign]
        client.reply = reply  # type: ignore[method-assign]
    return b"".join(sent)


def half_of_a_set(client: RawClient, tensor: Tensor, data: bytes) -> bytes:
    """Return the beginning of a SET_TENSOR that announces 1000 bytes and brings fewer."""
    return sent_by(client, lambda: client.set(tensor, data + bytes(900)))[:-900]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("parts", [False, True])
def test_a_client_that_leaves_ends_its_run(driver: EmulatedDriver, parts: bool, waits: bool) -> None:
    """In the middle of a long graph: of launches alone, and with nodes of the CPU between, few of which are begun."""
    slow = EmulatedDriver(memory_bytes=1 << 30, lazy=True, queries=1500)  # some 0.1 s for each wait of the device
    gpu = slow.gpu(without=["SCALE"])
    with Server(devices=[gpu.device("CUDA0", "emulated GPU")], port=0) as server:
        with connect(server) as client:
            arena = arena_of(client)
            x, nodes = graph(arena)
            for _ in range(60 if parts else 0):
                nodes.append(arena.node("SCALE", "F32", SHAPE, [nodes[-1]], params=struct.pack("<ff", 1, 0)))
                nodes.append(arena.node("ADD", "F32", SHAPE, [nodes[-1], x]))
            client.set(x, values().tobytes())
            client.compute(nodes, uid=1)
            if waits:
                client.send_raw(sent_by(client, lambda: client.get(nodes[-1])))
            until(lambda: gpu.counts()["launches"] > 0, 3)
            if parts:
                until(lambda: gpu.counts()["cpu_nodes"] > 0, 3)
        until(lambda: slow.counts().allocations == 0, 3)
        assert gpu.counts()["cpu_nodes"] < 10
        with connect(server) as client:
            x, nodes = graph(arena_of(client))
            client.set(x, values(1).tobytes())
            client.compute(nodes, uid=1)
            got = np.frombuffer(client.get(nodes[-1]), np.float32)
            np.testing.assert_allclose(got, 7 * values(1).ravel(), rtol=1e-5)
        until(lambda: slow.counts().allocations == 0, 30)
    assert slow.misuse() == ""


def until(reached: Callable[[], bool], seconds: float) -> None:
    """Wait for a state; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)
