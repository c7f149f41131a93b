"""Quantised weights against many columns in bytes, on a device of compute capability 8.6."""

from __future__ import annotations

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.cuda.test_ops_matmul import Rounded
from tests.ops.test_matmul import HALVES, expert_product, mul_mat, mul_mat_id, product, weights
from tests.ops.tolerances import check, nmse
from tests.support.device import Bench
from tests.support.quants import decode

BYTES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "IQ4_NL", "IQ4_XS"]
BOUND = 1e-10


@pytest.fixture(params=["emulated 8.6"])
def level(request: pytest.FixtureRequest) -> str:
    """Name of the device."""
    return request.param


def on_grid(x: np.ndarray, type_name: str) -> np.ndarray:
    """Return activations in blocks of 32, as vector products see them."""
    return Rounded(x, type_name).of(True)


def ran_in_bytes(bench: Bench, type_name: str) -> bool:
    return any(e.startswith(f"tiles_q8<{type_name},") for _, e in bench.device.gpu.asked())


@pytest.mark.parametrize("type_name", BYTES)
@pytest.mark.parametrize("n", [9, 33])
def test_shapes(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    """Odd numbers of groups of 32, rows and columns that leave tiles unfilled, more than a tile of rows."""
    for m, k in [(1, 32), (5, 96), (37, 256), (131, 512), (17, 1792)]:
        if k % TYPE_BY_NAME[type_name].block:
            continue
        data, values = weights(rng, type_name, (m, k))
        x = rng.standard_normal((n, k)).astype(np.float32)
        node = mul_mat(bench, bench.put_raw(type_name, (m, k), data), bench.put(x))
        bench.run(node)
        got = bench.read(node)
        assert nmse(got, product(values, on_grid(x, type_name))) < BOUND
        if k >= 512:
            check(got, product(values, x), "product_quant")
    assert ran_in_bytes(bench, type_name)


@pytest.mark.parametrize("type_name", BYTES)
@pytest.mark.parametrize("n", [40, 70])
def test_widths(
    bench: Bench, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, type_name: str, n: int
) -> None:
    """As many matrices as make the device choose tiles of 64 and of 128 columns."""
    monkeypatch.setattr("tests.cuda.conftest.BUDGET", 80_000_000)  # 26 whole tiles
    shape = (26, 5, max(TYPE_BY_NAME[type_name].block, 64))
    data, values = weights(rng, type_name, shape)
    x = (rng.standard_normal((26, n, shape[2])) * 1e5).astype(np.float32)
    node = mul_mat(bench, bench.put_raw(type_name, shape, data), bench.put(x))
    bench.run(node)
    assert nmse(bench.read(node), product(values, on_grid(x, type_name))) < BOUND


@pytest.mark.parametrize("type_name", BYTES)
def test_experts(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    experts, tokens, slots = 5, 30, 3
    shape = (experts, 37, 256)
    data, values = weights(rng, type_name, shape)
    x = rng.standard_normal((tokens, 1, 256)).astype(np.float32)
    chosen = rng.permuted(np.tile(np.arange(experts, dtype=np.int32), (tokens, 1)), axis=1)[:, :slots].copy()
    node = mul_mat_id(bench, bench.put_raw(type_name, shape, data), bench.put(x), bench.put(chosen))
    bench.run(node)
    assert nmse(bench.read(node)[0], expert_product(values, on_grid(x, type_name), chosen)) < BOUND


@pytest.mark.parametrize("bad", [-1, 5])
def test_illegal_expert(bench: Bench, rng: np.random.Generator, bad: int) -> None:
    data, _ = weights(rng, "Q4_K", (5, 33, 256))
    chosen = rng.integers(0, 5, (70, 1)).astype(np.int32)
    chosen[-1, 0] = bad
    x = bench.put(np.zeros((70, 1, 256), np.float32))
    node = mul_mat_id(bench, bench.put_raw("Q4_K", (5, 33, 256), data), x, bench.put(chosen))
    with pytest.raises(RpcError, match=f"MUL_MAT_ID: index {bad} "):
        bench.run(node)


@pytest.mark.parametrize("type_name", BYTES)
def test_extremes(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """Codes and scales at the ends of their range, and blocks of zeros."""
    x = np.tile(np.array([1.0, -1.0, 1.0, 1.0], np.float32), 128)[None].repeat(10, 0)
    x[:, 256:288] = 0
    x[4] = 0
    x[5] = 1
    spec = TYPE_BY_NAME[type_name]
    for fill in (0x00, 0x80, 0xFF, 0x7F):
        blocks = np.full((33 * 512 // spec.block, spec.bytes), fill, np.uint8)
        for offset, size in HALVES[type_name]:
            blocks[:, offset : offset + 2] = np.frombuffer(np.float16(size).tobytes(), np.uint8)
        if type_name == "MXFP4":
            blocks[:, 0] = 122
        values = decode(blocks.reshape(33, -1), type_name).astype(np.float64)
        node = mul_mat(bench, bench.put_raw(type_name, (33, 512), blocks.tobytes()), bench.put(x))
        bench.run(node)
        assert nmse(bench.read(node), product(values, on_grid(x, type_name))) < BOUND


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K"])
def test_broadcast(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    data, values = weights(rng, type_name, (2, 3, 21, 256))
    x = rng.standard_normal((4, 6, 12, 256)).astype(np.float32)
    node = mul_mat(bench, bench.put_raw(type_name, (2, 3, 21, 256), data), bench.put(x))
    bench.run(node)
    assert nmse(bench.read(node), product(values, on_grid(x, type_name))) < BOUND


def test_other_types_meet_halves(bench: Bench, rng: np.random.Generator) -> None:
    data, values = weights(rng, "IQ3_S", (37, 256))
    x = rng.standard_normal((12, 256)).astype(np.float32)
    node = mul_mat(bench, bench.put_raw("IQ3_S", (37, 256), data), bench.put(x))
    bench.run(node)
    seen = Rounded(x, "IQ3_S")
    assert nmse(bench.read(node), product(seen.weights(values, False), seen.of(False))) < BOUND
