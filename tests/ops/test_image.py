"""UPSCALE, PAD_REFLECT_1D, ROLL, TIMESTEP_EMBEDDING against NumPy."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ops.tolerances import check
from tests.support.device import Bench

NEAREST, BILINEAR, BICUBIC, ALIGN_CORNERS, ANTIALIAS = 0, 1, 2, 256, 512
SIZES = [((17, 9), (40, 31)), ((33, 16), (16, 5)), ((5, 1), (7, 97)), ((8, 8), (8, 8)), ((1, 3), (1, 1))]

Matrix = NDArray[np.float64]


def words(*numbers: int) -> bytes:
    """Pack i32 parameters."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


def cubic(distance: Matrix) -> Matrix:
    """Return the kernel of cubic convolution with a = -3/4."""
    a, d = -0.75, np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def weights(n_in: int, n_out: int, mode: int) -> Matrix:
    """Return the matrix that interpolates one axis, shape (n_out, n_in)."""
    corners = bool(mode & ALIGN_CORNERS) and n_in > 1 and n_out > 1
    offset = 0.0 if mode & ALIGN_CORNERS else 0.5
    scale = (n_out - 1) / (n_in - 1) if corners else n_out / n_in
    if mode & ANTIALIAS:
        width = max(1.0, 1.0 / scale)
        centres = (np.arange(n_out)[:, None] + 0.5) / scale
        triangle = np.maximum(0.0, 1.0 - np.abs(np.arange(n_in) + 0.5 - centres) / width)
        return triangle / triangle.sum(axis=1, keepdims=True)
    at = (np.arange(n_out) + offset) / scale - offset
    matrix = np.zeros((n_out, n_in))
    reach, kernel = (1, lambda d: np.maximum(0.0, 1.0 - np.abs(d))) if mode & 0xFF == BILINEAR else (2, cubic)
    for tap in range(1 - reach, reach + 1):
        place = np.floor(at) + tap
        inside = np.clip(place, 0, n_in - 1).astype(int)  # what lies outside is as the edge
        np.add.at(matrix, (np.arange(n_out), inside), kernel(at - place))
    return matrix


@pytest.mark.parametrize(("size", "wanted"), SIZES)
@pytest.mark.parametrize(
    "mode", [BILINEAR, BICUBIC, BILINEAR | ALIGN_CORNERS, BICUBIC | ALIGN_CORNERS, BILINEAR | ANTIALIAS]
)
def test_interpolation(
    bench: Bench, rng: np.random.Generator, mode: int, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    x = rng.standard_normal((2, 3, *size)).astype(np.float32)
    node = bench.node("UPSCALE", "F32", (2, 3, *wanted), [bench.put(x)], words(mode))
    bench.run(node)
    down, across = (weights(n, m, mode) for n, m in zip(size, wanted, strict=True))
    check(bench.read(node), down @ x.astype(np.float64) @ across.T, "f32")


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("wanted", [(6, 8, 34, 40), (2, 4, 17, 10), (2, 12, 51, 5), (4, 4, 4, 4)])
def test_nearest(bench: Bench, rng: np.random.Generator, wanted: tuple[int, ...], permuted: bool) -> None:
    x = rng.standard_normal((2, 4, 17, 10)).astype(np.float32)
    source = bench.put(x)
    if permuted:
        source = bench.permute(bench.put(x.swapaxes(2, 3)), (1, 0, 2, 3))
    node = bench.node("UPSCALE", "F32", wanted, [source], words(NEAREST))
    bench.run(node)
    places = [np.arange(m) * n // m for n, m in zip(x.shape, wanted, strict=True)]
    check(bench.read(node), x[np.ix_(*places)], "exact")


@pytest.mark.parametrize("mode", [BILINEAR, BICUBIC, BILINEAR | ANTIALIAS])
def test_planes_are_taken_by_the_nearest(bench: Bench, rng: np.random.Generator, mode: int) -> None:
    """Only the first two axes are interpolated; the source's rows lie apart."""
    base = rng.standard_normal((1, 3, 9, 50)).astype(np.float32)
    source = bench.view(bench.put(base), "F32", (1, 3, 9, 33), (27 * 200, 9 * 200, 200, 4), 8)
    node = bench.node("UPSCALE", "F32", (2, 6, 20, 12), [source], words(mode))
    bench.run(node)
    x = base[:, :, :, 2:35].astype(np.float64)
    planes = x[np.ix_([0, 0], np.arange(6) // 2)]
    check(bench.read(node), weights(9, 20, mode) @ planes @ weights(33, 12, mode).T, "f32")


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (2, 3), (16, 16), (0, 7), (1, 0)])
def test_pad_reflect(bench: Bench, rng: np.random.Generator, before: int, behind: int) -> None:
    x = rng.standard_normal((2, 3, 5, 17)).astype(np.float32)
    expected = np.pad(x, [(0, 0)] * 3 + [(before, behind)], mode="reflect")
    node = bench.node("PAD_REFLECT_1D", "F32", expected.shape, [bench.put(x)], words(before, behind))
    bench.run(node)
    check(bench.read(node), expected, "exact")


@pytest.mark.parametrize("shifts", [(0, 0, 0, 0), (1, 0, 0, 0), (-5, 3, 0, -1), (96, -4, 2, 1)])
@pytest.mark.parametrize("apart", [False, True])
def test_roll(bench: Bench, rng: np.random.Generator, shifts: tuple[int, ...], apart: bool) -> None:
    shape = (2, 3, 5, 97)
    base = rng.standard_normal((2, 3, 5, 100)).astype(np.float32)
    x = base[..., 1:98] if apart else np.ascontiguousarray(base[..., :97])
    source = bench.view(bench.put(base), "F32", shape, (6000, 2000, 400, 4), 4) if apart else bench.put(x)
    node = bench.node("ROLL", "F32", shape, [source], words(*shifts))
    bench.run(node)
    check(bench.read(node), np.roll(x, shifts, axis=(3, 2, 1, 0)), "exact")


@pytest.mark.parametrize("size", [2, 33, 320])
def test_timestep_embedding(bench: Bench, rng: np.random.Generator, size: int) -> None:
    # An angle's rounding to f32 shows in its sine: larger times allow no tolerance of f32 arithmetic.
    times = rng.uniform(0.0, 100.0, 7).astype(np.float32)
    node = bench.node("TIMESTEP_EMBEDDING", "F32", (7, size), [bench.put(times)], words(size, 10000))
    bench.run(node)
    half = size // 2
    angles = times.astype(np.float64)[:, None] * np.exp(-np.log(10000.0) * np.arange(half) / half)
    expected = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((7, size % 2))], axis=1)
    check(bench.read(node).reshape(7, size), expected, "f32")
