"""LIGHTNING_INDEXER and the streams of DSV4_HC_COMB, DSV4_HC_PRE and DSV4_HC_POST, against float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.ops.test_ik import normal
from tests.ops.test_ik_sparse import mask_of, scores
from tests.ops.test_ik_streams import stochastic
from tests.ops.test_matmul import weights
from tests.ops.test_unary import sigmoid
from tests.ops.tolerances import check
from tests.support.device import Bench


# Rows that a panel of keys holds, and longer ones.
@pytest.mark.parametrize(
    ("size", "heads", "keys", "tokens"),
    [(1, 1, 1, 1), (33, 5, 70, 17), (128, 4, 129, 3), (4096, 2, 5, 2), (5120, 3, 67, 2)],
)
def test_lightning_indexer(
    bench: Bench, rng: np.random.Generator, *, size: int, heads: int, keys: int, tokens: int
) -> None:
    q, k = normal(rng, (2, tokens, heads, size)), normal(rng, (2, keys, 1, size))
    w, mask = normal(rng, (2, 1, tokens, heads)), mask_of(rng, (1, 1, tokens, keys)).astype(np.float16)
    sources = [bench.put(a) for a in (q, k, w, mask)]
    node = bench.node("LIGHTNING_INDEXER", "F32", (2, 1, tokens, keys), sources)
    bench.run(node)
    expected = [scores(k[s, :, 0], q[s], w[s, 0], mask[0, 0].astype(np.float64)) for s in range(2)]
    check(bench.read(node)[:, 0], np.stack(expected), "f32")


@pytest.mark.parametrize(("k_type", "size"), [("F16", 64), ("BF16", 96), ("Q8_0", 64), ("Q4_K", 5120)])
def test_lightning_indexer_decodes_keys(bench: Bench, rng: np.random.Generator, k_type: str, size: int) -> None:
    keys = weights(rng, k_type, (75, 1, size))
    q, w = normal(rng, (1, 3, 4, size)), normal(rng, (1, 1, 3, 4))
    sources = [
        bench.put(q),
        bench.put_raw(k_type, (75, 1, size), keys[0]),
        bench.put(w),
        bench.put(np.zeros((3, 75), np.float16)),
    ]
    # k is [n, 1, keys]: dimension 1 has size 1.
    node = bench.node("LIGHTNING_INDEXER", "F32", (3, 75), sources)
    bench.run(node)
    check(bench.read(node)[0, 0], scores(keys[1][:, 0], q[0], w[0, 0], np.zeros((3, 75))), "f32")


@pytest.mark.parametrize(("tokens", "rounds"), [(1, 1), (5, 20)])
def test_hc_comb(bench: Bench, rng: np.random.Generator, tokens: int, rounds: int) -> None:
    mixes, scale, base = normal(rng, (tokens, 24)), normal(rng, (3,)), normal(rng, (24,))
    sources = [bench.put(mixes), bench.put(scale), bench.put(base)]
    node = bench.node("DSV4_HC_COMB", "F32", (tokens, 4, 4), sources, struct.pack("<fi", 1e-6, rounds))
    bench.run(node)
    x = mixes[:, 8:].astype(np.float64) * scale[2] + base[8:]
    check(bench.read(node)[0], stochastic(x.reshape(tokens, 4, 4), rounds, 1e-6), "f32")


@pytest.mark.parametrize("gated", [0, 1])
@pytest.mark.parametrize(("n", "streams", "tokens"), [(1, 4, 1), (33, 4, 5), (9000, 2, 2)])
def test_hc_pre(bench: Bench, rng: np.random.Generator, *, n: int, streams: int, tokens: int, gated: int) -> None:
    x = normal(rng, (tokens, streams, n))
    w = normal(rng, (tokens, streams, n) if gated else (tokens, streams))
    node = bench.node("DSV4_HC_PRE", "F32", (tokens, n), [bench.put(x), bench.put(w)], struct.pack("<fi", 0.7, gated))
    bench.run(node)
    wide, by = x.astype(np.float64), w.astype(np.float64)
    expected = 0.7 * (wide * (sigmoid(by) if gated else by[..., None])).sum(1)
    check(bench.read(node)[0, 0], expected, "f32")


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize(("n", "streams", "tokens"), [(1, 4, 1), (33, 4, 5), (9000, 2, 2)])
def test_hc_post(bench: Bench, rng: np.random.Generator, *, n: int, streams: int, tokens: int, mixed: bool) -> None:
    x, residual = normal(rng, (tokens, n)), normal(rng, (tokens, streams, n))
    post, comb = normal(rng, (tokens, streams)), normal(rng, (tokens, streams, streams))
    sources = [bench.put(x), bench.put(residual), bench.put(post), bench.put(comb) if mixed else None]
    node = bench.node("DSV4_HC_POST", "F32", residual.shape, sources)
    bench.run(node)
    wide = [a.astype(np.float64) for a in (x, residual, post, comb)]
    old = np.einsum("tji,tjk->tik", wide[3], wide[1]) if mixed else wide[1]
    check(bench.read(node)[0], np.einsum("tk,ti->tik", wide[0], wide[2]) + old, "f32")
