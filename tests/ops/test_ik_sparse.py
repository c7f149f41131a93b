"""Ops of ik_llama.cpp for sparse attention, compressed caches and hyper-connections, against float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.spec import dialects
from ggml_rpc.spec.enums import UnaryKind
from tests.ops.conftest import device
from tests.ops.test_ik import normal, rows_apart
from tests.ops.test_matmul import weights
from tests.ops.tolerances import check
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16
from tests.support.wiretensor import Tensor

IK = dialects.find("ik-3.5.2")
OUTSIDE = [-1, -(2**31), 2**31 - 1]


@pytest.fixture
def bench(level: str) -> Bench:
    """Return memory and a device at one level, reached by ik_llama.cpp's protocol."""
    return Bench(device(level), dialect=IK)


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def distinct(rng: np.random.Generator, rows: int, n: int, k: int) -> np.ndarray:
    """Return k different numbers below n for each row."""
    return np.stack([rng.permutation(n)[:k] for _ in range(rows)]).astype(np.int32)


def mask_of(rng: np.random.Generator, shape: tuple[int, ...], share: float = 0.4) -> np.ndarray:
    """Return a mask of 0 and -inf whose rows all see something."""
    mask = np.where(rng.random(shape) < share, -np.inf, 0.0).astype(np.float32)
    mask[..., 0] = 0.0
    return mask


def narrowed(x: np.ndarray, type_name: str) -> np.ndarray:
    """Return the values that a plain type holds of x, as f32 (f16 for F16)."""
    if type_name == "BF16":
        return bf16_to_f32(f32_to_bf16(x))
    return x.astype(np.float16) if type_name == "F16" else x


def refused(bench: Bench, node: Tensor, *words: object) -> None:
    """Assert that a run ends with an error that holds all words."""
    with pytest.raises(RpcError) as error:
        bench.run(node)
    assert all(str(word) in str(error.value) for word in words), error.value


# ---- INDEXER_TOPK ----


def scores(k: np.ndarray, q: np.ndarray, w: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the scores [tokens, keys] of an indexer."""
    dots = np.einsum("nd,thd->thn", k.astype(np.float64), q.astype(np.float64))
    return mask + np.einsum("th,thn->tn", w.astype(np.float64), np.maximum(dots, 0))


def topk_node(bench: Bench, sources: list[Tensor], tokens: int, k: int, kind: UnaryKind = UnaryKind.RELU) -> Tensor:
    return bench.node("INDEXER_TOPK", "I32", (tokens, k), sources, ints(kind))


# Fewer tokens than occupy two workers, and more; lists kept by a heap, and sorted.
@pytest.mark.parametrize(("tokens", "n", "k"), [(1, 97, 5), (1, 512, 300), (3, 1030, 17), (19, 200, 9), (21, 130, 130)])
@pytest.mark.parametrize(("k_type", "mask_type"), [("F16", "F32"), ("F32", "F16"), ("Q8_0", "F16"), ("BF16", "F32")])
def test_indexer_topk(
    bench: Bench, rng: np.random.Generator, *, tokens: int, n: int, k: int, k_type: str, mask_type: str
) -> None:
    keys = weights(rng, k_type, (n, 64))
    q, w, mask = normal(rng, (tokens, 5, 64)), normal(rng, (tokens, 5)), mask_of(rng, (tokens, n))
    sources = [
        bench.put_raw(k_type, (n, 64), keys[0]),
        bench.put(q),
        bench.put(w),
        bench.put(mask.astype(np.float16) if mask_type == "F16" else mask),
    ]
    node = topk_node(bench, sources, tokens, k)
    bench.run(node)
    got, expected = bench.read(node)[0, 0], scores(keys[1], q, w, mask)
    ordered = np.sort(expected, -1)[:, ::-1][:, :k]
    assert all(len(set(row)) == k for row in got.tolist())
    # Near equals may change places: what counts is that the scores chosen are the largest.
    np.testing.assert_allclose(np.take_along_axis(expected, got, -1), ordered, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [1, 33, 5000])
def test_indexer_topk_of_rows_of_any_length(bench: Bench, rng: np.random.Generator, size: int) -> None:
    keys, q, w = normal(rng, (70, size)), normal(rng, (2, 3, size)), normal(rng, (2, 3))
    sources = [bench.put(keys), bench.put(q), bench.put(w), bench.put(np.zeros((2, 70), np.float32))]
    node = topk_node(bench, sources, 2, 4)
    bench.run(node)
    expected = scores(keys, q, w, np.zeros((2, 70)))
    best = np.sort(expected, -1)[:, ::-1][:, :4]
    np.testing.assert_allclose(np.take_along_axis(expected, bench.read(node)[0, 0], -1), best, rtol=1e-4, atol=1e-2)


def test_indexer_topk_of_permuted_queries(bench: Bench, rng: np.random.Generator) -> None:
    """Queries lie head by head, as a client's permuted view has them; rows of the cache have gaps."""
    keys, q, w = normal(rng, (40, 32)), normal(rng, (4, 3, 32)), normal(rng, (3, 4))
    view = bench.permute(bench.put(q), (0, 2, 1, 3))
    sources = [rows_apart(bench, keys), view, bench.put(w), bench.put(np.zeros((3, 40), np.float32))]
    node = topk_node(bench, sources, 3, 6)
    bench.run(node)
    expected = scores(keys, q.transpose(1, 0, 2), w, np.zeros((3, 40)))
    best = np.sort(expected, -1)[:, ::-1][:, :6]
    np.testing.assert_allclose(np.take_along_axis(expected, bench.read(node)[0, 0], -1), best, rtol=1e-4, atol=1e-3)


def test_indexer_topk_knows_relu_alone(bench: Bench, rng: np.random.Generator) -> None:
    sources = [bench.put(normal(rng, s)) for s in ((40, 32), (3, 4, 32), (3, 4), (3, 40))]
    refused(bench, topk_node(bench, sources, 3, 6, UnaryKind.SILU), "INDEXER_TOPK", "RELU")


# ---- MASK_TOPK, MASK_TO_IDX ----


@pytest.mark.parametrize("type_name", ["F32", "F16"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 5), (97, 97), (9001, 40)])
def test_mask_topk(bench: Bench, rng: np.random.Generator, type_name: str, n: int, k: int) -> None:
    mask = mask_of(rng, (5, n)) + normal(rng, (5, n))
    mask = narrowed(mask, type_name)
    ids = distinct(rng, 3, n, k)
    node = bench.node("MASK_TOPK", type_name, mask.shape, [bench.put(mask, type_name), bench.put(ids)])
    bench.run(node)
    expected = np.full_like(mask, -np.inf)
    np.put_along_axis(expected[:3], ids.astype(np.int64), np.take_along_axis(mask[:3], ids.astype(np.int64), -1), -1)
    expected[3:] = mask[3:]
    check(bench.read(node)[0, 0], expected, "exact")


def test_mask_topk_in_place_over_planes(bench: Bench, rng: np.random.Generator) -> None:
    mask, ids = mask_of(rng, (2, 3, 65)), distinct(rng, 4, 65, 7).reshape(2, 2, 7)
    place = bench.put(mask)
    node = bench.node("MASK_TOPK", "F32", mask.shape, [place, bench.put(ids)], out=place)
    bench.run(node)
    expected = mask.copy()
    for plane in range(2):
        for row in range(2):
            gone = np.setdiff1d(np.arange(65), ids[plane, row])
            expected[plane, row, gone] = -np.inf
    check(bench.read(node)[0], expected, "exact")


@pytest.mark.parametrize("bad", [*OUTSIDE, 33])
def test_mask_topk_checks_indices(bench: Bench, bad: int) -> None:
    ids = np.array([[0, bad]], np.int32)
    node = bench.node("MASK_TOPK", "F32", (1, 33), [bench.put(np.zeros((1, 33), np.float32)), bench.put(ids)])
    refused(bench, node, "MASK_TOPK", bad)


@pytest.mark.parametrize("type_name", ["F32", "F16"])
@pytest.mark.parametrize(("n", "room"), [(1, 1), (17, 17), (97, 64), (1030, 40)])
def test_mask_to_idx(bench: Bench, rng: np.random.Generator, type_name: str, n: int, room: int) -> None:
    """Rows with more zeros than room name the first of them."""
    mask = narrowed(mask_of(rng, (2, 4, n), 0.9), type_name)
    mask[0, 1] = -np.inf
    mask[0, 2] = 0.0
    mask[1, 0, n // 2 :] = 1e-7
    node = bench.node("MASK_TO_IDX", "I32", (2, 4, room), [bench.put(mask, type_name)])
    bench.run(node)
    expected = np.full((2, 4, room), -1)
    for plane in range(2):
        for row in range(4):
            found = np.flatnonzero(mask[plane, row] == 0)[:room]
            expected[plane, row, : len(found)] = found
    check(bench.read(node)[0], expected, "exact")


# ---- FLASH_ATTN_ROWS ----


def listed(mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a mask that leaves the rows of a list as they are, and no others."""
    out = np.full_like(mask, -np.inf)
    for t, row in enumerate(rows):
        kept = row[row >= 0]
        out[t, kept] = mask[t, kept]
    return out


def attend_rows(
    bench: Bench,
    rng: np.random.Generator,
    rows: np.ndarray,
    *,
    heads: int = 8,
    tokens: int = 3,
    n_kv: int = 300,
    k_type: str = "F16",
    kv_heads: int = 1,
    **options: object,
) -> tuple[np.ndarray, np.ndarray]:
    """Attend to listed rows; return the result and what is expected with the list and the mask."""
    dk, dv = 64, 32
    q = normal(rng, (heads, tokens, dk))
    k, v = weights(rng, k_type, (kv_heads, n_kv, dk)), weights(rng, k_type, (kv_heads, n_kv, dv))
    mask = mask_of(rng, (-(-tokens // 16) * 16, n_kv), 0.1).astype(np.float16)
    mask[:, 5::7] = -1.5
    sinks = normal(rng, (heads,)) if options.get("sinks") else None
    cap = float(options.get("cap", 0.0))  # type: ignore[arg-type]
    sources = [
        bench.put(q),
        bench.put_raw(k_type, (kv_heads, n_kv, dk), k[0]),
        bench.put_raw(k_type, (kv_heads, n_kv, dv), v[0]),
        bench.put(mask),
        None if sinks is None else bench.put(sinks),
        bench.put(rows),
    ]
    params = struct.pack("<fffi", 0.125, 0.0, cap, 1)
    node = bench.node("FLASH_ATTN_EXT", "F32", (tokens, heads, dv), sources, params)
    bench.run(node)
    seen = mask[:tokens].astype(np.float64)
    if kv_heads == 1 and rows.shape[1] < n_kv:
        seen = listed(seen, rows)
    logits = np.einsum("htd,hnd->htn", q.astype(np.float64), np.repeat(k[1], heads // kv_heads, 0)) * 0.125
    if cap:
        logits = cap * np.tanh(logits / cap)
    logits = logits + seen
    top = logits.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    top = np.where(np.isfinite(top), top, 0.0)
    w = np.exp(logits - top)
    total = w.sum(-1, keepdims=True) + (0.0 if sinks is None else np.exp(sinks[:, None, None] - top))
    w = np.divide(w, total, out=np.zeros_like(w), where=total > 0)
    expected = np.einsum("htn,hnd->thd", w, np.repeat(v[1], heads // kv_heads, 0))
    return bench.read(node)[0], expected


@pytest.mark.parametrize("k_type", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (8, 3), (20, 1), (64, 2), (128, 21)])
def test_attention_to_listed_rows(bench: Bench, rng: np.random.Generator, k_type: str, heads: int, tokens: int) -> None:
    rows = distinct(rng, tokens, 300, 130)
    rows[:, ::5] = -1
    rows[:, 100:] = -7
    got, expected = attend_rows(bench, rng, rows, heads=heads, tokens=tokens, k_type=k_type)
    check(got, expected, "f32")


@pytest.mark.parametrize("options", [{"sinks": True}, {"cap": 5.0}, {"sinks": True, "cap": 3.0}])
def test_attention_to_listed_rows_with_sinks_and_cap(
    bench: Bench, rng: np.random.Generator, options: dict[str, object]
) -> None:
    got, expected = attend_rows(bench, rng, distinct(rng, 3, 300, 70), **options)
    check(got, expected, "f32")


def test_attention_to_adjacent_and_to_no_rows(bench: Bench, rng: np.random.Generator) -> None:
    rows = np.full((3, 90), -1, np.int32)
    rows[0] = np.arange(100, 190)
    rows[2, 40] = 7
    got, expected = attend_rows(bench, rng, rows)
    check(got, expected, "f32")
    assert not got[1].any()


def test_attention_to_rows_in_falling_order(bench: Bench, rng: np.random.Generator) -> None:
    """Neighbours the other way round must not be taken for a run of rows."""
    rows = np.tile(np.arange(200, 110, -1, dtype=np.int32), (3, 1))
    rows[1, :64] = rows[1, :64].reshape(32, 2)[:, ::-1].reshape(64)
    got, expected = attend_rows(bench, rng, rows)
    check(got, expected, "f32")


@pytest.mark.parametrize(("kv_heads", "n"), [(2, 100), (1, 300), (1, 400)])
def test_a_list_that_does_not_count(bench: Bench, rng: np.random.Generator, kv_heads: int, n: int) -> None:
    """With several heads of K, or as many places as rows, the mask alone decides, as in stock."""
    rows = np.full((3, n), 2**31 - 1, np.int32)
    got, expected = attend_rows(bench, rng, rows, kv_heads=kv_heads, k_type="F32")
    check(got, expected, "f32")


@pytest.mark.parametrize("bad", [300, 2**31 - 1])
def test_attention_checks_listed_rows(bench: Bench, rng: np.random.Generator, bad: int) -> None:
    rows = distinct(rng, 3, 300, 20)
    rows[2, 19] = bad
    with pytest.raises(RpcError, match=rf"FLASH_ATTN_ROWS.*{bad}"):
        attend_rows(bench, rng, rows)


# ---- LATENT_ATTN ----


def latent(
    bench: Bench,
    rng: np.random.Generator,
    *,
    cache_type: str = "F16",
    heads: int = 8,
    tokens: int = 3,
    n_kv: int = 150,
    prefix: int = 0,
    prefix_type: str = "F32",
    masked: bool = True,
    listed_rows: np.ndarray | None = None,
    dv: int = 32,
    offset: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the result of LATENT_ATTN and what is expected."""
    dk = 96
    q = normal(rng, (heads, tokens, dk))
    cache = weights(rng, cache_type, (n_kv, dk))
    mask = mask_of(rng, (tokens + 2, n_kv)) + np.float32(0.5)
    pk, pv = (narrowed(normal(rng, s), prefix_type) for s in ((prefix, dk), (dv, prefix)))
    sources = [
        bench.put(q),
        bench.put_raw(cache_type, (n_kv, dk), cache[0]),
        bench.put(pk) if prefix else None,
        bench.put(pv) if prefix else None,
        bench.put(mask) if masked else None,
        None if listed_rows is None else bench.put(listed_rows),
    ]
    params = struct.pack("<ffiii", 0.1, 0.0, dv, offset, listed_rows is not None)
    node = bench.node("LATENT_ATTN", "F32", (heads, tokens, dv), sources, params)
    bench.run(node)
    logits = np.einsum("htd,nd->htn", q.astype(np.float64), cache[1]) * 0.1
    if masked:
        logits = logits + mask[:tokens]
    values = np.broadcast_to(cache[1][:, offset : offset + dv], (heads, tokens, n_kv, dv))
    if listed_rows is not None:
        at = np.broadcast_to(listed_rows[:tokens], (heads, *listed_rows[:tokens].shape))
        logits = np.take_along_axis(logits, at, -1)
        values = np.take_along_axis(values, at[..., None], 2)
    if prefix:
        first = np.einsum("htd,pd->htp", q.astype(np.float64), pk.astype(np.float64)) * 0.1
        logits = np.concatenate([first, logits], -1)
        ahead = np.broadcast_to(pv.T.astype(np.float64), (heads, tokens, prefix, dv))
        values = np.concatenate([ahead, values], 2)
    top = logits.max(-1, keepdims=True)
    w = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    total = w.sum(-1, keepdims=True)
    w = np.divide(w, total, out=np.zeros_like(w), where=total > 0)
    return bench.read(node)[0], np.einsum("htn,htnd->htd", w, values)


@pytest.mark.parametrize("cache_type", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (8, 3), (9, 17), (20, 1)])
@pytest.mark.parametrize("prefix", [0, 1, 70])
def test_latent_attention(
    bench: Bench, rng: np.random.Generator, *, cache_type: str, heads: int, tokens: int, prefix: int
) -> None:
    got, expected = latent(bench, rng, cache_type=cache_type, heads=heads, tokens=tokens, prefix=prefix)
    check(got, expected, "f32")


@pytest.mark.parametrize("prefix_type", ["F32", "F16"])
@pytest.mark.parametrize("masked", [True, False])
def test_latent_attention_to_listed_rows(
    bench: Bench, rng: np.random.Generator, prefix_type: str, masked: bool
) -> None:
    rows = distinct(rng, 5, 150, 90)
    got, expected = latent(bench, rng, listed_rows=rows, prefix=5, prefix_type=prefix_type, masked=masked, offset=64)
    check(got, expected, "f32")


@pytest.mark.parametrize(("dv", "offset"), [(96, 0), (1, 95), (33, 7)])
def test_values_anywhere_in_the_rows(bench: Bench, rng: np.random.Generator, dv: int, offset: int) -> None:
    got, expected = latent(bench, rng, cache_type="F32", dv=dv, offset=offset, prefix=3)
    check(got, expected, "f32")


@pytest.mark.parametrize("bad", [*OUTSIDE, 150])
def test_latent_attention_checks_rows(bench: Bench, rng: np.random.Generator, bad: int) -> None:
    rows = distinct(rng, 3, 150, 9)
    rows[1, 8] = bad
    with pytest.raises(RpcError, match=rf"LATENT_ATTN.*{bad}"):
        latent(bench, rng, listed_rows=rows)
