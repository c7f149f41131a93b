"""LIGHTNING_INDEXER, DSV4_HC_COMB, DSV4_HC_PRE, DSV4_HC_POST against NumPy."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.ops.test_matmul import TYPES, weights
from tests.ops.tolerances import check
from tests.support.device import Bench

STREAMS = 4


@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 5, 16), (5, 17, 70), (64, 3, 130), (2, 3, 5120)], ids=str)
@pytest.mark.parametrize("shared", [(1, 1), (2, 1), (2, 2)], ids=["one", "one mask", "two"])
def test_indexer(bench: Bench, rng: np.random.Generator, shared: tuple[int, int], sizes: tuple[int, int, int]) -> None:
    scores(bench, rng, "F32", (*shared, *sizes, 33))


@pytest.mark.parametrize("type_name", TYPES)
def test_indexer_decodes_its_keys(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    scores(bench, rng, type_name, (1, 1, 3, 4, 67, 256))


def scores(bench: Bench, rng: np.random.Generator, type_name: str, sizes: tuple[int, ...]) -> None:
    """Compare scores of keys of a type; sizes are sequences, masks, heads, tokens, keys and elements of a key."""
    sequences, masks, heads, tokens, keys, size = sizes
    q = rng.standard_normal((sequences, tokens, heads, size)).astype(np.float32)
    data, k = weights(rng, type_name, (sequences, keys, 1, size))
    w = rng.standard_normal((sequences, 1, tokens, heads)).astype(np.float32)
    mask = np.where(rng.random((masks, 1, tokens, keys)) < 0.3, -np.inf, rng.standard_normal((masks, 1, tokens, keys)))
    mask = mask.astype(np.float16)
    sources = [bench.put(q), bench.put_raw(type_name, (sequences, keys, 1, size), data), bench.put(w), bench.put(mask)]
    node = bench.node("LIGHTNING_INDEXER", "F32", (sequences, 1, tokens, keys), sources)
    bench.run(node)
    products = np.einsum("sthd,skd->sthk", q.astype(np.float64), k.reshape(sequences, keys, size))
    expected = np.einsum("sthk,sth->stk", np.maximum(products, 0.0), w[:, 0].astype(np.float64))
    check(bench.read(node), expected[:, None] + np.tile(mask, (sequences // masks, 1, 1, 1)), "product_f32")


@pytest.mark.parametrize("rounds", [1, 2, 20])
@pytest.mark.parametrize("tokens", [1, 5, 97])
def test_mixtures_are_made_doubly_stochastic(bench: Bench, rng: np.random.Generator, tokens: int, rounds: int) -> None:
    n, eps = (2 + STREAMS) * STREAMS, 1e-3
    mixes = rng.standard_normal((tokens, n)).astype(np.float32)
    scale, base = rng.standard_normal(3).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    sources = [bench.put(mixes), bench.put(scale), bench.put(base)]
    node = bench.node("DSV4_HC_COMB", "F32", (tokens, STREAMS, STREAMS), sources, struct.pack("<fi", eps, rounds))
    bench.run(node)
    logits = (mixes.astype(np.float64) * scale[2] + base)[:, 2 * STREAMS :].reshape(tokens, STREAMS, STREAMS)
    raised = np.exp(logits)
    m = raised / raised.sum(axis=2, keepdims=True) + eps  # (token, from, to)
    m /= m.sum(axis=1, keepdims=True) + eps
    for _ in range(rounds - 1):
        m /= m.sum(axis=2, keepdims=True) + eps
        m /= m.sum(axis=1, keepdims=True) + eps
    check(bench.read(node).reshape(m.shape), m, "f32")


@pytest.mark.parametrize("size", [1, 33, 64, 5000])
@pytest.mark.parametrize("shape", [(5, 4), (1, 1), (17, 3)], ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_streams_into_one(
    bench: Bench, rng: np.random.Generator, gated: bool, shape: tuple[int, int], size: int
) -> None:
    tokens, streams = shape
    scale = 0.5 if gated else 1.0
    x = rng.standard_normal((tokens, streams, size)).astype(np.float32)
    w = rng.standard_normal(x.shape if gated else (tokens, streams)).astype(np.float32)
    sources = [bench.put(x), bench.put(w)]
    node = bench.node("DSV4_HC_PRE", "F32", (tokens, size), sources, struct.pack("<fi", scale, gated))
    bench.run(node)
    share = 1.0 / (1.0 + np.exp(-w.astype(np.float64))) if gated else w[..., None].astype(np.float64)
    check(bench.read(node).reshape(tokens, size), scale * (x * share).sum(axis=1), "f32")


@pytest.mark.parametrize("size", [1, 33, 64, 5000])
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("mixed", [False, True])
def test_one_into_streams(bench: Bench, rng: np.random.Generator, mixed: bool, tokens: int, size: int) -> None:
    x = rng.standard_normal((tokens, size)).astype(np.float32)
    residual = rng.standard_normal((tokens, STREAMS, size)).astype(np.float32)
    post = rng.standard_normal((tokens, STREAMS)).astype(np.float32)
    comb = rng.standard_normal((tokens, STREAMS, STREAMS)).astype(np.float32)  # (token, from, to)
    sources = [bench.put(x), bench.put(residual), bench.put(post), bench.put(comb) if mixed else None]
    node = bench.node("DSV4_HC_POST", "F32", residual.shape, sources)
    bench.run(node)
    kept = np.einsum("tfn,tfo->ton", residual.astype(np.float64), comb) if mixed else residual
    check(bench.read(node).reshape(residual.shape), x[:, None] * post.astype(np.float64)[..., None] + kept, "f32")


def test_one_into_streams_lying_apart(bench: Bench, rng: np.random.Generator) -> None:
    """Views whose rows lie apart, as slices of a residual do."""
    base = rng.standard_normal((3, 6, 100)).astype(np.float32)
    x, post = rng.standard_normal((3, 50)).astype(np.float32), rng.standard_normal((3, STREAMS)).astype(np.float32)
    residual = bench.view(bench.put(base), "F32", (3, STREAMS, 50), (2400, 400, 4), 400)
    node = bench.node("DSV4_HC_POST", "F32", (3, STREAMS, 50), [bench.put(x), residual, bench.put(post), None])
    bench.run(node)
    expected = x[:, None] * post.astype(np.float64)[..., None] + base[:, 1:5, :50]
    check(bench.read(node).reshape(expected.shape), expected, "f32")
