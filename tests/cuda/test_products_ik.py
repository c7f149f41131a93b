"""Products, gates and caches of ik_llama.cpp's types in forms that the op cases do not reach."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest

from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.spec import dialects
from ggml_rpc.spec.enums import UnaryKind
from tests.cuda.test_ops_matmul import Rounded
from tests.cuda.test_ops_variants import plain, same
from tests.cuda.test_products_library import products
from tests.ops import conftest, ik_groups, ik_types
from tests.ops.test_ik import activation, gate_params
from tests.ops.tolerances import check
from tests.support.device import Bench
from tests.support.wiretensor import Tensor

IK = dialects.find("ik-3.5.2")
INTERLEAVED = [*ik_groups.GROUPS, "BF16_R16"]


@pytest.fixture
def bench(level: str) -> Bench:
    """Return memory and a device, reached by ik_llama.cpp's dialect."""
    return Bench(conftest.device(level), dialect=IK)


@pytest.fixture(scope="module")
def cpu() -> Bench:
    """Return memory and the CPU."""
    return Bench(CpuPool(1).device(), 64 << 20, dialect=IK)


@cache
def contents(name: str, rows: int) -> tuple[bytes, np.ndarray]:
    """Return rows of 256 elements."""
    random = ik_groups.random_groups if name in INTERLEAVED else ik_types.random_rows
    raw, values = random(name, np.random.default_rng([*name.encode(), rows]), rows, 256)
    return raw.tobytes(), values


@pytest.mark.parametrize("name", ik_types.ROWS)
def test_wide_tiles(bench: Bench, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As many matrices as make the device choose tiles of 128 columns."""
    monkeypatch.setattr("tests.cuda.conftest.BUDGET", 80_000_000)
    data, values = contents(name, 3)
    x = rng.standard_normal((26, 70, 256)).astype(np.float32)
    node = bench.node("MUL_MAT", "F32", (26, 70, 3), [bench.put_raw(name, (26, 3, 256), data * 26), bench.put(x)])
    bench.run(node)
    expected = x.astype(np.float64) @ values.T * ik_types.PRODUCT.get(name, 1)
    check(bench.read(node)[0], expected, "product_quant")


@pytest.mark.parametrize("level", ["emulated with cuBLASLt"])
@pytest.mark.parametrize("name", ik_types.ROWS)
def test_unpacked_for_cublas(bench: Bench, rng: np.random.Generator, name: str) -> None:
    data, values = contents(name, 8)
    x = rng.standard_normal((256, 256)).astype(np.float32)
    before = products(bench)
    node = bench.node("MUL_MAT", "F32", (256, 512), [bench.put_raw(name, (512, 256), data * 64), bench.put(x)])
    bench.run(node)
    assert products(bench) == before + 1
    expected = np.tile(x.astype(np.float64) @ values.T, 64) * ik_types.PRODUCT.get(name, 1)
    check(bench.read(node)[0, 0], expected, "product_quant")


@pytest.mark.parametrize("code", [UnaryKind.SILU, UnaryKind.GELU])
@pytest.mark.parametrize("name", [*ik_types.ROWS, *INTERLEAVED])
def test_up_and_gate(bench: Bench, rng: np.random.Generator, name: str, code: int) -> None:
    """Of one column, and by id with a matrix for both."""
    data, values = contents(name, 64)
    x = (rng.standard_normal((1, 256)) * 0.1).astype(np.float32)
    half = len(data) // 2
    gate, up = (bench.put_raw(name, (32, 256), part) for part in (data[:half], data[half:]))
    source = bench.put(x)
    dense = bench.node("FUSED_UP_GATE", "F32", (1, 32), [up, gate, source], gate_params(code))
    both = bench.put_raw(name, (2, 64, 256), data * 2)
    ids, columns = bench.put(np.array([[1]], np.int32)), bench.put(x.reshape(1, 1, 256))
    experts = bench.node("MOE_FUSED_UP_GATE", "F32", (1, 1, 32), [both, None, columns, ids], gate_params(code))
    bench.run(dense, experts)
    seen = x.astype(np.float64) if name == "BF16_R16" else Rounded(x, name).of(True)
    y = seen @ values.T * ik_types.PRODUCT.get(name, 1)
    expected = activation(code, y[:, :32]) * y[:, 32:]
    check(bench.read(dense)[0, 0], expected, "product_quant")
    check(bench.read(experts)[0, 0], expected, "product_quant")


@pytest.mark.parametrize("form", [("F32", "Q6_0"), ("F16", "Q6_0"), ("BF16", "Q6_0"), ("F32", "Q8_KV")])
def test_caches_written(bench: Bench, cpu: Bench, rng: np.random.Generator, form: tuple[str, str]) -> None:
    """The CPU's bytes, from rows beside each other and from rows that lie apart."""
    of, to = form
    data = plain(rng, of, (3, 192))
    size = len(data) // 3 // 192

    def build(b: Bench, stride: int) -> Tensor:
        source = b.view(b.put_raw(of, (3, 192), data), of, (2, 96), (stride * size, size))
        node = b.node("CPY", to, (2, 96), [source])
        node.src.append(node)
        return node

    for stride in (96, 192):
        same(bench, cpu, partial(build, stride=stride), 0)


@pytest.mark.parametrize("form", [("F32", "Q6_0"), ("F16", "Q6_0"), ("F32", "Q8_KV")])
def test_cache_rows_set(bench: Bench, cpu: Bench, rng: np.random.Generator, form: tuple[str, str]) -> None:
    of, to = form
    data, ids = plain(rng, of, (3, 96)), np.array([3, 0, 2], np.int64)

    def build(b: Bench) -> Tensor:
        into = b.place(to, (4, 96))
        node = b.node("SET_ROWS", to, (4, 96), [b.put_raw(of, (3, 96), data), b.put(ids), into], out=into)
        node.view_src = into
        return node

    same(bench, cpu, build, 0)


@pytest.mark.parametrize("name", ["Q6_0", "Q8_KV"])
@pytest.mark.parametrize("n_tokens", [1, 5, 70])
def test_attention_over_both_caches(bench: Bench, rng: np.random.Generator, name: str, n_tokens: int) -> None:
    """K and V of one type, few queries and many."""
    (k, keys), (v, values) = (ik_types.random_rows(name, rng, 40, 64) for _ in range(2))
    q = rng.standard_normal((1, n_tokens, 64)).astype(np.float32)
    sources = [bench.put(q), *(bench.put_raw(name, (1, 40, 64), x.tobytes()) for x in (k, v)), None]
    scale = np.array([0.1, 0, 0], np.float32).tobytes()
    node = bench.node("FLASH_ATTN_EXT", "F32", (n_tokens, 1, 64), sources, scale)
    bench.run(node)
    scores = q[0].astype(np.float64) @ keys.T * np.float32(0.1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ values
    check(bench.read(node).reshape(n_tokens, 64), expected, "product_quant")
