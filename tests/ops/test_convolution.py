"""Convolutions, their columns, gradients and pooling against NumPy in float64."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest

from tests.ops.tolerances import check
from tests.support.device import Bench

Pair = tuple[int, int]
Placement = tuple[Pair, Pair, Pair]
PLACEMENTS: list[Placement] = [((1, 1), (0, 0), (1, 1)), ((1, 2), (2, 1), (1, 1)), ((3, 1), (0, 5), (2, 3))]


def words(*numbers: int) -> bytes:
    """Pack i32 parameters."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return random f32."""
    return rng.standard_normal(shape).astype(np.float32)


def columns(
    x: np.ndarray, taps: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> np.ndarray:
    """Return [n, *places, channels, *taps] of x [n, channels, *sizes]; all tuples in NumPy's order."""
    dims = len(taps)
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], taps, stride, dilation, strict=True)]
    result = np.zeros((x.shape[0], *out, x.shape[1], *taps), x.dtype)
    for tap in itertools.product(*map(range, taps)):
        at = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilation, out, stride, strict=True)
        )
        result[(..., *tap)] = np.moveaxis(x[(slice(None), slice(None), *at)], 1, 1 + dims)
    return result


def flipped(*pairs: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return tuples in NumPy's order of dimensions."""
    return [tuple(reversed(p)) for p in pairs]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kernel", ["F32", "F16"])
@pytest.mark.parametrize("channels", [(3, 5), (33, 131)])
def test_conv_2d(
    bench: Bench,
    rng: np.random.Generator,
    kernel: str,
    channels: tuple[int, int],
    placement: Placement,
) -> None:
    stride, padding, dilation = placement
    inner, outer = channels
    x, k = normal(rng, 2, inner, 11, 17), normal(rng, outer, inner, 3, 4)
    source, taps = x, k
    if kernel == "F16":
        source, taps = x.astype(np.float16), k.astype(np.float16)
    cols = columns(source.astype(np.float64), (3, 4), *flipped(stride, padding, dilation))
    expected = np.einsum("nyxcij,ocij->noyx", cols, taps.astype(np.float64))
    params = words(*stride, *padding, *dilation)
    node = bench.node("CONV_2D", "F32", expected.shape, [bench.put(taps), bench.put(x)], params)
    bench.run(node)
    check(bench.read(node), expected, "f32")


def test_conv_2d_of_a_permuted_source(bench: Bench, rng: np.random.Generator) -> None:
    x, k = normal(rng, 2, 9, 11, 4), normal(rng, 6, 4, 3, 3)
    expected = np.einsum(
        "nyxcij,ocij->noyx", columns(np.moveaxis(x, 3, 1).astype(np.float64), (3, 3), (1, 1), (1, 1), (1, 1)), k
    )
    source = bench.permute(bench.put(x), (1, 2, 0, 3))
    node = bench.node("CONV_2D", "F32", expected.shape, [bench.put(k), source], words(1, 1, 1, 1, 1, 1))
    bench.run(node)
    check(bench.read(node), expected, "f32")


@pytest.mark.parametrize("kernel", ["F32", "F16"])
def test_conv_3d(bench: Bench, rng: np.random.Generator, kernel: str) -> None:
    x, k = normal(rng, 2, 5, 6, 7, 9), normal(rng, 7, 5, 2, 3, 4)
    dtype = np.float32 if kernel == "F32" else np.float16
    cols = columns(x.astype(dtype).astype(np.float64), (2, 3, 4), (2, 1, 1), (1, 0, 2), (1, 2, 1))
    expected = np.einsum("nzyxcijk,ocijk->nozyx", cols, k.astype(dtype).astype(np.float64))
    params = words(1, 1, 2, 2, 0, 1, 1, 2, 1, 5, 2, 7)
    shape = (14, *expected.shape[2:])
    node = bench.node(
        "CONV_3D",
        "F32",
        shape,
        [bench.put(k.astype(dtype).reshape(35, 2, 3, 4)), bench.put(x.reshape(10, 6, 7, 9))],
        params,
    )
    bench.run(node)
    check(bench.read(node), expected.reshape(shape), "f32")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kernel", ["F32", "F16"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_conv_2d_dw(
    bench: Bench,
    rng: np.random.Generator,
    kernel: str,
    channels_first: bool,
    placement: Placement,
) -> None:
    stride, padding, dilation = placement
    x, k = normal(rng, 2, 33, 11, 17), normal(rng, 33, 1, 3, 4)
    taps = k if kernel == "F32" else k.astype(np.float16)
    cols = columns(x.astype(np.float64), (3, 4), *flipped(stride, padding, dilation))
    expected = np.einsum("nyxcij,cij->ncyx", cols, taps[:, 0].astype(np.float64))
    if channels_first:
        source = bench.permute(bench.put(np.ascontiguousarray(np.moveaxis(x, 1, 3))), (1, 2, 0, 3))
    else:
        source = bench.put(x)
    params = words(*stride, *padding, *dilation)
    node = bench.node("CONV_2D_DW", "F32", expected.shape, [bench.put(taps), source], params)
    bench.run(node)
    check(bench.read(node), expected, "f32")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("types", [("F32", "F32"), ("F32", "F16"), ("F16", "F16")])
def test_im2col(
    bench: Bench,
    rng: np.random.Generator,
    types: tuple[str, str],
    placement: Placement,
) -> None:
    stride, padding, dilation = placement
    dtypes = [np.float32 if t == "F32" else np.float16 for t in types]
    x = normal(rng, 2, 5, 11, 17).astype(dtypes[0])
    cols = columns(x.astype(dtypes[1]), (3, 4), *flipped(stride, padding, dilation))
    expected = cols.reshape(*cols.shape[:3], -1)
    kernel = bench.put(normal(rng, 2, 5, 3, 4))
    params = words(*stride, *padding, *dilation, 1)
    node = bench.node("IM2COL", types[1], expected.shape, [kernel, bench.put(x)], params)
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node), expected)
    # The gradient is the transposed map: <im2col(x), g> = <x, back(g)>.
    g = normal(rng, *expected.shape)
    back = bench.node("IM2COL_BACK", "F32", x.shape, [bench.put(g), kernel], params)
    bench.run(back)
    shape = x.shape
    wanted = np.zeros(x.size)
    places = columns(np.arange(1, x.size + 1).reshape(shape), (3, 4), *flipped(stride, padding, dilation)).ravel()
    np.add.at(wanted, places[places > 0] - 1, g.ravel()[places > 0].astype(np.float64))
    check(bench.read(back), wanted.reshape(shape), "f32")


def test_im2col_of_lines(bench: Bench, rng: np.random.Generator) -> None:
    x, kernel = normal(rng, 2, 5, 17), bench.put(normal(rng, 3, 5, 4))
    cols = columns(x, (4,), (2,), (3,), (2,))
    expected = cols.reshape(*cols.shape[:2], -1)
    params = words(2, 0, 3, 0, 2, 0, 0)
    node = bench.node("IM2COL", "F32", expected.shape, [kernel, bench.put(x)], params)
    back = bench.node("IM2COL_BACK", "F32", x.shape, [node, kernel], params)
    bench.run(node, back)
    np.testing.assert_array_equal(bench.read(node)[0], expected)
    seen = columns(np.ones_like(x), (4,), (2,), (3,), (2,))
    counts = np.zeros(x.size)
    places = columns(np.arange(1, x.size + 1).reshape(x.shape), (4,), (2,), (3,), (2,)).ravel()
    np.add.at(counts, places[places > 0] - 1, seen.ravel()[places > 0])
    check(bench.read(back)[0], x * counts.reshape(x.shape), "f32")


@pytest.mark.parametrize("type_name", ["F32", "F16"])
def test_im2col_3d(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    x = normal(rng, 2, 3, 6, 7, 9).astype(np.float32 if type_name == "F32" else np.float16)
    cols = columns(x, (2, 3, 4), (2, 1, 1), (1, 0, 2), (1, 2, 1))
    n, depth = cols.shape[:2]
    expected = cols.reshape(n * depth, *cols.shape[2:4], -1)
    sources = [bench.put(normal(rng, 6, 2, 3, 4)), bench.put(x.astype(np.float32).reshape(6, 6, 7, 9))]
    params = words(1, 1, 2, 2, 0, 1, 1, 2, 1, 3)
    node = bench.node("IM2COL_3D", type_name, expected.shape, sources, params)
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node), expected)


@pytest.mark.parametrize("kernel", ["F32", "F16"])
@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 17, 700])
def test_conv_transpose_1d(bench: Bench, rng: np.random.Generator, kernel: str, stride: int, n: int) -> None:
    dtype = np.float32 if kernel == "F32" else np.float16
    x, k = normal(rng, 9, n), normal(rng, 9, 5, 4).astype(dtype)
    spread = np.einsum("ci,cok->oik", x.astype(dtype).astype(np.float64), k.astype(np.float64))
    expected = np.zeros((5, (n - 1) * stride + 4))
    for i, tap in itertools.product(range(n), range(4)):
        expected[:, i * stride + tap] += spread[:, i, tap]
    params = words(stride, 0, 1)
    node = bench.node("CONV_TRANSPOSE_1D", "F32", expected.shape, [bench.put(k), bench.put(x)], params)
    bench.run(node)
    check(bench.read(node)[0, 0], expected, "f32")


@pytest.mark.parametrize("kernel", ["F32", "F16"])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_conv_transpose_2d(bench: Bench, rng: np.random.Generator, kernel: str, stride: int) -> None:
    dtype = np.float32 if kernel == "F32" else np.float16
    x, k = normal(rng, 2, 9, 6, 8), normal(rng, 9, 5, 3, 4).astype(dtype)
    spread = np.einsum("ncyx,coij->noyxij", x.astype(dtype).astype(np.float64), k.astype(np.float64))
    expected = np.zeros((2, 5, 5 * stride + 3, 7 * stride + 4))
    for y, i, j in itertools.product(range(6), range(3), range(4)):
        expected[:, :, y * stride + i, j : j + 7 * stride + 1 : stride] += spread[:, :, y, :, i, j]
    node = bench.node("CONV_TRANSPOSE_2D", "F32", expected.shape, [bench.put(k), bench.put(x)], words(stride))
    bench.run(node)
    check(bench.read(node), expected, "f32")


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (3, 2), (7, 0)])
def test_col2im_1d(bench: Bench, rng: np.random.Generator, type_name: str, stride: int, padding: int) -> None:
    x = rng.integers(-8, 8, (33, 3 * 5)).astype(np.float16 if type_name == "F16" else np.float32)
    whole = np.zeros((3, 32 * stride + 5))
    for i, tap in itertools.product(range(33), range(5)):
        whole[:, i * stride + tap] += x[i].reshape(3, 5)[:, tap]
    expected = whole[:, padding : whole.shape[1] - padding]
    node = bench.node("COL2IM_1D", type_name, expected.shape, [bench.put(x, type_name)], words(stride, 3, padding))
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node)[0, 0], expected)  # whole numbers: every format holds them


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("type_name", ["F32", "F16"])
@pytest.mark.parametrize(
    "window", [((2, 2), (2, 2), (0, 0)), ((3, 5), (1, 2), (1, 2)), ((1, 4), (3, 1), (0, 3))], ids=str
)
def test_pool(
    bench: Bench,
    rng: np.random.Generator,
    kind: int,
    type_name: str,
    window: Placement,
) -> None:
    k, s, p = window
    x = normal(rng, 2, 3, 9, 17).astype(np.float32 if type_name == "F32" else np.float16)
    filled = np.where(True, x.astype(np.float64), 0)
    taps = tuple(reversed(k))
    if kind == 0:
        low = np.float64(np.finfo(np.float32).min)
        padded = np.pad(filled, [(0, 0), (0, 0), (p[1], p[1]), (p[0], p[0])], constant_values=low)
        image = columns(padded, taps, *flipped(s), (0, 0), (1, 1)).max((4, 5))
        line = columns(padded[:, :, p[1] : p[1] + 9].reshape(-1, 1, padded.shape[3]), k[:1], s[:1], (0,), (1,)).max(3)
    else:
        image = columns(filled, taps, *flipped(s, p), (1, 1)).mean((4, 5))
        rows = filled.reshape(-1, 1, 17)
        counts = columns(np.ones_like(rows), k[:1], s[:1], p[:1], (1,)).sum(3)
        line = columns(rows, k[:1], s[:1], p[:1], (1,)).sum(3) / np.maximum(counts, 1)
    image, line = np.moveaxis(image, 3, 1), line.reshape(2, 3, 9, -1)
    source = bench.put(x)
    flat = bench.node("POOL_1D", "F32", line.shape, [source], words(kind, k[0], s[0], p[0]))
    node = bench.node("POOL_2D", "F32", image.shape, [source], words(kind, *k, *s, *p))
    bench.run(flat, node)
    check(bench.read(flat), line, "f32")
    check(bench.read(node), image, "f32")


@pytest.mark.parametrize("kind", [0, 1])
def test_pool_2d_back(bench: Bench, rng: np.random.Generator, kind: int) -> None:
    x = normal(rng, 2, 3, 9, 17)
    grad = normal(rng, 2, 3, 5, 15)
    expected = np.zeros(x.shape)
    for n, c, oy, ox in np.ndindex(grad.shape):
        y0, x0 = oy * 2 - 1, ox - 1
        ys, xs = slice(max(y0, 0), min(y0 + 3, 9)), slice(max(x0, 0), min(x0 + 5, 17))
        if kind == 1:
            expected[n, c, ys, xs] += grad[n, c, oy, ox] / 15
        else:
            i, j = np.unravel_index(x[n, c, ys, xs].argmax(), x[n, c, ys, xs].shape)
            expected[n, c, ys.start + i, xs.start + j] += grad[n, c, oy, ox]
    params = words(kind, 5, 3, 1, 2, 1, 1)
    node = bench.node("POOL_2D_BACK", "F32", x.shape, [bench.put(grad), bench.put(x)], params)
    bench.run(node)
    check(bench.read(node), expected, "f32")
