"""FLASH_ATTN_EXT against float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.ops.conftest import device
from tests.ops.test_softmax import slopes
from tests.ops.tolerances import check
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16
from tests.support.wiretensor import Tensor

IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
PLAIN = ["F16", "BF16", "F32"]
HALF_QUERIES = 64  # from so many queries on F16 is summed up in f32
QUANTISED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"]


def quantised(rng: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """Return random blocks of 32 and their values."""
    blocks = (*shape[:-1], shape[-1] // 32)
    d = rng.uniform(0.01, 0.1, blocks).astype(np.float16)
    m = rng.uniform(-1, 1, blocks).astype(np.float16)
    parts = [d.view(np.uint8).reshape(*blocks, 2)]
    if type_name == "Q8_0":
        q = rng.integers(-30, 31, (*blocks, 32)).astype(np.int8)
        parts.append(q.view(np.uint8))
        values = q.astype(np.float64)
    else:
        if type_name.endswith("_1"):
            parts.append(m.view(np.uint8).reshape(*blocks, 2))
        q = rng.integers(0, 32 if "Q5" in type_name else 16, (*blocks, 32))
        if "Q5" in type_name:
            parts.append(np.packbits((q >> 4).astype(np.uint8), axis=-1, bitorder="little"))
        low = (q & 15).astype(np.uint8)
        parts.append(low[..., :16] | low[..., 16:] << 4)
        centre = {"Q4_0": 8, "Q5_0": 16}.get(type_name, 0)
        values = IQ4_NL[q].astype(np.float64) if type_name == "IQ4_NL" else (q - centre).astype(np.float64)
    values = values * d.astype(np.float64)[..., None]
    if type_name.endswith("_1"):
        values = values + m.astype(np.float64)[..., None]
    return np.concatenate(parts, axis=-1).tobytes(), values.reshape(shape)


def put(bench: Bench, rng: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """Place random values of a type; return the tensor and the values."""
    if type_name in QUANTISED:
        data, values = quantised(rng, type_name, shape)
        return bench.put_raw(type_name, shape, data), values
    x = rng.standard_normal(shape).astype(np.float32)
    if type_name == "BF16":
        x = bf16_to_f32(f32_to_bf16(x))
        return bench.put(x, "BF16"), x
    x = x.astype(np.float16 if type_name == "F16" else np.float32)
    return bench.put(x), x


def causal(n_q: int, n_kv: int, rows: int | None = None) -> np.ndarray:
    """Return a mask in which query i sees all but the last n_q - 1 - i positions."""
    mask = np.zeros((1, 1, rows or n_q, n_kv), np.float16)
    for i in range(n_q):
        mask[0, 0, i, n_kv - (n_q - 1 - i) :] = -np.inf
    return mask


def oracle(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    scale: float = 0.125,
    max_bias: float = 0.0,
    softcap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Attention of q, k, v (batch, head, row, channel); the result is (batch, query, head, channel)."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    n_head = q.shape[1]
    k = np.repeat(k, n_head // k.shape[1], axis=1)
    v = np.repeat(v, n_head // v.shape[1], axis=1)
    s = q @ k.transpose(0, 1, 3, 2) * float(np.float32(scale))
    if softcap:
        s = softcap * np.tanh(s / softcap)
    if mask is not None:
        m = mask.astype(np.float64)[:, :, : q.shape[2], : k.shape[2]]
        m = np.tile(m, (q.shape[0] // m.shape[0], n_head // m.shape[1], 1, 1))
        s = s + slopes(n_head, max_bias)[None, :, None, None] * m
    top = s.max(-1, keepdims=True)
    if sinks is not None:
        sink = sinks.astype(np.float64)[None, :, None, None]
        top = np.maximum(top, sink)
    top = np.where(np.isinf(top), 0.0, top)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sink - top)
    return (e @ v / np.where(total == 0, 1.0, total)).transpose(0, 2, 1, 3)


def check_sums(got: np.ndarray, expected: np.ndarray, v_type: str = "F16", live: int = 256) -> None:
    """Compare a result (batch, query, head, channel) with its oracle, by the precision in which it is summed up.

    `live` is the largest number of positions that a query sees.
    """
    half = v_type == "F16" and got.shape[1] < HALF_QUERIES
    check(got, expected, "product_f32", ("half_sums" if live <= 256 else "long_half_sums") if half else None)


def params(scale: float = 0.125, max_bias: float = 0.0, softcap: float = 0.0, prec: int = 0) -> bytes:
    return struct.pack("<3fi", scale, max_bias, softcap, prec)


def attend(
    bench: Bench, q: np.ndarray, sources: list[Tensor | None], dv: int, words: bytes | None = None
) -> np.ndarray:
    """Run one node and return its result as (batch, query, head, channel)."""
    shape = (q.shape[0], q.shape[2], q.shape[1], dv)
    node = bench.node("FLASH_ATTN_EXT", "F32", shape, [bench.put(q), *sources], words or params())
    bench.run(node)
    return bench.read(node)


def queries(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n_q", [1, 2, 7, 33])
@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("n_kv", [1, 63, 200])
def test_shapes(bench: Bench, rng: np.random.Generator, n_q: int, group: int, n_kv: int) -> None:
    q = queries(rng, 2, 2 * group, n_q, 64)
    tk, k = put(bench, rng, "F16", (2, 2, n_kv, 64))
    tv, v = put(bench, rng, "F16", (2, 2, n_kv, 64))
    check_sums(attend(bench, q, [tk, tv], 64), oracle(q, k, v))


@pytest.mark.parametrize("n_q", [1, 3, 20])
@pytest.mark.parametrize("sizes", [(40, 40), (72, 33), (80, 128), (192, 128), (576, 512), (1, 1), (17, 5)])
@pytest.mark.parametrize("type_name", ["F16", "F32"])
def test_head_sizes(bench: Bench, rng: np.random.Generator, type_name: str, n_q: int, sizes: tuple[int, int]) -> None:
    dk, dv = sizes
    q = queries(rng, 1, 6, n_q, dk)
    tk, k = put(bench, rng, type_name, (1, 2, 75, dk))
    tv, v = put(bench, rng, type_name, (1, 2, 75, dv))
    got, expected = attend(bench, q, [tk, tv], dv), oracle(q, k, v)
    if dv == 1:  # a row of one element may be next to nothing beside its parts
        got, expected = got.swapaxes(2, 3), expected.swapaxes(2, 3)
    check_sums(got, expected, type_name)


@pytest.mark.parametrize("n_q", [1, 20])
@pytest.mark.parametrize("k_type", PLAIN + QUANTISED)
@pytest.mark.parametrize("v_type", PLAIN + QUANTISED)
def test_types(bench: Bench, rng: np.random.Generator, k_type: str, v_type: str, n_q: int) -> None:
    q = queries(rng, 1, 4, n_q, 64)
    tk, k = put(bench, rng, k_type, (1, 2, 90, 64))
    tv, v = put(bench, rng, v_type, (1, 2, 90, 96))
    check_sums(attend(bench, q, [tk, tv], 96), oracle(q, k, v), v_type)


@pytest.mark.parametrize("n_q", [1, 2, 7, 33, 100])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("prec", [0, 10])
def test_causal_mask(bench: Bench, rng: np.random.Generator, n_q: int, group: int, prec: int) -> None:
    """The mask may have more rows than queries (padding) and leave the end of the cache unused."""
    q = queries(rng, 1, 2 * group, n_q, 32)
    tk, k = put(bench, rng, "F16", (1, 2, 256, 32))
    tv, v = put(bench, rng, "F16", (1, 2, 256, 32))
    mask = causal(n_q, 256, rows=128)
    mask[..., 180:] = -np.inf
    mask[..., :n_q, :10] = 0
    got = attend(bench, q, [tk, tv, bench.put(mask)], 32, params(prec=prec))
    check_sums(got, oracle(q, k, v, mask))


@pytest.mark.parametrize("n_q", [1, 5, 40])
@pytest.mark.parametrize("mask_shape", [(1, 1), (1, 8), (3, 1), (3, 4)])
def test_mask_repeats(bench: Bench, rng: np.random.Generator, n_q: int, mask_shape: tuple[int, int]) -> None:
    """Masks repeat over heads and batches; holes anywhere; values other than zero count."""
    q = queries(rng, 3, 8, n_q, 32)
    tk, k = put(bench, rng, "F16", (3, 2, 150, 32))
    tv, v = put(bench, rng, "F16", (3, 2, 150, 32))
    mask = rng.standard_normal((*mask_shape, n_q, 150)).astype(np.float16)
    mask[rng.random(mask.shape) < 0.6] = -np.inf
    check_sums(attend(bench, q, [tk, tv, bench.put(mask)], 32), oracle(q, k, v, mask))


@pytest.mark.parametrize("n_q", [1, 40])
@pytest.mark.parametrize("n_head", [1, 6, 8])
def test_alibi(bench: Bench, rng: np.random.Generator, n_q: int, n_head: int) -> None:
    q = queries(rng, 1, n_head, n_q, 32)
    tk, k = put(bench, rng, "F16", (1, 1, 100, 32))
    tv, v = put(bench, rng, "F16", (1, 1, 100, 32))
    mask = -np.abs(np.arange(100)[None] - np.arange(n_q)[:, None]).astype(np.float16)[None, None]
    got = attend(bench, q, [tk, tv, bench.put(mask)], 32, params(max_bias=8.0))
    check_sums(got, oracle(q, k, v, mask, max_bias=8.0))


@pytest.mark.parametrize("n_q", [1, 40])
@pytest.mark.parametrize("n_kv", [70, 64])
def test_softcap(bench: Bench, rng: np.random.Generator, n_q: int, n_kv: int) -> None:
    q = queries(rng, 1, 4, n_q, 64) * 20
    tk, k = put(bench, rng, "F16", (1, 1, n_kv, 64))
    tv, v = put(bench, rng, "F16", (1, 1, n_kv, 64))
    got = attend(bench, q, [tk, tv], 64, params(softcap=20.0))
    check_sums(got, oracle(q, k, v, softcap=20.0))


@pytest.mark.parametrize("n_q", [1, 40])
def test_sinks(bench: Bench, rng: np.random.Generator, n_q: int) -> None:
    q = queries(rng, 2, 4, n_q, 32)
    tk, k = put(bench, rng, "F16", (2, 2, 600, 32))
    tv, v = put(bench, rng, "F16", (2, 2, 600, 32))
    sinks = np.array([-5.0, 0.0, 8.0, 60.0], np.float32)
    mask = causal(n_q, 600)
    got = attend(bench, q, [tk, tv, bench.put(mask), bench.put(sinks)], 32)
    check_sums(got, oracle(q, k, v, mask, sinks=sinks), live=600)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("size", [(2, 2, 50), (60, 2, 50), (2, 40, 50), (2, 2, 700), (60, 2, 700), (2, 40, 700)])
def test_fully_masked_row_is_zero(
    bench: Bench, rng: np.random.Generator, size: tuple[int, int, int], with_sinks: bool
) -> None:
    n_q, n_head, n_kv = size
    q = queries(rng, 1, n_head, n_q, 32)
    tk, k = put(bench, rng, "F16", (1, 1, n_kv, 32))
    tv, v = put(bench, rng, "F16", (1, 1, n_kv, 32))
    mask = np.zeros((1, 1, n_q, n_kv), np.float16)
    mask[..., 1, :] = -np.inf
    sinks = rng.standard_normal(n_head).astype(np.float32)
    sources = [tk, tv, bench.put(mask), bench.put(sinks) if with_sinks else None]
    got = attend(bench, q, sources, 32)
    assert (got[:, 1] == 0).all()
    check_sums(got, oracle(q, k, v, mask, sinks=sinks if with_sinks else None), live=n_kv)


@pytest.mark.parametrize("n_q", [1, 30])
def test_what_is_masked_does_not_matter(bench: Bench, rng: np.random.Generator, n_q: int) -> None:
    """Positions that no query sees may hold anything, NaN too: parts of a cache that were never written."""
    q = queries(rng, 1, 2, n_q, 32)
    k = rng.standard_normal((1, 2, 130, 32)).astype(np.float16)
    v = rng.standard_normal((1, 2, 130, 32)).astype(np.float16)
    mask = np.zeros((1, 1, n_q, 130), np.float16)
    mask[..., 40:77] = mask[..., 100:] = -np.inf
    expected = oracle(q, k, v, mask)
    k[..., 40:77, :] = v[..., 40:77, :] = k[..., 100:, :] = v[..., 100:, :] = np.nan
    check_sums(attend(bench, q, [bench.put(k), bench.put(v), bench.put(mask)], 32), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("n_q", "group"), [(1, 1), (1, 8), (7, 1), (2, 16)])
def test_long_range(level: str, rng: np.random.Generator, threads: int, n_q: int, group: int) -> None:
    """Few heads against many positions: the range is split over the workers and joined."""
    bench = Bench(device(level, threads))
    q = queries(rng, 1, group, n_q, 64)
    tk, k = put(bench, rng, "F16", (1, 1, 3001, 64))
    tv, v = put(bench, rng, "F16", (1, 1, 3001, 64))
    mask = causal(n_q, 3001)
    mask[..., 300:2700] = -np.inf  # whole parts without a live position
    got = attend(bench, q, [tk, tv, bench.put(mask)], 64)
    check_sums(got, oracle(q, k, v, mask), live=601)


@pytest.mark.parametrize("n_q", [1, 30])
@pytest.mark.parametrize("type_name", ["F16", "Q8_0"])
def test_strides(bench: Bench, rng: np.random.Generator, n_q: int, type_name: str) -> None:
    """A cache with the heads of a token side by side, of which a part is read; q permuted."""
    base_q = rng.standard_normal((n_q, 4, 64)).astype(np.float32)
    view_q = bench.permute(bench.put(base_q), (0, 2, 1, 3))
    tensors, values = [], []
    block = TYPE_BY_NAME[type_name]
    head_bytes = 64 // block.block * block.bytes
    for _ in range(2):
        t, x = put(bench, rng, type_name, (200, 2, 64))
        view = bench.view(t, type_name, (2, 120, 64), (head_bytes, 2 * head_bytes, block.bytes), offset=2 * head_bytes)
        tensors.append(view)
        values.append(x[1:121].transpose(1, 0, 2)[None])
    node = bench.node("FLASH_ATTN_EXT", "F32", (1, n_q, 4, 64), [view_q, *tensors], params())
    bench.run(node)
    check_sums(bench.read(node), oracle(base_q.transpose(1, 0, 2)[None], *values), type_name)


def half_sums(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    """Attention of one K and V head whose q and sums over V are rounded to half, position after position."""
    s = q.astype(np.float16).astype(np.float64) @ k[0, 0].astype(np.float64).T * scale + mask.astype(np.float64)
    top = np.full(q.shape[:3], -np.inf)
    total = np.zeros(q.shape[:3])
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for j in range(s.shape[-1]):
        live = s[..., j] > -np.inf
        higher = np.maximum(top, s[..., j])
        shrink = np.exp(np.where(live & (top > -np.inf), top - higher, 0.0))
        weight = np.where(live, np.exp(np.where(live, s[..., j] - higher, 0.0)), 0.0)
        out = (out * shrink[..., None]).astype(np.float16).astype(np.float64)
        out = (out + v[0, 0, j] * weight[..., None]).astype(np.float16).astype(np.float64)
        total = total * shrink + weight
        top = higher
    return (out / total[..., None]).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("n_q", [1, 3, 9, 63])
@pytest.mark.parametrize("sizes", [(1, 1, 16), (1, 500, 64), (3, 511, 72), (4, 130, 256), (8, 90, 33)])
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_half_sums(bench: Bench, rng: np.random.Generator, n_q: int, sizes: tuple[int, int, int], size: float) -> None:
    """With F16 K and V and few queries every step is rounded as stock does, sums of subnormal halves too."""
    n_head, n_kv, d = sizes
    q = queries(rng, 1, n_head, n_q, d) * 3
    k = rng.standard_normal((1, 1, n_kv, d)).astype(np.float16)
    v = (rng.standard_normal((1, 1, n_kv, d)) * size).astype(np.float16)
    mask = rng.standard_normal((1, 1, n_q, n_kv)).astype(np.float16)
    mask[rng.random(mask.shape) < 0.3] = -np.inf
    mask[..., 0] = 0
    got = attend(bench, q, [bench.put(k), bench.put(v), bench.put(mask)], d)
    check(got, half_sums(q, k, v, mask, 0.125), "f16")


def test_different_head_counts_of_k_and_v(bench: Bench, rng: np.random.Generator) -> None:
    q = queries(rng, 1, 12, 5, 32)
    tk, k = put(bench, rng, "F16", (1, 2, 80, 32))
    tv, v = put(bench, rng, "F16", (1, 3, 80, 32))
    check_sums(attend(bench, q, [tk, tv], 32), oracle(q, k, v))


@pytest.mark.parametrize("n_q", [1, 64])
def test_growing_scores(bench: Bench, rng: np.random.Generator, n_q: int) -> None:
    """The maximum rises from visit to visit, over a range that exp alone could not hold."""
    q = np.full((1, 1, n_q, 16), 10.0, np.float32)
    k = np.repeat(np.linspace(-8, 8, 500)[:, None], 16, axis=1).astype(np.float16)[None, None]
    v = rng.standard_normal((1, 1, 500, 16)).astype(np.float16)
    got = attend(bench, q, [bench.put(k), bench.put(v)], 16, params(1.0))
    check_sums(got, oracle(q, k, v, scale=1.0))


@pytest.mark.parametrize(
    ("k_shape", "v_shape", "mask_shape", "n_sinks"),
    [
        ((1, 2, 40, 48), (1, 2, 40, 32), None, None),
        ((1, 2, 40, 32), (1, 2, 39, 32), None, None),
        ((1, 3, 40, 32), (1, 2, 40, 32), None, None),
        ((1, 2, 40, 32), (1, 3, 40, 32), None, None),
        ((1, 2, 40, 32), (1, 2, 40, 32), (1, 1, 5, 39), None),
        ((1, 2, 40, 32), (1, 2, 40, 32), (1, 1, 4, 40), None),
        ((1, 2, 40, 32), (1, 2, 40, 32), None, 3),
        ((1, 2, 40, 9000), (1, 2, 40, 32), None, None),
    ],
)
def test_refuses(
    bench: Bench,
    k_shape: tuple[int, ...],
    v_shape: tuple[int, ...],
    mask_shape: tuple[int, ...] | None,
    n_sinks: int | None,
) -> None:
    """Shapes that do not fit each other are refused before anything runs."""
    q = np.zeros((1, 4, 5, 9000 if k_shape[-1] == 9000 else 32), np.float32)
    sources: list[Tensor | None] = [
        bench.put(q),
        bench.place("F16", k_shape),
        bench.place("F16", v_shape),
        bench.place("F16", mask_shape) if mask_shape else None,
        bench.place("F32", (n_sinks,)) if n_sinks else None,
    ]
    node = bench.node("FLASH_ATTN_EXT", "F32", (1, 5, 4, 32), sources, params())
    with pytest.raises(RpcError):
        bench.compile([node])
