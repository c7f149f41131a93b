"""Gradients, losses, optimisers and outer products against NumPy in float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from tests.ops.test_matmul import weights
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


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q4_0", "Q5_K", "IQ3_S", "MXFP4"])
@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (5, 65), (70, 200)])
def test_outer_product(bench: Bench, rng: np.random.Generator, type_name: str, rows: int, depth: int) -> None:
    n = 97 if type_name in ("F32", "F16") else 512
    data, a = weights(rng, type_name, (2, depth, n))
    b = normal(rng, 2, depth, rows)
    node = bench.node("OUT_PROD", "F32", (2, rows, n), [bench.put_raw(type_name, a.shape, data), bench.put(b)])
    bench.run(node)
    check(bench.read(node)[0], np.einsum("bkn,bkr->brn", a.reshape(2, depth, n), b.astype(np.float64)), "f32")


def test_outer_product_repeats_and_transposes(bench: Bench, rng: np.random.Generator) -> None:
    """Matrices of source 0 are shared by neighbours, and source 1 may be permuted."""
    a, b = normal(rng, 1, 2, 9, 33), normal(rng, 3, 4, 21, 9)
    expected = np.einsum("xykn,xyrk->xyrn", np.repeat(np.tile(a, (3, 1, 1, 1)), 2, axis=1).astype(np.float64), b)
    node = bench.node("OUT_PROD", "F32", (3, 4, 21, 33), [bench.put(a), bench.permute(bench.put(b), (1, 0, 2, 3))])
    bench.run(node)
    check(bench.read(node), expected, "f32")


def softmax(x: np.ndarray) -> np.ndarray:
    """Return the softmax of rows."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("n", LENGTHS)
def test_cross_entropy(bench: Bench, rng: np.random.Generator, n: int) -> None:
    x, labels = 4 * normal(rng, 2, 9, n), softmax(normal(rng, 2, 9, n).astype(np.float64)).astype(np.float32)
    xx, ll = x.astype(np.float64), labels.astype(np.float64)
    sources = [bench.put(x), bench.put(labels)]
    loss = bench.node("CROSS_ENTROPY_LOSS", "F32", (1,), sources)
    back = bench.node("CROSS_ENTROPY_LOSS_BACK", "F32", x.shape, [bench.put(np.array([1.5], np.float32)), *sources])
    bench.run(loss, back)
    if n > 1:
        check(bench.read(loss)[0, 0], np.array([[-(ll * np.log(softmax(xx))).sum() / 18]]), "f32")
        check(bench.read(back)[0], (softmax(xx) - ll) * 1.5 / 18, "f32")
    else:
        assert np.abs(bench.read(loss)).max() < 1e-6
        assert np.abs(bench.read(back)).max() < 1e-6


@pytest.mark.parametrize("of", [0, 1])
def test_cross_entropy_back_in_place(bench: Bench, rng: np.random.Generator, of: int) -> None:
    x, labels = normal(rng, 9, 97), np.abs(normal(rng, 9, 97))
    sources = [bench.put(x), bench.put(labels)]
    grad = bench.put(np.array([1.0], np.float32))
    bench.run(bench.node("CROSS_ENTROPY_LOSS_BACK", "F32", x.shape, [grad, *sources], out=sources[of]))
    check(bench.read(sources[of])[0, 0], (softmax(x.astype(np.float64)) - labels) / 9, "f32")


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (4, 5, 97), (1, 9000)])
@pytest.mark.parametrize("padded", [False, True])
def test_optimisers(bench: Bench, rng: np.random.Generator, shape: tuple[int, ...], padded: bool) -> None:
    w, g, m, v = normal(rng, *shape), normal(rng, *shape), normal(rng, *shape), np.abs(normal(rng, *shape))
    params = np.array([0.1, 0.9, 0.99, 1e-3, 0.05, 1.2, 1.5], np.float32)
    rate, beta1, beta2, eps, decay, unbias1, unbias2 = params.astype(np.float64)

    def put(x: np.ndarray):
        if not padded:
            return bench.put(x)
        wide = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 3)])
        return bench.view(bench.put(wide), "F32", x.shape, wide.strides)

    places = [put(w), put(g), bench.put(m), bench.put(v)]
    bench.run(bench.node("OPT_STEP_ADAMW", "F32", shape, [*places, bench.put(params)], out=places[0]))
    w64, g64, m64, v64 = (x.astype(np.float64) for x in (w, g, m, v))
    m64, v64 = m64 * beta1 + g64 * (1 - beta1), v64 * beta2 + g64**2 * (1 - beta2)
    w64 = w64 * (1 - rate * decay) - rate * m64 * unbias1 / (np.sqrt(v64 * unbias2) + eps)
    for place, expected in zip(places, (w64, g64, m64, v64), strict=True):
        check(bench.read(place).reshape(shape), expected, "f32")

    place = put(w)
    sgd = bench.node("OPT_STEP_SGD", "F32", shape, [place, put(g), bench.put(params[:2])], out=place)
    bench.run(sgd)
    expected = w.astype(np.float64) * (1 - rate * beta1) - rate * g.astype(np.float64)
    check(bench.read(place).reshape(shape), expected, "f32")


def test_moments_must_not_overlap(bench: Bench, rng: np.random.Generator) -> None:
    w, g, m, params = (bench.put(normal(rng, *s)) for s in ((4, 8), (4, 8), (4, 8), (7,)))
    for moments in ((m, m), (w, m), (m, w)):
        with pytest.raises(RpcError, match="must not overlap"):
            bench.run(bench.node("OPT_STEP_ADAMW", "F32", (4, 8), [w, g, *moments, params], out=w))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(33, 5, 7, 4, 2, 3), (64, 3, 3, 2, 2, 1), (1, 1, 1, 1, 1, 1)])
def test_attention_back(
    bench: Bench,
    rng: np.random.Generator,
    masked: bool,
    sizes: tuple[int, ...],
) -> None:
    size, n_q, n_kv, heads, kv_heads, seqs = sizes
    q, grad = normal(rng, seqs, heads, n_q, size), normal(rng, seqs, heads, n_q, size)
    k, v = normal(rng, seqs, kv_heads, n_kv, size), normal(rng, seqs, kv_heads, size, n_kv)
    shared = heads // kv_heads
    q64, g64 = q.astype(np.float64), grad.astype(np.float64)
    k64, v64 = (np.tile(x.astype(np.float64), (1, shared, 1, 1)) for x in (k, v))
    scale = 1 / np.sqrt(size)
    scores = q64 @ k64.swapaxes(2, 3) * scale
    if masked:
        later = np.arange(n_kv)[None, :] > np.arange(n_q)[:, None] + n_kv - n_q
        scores = np.where(later, -np.inf, scores)
    p = softmax(scores)
    dp = g64 @ v64
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    fold = (seqs, shared, kv_heads)
    dk = (ds.swapaxes(2, 3) @ q64).reshape(*fold, n_kv, size).sum(1)
    dv = (g64.swapaxes(2, 3) @ p).reshape(*fold, size, n_kv).sum(1)
    parts = [np.pad(x.ravel(), (0, -x.size % 4)) for x in (ds @ k64, dk, dv)]
    expected = np.concatenate(parts)
    sources = [bench.put(x) for x in (q, k, v, grad)]
    node = bench.node("FLASH_ATTN_BACK", "F32", expected.shape, sources, struct.pack("<i", masked))
    bench.run(node)
    check(bench.read(node)[0, 0], expected[None], "f32")
