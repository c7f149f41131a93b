"""SOFT_MAX with scale, mask, ALiBi and sinks against float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.ops.tolerances import check
from tests.support.device import Bench


def slopes(n_head: int, max_bias: float) -> np.ndarray:
    """Return the ALiBi factor of each head."""
    if max_bias <= 0:
        return np.ones(n_head)
    n = 1 << (n_head.bit_length() - 1)
    first = 2.0 ** (-max_bias / n * (np.arange(min(n, n_head)) + 1))
    rest = 2.0 ** (-max_bias / (2 * n) * (2 * np.arange(n_head - n) + 1))
    return np.concatenate([first, rest])


def oracle(
    a: np.ndarray,
    scale: float = 1.0,
    mask: np.ndarray | None = None,
    max_bias: float = 0.0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Softmax of `a` (batch, head, row, n)."""
    logits = a.astype(np.float64) * scale
    if mask is not None:
        m = mask.astype(np.float64)[:, :, : a.shape[2]]
        m = np.tile(m, (a.shape[0] // m.shape[0], a.shape[1] // m.shape[1], 1, 1))
        logits = logits + slopes(a.shape[1], max_bias)[None, :, None, None] * m
    top = logits.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks.astype(np.float64)[None, :, None, None])
    with np.errstate(invalid="ignore"):
        e = np.exp(logits - top)
    total = e.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks.astype(np.float64)[None, :, None, None] - top)
    return e / total


def params(scale: float = 1.0, max_bias: float = 0.0) -> bytes:
    return struct.pack("<2f", scale, max_bias)


@pytest.mark.parametrize("n", [1, 15, 17, 33, 97, 256, 5000])
def test_plain(bench: Bench, rng: np.random.Generator, n: int) -> None:
    a = (rng.standard_normal((2, 3, 4, n)) * 5).astype(np.float32)
    node = bench.node("SOFT_MAX", "F32", a.shape, [bench.put(a)], params(0.125))
    bench.run(node)
    check(bench.read(node), oracle(a, 0.125), "f32")


@pytest.mark.parametrize("type_name", ["F16", "F32"])
@pytest.mark.parametrize("mask_shape", [(1, 1, 5), (1, 1, 64), (1, 6, 5), (2, 1, 5), (2, 3, 8)])
@pytest.mark.parametrize("n", [1, 33, 97])
def test_mask(bench: Bench, rng: np.random.Generator, type_name: str, mask_shape: tuple[int, ...], n: int) -> None:
    """Mask rows are as the rows; masks repeat over heads and batches; more rows than needed are legal (padding)."""
    a = rng.standard_normal((2, 6, 5, n)).astype(np.float32)
    mask = rng.standard_normal((*mask_shape, n)).astype(np.float16 if type_name == "F16" else np.float32)
    mask[..., 1:][rng.random(mask[..., 1:].shape) < 0.5] = -np.inf
    node = bench.node("SOFT_MAX", "F32", a.shape, [bench.put(a), bench.put(mask)], params(0.7))
    bench.run(node)
    check(bench.read(node), oracle(a, 0.7, mask), "f32")


@pytest.mark.parametrize("n_head", [1, 2, 6, 8, 12])
def test_alibi(bench: Bench, rng: np.random.Generator, n_head: int) -> None:
    a = rng.standard_normal((1, n_head, 7, 41)).astype(np.float32)
    mask = -rng.integers(0, 40, (1, 1, 7, 41)).astype(np.float16)
    node = bench.node("SOFT_MAX", "F32", a.shape, [bench.put(a), bench.put(mask)], params(0.3, 8.0))
    bench.run(node)
    check(bench.read(node), oracle(a, 0.3, mask, 8.0), "f32")


def test_sinks(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.standard_normal((2, 4, 3, 50)).astype(np.float32)
    sinks = np.array([-3.0, 0.0, 2.0, 30.0], np.float32)
    mask = np.zeros((1, 1, 3, 50), np.float32)
    mask[..., 20:] = -np.inf
    node = bench.node("SOFT_MAX", "F32", a.shape, [bench.put(a), bench.put(mask), bench.put(sinks)], params())
    bench.run(node)
    check(bench.read(node), oracle(a, 1.0, mask, 0.0, sinks), "f32")


def test_sinks_without_mask(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.standard_normal((1, 3, 2, 19)).astype(np.float32)
    sinks = rng.standard_normal(3).astype(np.float32)
    node = bench.node("SOFT_MAX", "F32", a.shape, [bench.put(a), None, bench.put(sinks)], params(2.0))
    bench.run(node)
    check(bench.read(node), oracle(a, 2.0, None, 0.0, sinks), "f32")


@pytest.mark.parametrize("n", [7, 64])
def test_fully_masked_row(bench: Bench, rng: np.random.Generator, n: int) -> None:
    """Without a sink nothing is left to share: NaN; with one the row is zero."""
    a = rng.standard_normal((1, 2, 2, n)).astype(np.float32)
    mask = np.zeros((1, 1, 2, n), np.float16)
    mask[..., 1, :] = -np.inf
    ta, tm = bench.put(a), bench.put(mask)
    plain = bench.node("SOFT_MAX", "F32", a.shape, [ta, tm], params())
    sunk = bench.node("SOFT_MAX", "F32", a.shape, [ta, tm, bench.put(np.zeros(2, np.float32))], params())
    bench.run(plain, sunk)
    got = bench.read(plain)
    assert np.isnan(got[..., 1, :]).all()
    check(got[..., :1, :], oracle(a[..., :1, :], 1.0, mask[..., :1, :]), "f32")
    assert (bench.read(sunk)[..., 1, :] == 0).all()


def test_large_logits(bench: Bench) -> None:
    a = np.array([[1e30, 1e30, -1e30, 0.0, 5.0]], np.float32)
    node = bench.node("SOFT_MAX", "F32", a.shape, [bench.put(a)], params())
    bench.run(node)
    check(bench.read(node).reshape(a.shape), np.array([[0.5, 0.5, 0, 0, 0]]), "f32")


@pytest.mark.parametrize("n", [5, 40])
def test_negative_scale(bench: Bench, rng: np.random.Generator, n: int) -> None:
    a = rng.standard_normal((1, 1, 3, n)).astype(np.float32)
    node = bench.node("SOFT_MAX", "F32", a.shape, [bench.put(a)], params(-2.0))
    bench.run(node)
    check(bench.read(node), oracle(a, -2.0), "f32")


def test_in_place(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.standard_normal((1, 8, 16, 300)).astype(np.float32)
    mask = rng.standard_normal((1, 1, 16, 300)).astype(np.float32)
    ta = bench.put(a)
    node = bench.node("SOFT_MAX", "F32", a.shape, [ta, bench.put(mask)], params(0.5), out=ta)
    bench.run(node)
    check(bench.read(node), oracle(a, 0.5, mask), "f32")
