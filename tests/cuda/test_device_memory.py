"""Memory of the CUDA device over a driver that does all as late as it may: what is not waited for is not there."""

from __future__ import annotations

import numpy as np
import pytest

from ggml_rpc.devices import DeviceBuffer
from ggml_rpc.errors import DeviceError, OutOfMemory
from tests.cuda.host.device import EmulatedDriver

MIB = 1 << 20
CHUNK = 2 * MIB  # of the staging memory
SIZES = [1, 4095, CHUNK, CHUNK + 1, 9 * CHUNK - 3, 40 * CHUNK]  # the last: more than all the chunks there are
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def put(buffer: DeviceBuffer, offset: int, data: bytes) -> None:
    buffer.write(offset, bytearray(data))


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read(driver: EmulatedDriver, size: int) -> None:
    buffer = driver.device().alloc(size + 7)
    data = noise(size)
    put(buffer, 3, data)
    assert buffer.read(3, size) == data
    assert buffer.read(0, 3) == buffer.read(size + 3, 4)[:3] == bytes(3)
    # A second time, from other chunks, and over what was read ahead.
    put(buffer, 5, data)
    assert buffer.read(5, size) == data


def test_a_buffer_is_empty(driver: EmulatedDriver) -> None:
    device = driver.device()
    first = device.alloc(MIB)
    put(first, 0, noise(MIB))
    del first
    assert device.alloc(MIB).read(0, MIB) == bytes(MIB)


def test_what_was_read_ahead_is_forgotten_when_the_memory_is_written(driver: EmulatedDriver) -> None:
    buffer = driver.device().alloc(8 * CHUNK)
    for step in range(3):
        buffer.fill(step)
        assert set(buffer.read(0, 8 * CHUNK)) == {step}
        put(buffer, CHUNK, bytes([77] * 5))
        assert buffer.read(CHUNK, 6) == bytes([77] * 5 + [step])


@pytest.mark.parametrize("lazy", [False, True])
def test_two_buffers_do_not_mix(lazy: bool, driver: EmulatedDriver) -> None:
    device = driver.device()
    buffers = [device.alloc(3 * CHUNK) for _ in range(5)]
    contents = [noise(3 * CHUNK, seed) for seed in range(5)]
    for buffer, data in zip(buffers, contents, strict=True):
        put(buffer, 0, data)
    for buffer, data in zip(buffers, contents, strict=True):
        assert buffer.read(0, 3 * CHUNK) == data


def test_out_of_memory_is_an_error_that_leaves_the_device_whole(driver: EmulatedDriver) -> None:
    device = driver.device()
    free, total = device.memory()
    assert 0 < free < total
    with pytest.raises(OutOfMemory, match=r"bytes wanted, \d+ free"):
        device.alloc(total)
    with pytest.raises(OutOfMemory):
        device.alloc((1 << 64) - 8)
    held = device.alloc(free)
    assert device.memory()[0] == 0
    with pytest.raises(OutOfMemory):
        device.alloc(free)
    del held
    assert device.memory() == (free, total)
    driver.inject("cuMemAlloc", OUT_OF_MEMORY)
    with pytest.raises(OutOfMemory):
        device.alloc(MIB)
    assert device.alloc(MIB).read(0, 1) == b"\0"


def test_without_pinned_memory_transfers_still_work(driver: EmulatedDriver) -> None:
    driver.inject("cuMemHostAlloc", OUT_OF_MEMORY, times=1000)
    buffer = driver.device().alloc(5 * CHUNK)
    data = noise(5 * CHUNK)
    put(buffer, 0, data)
    assert buffer.read(0, len(data)) == data
    assert "not pinned" in driver.misuse()  # as it says itself


@pytest.mark.parametrize("function", ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventRecord", "cuMemsetD8Async"])
def test_a_failed_transfer_is_an_error(driver: EmulatedDriver, function: str) -> None:
    device = driver.device()
    buffer = device.alloc(MIB)
    driver.inject(function, 1)
    with pytest.raises(DeviceError, match=f"{function} failed"):  # noqa: PT012  one of the three it is
        buffer.fill(1)
        put(buffer, 0, b"12")
        buffer.read(0, 1)
    put(buffer, 0, b"34")
    assert buffer.read(0, 2) == b"34"


def test_ranges_are_checked(driver: EmulatedDriver) -> None:
    buffer = driver.device().alloc(100)
    for offset, size in ((0, 101), (101, 0), (1 << 63, 1 << 63), (50, 51)):
        with pytest.raises(ValueError, match="leave the buffer's 100"):
            buffer.read(offset, size)
    with pytest.raises(ValueError, match="leave the buffer's 100"):
        put(buffer, 99, b"12")
    assert buffer.read(100, 0) == b""


def test_memory_of_a_real_device_is_not_the_hosts(driver: EmulatedDriver) -> None:
    buffer = driver.gpu().device("CUDA0", "as a real one").alloc(100)
    with pytest.raises(BufferError, match="not the host's"):
        memoryview(buffer)
    assert buffer.read(0, 100) == bytes(100)


def test_nothing_is_left(driver: EmulatedDriver) -> None:
    device = driver.device()
    buffer = device.alloc(MIB)
    buffer.write(0, bytearray(MIB))
    del buffer, device
    counts = driver.counts()
    assert (counts.contexts, counts.streams, counts.events, counts.allocations, counts.pinned) == (0, 0, 0, 0, 0)
