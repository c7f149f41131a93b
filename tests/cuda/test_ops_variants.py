"""Small nodes for the kernels that the cases of tests/ops do not reach, against the same nodes on the CPU."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from ggml_rpc.devices.cpu import CpuPool
from tests.cuda.test_ops_matmul import Rounded
from tests.ops.test_attention import QUANTISED as CACHE
from tests.ops.test_attention import quantised
from tests.ops.test_matmul import PLAIN, TYPES, mul_mat, product, weights
from tests.ops.tolerances import nmse
from tests.support.device import Bench, f32_to_bf16
from tests.support.wiretensor import Tensor

Build = Callable[[Bench], Tensor]


@pytest.fixture(scope="module")
def cpu() -> Bench:
    """Return memory and the CPU."""
    return Bench(CpuPool(1).device(), 64 << 20)


def same(bench: Bench, cpu: Bench, build: Build, bound: float) -> None:
    """Build a node on both devices, run it, and compare: bytes for a bound of 0."""
    nodes = [build(b) for b in (cpu, bench)]
    for b, node in zip((cpu, bench), nodes, strict=True):
        b.run(node)
    if bound == 0:
        assert bench.raw(nodes[1]) == cpu.raw(nodes[0])
    else:
        assert nmse(bench.read(nodes[1]), cpu.read(nodes[0])) < bound


def plain(rng: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> bytes:
    """Return random values of a type."""
    x = rng.standard_normal(shape).astype(np.float32)
    if type_name == "BF16":
        return f32_to_bf16(x).tobytes()
    return x.astype({"F16": np.float16, "F32": np.float32, "I32": np.int32}[type_name]).tobytes()


@pytest.mark.parametrize("to", [*PLAIN, "I32", *CACHE])
@pytest.mark.parametrize("of", [*PLAIN, "I32"])
def test_converted(bench: Bench, cpu: Bench, rng: np.random.Generator, of: str, to: str) -> None:
    if of == to or (of == "I32" and to != "F32") or (to == "I32" and of != "F32"):
        pytest.skip("no conversion")
    data = plain(rng, of, (3, 64))

    def build(b: Bench) -> Tensor:
        node = b.node("CPY", to, (3, 64), [b.put_raw(of, (3, 64), data)])
        node.src.append(node)
        return node

    same(bench, cpu, build, 0)


@pytest.mark.parametrize("to", [*PLAIN, *CACHE])
@pytest.mark.parametrize("of", ["F32", "F16"])
def test_rows_set(bench: Bench, cpu: Bench, rng: np.random.Generator, of: str, to: str) -> None:
    data, ids = plain(rng, of, (2, 64)), np.array([3, 0], np.int64)

    def build(b: Bench) -> Tensor:
        into = b.place(to, (4, 64))
        node = b.node("SET_ROWS", to, (4, 64), [b.put_raw(of, (2, 64), data), b.put(ids), into], out=into)
        node.view_src = into
        return node

    same(bench, cpu, build, 0)


@pytest.mark.parametrize("of", TYPES)
def test_rows_got(bench: Bench, cpu: Bench, rng: np.random.Generator, of: str) -> None:
    data, ids = weights(rng, of, (4, 256))[0], np.array([3, 0], np.int32)
    same(bench, cpu, lambda b: b.node("GET_ROWS", "F32", (2, 256), [b.put_raw(of, (4, 256), data), b.put(ids)]), 1e-12)


@pytest.mark.parametrize("columns", [1, 2, 4, 8])
@pytest.mark.parametrize("of", TYPES)
def test_few_columns(bench: Bench, rng: np.random.Generator, of: str, columns: int) -> None:
    (data, values), x = weights(rng, of, (3, 256)), rng.standard_normal((columns, 256)).astype(np.float32)
    node = mul_mat(bench, bench.put_raw(of, (3, 256), data), bench.put(x))
    bench.run(node)
    assert nmse(bench.read(node), product(values, Rounded(x, of).of(True))) < 1e-10


@pytest.mark.parametrize("of", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("form", [(name, n) for name in PLAIN for n in (1, 9)])
def test_activations(bench: Bench, cpu: Bench, rng: np.random.Generator, of: str, form: tuple[str, int]) -> None:
    """Of every type, in rows that must be converted first."""
    x_type, columns = form
    data, x = weights(rng, of, (3, 64))[0], plain(rng, x_type, (columns, 68))

    def build(b: Bench) -> Tensor:
        rows = b.put_raw(x_type, (columns, 68), x)
        size = rows.nb[0]
        return mul_mat(b, b.put_raw(of, (3, 64), data), b.view(rows, x_type, (columns, 64), (68 * size, size), size))

    same(bench, cpu, build, 5e-4)


@pytest.mark.parametrize("of", ["F16", "Q8_0", "F32"])
@pytest.mark.parametrize("form", [(head, queries) for head in (64, 128, 256, 512) for queries in (1, 3, 20)])
def test_heads(bench: Bench, cpu: Bench, rng: np.random.Generator, of: str, form: tuple[int, int]) -> None:
    """Heads of every width, few queries and many."""
    head, queries = form
    shape = (1, 1, 9, head)
    k, v = (quantised(rng, of, shape)[0] if of in CACHE else plain(rng, of, shape) for _ in range(2))
    q = rng.standard_normal((1, 1, queries, head)).astype(np.float32)
    params = struct.pack("<fff", head**-0.5, 0, 0)

    def build(b: Bench) -> Tensor:
        sources = [b.put(q), b.put_raw(of, shape, k), b.put_raw(of, shape, v)]
        return b.node("FLASH_ATTN_EXT", "F32", (1, queries, 1, head), sources, params)

    same(bench, cpu, build, 5e-4)


@pytest.mark.parametrize("types", [("BF16", "BF16"), ("F32", "F32"), ("F16", "BF16"), ("Q8_0", "F32")])
@pytest.mark.parametrize("head", [40, 128, 256])
def test_many_queries(bench: Bench, cpu: Bench, rng: np.random.Generator, types: tuple[str, str], head: int) -> None:
    """On the tensor cores BF16 is as it is, F32 and mixtures are two numbers."""
    if head % 32 != 0 and "Q8_0" in types:
        pytest.skip("rows are whole blocks")
    shape = (1, 1, 40, head)
    k, v = (quantised(rng, of, shape)[0] if of in CACHE else plain(rng, of, shape) for of in types)
    q = rng.standard_normal((1, 2, 64, head)).astype(np.float32)
    mask = np.where(np.arange(40) <= np.arange(64)[:, None] // 2 + 3, 0, -np.inf).astype(np.float16)
    params = struct.pack("<fff", head**-0.5, 0, 0)

    def build(b: Bench) -> Tensor:
        sources = [b.put(q), b.put_raw(types[0], shape, k), b.put_raw(types[1], shape, v)]
        sources.append(b.put_raw("F16", (1, 1, 64, 40), mask.tobytes()))
        return b.node("FLASH_ATTN_EXT", "F32", (1, 64, 2, head), sources, params)

    same(bench, cpu, build, 5e-5 if types == ("BF16", "BF16") else 5e-6 if "F16" in types else 1e-8)


@pytest.mark.parametrize("form", ["part of K", "own", "capped"])
@pytest.mark.parametrize("cache", [("F16", 1), ("F16", 7), ("Q8_0", 64), ("BF16", 64)])
def test_latent_attention(
    bench: Bench, cpu: Bench, rng: np.random.Generator, cache: tuple[str, int], form: str
) -> None:
    """Heads of 576 whose first 512 channels are the values, in ranges that are split and joined."""
    of, queries = cache
    n_kv, heads = 150, 3 if queries == 64 else 6
    shape = (1, 1, n_kv, 576)
    k = quantised(rng, of, shape)[0] if of in CACHE else plain(rng, of, shape)
    own = quantised(rng, of, (1, 1, n_kv, 512))[0] if of in CACHE else plain(rng, of, (1, 1, n_kv, 512))
    q = rng.standard_normal((1, heads, queries, 576)).astype(np.float32)
    last = n_kv - queries + np.arange(queries)[:, None]
    mask = np.where((np.arange(n_kv) <= last) & (np.arange(n_kv) % 50 > 3), 0, -np.inf).astype(np.float16)
    params = struct.pack("<fff", 576**-0.5, 0, 30.0 if form == "capped" else 0)

    def build(b: Bench) -> Tensor:
        tk = b.put_raw(of, shape, k)
        tv = b.put_raw(of, (1, 1, n_kv, 512), own)
        if form != "own":
            tv = b.view(tk, of, (1, 1, n_kv, 512), [tk.nb[3], tk.nb[2], tk.nb[1], tk.nb[0]])
        sources = [b.put(q), tk, tv, b.put_raw("F16", (1, 1, queries, n_kv), mask.tobytes())]
        return b.node("FLASH_ATTN_EXT", "F32", (1, queries, heads, 512), sources, params)

    same(bench, cpu, build, 5e-4)
