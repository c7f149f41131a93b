"""Graphs that the rules allow and no honest client sends: nothing of them may reach further than their own memory.

An access at an address that is not aligned ends a GPU's context, and with it every session that has memory there; the
emulator reports it as a kernel's fault (`driver` checks for that at the end of each test).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.devices.cuda import plan_counts
from ggml_rpc.spec import dialects
from tests.cuda.host.bench import Bench
from tests.cuda.host.device import EmulatedDriver
from tests.ops.test_attention import QUANTISED as CACHE
from tests.ops.test_attention import quantised
from tests.ops.test_matmul import mul_mat, weights
from tests.ops.tolerances import nmse
from tests.support import device as host
from tests.support.wiretensor import Tensor

Build = Callable[[host.Bench], Tensor]
# Of each alignment that rows have: 1, 2, 4, 8, 16.
TYPES = ["MXFP4", "Q8_0", "Q4_1", "IQ4_XS", "Q4_K"]
IK = dialects.find("ik-3.5.2")
OFFSETS = [1, 2, 4, 8, 16]
# The upper half of the addresses that stand for scratch while a plan is made (csrc/cuda/plan.cpp).
SCRATCH = 0xB5C17A3E


@pytest.fixture(scope="module")
def cpu() -> host.Bench:
    """Return memory and the CPU."""
    return host.Bench(CpuPool(1).device(), 64 << 20)


@pytest.fixture
def bench(driver: EmulatedDriver) -> Bench:
    """Return memory and an emulated device."""
    return Bench(driver.device(), 4 << 20)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator seeded by the test's name."""
    return np.random.default_rng(list(request.node.name.encode()))


def same(bench: Bench, cpu: host.Bench, build: Build, bound: float) -> None:
    """Compute a node on both devices and compare."""
    nodes = [build(b) for b in (cpu, bench)]
    for b, node in zip((cpu, bench), nodes, strict=True):
        b.compile([node]).run()
    got, expected = bench.read(nodes[1]), cpu.read(nodes[0]).reshape(bench.read(nodes[1]).shape)
    assert nmse(got, expected) <= bound


def moved(b: host.Bench, type_name: str, shape: tuple[int, ...], data: bytes, offset: int) -> Tensor:
    """Place a tensor so many bytes behind where clients would."""
    size = -(-(len(data) + offset) // 4) * 4
    room = b.place("I8", (size,))
    b.write(room, bytes(offset) + data + bytes(size - offset - len(data)))
    t = b.place(type_name, shape)
    t.data = room.data + offset
    return t


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("type_name", TYPES)
def test_weights_anywhere(bench: Bench, cpu: host.Bench, rng: np.random.Generator, type_name: str, offset: int) -> None:
    data = weights(rng, type_name, (3, 256))[0]
    ids, x = np.array([2, 0], np.int32), rng.standard_normal((9, 256)).astype(np.float32)

    def rows(b: host.Bench) -> Tensor:
        return b.node("GET_ROWS", "F32", (2, 256), [moved(b, type_name, (3, 256), data, offset), b.put(ids)])

    def dequantised(b: host.Bench) -> Tensor:
        node = b.node("CPY", "F32", (3, 256), [moved(b, type_name, (3, 256), data, offset)])
        node.src.append(node)
        return node

    def copied(b: host.Bench) -> Tensor:
        return b.node("CONT", type_name, (3, 256), [moved(b, type_name, (3, 256), data, offset)])

    same(bench, cpu, rows, 1e-12)
    same(bench, cpu, dequantised, 1e-12)
    for n in (1, 9):  # each device rounds activations in its own way
        same(bench, cpu, lambda b, n=n: mul_mat(b, moved(b, type_name, (3, 256), data, offset), b.put(x[:n])), 1e-2)
    node = copied(bench)
    bench.compile([node]).run()
    assert bench.raw(node) == data


@pytest.mark.parametrize("form", [(queries, offset) for queries in (1, 64) for offset in (1, 2)])
@pytest.mark.parametrize("type_name", CACHE)
def test_caches_anywhere(
    bench: Bench, cpu: host.Bench, rng: np.random.Generator, type_name: str, form: tuple[int, int]
) -> None:
    queries, offset = form
    shape = (1, 1, 9, 64)
    k, v = (quantised(rng, type_name, shape)[0] for _ in range(2))
    q = rng.standard_normal((1, 1, queries, 64)).astype(np.float32)

    def build(b: host.Bench) -> Tensor:
        sources = [b.put(q), moved(b, type_name, shape, k, offset), moved(b, type_name, shape, v, 4 - offset)]
        return b.node("FLASH_ATTN_EXT", "F32", (1, queries, 1, 64), sources, struct.pack("<fff", 0.125, 0, 0))

    same(bench, cpu, build, 5e-4)


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_plain_types_at_any_element(bench: Bench, cpu: host.Bench, rng: np.random.Generator, type_name: str) -> None:
    """Rows of odd lengths from odd elements on, for what reads and writes four or eight elements at a time."""
    size = 4 if type_name == "F32" else 2
    x = rng.standard_normal((8, 71)).astype(np.float32)

    def part(b: host.Bench) -> Tensor:
        whole = b.put(x.astype(np.float16)) if type_name == "F16" else b.put(x, type_name)
        return b.view(whole, type_name, (7, 64), (71 * size, size), 3 * size)

    def binary(b: host.Bench) -> Tensor:
        return b.node("ADD", "F32", (7, 64), [part(b), part(b)])

    def product(b: host.Bench, columns: int) -> Tensor:
        return mul_mat(b, part(b), b.view(b.put(x[:columns]), "F32", (columns, 64), (71 * 4, 4), 4))

    def heads(b: host.Bench, queries: int) -> Tensor:
        q = np.ascontiguousarray(np.resize(x, (1, 1, queries, 64)))
        kv = [b.view(part(b), type_name, (1, 1, 7, 64), (1, 1, 71 * size, size)) for _ in range(2)]
        mask = b.view(b.put(np.zeros((65, 9), np.float16)), "F16", (1, 1, queries, 7), (1, 1, 18, 2), 2)
        sources = [b.put(q), *kv, mask]
        return b.node("FLASH_ATTN_EXT", "F32", (1, queries, 1, 64), sources, struct.pack("<fff", 0.125, 0, 0))

    same(bench, cpu, binary, 1e-12)
    for n in (1, 9):
        same(bench, cpu, lambda b, n=n: product(b, min(n, 8)), 1e-5)
    for n in (1, 7, 64):
        same(bench, cpu, lambda b, n=n: heads(b, n), 1e-5)


def test_what_lies_behind_a_row_counts_for_nothing(bench: Bench, cpu: host.Bench, rng: np.random.Generator) -> None:
    """Rows of 60 channels in cells of 64, with NaN between them."""
    cells = rng.standard_normal((9, 64)).astype(np.float16)
    cells[:, 60:] = np.nan
    q = rng.standard_normal((1, 1, 1, 60)).astype(np.float32)

    def build(b: host.Bench) -> Tensor:
        kv = [b.view(b.put(cells), "F16", (1, 1, 9, 60), (9 * 128, 9 * 128, 128, 2)) for _ in range(2)]
        return b.node("FLASH_ATTN_EXT", "F32", (1, 1, 1, 60), [b.put(q), *kv], struct.pack("<fff", 0.125, 0, 0))

    same(bench, cpu, build, 1e-5)


def test_a_parameter_that_looks_like_an_address_of_scratch(bench: Bench, rng: np.random.Generator) -> None:
    """What a client sends stays as it is, and so does what lies beside it."""
    x = rng.standard_normal((3, 8)).astype(np.float32)
    bits = struct.pack("<I", SCRATCH + 7)
    node = bench.node("SCALE", "F32", (3, 8), [bench.put(x)], bits + struct.pack("<f", 0))
    bench.compile([node]).run()
    assert np.array_equal(bench.read(node), x * np.frombuffer(bits, np.float32))


def test_a_length_whose_divisor_looks_like_an_address_of_scratch(driver: EmulatedDriver) -> None:
    """The multiplier of 2452833 stands beside the length as the upper half of an address would."""
    n = 2452833
    assert 0 <= (1 << 32) * ((1 << 22) - n) // n + 1 - SCRATCH < 256
    bench = Bench(driver.device(), 48 << 20)
    x = np.arange(2 * (n + 7), dtype=np.float32).reshape(2, n + 7)
    rows = bench.view(bench.put(x), "F32", (2, n), (4 * (n + 7), 4))
    node = bench.node("CPY", "F16", (2, n), [rows])
    node.src.append(node)
    bench.compile([node]).run()
    with np.errstate(over="ignore"):
        assert np.array_equal(bench.read(node), x[:, :n].astype(np.float16))


def test_sums_that_one_thread_would_be_at_for_hours(driver: EmulatedDriver) -> None:
    """Nothing stops a kernel, and to free memory waits for all of them: the CPU, which stops, has these."""
    bench = Bench(driver.device(), 1 << 20, IK)
    one = bench.put(np.ones((1, 1), np.float32))
    for terms, launches in ((1 << 20, 1), (1 << 30, 0)):
        x = bench.view(one, "F32", (1, terms, 1), (4, 0, 4))
        node = bench.node("SUM_ROWS", "F32", (1, 1, 1), [x], struct.pack("<i", 1))
        assert plan_counts(bench.compile([node])) == (launches, 1 - launches)
        weighted = bench.node("MUL_MULTI_ADD", "F32", (1, 1), [x, bench.view(one, "F32", (1, terms, 1), (4, 0, 4))])
        assert plan_counts(bench.compile([weighted])) == (launches, 1 - launches)


def test_scans_that_one_thread_would_be_at_for_hours(driver: EmulatedDriver) -> None:
    """A map of few bytes may name sequences of a token without end."""
    bench = Bench(driver.device(), 16 << 20, IK)
    one = bench.put(np.zeros((1, 1), np.float32))
    for tokens, launches in ((1 << 10, 1), (1 << 20, 0)):
        sequences, size = 1 << 6, 4
        x = bench.view(one, "F32", (tokens, 1), (0, 4))
        kernel = bench.place("F32", (1, size))
        state = bench.place("F32", (sequences, 1, size - 1))
        one_id = bench.put(np.zeros((1, 1), np.int32))
        ids = bench.view(one_id, "I32", (tokens, sequences), (0, 0))
        node = bench.node("IK_SSM_CONV", "F32", (tokens + size * sequences,), [state, x, kernel, ids])
        assert plan_counts(bench.compile([node])) == (launches, 1 - launches)


def test_a_grid_that_no_driver_takes(driver: EmulatedDriver) -> None:
    """Rows of 2^27 weights are not unpacked for the library: there are too many blocks for the second axis."""
    k = 1 << 27
    gpu = driver.gpu(blas=driver.blas)
    bench = Bench(gpu.device("CUDA0", "emulated GPU", host_memory=True), 512 << 20)
    w = bench.place("Q4_0", (1, k))
    cell = bench.place("F16", (1, k))
    x = bench.view(cell, "F16", (256, k), (0, 2))
    node = bench.node("MUL_MAT", "F32", (256, 1), [w, x])
    assert plan_counts(bench.compile([node])) == (2, 0)
