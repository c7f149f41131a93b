"""Interpolation, mirrored and shifted rows, times, windows and relative positions, against float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.ops.test_ik import normal
from tests.ops.tolerances import check
from tests.support.device import Bench

NEAREST, BILINEAR, BICUBIC = 0, 1, 2
ALIGN_CORNERS, ANTIALIAS = 256, 512


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


# ---- UPSCALE ----


def scale_of(n: int, m: int, flags: int) -> float:
    """Return how many elements of the result there are for one of the source along an axis."""
    return (m - 1) / (n - 1) if flags & ALIGN_CORNERS and n > 1 and m > 1 else m / n


def nearest(n: int, m: int, flags: int = 0) -> np.ndarray:
    """Return the matrix [m, n] that takes the nearest of n elements; f32 decides, as in clients' references."""
    at = np.arange(m, dtype=np.float32) / np.float32(scale_of(n, m, flags))
    return np.eye(n)[np.clip(at.astype(np.int64), 0, n - 1)]


def linear(n: int, m: int, flags: int) -> np.ndarray:
    """Return the matrix of linear interpolation, or of triangles as wide as the source's step."""
    scale, offset = scale_of(n, m, flags), 0.0 if flags & ALIGN_CORNERS else 0.5
    at = (np.arange(m) + offset) / scale
    if flags & ANTIALIAS:
        width = max(1.0, 1.0 / scale)
        w = np.maximum(1.0 - np.abs(np.arange(n)[None] - at[:, None] + offset) / width, 0.0)
        return w / w.sum(1, keepdims=True)
    at = np.clip(at - offset, 0, n - 1)
    return np.maximum(1.0 - np.abs(np.arange(n)[None] - at[:, None]), 0.0)


def cubic(n: int, m: int, flags: int) -> np.ndarray:
    """Return the matrix of cubic convolution with a = -3/4; elements at the ends repeat."""
    offset = 0.0 if flags & ALIGN_CORNERS else 0.5
    at = (np.arange(m) + offset) / scale_of(n, m, flags) - offset
    first, a = np.floor(at).astype(int), -0.75
    out = np.zeros((m, n))
    for k in range(-1, 3):
        d = np.abs(at - first - k)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(out, (np.arange(m), np.clip(first + k, 0, n - 1)), np.where(d <= 1, near, far))
    return out


MATRIX = {NEAREST: nearest, BILINEAR: linear, BICUBIC: cubic}


@pytest.mark.parametrize(
    "mode",
    [NEAREST, BILINEAR, BILINEAR | ALIGN_CORNERS, BILINEAR | ANTIALIAS, BICUBIC, BICUBIC | ALIGN_CORNERS],
)
@pytest.mark.parametrize(("n", "m"), [((9, 13), (18, 26)), ((9, 13), (23, 29)), ((17, 33), (5, 7)), ((1, 1), (3, 4))])
def test_upscale(bench: Bench, rng: np.random.Generator, mode: int, n: tuple[int, int], m: tuple[int, int]) -> None:
    x = normal(rng, (2, 3, *n))
    node = bench.node("UPSCALE", "F32", (2, 6, *m), [bench.put(x)], ints(mode))
    bench.run(node)
    rows, columns = (MATRIX[mode & 0xFF](a, b, mode & ~0xFF) for a, b in zip(n, m, strict=True))
    expected = np.einsum("ai,bj,stij->stab", rows, columns, x.astype(np.float64))
    check(bench.read(node), np.repeat(expected, 2, 1), "f32")


def test_upscale_of_a_permuted_view(bench: Bench, rng: np.random.Generator) -> None:
    x = normal(rng, (7, 5))
    view = bench.permute(bench.put(x), (1, 0, 2, 3))
    node = bench.node("UPSCALE", "F32", (10, 21), [view], ints(BILINEAR))
    bench.run(node)
    check(bench.read(node)[0, 0], linear(5, 10, 0) @ x.T.astype(np.float64) @ linear(7, 21, 0).T, "f32")


# ---- ROLL, PAD_REFLECT_1D, TIMESTEP_EMBEDDING ----


@pytest.mark.parametrize("shifts", [(0, 0, 0, 0), (5, -2, 1, -1), (-32, 3, 2, 1), (1, 0, 0, 0)])
def test_roll(bench: Bench, rng: np.random.Generator, shifts: tuple[int, ...]) -> None:
    x = normal(rng, (2, 3, 4, 33))
    node = bench.node("ROLL", "F32", x.shape, [bench.put(x)], ints(*shifts))
    bench.run(node)
    check(bench.read(node), np.roll(x, shifts, (3, 2, 1, 0)), "exact")


@pytest.mark.parametrize(("n", "left", "right"), [(2, 1, 1), (17, 0, 16), (97, 33, 5), (33, 0, 0)])
def test_pad_reflect(bench: Bench, rng: np.random.Generator, n: int, left: int, right: int) -> None:
    x = normal(rng, (2, 3, 4, n))
    node = bench.node("PAD_REFLECT_1D", "F32", (2, 3, 4, n + left + right), [bench.put(x)], ints(left, right))
    bench.run(node)
    check(bench.read(node), np.pad(x, [(0, 0)] * 3 + [(left, right)], mode="reflect"), "exact")


@pytest.mark.parametrize(("dim", "longest"), [(2, 10), (32, 10000), (33, 10000), (320, 100)])
def test_timestep_embedding(bench: Bench, rng: np.random.Generator, dim: int, longest: int) -> None:
    t = rng.uniform(0, 999, 5).astype(np.float32)
    node = bench.node("TIMESTEP_EMBEDDING", "F32", (5, dim), [bench.put(t)], ints(dim, longest))
    bench.run(node)
    half = dim // 2
    angle = t[:, None].astype(np.float64) * np.exp(-np.log(longest) * np.arange(half) / half)
    expected = np.concatenate([np.cos(angle), np.sin(angle), np.zeros((5, dim % 2))], 1)
    # The frequencies are f32 in the definition: at a thousand radians that is 6e-5 of one.
    np.testing.assert_allclose(bench.read(node)[0, 0], expected, atol=3e-4)


# ---- WIN_PART, WIN_UNPART, GET_REL_POS, ADD_REL_POS ----


def windows(x: np.ndarray, side: int) -> np.ndarray:
    """Return an image [h, w, n] cut into windows [windows, side, side, n], zeros behind its edges."""
    h, w, n = x.shape
    down, across = -(-h // side), -(-w // side)
    full = np.zeros((down * side, across * side, n), x.dtype)
    full[:h, :w] = x
    return full.reshape(down, side, across, side, n).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, n)


@pytest.mark.parametrize(("h", "w", "side"), [(9, 7, 4), (8, 8, 4), (3, 5, 7), (14, 14, 14)])
def test_windows(bench: Bench, rng: np.random.Generator, h: int, w: int, side: int) -> None:
    x = normal(rng, (h, w, 33))
    cut = windows(x, side)
    params = ints(-(-w // side), -(-h // side), side)
    part = bench.node("WIN_PART", "F32", cut.shape, [bench.put(x)], params)
    whole = bench.node("WIN_UNPART", "F32", x.shape, [part], ints(side))
    bench.run(part, whole)
    check(bench.read(part), cut, "exact")
    check(bench.read(whole)[0], x, "exact")


@pytest.mark.parametrize("n", [1, 5, 14])
def test_relative_positions(bench: Bench, rng: np.random.Generator, n: int) -> None:
    table = normal(rng, (2 * n - 1, 33)).astype(np.float16)
    node = bench.node("GET_REL_POS", "F16", (n, n, 33), [bench.put(table)])
    bench.run(node)
    at = np.arange(n)[:, None] - np.arange(n)[None] + n - 1
    check(bench.read(node)[0], table[at], "exact")


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("k", "qw", "qh"), [(1, 1, 1), (4, 3, 5), (17, 2, 2)])
def test_relative_terms(bench: Bench, rng: np.random.Generator, *, k: int, qw: int, qh: int, in_place: bool) -> None:
    x, (pw, ph) = normal(rng, (2, qw * qh, k * k)), (normal(rng, (2, qh, qw, k)) for _ in range(2))
    place = bench.put(x)
    sources = [place, bench.put(pw), bench.put(ph)]
    node = bench.node("ADD_REL_POS", "F32", x.shape, sources, ints(in_place), out=place if in_place else None)
    bench.run(node)
    wide = [a.astype(np.float64).reshape(2, qw * qh, k) for a in (pw, ph)]
    expected = x.reshape(2, -1, k, k) + wide[1][..., None] + wide[0][..., None, :]
    check(bench.read(node)[0], expected.reshape(x.shape), "f32")
