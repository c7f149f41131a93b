"""ik_llama.cpp's tensor types: rows to f32, products with rows and with interleaved rows, the types of its caches."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.spec import dialects
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.ops import conftest, ik_groups, ik_types
from tests.ops.tolerances import check
from tests.support.device import Bench

INTERLEAVED = [*ik_groups.GROUPS, "BF16_R16"]
WITH_HEADER = [name for name in ik_types.ROWS if TYPE_BY_NAME[name].row_meta]


@pytest.fixture
def bench(level: str) -> Bench:
    """Return memory and a device at one level, reached by ik_llama.cpp's dialect."""
    dialect = dialects.find("ik-3.5.2")
    assert dialect is not None
    return Bench(conftest.device(level), size=4 << 20, dialect=dialect)


@cache
def contents(name: str, n_rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes and values of a matrix; the same for all tests, since oracles go element by element."""
    random = ik_groups.random_groups if TYPE_BY_NAME[name].row_group > 1 else ik_types.random_rows
    return random(name, np.random.default_rng([*name.encode(), k]), n_rows, k)


def widths(name: str) -> list[int]:
    """Return lengths of rows: one block, and more than a slice of any engine."""
    block = TYPE_BY_NAME[name].block
    return [256, 1280] if block == 256 else [block, 256 + 3 * block]


@pytest.mark.parametrize("name", ik_types.ROWS)
def test_rows_to_f32(bench: Bench, rng: np.random.Generator, name: str) -> None:
    """GET_ROWS and CPY give each element's value."""
    for k in widths(name):
        raw, values = contents(name, 39, k)
        table = bench.put_raw(name, (5, k), raw[:5].tobytes())
        ids = np.array([3, 0, 4, 4], np.int32)
        rows = bench.node("GET_ROWS", "F32", (4, k), [table, bench.put(ids)])
        copy = bench.node("CPY", "F32", (5, k), [table])
        copy.src.append(copy)
        bench.run(rows, copy)
        check(bench.read(rows).reshape(4, k), values[ids], "f32")
        check(bench.read(copy).reshape(5, k), values[:5], "f32")


def activations(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return columns; for types whose products of large neighbours saturate, ones that do not.

    Those are small multiples of one step, and one large element in each block of 256, so that its grid is that of the
    multiples. Its neighbour in the pair is zero.
    """
    if name not in ik_types.SATURATING:
        return rng.standard_normal(shape).astype(np.float32)
    steps = rng.integers(-63, 64, (*shape[:-1], shape[-1] // 256, 128, 2))
    steps[..., 40, :] = [127, 0]
    return (steps.reshape(shape) / 50).astype(np.float32)


@pytest.mark.parametrize("n_columns", [1, 3, 6, 31, 37])
@pytest.mark.parametrize("name", ik_types.ROWS)
def test_product(bench: Bench, rng: np.random.Generator, name: str, n_columns: int) -> None:
    for k in widths(name):
        raw, values = contents(name, 39, k)
        x = activations(name, rng, (n_columns, k))
        node = bench.node(
            "MUL_MAT", "F32", (n_columns, 39), [bench.put_raw(name, (39, k), raw.tobytes()), bench.put(x)]
        )
        bench.run(node)
        expected = x.astype(np.float64) @ values.T * ik_types.PRODUCT.get(name, 1)
        check(bench.read(node).reshape(n_columns, 39), expected, "product_quant")


@pytest.mark.parametrize("n_columns", [1, 5, 31, 32])
@pytest.mark.parametrize("name", ik_types.SATURATING)
def test_large_neighbours_saturate(bench: Bench, name: str, n_columns: int) -> None:
    """With the largest activations beside each other, as in stock's kernels: only for few columns."""
    rng = np.random.default_rng(7)
    raw, values = contents(name, 39, 256)
    steps = rng.integers(90, 128, (n_columns, 256)) * rng.choice([-1, 1], (n_columns, 1))
    steps[:, 0] = 127
    table = bench.put_raw(name, (39, 256), raw.tobytes())
    node = bench.node("MUL_MAT", "F32", (n_columns, 39), [table, bench.put((steps / 127).astype(np.float32))])
    bench.run(node)
    if n_columns < ik_types.SATURATED_COLUMNS:
        expected = np.empty((n_columns, 39))
        for r in range(39):
            scale, code, move = ik_types.parts(name, raw[r])
            pairs = ((code + 128) * steps).reshape(n_columns, 128, 2).sum(axis=2)
            assert np.abs(pairs).max() > 32767
            clipped = np.clip(pairs, -32768, 32767).repeat(2, axis=1) / 2
            expected[:, r] = np.sum(scale * (clipped + (move - 128) * steps), axis=1) / 127
    else:
        expected = steps / 127 @ values.T
    check(bench.read(node).reshape(n_columns, 39), expected, "product_quant")


@pytest.mark.parametrize("n_columns", [1, 6, 37])
@pytest.mark.parametrize("name", INTERLEAVED)
def test_interleaved_product(bench: Bench, rng: np.random.Generator, name: str, n_columns: int) -> None:
    """Enough rows for a last block that is not full, whatever the sizes of groups and panels."""
    for k in widths(name) if name != "BF16_R16" else [34, 546]:
        raw, values = contents(name, 48, k)
        x = rng.standard_normal((n_columns, k)).astype(np.float32)
        node = bench.node(
            "MUL_MAT", "F32", (n_columns, 48), [bench.put_raw(name, (48, k), raw.tobytes()), bench.put(x)]
        )
        bench.run(node)
        check(bench.read(node).reshape(n_columns, 48), x.astype(np.float64) @ values.T, "product_quant")


@pytest.mark.parametrize("n_tokens", [2, 40])
@pytest.mark.parametrize("name", ["IQ4_KS", "IQ2_KT", "Q8_KV", "IQ4_K_R4", "Q8_KV_R8", "Q8_K_R16"])
def test_experts(bench: Bench, rng: np.random.Generator, name: str, n_tokens: int) -> None:
    raw, values = contents(name, 4 * 32, 256)
    x = activations(name, rng, (n_tokens, 1, 256))
    ids = np.stack([rng.permutation(4)[:2] for _ in range(n_tokens)]).astype(np.int32)
    weights = bench.put_raw(name, (4, 32, 256), raw.tobytes())
    node = bench.node("MUL_MAT_ID", "F32", (n_tokens, 2, 32), [weights, bench.put(x), bench.put(ids)])
    bench.run(node)
    expected = np.einsum("tumk,tk->tum", values.reshape(4, 32, 256)[ids], x[:, 0].astype(np.float64))
    expected *= ik_types.PRODUCT.get(name, 1)
    check(bench.read(node).reshape(n_tokens, 2, 32), expected, "product_quant")


@pytest.mark.parametrize("name", WITH_HEADER)
def test_rows_with_header_move_whole(bench: Bench, rng: np.random.Generator, name: str) -> None:
    """A copy of the same type takes headers along, from rows that lie apart as well."""
    raw = rng.integers(0, 256, (6, TYPE_BY_NAME[name].row_bytes(256)), np.uint8)
    table = bench.put_raw(name, (6, 256), raw.tobytes())
    n = TYPE_BY_NAME[name].row_bytes(256)
    every_second = bench.view(table, name, (3, 256), (2 * n, TYPE_BY_NAME[name].bytes))
    node = bench.node("CPY", name, (3, 256), [every_second])
    node.src.append(node)
    bench.run(every_second, node)
    np.testing.assert_array_equal(np.frombuffer(bench.raw(node), np.uint8).reshape(3, n), raw[::2])


@pytest.mark.parametrize("name", WITH_HEADER)
def test_rows_with_header_keep_their_length(bench: Bench, name: str) -> None:
    source = bench.place(name, (4, 256))
    for type_name, shape in [("F32", (2, 512)), (name, (2, 512))]:
        node = bench.node("CPY", type_name, shape, [source])
        node.src.append(node)
        with pytest.raises(RpcError, match="header"):
            bench.compile([node])


@pytest.mark.parametrize("name", ["IQ4_KS", "IQ2_KS", "Q8_KV"])
def test_part_of_a_row_with_header(bench: Bench, rng: np.random.Generator, name: str) -> None:
    """A view of rows' beginnings has their headers."""
    raw, values = ik_types.random_rows(name, rng, 8, 768)
    table = bench.put_raw(name, (8, 768), raw.tobytes())
    part = bench.view(table, name, (8, 512), (TYPE_BY_NAME[name].row_bytes(768), TYPE_BY_NAME[name].bytes))
    x = activations(name, rng, (2, 512))
    product = bench.node("MUL_MAT", "F32", (2, 8), [part, bench.put(x)])
    copy = bench.node("CPY", "F32", (8, 512), [part])
    copy.src.append(copy)
    bench.run(part, product, copy)
    check(bench.read(product).reshape(2, 8), x.astype(np.float64) @ values[:, :512].T, "product_quant")
    check(bench.read(copy).reshape(8, 512), values[:, :512], "f32")


def silu(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = x / (1 + np.exp(-x))
    return y


@pytest.mark.parametrize("n_columns", [1, 40])
@pytest.mark.parametrize("name", ["IQ4_KS", "IQ2_KT", "Q8_KV", "IQ4_K_R4", "IQ4_KS_R4", "Q8_K_R16", "BF16_R16"])
def test_gated_products(bench: Bench, rng: np.random.Generator, name: str, n_columns: int) -> None:
    """Gate and up of one type: two matrices, and (experts) halves of one whose groups must not be torn."""
    raw, values = contents(name, 128, 256)
    half = len(raw.tobytes()) // 2
    x = activations(name, rng, (n_columns, 256)) / 8
    up, gate = (bench.put_raw(name, (64, 256), data) for data in (raw.tobytes()[half:], raw.tobytes()[:half]))
    silu_code = np.array([10, 0], np.int32).tobytes()
    dense = bench.node("FUSED_UP_GATE", "F32", (n_columns, 64), [up, gate, bench.put(x)], silu_code)
    both = bench.put_raw(name, (1, 128, 256), raw.tobytes())
    ids = bench.put(np.zeros((n_columns, 1), np.int32))
    columns = bench.put(x.reshape(n_columns, 1, 256))
    merged = bench.node("MOE_FUSED_UP_GATE", "F32", (n_columns, 1, 64), [both, None, columns, ids], silu_code)
    bench.run(dense, merged)
    y = x.astype(np.float64) @ values.T * ik_types.PRODUCT.get(name, 1)
    expected = silu(y[:, :64]) * y[:, 64:]
    check(bench.read(dense).reshape(n_columns, 64), expected, "product_quant")
    check(bench.read(merged).reshape(n_columns, 64), expected, "product_quant")


def test_merged_gates_keep_groups_whole(bench: Bench) -> None:
    both = bench.place("Q8_K_R16", (2, 48, 256))
    x, ids = bench.put(np.zeros((1, 1, 256), np.float32)), bench.put(np.zeros((1, 1), np.int32))
    node = bench.node(
        "MOE_FUSED_UP_GATE", "F32", (1, 1, 24), [both, None, x, ids], np.array([10, 0], np.int32).tobytes()
    )
    with pytest.raises(RpcError, match="even number of rows"):
        bench.compile([node])


# ---- Types of caches ----


@pytest.mark.parametrize("n_tokens", [1, 20])
@pytest.mark.parametrize("name", ["Q8_KV", "Q6_0"])
def test_attention_reads_the_cache(bench: Bench, rng: np.random.Generator, name: str, n_tokens: int) -> None:
    """Keys of two heads beside each other in a position's row, each with a header of its own where the type has one."""
    raw, keys = ik_types.random_rows(name, rng, 2 * 96, 128)
    n = TYPE_BY_NAME[name].row_bytes(128)
    cache = bench.put_raw(name, (192, 128), raw.tobytes())
    k = bench.view(cache, name, (2, 96, 128), (n, 2 * n, TYPE_BY_NAME[name].bytes))
    v = rng.standard_normal((2, 96, 128)).astype(np.float32)
    q = rng.standard_normal((4, n_tokens, 128)).astype(np.float32)
    scale = np.array([0.05, 0, 0], np.float32).tobytes()
    node = bench.node("FLASH_ATTN_EXT", "F32", (n_tokens, 4, 128), [bench.put(q), k, bench.put(v), None], scale)
    bench.run(k, node)
    heads = keys.reshape(96, 2, 128).transpose(1, 0, 2).repeat(2, axis=0)
    scores = np.einsum("htd,hnd->htn", q.astype(np.float64), heads) * np.float32(0.05)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("htn,hnd->thd", weights, v.repeat(2, axis=0).astype(np.float64))
    check(bench.read(node).reshape(n_tokens, 4, 128), expected, "f32")


def to_q8_kv(x: np.ndarray) -> np.ndarray:
    """Return the bytes of rows, by the definition of the format."""
    rows = []
    for row in x:
        d = np.float32(np.abs(row).max()) / np.float32(127)
        inverse = np.float32(1) / d if d else np.float32(0)
        q = np.rint(row * inverse).astype(np.int8)
        rows.append(d.tobytes() + np.int32(q.astype(np.int32).sum()).tobytes() + q.tobytes())
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(x), -1)


@pytest.mark.parametrize("k", [32, 128, 576])
def test_write_q8_kv(bench: Bench, rng: np.random.Generator, k: int) -> None:
    """Heads of tokens into consecutive rows of the cache, as clients write it."""
    x = rng.standard_normal((3, 5, k)).astype(np.float32)
    x[1, 2] = 0
    cache = bench.place("Q8_KV", (20, k))
    n = TYPE_BY_NAME["Q8_KV"].row_bytes(k)
    target = bench.view(cache, "Q8_KV", (15, k), (n, 32), offset=2 * n)
    node = bench.node("CPY", "Q8_KV", (15, k), [bench.put(x), target], out=target)
    bench.run(target, node)
    np.testing.assert_array_equal(np.frombuffer(bench.raw(node), np.uint8).reshape(15, n), to_q8_kv(x.reshape(15, k)))


def test_set_rows_q8_kv(bench: Bench, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 64)).astype(np.float32)
    ids = np.array([6, 1, 0, 3], np.int64)
    table = bench.put_raw("Q8_KV", (7, 64), bytes(7 * 72))
    node = bench.node("SET_ROWS", "Q8_KV", (7, 64), [bench.put(x), bench.put(ids), table], out=table)
    bench.run(node)
    np.testing.assert_array_equal(np.frombuffer(bench.raw(node), np.uint8).reshape(7, 72)[ids], to_q8_kv(x))


def test_write_q6_0(bench: Bench, rng: np.random.Generator) -> None:
    """Codes by the element of largest magnitude, then the scale that fits them best."""
    x = (rng.standard_normal((7, 96)) * 10.0 ** rng.integers(-4, 3, (7, 1))).astype(np.float32)
    x[2, 32:64] = 0
    node = bench.node("CPY", "Q6_0", x.shape, [bench.put(x)])
    node.src.append(node)
    bench.run(node)
    blocks = np.frombuffer(bench.raw(node), np.uint8).reshape(-1, 26)
    for block, values in zip(blocks, x.reshape(-1, 32), strict=True):
        extreme = values[np.argmax(np.abs(values))]
        d = np.float32(extreme) / np.float32(-32)
        scaled = values * (np.float32(1) / d if d else np.float32(0))
        codes = np.minimum(63, (scaled + np.float32(32.5)).astype(np.int8)).astype(float) - 32
        w = scaled.astype(float) ** 2
        best = np.sum(w * values * codes) / np.sum(w * codes * codes) if np.any(codes) else float(d)
        unit = np.ones(1, np.float16).view(np.uint8)
        np.testing.assert_array_equal(ik_types.q6_0(np.concatenate([unit, block[2:]])), codes)
        np.testing.assert_allclose(ik_types.f16(block, 0), best, rtol=2**-10, atol=2**-25)


# ---- What interleaved types must not be used for ----


@pytest.mark.parametrize("name", ["IQ4_K_R4", "BF16_R16", "Q8_KV_R8"])
def test_interleaved_rows_are_only_weights(bench: Bench, name: str) -> None:
    table = bench.place(name, (256, 256))
    ids = bench.put(np.zeros(2, np.int32))
    f32 = bench.put(np.zeros((256, 256), np.float32))
    values = bench.put(np.zeros((2, 256), np.float32))
    for op, type_name, shape, src in [
        ("GET_ROWS", "F32", (2, 256), [table, ids]),
        ("SET_ROWS", name, (256, 256), [values, ids, table]),
        ("CPY", "F32", (256, 256), [table, f32]),
        ("CPY", name, (256, 256), [f32, table]),
        ("CPY", name, (256, 256), [table, bench.place(name, (256, 256))]),
        ("DUP", name, (256, 256), [table]),
        ("CONT", name, (256, 256), [table]),
        ("ADD", name, (256, 256), [table, f32]),
        ("REPEAT", name, (512, 256), [table]),
        ("CONCAT", name, (512, 256), [table, table]),
        ("MUL_MAT", "F32", (256, 256), [f32, table]),
        ("MUL_MAT", name, (256, 256), [table, f32]),
        ("OUT_PROD", "F32", (256, 256), [table, f32]),
    ]:
        node = bench.node(op, type_name, shape, src, out=src[-1] if op in ("CPY", "SET_ROWS") else None)
        with pytest.raises(RpcError, match="interleaved"):
            bench.compile([node])


@pytest.mark.parametrize("name", INTERLEAVED)
def test_interleaved_rows_come_in_whole_groups(bench: Bench, name: str) -> None:
    group = TYPE_BY_NAME[name].row_group
    x = bench.put(np.zeros((1, 256), np.float32))
    n = TYPE_BY_NAME[name].row_bytes(256)
    table = bench.place(name, (3 * group, 256))
    unit = TYPE_BY_NAME[name].bytes
    for rows, strides in [(group + 1, (n, unit)), (group, (2 * n, unit))]:
        part = bench.view(table, name, (rows, 256), strides)
        with pytest.raises(RpcError, match="whole groups"):
            bench.compile([part, bench.node("MUL_MAT", "F32", (1, rows), [part, x])])
    if TYPE_BY_NAME[name].block == 1:
        odd, x255 = bench.place(name, (group, 255)), bench.put(np.zeros((1, 255), np.float32))
        with pytest.raises(RpcError, match="whole groups"):
            bench.compile([bench.node("MUL_MAT", "F32", (1, group), [odd, x255])])
    whole = bench.view(table, name, (2 * group, 256), (n, unit), offset=group * n)
    bench.compile([whole, bench.node("MUL_MAT", "F32", (1, 2 * group), [whole, x])])
