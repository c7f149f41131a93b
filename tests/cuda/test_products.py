"""Products in forms that the op cases do not reach: all widths of tiles, and products that a GLU joins."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.spec.enums import GluKind, TensorFlag
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.cuda.test_ops_matmul import Rounded
from tests.ops.test_glu import ORACLE, params
from tests.ops.test_matmul import PLAIN, TYPES, mul_mat, mul_mat_id, product, weights
from tests.ops.tolerances import check, nmse
from tests.support.device import Bench, f32_to_bf16

QUANTISED = [name for name in TYPES if name not in PLAIN]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("n", [40, 70])
def test_widths(
    bench: Bench, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, type_name: str, n: int
) -> None:
    """As many matrices as make the device choose tiles of 64 and of 128 columns."""
    monkeypatch.setattr("tests.cuda.conftest.BUDGET", 30_000_000)  # 26 whole tiles
    k = max(TYPE_BY_NAME[type_name].block, 64)
    shape = (26, 5, k)
    data, values = weights(rng, type_name, shape)
    x = (rng.standard_normal((26, n, k)) * 1e5).astype(np.float32)  # beyond what a half can hold
    node = mul_mat(bench, bench.put_raw(type_name, shape, data), bench.put(x))
    bench.run(node)
    rounded = Rounded(x / 2**17, type_name)
    assert nmse(bench.read(node), product(rounded.weights(values, False), rounded.of(False) * 2**17)) < 1e-10


@pytest.mark.parametrize("type_name", ["Q4_0", "Q6_K"])
def test_bf16_activations(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    data, values = weights(rng, type_name, (7, 512))
    bits = f32_to_bf16(rng.standard_normal((2, 512)).astype(np.float32))
    x = (bits.astype(np.uint32) << 16).view(np.float32)
    node = mul_mat(bench, bench.put_raw(type_name, (7, 512), data), bench.put_raw("BF16", (2, 512), bits.tobytes()))
    bench.run(node)
    assert nmse(bench.read(node), product(values, Rounded(x, type_name).of(True))) < 1e-10


@pytest.mark.parametrize("type_name", QUANTISED)
def test_dequantised(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """GET_ROWS, and CPY into rows that hold whole pieces and into rows that do not."""
    data, values = weights(rng, type_name, (3, 512))
    source = bench.put_raw(type_name, (3, 512), data)
    ids = np.array([2, 0], np.int32)
    rows = bench.node("GET_ROWS", "F32", (2, 512), [source, bench.put(ids)])
    copies = [bench.node("CPY", "F32", shape, [source]) for shape in [(3, 512), (512, 3)]]
    for copy in copies:
        copy.src.append(copy)
    bench.run(rows, *copies)
    np.testing.assert_array_equal(bench.read(rows)[0, 0], values[ids].astype(np.float32))
    for copy in copies:
        np.testing.assert_array_equal(bench.read(copy).ravel(), values.ravel().astype(np.float32))


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("swapped", [False, True])
def test_gated(bench: Bench, rng: np.random.Generator, type_name: str, swapped: bool) -> None:
    """Gate and up of one column are one launch; what is between is not written."""
    shape = (19, 512)
    (g, gate), (u, up) = weights(rng, type_name, shape), weights(rng, type_name, shape)
    x = (rng.standard_normal((1, 512)) * 0.1).astype(np.float32)
    source = bench.put(x)
    first, second = (mul_mat(bench, bench.put_raw(type_name, shape, data), source) for data in (g, u))
    glu = bench.node("GLU", "F32", (1, 1, 1, 19), [first, second], params(GluKind.SWIGLU))
    before = bench.raw(first)
    bench.run(*([second, first] if swapped else [first, second]), glu)
    assert bench.raw(first) == before, "an intermediate was stored"
    seen = Rounded(x, type_name).of(True)
    check(bench.read(glu), ORACLE[GluKind.SWIGLU](product(gate, seen), product(up, seen)), "f32")


@pytest.mark.parametrize("type_name", ["F16", "Q4_K"])
@pytest.mark.parametrize("kept", [False, True])
def test_gated_experts(bench: Bench, rng: np.random.Generator, type_name: str, kept: bool) -> None:
    """The same of products by id; not if what is between is an output."""
    shape, chosen = (4, 9, 256), np.array([[1, 3], [2, 1]], np.int32)
    (g, gate), (u, up) = weights(rng, type_name, shape), weights(rng, type_name, shape)
    x = (rng.standard_normal((2, 1, 256)) * 0.1).astype(np.float32)
    source, ids = bench.put(x), bench.put(chosen)
    first, second = (mul_mat_id(bench, bench.put_raw(type_name, shape, data), source, ids) for data in (g, u))
    if kept:
        first.flags |= TensorFlag.OUTPUT
    glu = bench.node("GLU", "F32", (2, 2, 9), [first, second], struct.pack("<ii", GluKind.GEGLU, 0))
    before = bench.raw(first)
    bench.run(first, second, glu)
    assert (bench.raw(first) != before) == kept
    seen = Rounded(x, type_name).of(True)
    results = [[[w[e] @ seen[t, 0] for e in row] for t, row in enumerate(chosen)] for w in (gate, up)]
    check(bench.read(glu)[0], ORACLE[GluKind.GEGLU](np.array(results[0]), np.array(results[1])), "f32")


@pytest.mark.parametrize("type_name", ["I8", "I16", "I32", "I64", "F16"])
@pytest.mark.parametrize("source_packed", [False, True])
def test_transposed(bench: Bench, rng: np.random.Generator, type_name: str, source_packed: bool) -> None:
    """Through tiles, from either side."""
    dtype = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "F16": np.float16}[type_name]
    x = rng.integers(-100, 100, (2, 37, 40)).astype(dtype)
    source = bench.put(x)
    if source_packed:
        into = bench.place(type_name, (2, 40, 37))
        node = bench.node("CPY", type_name, (2, 37, 40), [source], out=bench.permute(into, (1, 0, 2, 3)))
        node.src.append(node)
        bench.run(node)
        np.testing.assert_array_equal(bench.read(into)[0], x.transpose(0, 2, 1))
    else:
        node = bench.node("CONT", type_name, (2, 40, 37), [bench.permute(source, (1, 0, 2, 3))])
        bench.run(node)
        np.testing.assert_array_equal(bench.read(node)[0], x.transpose(0, 2, 1))
