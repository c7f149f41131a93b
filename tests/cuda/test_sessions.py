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
