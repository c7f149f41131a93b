"""WIN_PART, WIN_UNPART, GET_REL_POS, ADD_REL_POS against NumPy."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.ops.tolerances import check
from tests.support.device import Bench


def words(*numbers: int) -> bytes:
    """Pack i32 parameters."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


def windows(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image of shape (height, width, n) as windows (windows, side, side, n), zeros behind its edges."""
    height, width, n = image.shape
    down, across = -(-height // side), -(-width // side)
    padded = np.pad(image, ((0, down * side - height), (0, across * side - width), (0, 0)))
    return padded.reshape(down, side, across, side, n).swapaxes(1, 2).reshape(-1, side, side, n)


@pytest.mark.parametrize(("shape", "side"), [((9, 7, 33), 4), ((8, 8, 8), 4), ((3, 1, 1), 5), ((1, 30, 97), 7)])
def test_windows_and_back(bench: Bench, rng: np.random.Generator, shape: tuple[int, int, int], side: int) -> None:
    height, width, _n = shape
    image = rng.standard_normal(shape).astype(np.float32)
    expected = windows(image, side)
    across, down = -(-width // side), -(-height // side)
    part = bench.node("WIN_PART", "F32", expected.shape, [bench.put(image)], words(across, down, side))
    whole = bench.node("WIN_UNPART", "F32", image.shape, [part], words(side))
    bench.run(part, whole)
    check(bench.read(part), expected, "exact")
    check(bench.read(whole).reshape(image.shape), image, "exact")


def test_windows_are_put_together_without_their_edges(bench: Bench, rng: np.random.Generator) -> None:
    """Elements behind the image's edges need not be zero, and are left out."""
    parts = rng.standard_normal((6, 4, 4, 8)).astype(np.float32)
    node = bench.node("WIN_UNPART", "F32", (9, 7, 8), [bench.put(parts)], words(4))
    bench.run(node)
    together = parts.reshape(3, 2, 4, 4, 8).swapaxes(1, 2).reshape(12, 8, 8)
    check(bench.read(node).reshape(9, 7, 8), together[:9, :7], "exact")


@pytest.mark.parametrize(("n", "size"), [(1, 5), (5, 8), (14, 33)])
def test_get_rel_pos(bench: Bench, rng: np.random.Generator, n: int, size: int) -> None:
    table = rng.standard_normal((2 * n - 1, size)).astype(np.float16)
    node = bench.node("GET_REL_POS", "F16", (n, n, size), [bench.put(table)])
    bench.run(node)
    query, key = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    check(bench.read(node).reshape(n, n, size), table[query - key + n - 1], "exact")


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("n", "heads"), [(4, 2), (1, 1), (14, 3), (33, 1)])
def test_add_rel_pos(bench: Bench, rng: np.random.Generator, n: int, heads: int, in_place: bool) -> None:
    queries = 15
    x = rng.standard_normal((heads, queries, n * n)).astype(np.float32)
    widths, heights = rng.standard_normal((2, heads, 5, 3, n)).astype(np.float32)
    scores = bench.put(x)
    sources = [scores, bench.put(widths), bench.put(heights)]
    out = scores if in_place else None
    node = bench.node("ADD_REL_POS", "F32", x.shape, sources, words(int(in_place)), out=out)
    bench.run(node)
    w, h = (side.astype(np.float64).reshape(heads, queries, n) for side in (widths, heights))
    expected = x.reshape(heads, queries, n, n) + h[..., :, None] + w[..., None, :]
    check(bench.read(node).reshape(x.shape), expected.reshape(x.shape), "f32")
