"""Small ops of ik_llama.cpp: elements by index, streams of hyper-connections, compressed caches, cached rotations."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.spec import dialects
from tests.ops.conftest import device
from tests.ops.test_ik import floats, normal, rows_apart
from tests.ops.test_ik_sparse import OUTSIDE, distinct, ints, narrowed, refused
from tests.ops.tolerances import check
from tests.support.device import Bench

IK = dialects.find("ik-3.5.2")


@pytest.fixture
def bench(level: str) -> Bench:
    """Return memory and a device at one level, reached by ik_llama.cpp's protocol."""
    return Bench(device(level), dialect=IK)


# ---- GATHER, BLEND ----


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "I32", "I16"])
def test_gather(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    x = rng.integers(-999, 999, (2, 3, 33)) if type_name[0] == "I" else normal(rng, (2, 3, 33))
    x = x.astype({"I32": np.int32, "I16": np.int16}.get(type_name, np.float32))
    x = narrowed(x, type_name)
    ids = rng.integers(0, 33, (2, 3, 17)).astype(np.int32)
    node = bench.node("GET_ROWS", type_name, ids.shape, [bench.put(x, type_name), bench.put(ids)], ints(1))
    bench.run(node)
    check(bench.read(node)[0], np.take_along_axis(x, ids, -1), "exact")


def test_gather_of_a_view(bench: Bench, rng: np.random.Generator) -> None:
    """Rows of both sources are parts of longer ones; elements of the source lie apart."""
    x, ids = normal(rng, (33, 5)), distinct(rng, 5, 33, 9)
    columns = bench.permute(bench.put(x), (1, 0, 2, 3))
    base = bench.put(np.concatenate([ids, np.full((5, 3), 99, np.int32)], axis=1))
    list_ = bench.view(base, "I32", ids.shape, (12 * 4, 4))
    node = bench.node("GET_ROWS", "F32", ids.shape, [columns, list_], ints(1))
    bench.run(node)
    check(bench.read(node)[0, 0], np.take_along_axis(x.T, ids, -1), "exact")


@pytest.mark.parametrize("bad", [*OUTSIDE, 33])
def test_gather_checks_indices(bench: Bench, rng: np.random.Generator, bad: int) -> None:
    ids = np.array([[0, 32, bad]], np.int32)
    node = bench.node("GET_ROWS", "F32", (1, 3), [bench.put(normal(rng, (1, 33))), bench.put(ids)], ints(1))
    refused(bench, node, "GATHER", bad)


@pytest.mark.parametrize("ids_type", [np.int32, np.int64])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n", [1, 33, 1030])
def test_blend(bench: Bench, rng: np.random.Generator, type_name: str, ids_type: type, n: int) -> None:
    x = narrowed(normal(rng, (2, 3, n)), type_name)
    k = (n + 2) // 3
    ids = distinct(rng, 6, n, k).reshape(2, 3, k).astype(ids_type)
    node = bench.node("BLEND", type_name, x.shape, [bench.put(x, type_name), bench.put(ids)], floats(-1.7))
    bench.run(node)
    expected = x.copy()
    np.put_along_axis(expected, ids.astype(np.int64), narrowed(np.float32([-1.7]), type_name)[0], -1)
    check(bench.read(node)[0], expected, "exact")


def test_blend_in_place(bench: Bench, rng: np.random.Generator) -> None:
    x, ids = normal(rng, (4, 33)), distinct(rng, 4, 33, 5)
    place = bench.put(x)
    node = bench.node("BLEND", "F32", x.shape, [place, bench.put(ids)], floats(float("-inf")), out=place)
    bench.run(node)
    expected = x.copy()
    np.put_along_axis(expected, ids.astype(np.int64), -np.inf, -1)
    check(bench.read(node)[0, 0], expected, "exact")


@pytest.mark.parametrize("bad", [*OUTSIDE, 33])
@pytest.mark.parametrize("ids_type", [np.int32, np.int64])
def test_blend_checks_indices(bench: Bench, rng: np.random.Generator, ids_type: type, bad: int) -> None:
    ids = np.array([[0, bad]], ids_type)
    node = bench.node("BLEND", "F32", (1, 33), [bench.put(normal(rng, (1, 33))), bench.put(ids)], floats(0.0))
    refused(bench, node, "BLEND", bad)


# ---- ARGSORT_THRESH ----


@pytest.mark.parametrize("n", [1, 17, 97, 300, 3000])
@pytest.mark.parametrize("least_entries", [0, 1, 8, 5000])
def test_argsort_thresh(bench: Bench, rng: np.random.Generator, n: int, least_entries: int) -> None:
    x = rng.permutation(n * 3).reshape(3, n).astype(np.float32) / n
    params = struct.pack("<if", least_entries, 0.6)
    node = bench.node("ARGSORT_THRESH", "I32", x.shape, [bench.put(x)], params)
    bench.run(node)
    expected = np.argsort(-x, -1)
    small = np.take_along_axis(x, expected, -1) < x.max(-1, keepdims=True) * np.float32(0.6)
    small[:, :least_entries] = False
    check(bench.read(node)[0, 0], np.where(small, -1, expected), "exact")


def test_argsort_thresh_of_columns(bench: Bench, rng: np.random.Generator) -> None:
    x = rng.permutation(60).reshape(20, 3).astype(np.float32)
    view = bench.permute(bench.put(x), (1, 0, 2, 3))
    node = bench.node("ARGSORT_THRESH", "I32", (3, 20), [view], struct.pack("<if", 2, 0.5))
    bench.run(node)
    expected = np.argsort(-x.T, -1)
    small = np.take_along_axis(x.T, expected, -1) < x.T.max(-1, keepdims=True) * 0.5
    small[:, :2] = False
    check(bench.read(node)[0, 0], np.where(small, -1, expected), "exact")


# ---- SINKHORN, HC_PRE, HC_POST ----


def stochastic(x: np.ndarray, rounds: int, eps: float) -> np.ndarray:
    """Return matrices [tokens, n, n] made doubly stochastic."""
    m = np.exp(x - x.max(-1, keepdims=True))
    m = m / m.sum(-1, keepdims=True) + eps
    m /= eps + m.sum(-2, keepdims=True)
    for _ in range(rounds - 1):
        m /= eps + m.sum(-1, keepdims=True)
        m /= eps + m.sum(-2, keepdims=True)
    return m


@pytest.mark.parametrize("transpose", [0, 1])
@pytest.mark.parametrize(("n", "tokens", "rounds"), [(1, 3, 1), (4, 1, 20), (4, 37, 20), (5, 16, 2), (8, 33, 7)])
def test_sinkhorn(bench: Bench, rng: np.random.Generator, *, n: int, tokens: int, rounds: int, transpose: int) -> None:
    x = normal(rng, (tokens, n * n), 2.0)
    params = struct.pack("<iifi", n, rounds, 1e-6, transpose)
    node = bench.node("SINKHORN", "F32", (tokens, n, n), [rows_apart(bench, x)], params)
    bench.run(node)
    expected = stochastic(x.astype(np.float64).reshape(tokens, n, n), rounds, 1e-6)
    check(bench.read(node)[0], expected.transpose(0, 2, 1) if transpose else expected, "f32")


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize(("n", "tokens", "rounds"), [(1, 2, 2), (4, 1, 20), (4, 37, 20), (8, 17, 3)])
def test_hc_pre(bench: Bench, rng: np.random.Generator, *, n: int, tokens: int, rounds: int, eps: float) -> None:
    width = n * n + 2 * n
    x, scale, bias = normal(rng, (tokens, width)), normal(rng, (3,)), normal(rng, (width,))
    params = struct.pack("<iif", n, rounds, eps)
    sources = [bench.put(x), bench.put(scale), bench.put(bias)]
    node = bench.node("HC_PRE", "F32", (tokens * width,), sources, params)
    bench.run(node)
    scaled = x.astype(np.float64) * np.repeat(scale, [n, n, n * n]) + bias
    pre, post, comb = np.split(scaled, [n, 2 * n], axis=1)
    parts = [
        1 / (1 + np.exp(-pre)) + eps,
        2 / (1 + np.exp(-post)),
        stochastic(comb.reshape(tokens, n, n), rounds, eps),
    ]
    check(bench.read(node)[0, 0, 0], np.concatenate([p.ravel() for p in parts]), "f32")


@pytest.mark.parametrize(("k", "n", "tokens"), [(1, 1, 1), (33, 4, 5), (4097, 4, 2), (16, 8, 3)])
def test_hc_post(bench: Bench, rng: np.random.Generator, k: int, n: int, tokens: int) -> None:
    x, post = normal(rng, (tokens, k)), normal(rng, (tokens, n))
    residual, comb = normal(rng, (tokens, n, k)), normal(rng, (tokens, n, n))
    node = bench.node("HC_POST", "F32", (tokens, n, k), [bench.put(a) for a in (x, post, residual, comb)])
    bench.run(node)
    wide = [a.astype(np.float64) for a in (x, post, residual, comb)]
    expected = np.einsum("tk,ti->tik", wide[0], wide[1]) + np.einsum("tji,tjk->tik", wide[3], wide[2])
    check(bench.read(node)[0], expected, "f32")


def test_weights_of_streams_go_on_as_views(bench: Bench, rng: np.random.Generator) -> None:
    """The three blocks of HC_PRE's result are the sources of HC_POST."""
    n, tokens, k = 4, 6, 40
    mixes, scale, bias = normal(rng, (tokens, 24)), normal(rng, (3,)), normal(rng, (24,))
    x, residual = normal(rng, (tokens, k)), normal(rng, (tokens, n, k))
    sources = [bench.put(mixes), bench.put(scale), bench.put(bias)]
    pre = bench.node("HC_PRE", "F32", (tokens * 24,), sources, struct.pack("<iif", n, 20, 1e-6))
    post = bench.view(pre, "F32", (tokens, n), (16, 4), offset=tokens * 16)
    comb = bench.view(pre, "F32", (tokens, n, n), (64, 16, 4), offset=2 * tokens * 16)
    node = bench.node("HC_POST", "F32", (tokens, n, k), [bench.put(x), post, bench.put(residual), comb])
    bench.run(pre, node)
    made = bench.read(pre)[0, 0, 0].astype(np.float64)
    w, m = made[24:48].reshape(tokens, n), made[48:].reshape(tokens, n, n)
    expected = np.einsum("tk,ti->tik", x, w) + np.einsum("tji,tjk->tik", m, residual)
    check(bench.read(node)[0], expected, "f32")


# ---- DS4_COMP ----


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("width", "ratio", "blocks"), [(64, 1, 1), (128, 4, 3), (192, 3, 5), (1024, 128, 2)])
def test_ds4_comp(bench: Bench, rng: np.random.Generator, *, kind: int, width: int, ratio: int, blocks: int) -> None:
    state, score = normal(rng, (50, width)), normal(rng, (50, width), 3.0)
    score[7] = -np.inf  # a row that counts for nothing
    ids = rng.integers(0, 50, (1 if kind else 2, blocks, ratio)).astype(np.int32)
    ids[..., 0] = 3
    sources = [rows_apart(bench, state), rows_apart(bench, score, 9), bench.put(ids.ravel())]
    out = width if kind else width // 2
    node = bench.node("DS4_COMP", "F32", (blocks, out), sources, ints(kind))
    bench.run(node)
    wide = [a.astype(np.float64) for a in (state, score)]
    if kind:
        values, logits = (a[ids[0]] for a in wide)
    else:
        values, logits = (np.concatenate([a[ids[0], :out], a[ids[1], out:]], axis=1) for a in wide)
    w = np.exp(logits - logits.max(1, keepdims=True))
    check(bench.read(node)[0, 0], (w * values).sum(1) / w.sum(1), "f32")


@pytest.mark.parametrize("kind", [0, 1])
def test_ds4_comp_without_any_row(bench: Bench, rng: np.random.Generator, kind: int) -> None:
    """Where all scores are -inf, overlapping blocks give 0, as in stock, and others NaN."""
    sources = [bench.put(normal(rng, (4, 64))), bench.put(np.full((4, 64), -np.inf, np.float32))]
    node = bench.node(
        "DS4_COMP", "F32", (2, 64 if kind else 32), [*sources, bench.put(np.arange(4, dtype=np.int32))], ints(kind)
    )
    bench.run(node)
    expected = np.full((2, 64), np.nan) if kind else np.zeros((2, 32))
    np.testing.assert_array_equal(bench.read(node)[0, 0], expected)


@pytest.mark.parametrize("bad", [*OUTSIDE, 4])
@pytest.mark.parametrize("kind", [0, 1])
def test_ds4_comp_checks_rows(bench: Bench, rng: np.random.Generator, kind: int, bad: int) -> None:
    sources = [bench.put(normal(rng, (4, 64))), bench.put(normal(rng, (4, 64)))]
    ids = bench.put(np.array([0, 1, 2, bad], np.int32))
    node = bench.node("DS4_COMP", "F32", (1, 64 if kind else 32), [*sources, ids], ints(kind))
    refused(bench, node, "DS4_COMP", bad)


# ---- ROPE_CACHE, ROPE_FAST ----


@pytest.mark.parametrize("mode", [0, 2])
@pytest.mark.parametrize(("n_dims", "ne0"), [(2, 2), (32, 64), (34, 34), (64, 96)])
@pytest.mark.parametrize("factors", [False, True])
def test_cached_rotation(
    bench: Bench, rng: np.random.Generator, *, mode: int, n_dims: int, ne0: int, factors: bool
) -> None:
    pos = rng.integers(0, 100000, 5).astype(np.int32)
    scale = rng.uniform(0.5, 2.0, n_dims // 2).astype(np.float32) if factors else None
    params = struct.pack("<5i6f", 0, n_dims, mode, 0, 4096, 1e4, 0.5, 0.0, 1.25, 32.0, 1.0)
    sources = [bench.put(pos), None if scale is None else bench.put(scale)]
    cache = bench.node("ROPE_CACHE", "F32", (5, ne0), sources, params)
    x = normal(rng, (2, 5, 3, ne0))
    node = bench.node("ROPE_FAST", "F32", x.shape, [bench.put(x), cache], ints(n_dims, mode))
    bench.run(cache, node)
    i = np.arange(n_dims // 2)
    angle = pos[:, None].astype(np.float64) * 1e4 ** (-2 * i / n_dims) / (1 if scale is None else scale) * 0.5
    c, s = np.cos(angle) * 1.25, np.sin(angle) * 1.25
    got = bench.read(cache)[0, 0]
    check(got[:, 0:n_dims:2], c, "f32")
    check(got[:, 1:n_dims:2], s, "f32")
    a, b = (
        (x[..., 0:n_dims:2], x[..., 1:n_dims:2]) if mode == 0 else (x[..., : n_dims // 2], x[..., n_dims // 2 : n_dims])
    )
    c, s = c[:, None], s[:, None]
    expected = x.astype(np.float64)
    turned = (a * c - b * s, a * s + b * c)
    if mode == 0:
        expected[..., 0:n_dims:2], expected[..., 1:n_dims:2] = turned
    else:
        expected[..., : n_dims // 2], expected[..., n_dims // 2 : n_dims] = turned
    check(bench.read(node), expected, "f32")


def test_cached_rotation_in_place(bench: Bench, rng: np.random.Generator) -> None:
    """Heads of 32 turn by a cache with rows for longer ones and more tokens."""
    x, pairs = normal(rng, (4, 3, 32)), normal(rng, (6, 64))
    place = bench.put(x)
    node = bench.node("ROPE_FAST", "F32", x.shape, [place, bench.put(pairs)], ints(16, 2), out=place)
    bench.run(node)
    c, s = pairs[:4, None, 0:16:2], pairs[:4, None, 1:16:2]
    expected = x.astype(np.float64)
    expected[..., :8], expected[..., 8:16] = (
        x[..., :8] * c - x[..., 8:16] * s,
        x[..., :8] * s + x[..., 8:16] * c,
    )
    check(bench.read(node)[0], expected, "f32")
