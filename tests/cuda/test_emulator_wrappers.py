"""Each name of base.cuh on the host against a model in NumPy."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest

from tests.cuda.host import Emulator, args_struct
from tests.support.device import bf16_to_f32, f32_to_bf16

WRAPPERS = Path(__file__).parent / "kernels" / "wrappers.cu"
POINTERS = ("a", "b", "c", "out")
Args = args_struct("Args", *((name, ctypes.c_void_p) for name in POINTERS), ("n", ctypes.c_int32))


@pytest.fixture
def emulator() -> Emulator:
    """Return an emulator."""
    return Emulator()


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator."""
    return np.random.default_rng(11)


def run(
    kernel: str,
    out_words: int,
    *inputs: np.ndarray,
    grid: tuple[int, ...] = (1,),
    threads: int = 32,
    shared_bytes: int = 0,
    slack: int = 0,
    n: int | None = None,
) -> np.ndarray:
    """Run a kernel of wrappers.cu over words; return its words."""
    emulator = Emulator()
    arrays = [emulator.array(np.ascontiguousarray(x).view(np.uint32).ravel(), slack=slack) for x in inputs]
    out = emulator.empty((out_words,), np.uint32)
    addresses = [x.address for x in arrays] + [None] * (3 - len(arrays))
    count = inputs[0].size if n is None else n
    emulator.launch(WRAPPERS, kernel, grid, threads, Args(*addresses, out.address, count), shared_bytes)
    return out.read()


ROUND_AWAY = np.vectorize(lambda x: math.copysign(math.floor(abs(x) + 0.5), x))
FUNCTIONS = [
    (np.sqrt, "positive"),
    (lambda x: 1 / np.sqrt(x), "positive"),
    (np.exp, "any"),
    (np.exp, "any"),
    (np.log, "positive"),
    (np.sin, "any"),
    (np.cos, "any"),
    (np.tanh, "any"),
    (np.vectorize(math.erf), "any"),
    (None, "positive"),
    (None, "any"),
    (None, "any"),
    (np.abs, "any"),
    (np.rint, "any"),
    (ROUND_AWAY, "any"),
    (np.floor, "any"),
    (np.ceil, "any"),
    (np.trunc, "any"),
    (np.log1p, "positive"),
    (np.expm1, "any"),
    (None, "any"),
    (lambda x: np.full_like(x, np.inf), "any"),
]


@pytest.mark.parametrize("domain", ["any", "positive"])
def test_functions(rng: np.random.Generator, domain: str) -> None:
    x = (rng.standard_normal(300) * 4).astype(np.float32)
    x[:8] = [0.5, 1.5, 2.5, -0.5, -1.5, 0.0, 3.0, -7.0]
    y = rng.standard_normal(300).astype(np.float32)
    if domain == "positive":
        x = np.abs(x) + np.float32(0.01)
    got = run("functions", len(FUNCTIONS) * 300, x, y, grid=(2, len(FUNCTIONS)), threads=256).view(np.float32)
    a, b = x.astype(np.float64), y.astype(np.float64)
    special = {9: lambda: a**b, 10: lambda: np.maximum(a, b), 11: lambda: np.minimum(a, b), 20: lambda: a * b - 1}
    for i, (model, where) in enumerate(FUNCTIONS):
        if where == "positive" and domain == "any":
            continue
        expected = special[i]() if model is None else model(a)
        np.testing.assert_allclose(got.reshape(-1, 300)[i], expected, rtol=2e-6, atol=2e-7, err_msg=f"function {i}")


def test_conversions(rng: np.random.Generator) -> None:
    """Every half and bf16 to f32, and f32 around all of the rounding's borders to both."""
    n = 1 << 16
    halves = np.arange(n, dtype=np.uint32).astype(np.uint16)
    with np.errstate(all="ignore"):
        finite = np.where(np.isfinite(halves.view(np.float16)), halves, 0).view(np.float16).astype(np.float32)
    x = finite * (1 + rng.integers(-2, 3, n) * np.float32(2.0**-12))
    x[:6] = [65519.9, 65520.0, 1e9, -np.inf, np.nan, 2.0**-25]
    x[6 : n // 2] = (rng.standard_normal(n // 2 - 6) * 10.0 ** rng.integers(-9, 6, n // 2 - 6)).astype(np.float32)
    x = x.astype(np.float32)
    got = run("conversions", n * 6, x, grid=(n // 256,), threads=256).reshape(n, 6)
    with np.errstate(all="ignore"):
        expected_half = x.astype(np.float16).view(np.uint16)
    number = ~np.isnan(x)
    assert np.array_equal(got[number, 0], expected_half[number])
    assert np.isnan(got[~number, 0].astype(np.uint16).view(np.float16)).all()
    wide = got[:, 1].copy().view(np.float32)
    np.testing.assert_array_equal(wide, halves.view(np.float16).astype(np.float32))
    assert np.array_equal(got[number, 2], f32_to_bf16(x)[number])
    np.testing.assert_array_equal(got[:, 3].copy().view(np.float32), bf16_to_f32(halves))
    low = got[number, 4]
    assert np.array_equal(low & 0xFFFF, expected_half[number])
    assert np.array_equal(low >> 16, (expected_half[number] ^ 0x8000))


def test_integers(rng: np.random.Generator) -> None:
    n = 500
    a, b = (rng.integers(0, 2**32, n, dtype=np.uint32) for _ in range(2))
    c = rng.integers(0, 2**32, n, dtype=np.uint32)
    divisor = 7777
    shift = math.ceil(math.log2(divisor))
    c[4:7] = [divisor, (1 << 32) * ((1 << shift) - divisor) // divisor + 1, shift]
    got = run("integers", n * 7, a, b, c, grid=(2,), threads=256, slack=512).reshape(n, 7)
    bytes_a, bytes_b = a.view(np.int8).reshape(n, 4), b.view(np.int8).reshape(n, 4)
    dots = (bytes_a.astype(np.int64) * bytes_b).sum(1) + c.view(np.int32)
    assert np.array_equal(got[:, 0].view(np.int32), dots.astype(np.int32))
    assert np.array_equal(got[:, 1], np.ascontiguousarray(bytes_a - bytes_b).view(np.uint32).ravel())
    table = c[:4].view(np.uint8)
    looked_up = table[(a & 0x0F0F0F0F).view(np.uint8)]
    assert np.array_equal(got[:, 2], looked_up.view(np.uint32))
    raw = np.concatenate([a.view(np.uint8), np.full(8, 0xCB, np.uint8)])
    for column, offset in ((3, 2), (4, 3)):
        expected = [int.from_bytes(raw[4 * i + offset : 4 * i + offset + 4].tobytes(), "little") for i in range(n)]
        assert np.array_equal(got[:, column], np.array(expected, np.uint32))
    assert np.array_equal(got[:, 5], (a & 0x7FFFFFFF) // divisor)
    both = np.concatenate([a.view(np.uint8).reshape(n, 4), b.view(np.uint8).reshape(n, 4)], axis=1)
    named = (c[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 7
    assert np.array_equal(got[:, 6], np.take_along_axis(both, named, 1).view(np.uint32).ravel())


def test_exchanges(rng: np.random.Generator) -> None:
    v = rng.integers(-1_000_000, 1_000_000, 256).astype(np.int32)
    got = run("exchanges", 2560, v, grid=(2,), threads=128).reshape(256, 10)
    lane = np.arange(256) % 32
    warps = v.reshape(-1, 32)

    def of_lane(source: np.ndarray) -> np.ndarray:
        return np.take_along_axis(warps, source.reshape(-1, 32), 1).ravel()

    ints = got.view(np.int32)
    assert np.array_equal(ints[:, 0], of_lane((lane + 5) * 3 % 32))
    assert np.array_equal(ints[:, 1], of_lane(lane ^ 9))
    assert np.array_equal(ints[:, 2], of_lane(np.where(lane >= 3, lane - 3, lane)))
    bits = ((warps & 1).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1)
    assert np.array_equal(got[:, 3], np.repeat(bits, 32).astype(np.uint32))
    assert np.array_equal(ints[:, 4], np.repeat(warps.sum(1), 32))
    f = np.fmod(v, 1000).astype(np.float32)
    floats = got.view(np.float32)
    for column, group, reduce in ((5, 32, np.sum), (6, 32, np.max), (7, 128, np.sum), (8, 128, np.max)):
        assert np.array_equal(floats[:, column], np.repeat(reduce(f.reshape(-1, group), axis=1), group)), column
    assert np.array_equal(ints[:, 9], np.arange(256) % 128 // 32 * 1000 + lane)


def test_atomics(emulator: Emulator) -> None:
    args = args_struct("AtomicArgs", *((name, ctypes.c_void_p) for name in ("sum", "count", "first")))
    total, count = emulator.array(np.zeros(1, np.float32)), emulator.array(np.zeros(1, np.int32))
    first = emulator.array(np.full(1, -1, np.int32))
    emulator.launch(WRAPPERS, "atomics", (5,), 64, args(total.address, count.address, first.address))
    assert (total.read()[0], count.read()[0]) == (160, 320)
    assert first.read()[0] == 0


# Fragments as the PTX ISA lays them out ("Matrix Fragments for mma.m16n8k32" and "... m16n8k16"), element by element:
# row and column of element i of lane's part.
def place_a(lane: int, i: int, per_word: int) -> tuple[int, int]:
    """Return row and column of A: words go down 8 rows, then to the right by half a row."""
    word, part = divmod(i, per_word)
    return lane // 4 + (8 if word in {1, 3} else 0), lane % 4 * per_word + part + (4 * per_word if word >= 2 else 0)


def place_b(lane: int, i: int, per_word: int) -> tuple[int, int]:
    """Return row and column of B."""
    word, part = divmod(i, per_word)
    return lane % 4 * per_word + part + 4 * per_word * word, lane // 4


def place_c(lane: int, i: int) -> tuple[int, int]:
    """Return row and column of C and D."""
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)


def fragments(matrix: np.ndarray, words: int, per_word: int, place) -> np.ndarray:
    """Return what the 32 lanes hold of a matrix, as words."""
    parts = [[matrix[place(lane, i, per_word)] for i in range(words * per_word)] for lane in range(32)]
    return np.ascontiguousarray(np.array(parts, matrix.dtype)).view(np.uint32)


def accumulators(matrix: np.ndarray) -> np.ndarray:
    """Return what the 32 lanes hold of C."""
    return np.array([[matrix[place_c(lane, i)] for i in range(4)] for lane in range(32)], matrix.dtype).view(np.uint32)


def test_product_of_bytes(rng: np.random.Generator) -> None:
    a, b = rng.integers(-128, 128, (16, 32)).astype(np.int8), rng.integers(-128, 128, (32, 8)).astype(np.int8)
    c = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
    got = run("product_s8", 128, fragments(a, 4, 4, place_a), fragments(b, 2, 4, place_b), accumulators(c))
    assert np.array_equal(got.reshape(32, 4), accumulators(a.astype(np.int32) @ b.astype(np.int32) + c))


@pytest.mark.parametrize("bf16", [False, True])
def test_product_of_halves(rng: np.random.Generator, bf16: bool) -> None:
    # Numbers of which every sum is exact.
    a, b = rng.integers(-8, 9, (16, 16)) / 4, rng.integers(-8, 9, (16, 8)) / 4
    c = rng.integers(-64, 64, (16, 8)).astype(np.float32)

    def coded(x: np.ndarray) -> np.ndarray:
        return f32_to_bf16(x.astype(np.float32)) if bf16 else x.astype(np.float16).view(np.uint16)

    kernel = f"product_halves<{str(bf16).lower()}>"
    words = fragments(coded(a), 4, 2, place_a), fragments(coded(b), 2, 2, place_b), accumulators(c)
    assert np.array_equal(run(kernel, 128, *words).reshape(32, 4), accumulators((a @ b + c).astype(np.float32)))


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(rng: np.random.Generator, transposed: bool) -> None:
    """Ldmatrix: lane i gets elements 2 (i % 4) and the next of row i / 4 of each of four 8 x 8 matrices."""
    rows = rng.integers(0, 65536, (4, 8, 8)).astype(np.uint16)
    got = run(f"matrices<{str(transposed).lower()}>", 128, rows, shared_bytes=512).reshape(32, 4)
    for lane in range(32):
        for m in range(4):
            matrix = rows[m].T if transposed else rows[m]
            low, high = matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert got[lane, m] == int(low) | int(high) << 16


def test_staged_copies(rng: np.random.Generator) -> None:
    words = rng.integers(0, 2**32, (3, 32, 4), dtype=np.uint32)
    got = run("staged", 4 * 32 * 4, words, n=96).reshape(4, 32, 4)
    assert np.array_equal(got[:3], np.roll(words, -1, axis=1))
    assert not got[3].any()
