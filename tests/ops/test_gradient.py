"""Gradients against NumPy in float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from tests.ops.tolerances import check
from tests.support.device import Bench

LENGTHS = [1, 15, 17, 33, 97, 300]


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return random f32."""
    return rng.standard_normal(shape).astype(np.float32)


def floats(*values: float) -> bytes:
    """Pack f32 parameters."""
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize(
    ("shape", "times"), [((5, 33), (1, 3)), ((2, 1, 3, 17), (1, 5, 2, 3)), ((3, 1), (2, 50)), ((1, 600), (70, 1))]
)
def test_repeat_back(bench: Bench, rng: np.random.Generator, shape: tuple[int, ...], times: tuple[int, ...]) -> None:
    x = normal(rng, *(n * t for n, t in zip(shape, times, strict=True)))
    split = x.reshape([n for pair in zip(times, shape, strict=True) for n in pair]).astype(np.float64)
    node = bench.node("REPEAT_BACK", "F32", shape, [bench.put(x)])
    bench.run(node)
    check(bench.read(node).reshape(shape), split.sum(axis=tuple(range(0, 2 * len(shape), 2))), "f32")


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("type_name", ["F32", "F16"])
def test_silu_back(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    dtype = np.float32 if type_name == "F32" else np.float16
    grad, x = (normal(rng, 3, 5, n).astype(dtype) for _ in range(2))
    s = 1 / (1 + np.exp(-x.astype(np.float64)))
    node = bench.node("SILU_BACK", type_name, x.shape, [bench.put(grad), bench.put(x)])
    bench.run(node)
    check(bench.read(node)[0], grad * s * (1 + x.astype(np.float64) * (1 - s)), type_name.lower())


@pytest.mark.parametrize("in_place", [None, 0, 1])
@pytest.mark.parametrize("n", LENGTHS)
def test_rms_norm_back(bench: Bench, rng: np.random.Generator, n: int, in_place: int | None) -> None:
    grad, x = normal(rng, 2, 3, n), normal(rng, 2, 3, n)
    dz, xx, eps = grad.astype(np.float64), x.astype(np.float64), 1e-3
    mean = (xx**2).mean(-1, keepdims=True) + np.float64(np.float32(eps))
    expected = (dz - xx * (xx * dz).mean(-1, keepdims=True) / mean) / np.sqrt(mean)
    src = [bench.put(grad), bench.put(x)]
    out = None if in_place is None else src[in_place]
    node = bench.node("RMS_NORM_BACK", "F32", x.shape, src, floats(eps), out=out)
    bench.run(node)
    if n > 1:
        check(bench.read(node)[0], expected, "f32")
    else:  # all but eps cancels
        np.testing.assert_allclose(bench.read(node)[0], expected, atol=1e-5)


@pytest.mark.parametrize("in_place", [None, 0, 1])
@pytest.mark.parametrize("n", LENGTHS)
def test_soft_max_back(bench: Bench, rng: np.random.Generator, n: int, in_place: int | None) -> None:
    grad, y = normal(rng, 2, 3, n), np.abs(normal(rng, 2, 3, n))
    dy, yy = grad.astype(np.float64), y.astype(np.float64)
    src = [bench.put(grad), bench.put(y)]
    out = None if in_place is None else src[in_place]
    node = bench.node("SOFT_MAX_BACK", "F32", y.shape, src, floats(0.5, 0.0), out=out)
    bench.run(node)
    check(bench.read(node)[0], 0.5 * yy * (dy - (yy * dy).sum(-1, keepdims=True)), "f32")


@pytest.mark.parametrize("n", [*LENGTHS, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_get_rows_back(bench: Bench, rng: np.random.Generator, dtype: type, n: int) -> None:
    x, ids = normal(rng, 40, n).astype(dtype), rng.integers(0, 7, 40).astype(np.int32)
    expected = np.zeros((9, n))
    np.add.at(expected, ids, x.astype(np.float64))
    node = bench.node("GET_ROWS_BACK", "F32", (9, n), [bench.put(x), bench.put(ids)])
    bench.run(node)
    check(bench.read(node)[0, 0], expected, "f32")


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1])
def test_get_rows_back_checks_every_index(bench: Bench, rng: np.random.Generator, bad: int) -> None:
    ids = bench.put(np.array([0, 8, bad, 1], np.int32), name="ids")
    node = bench.node("GET_ROWS_BACK", "F32", (9, 600), [bench.put(normal(rng, 4, 600)), ids])
    with pytest.raises(RpcError, match=rf"index {bad} in 'ids' is out of range \(0 .. 8\)"):
        bench.run(node)
