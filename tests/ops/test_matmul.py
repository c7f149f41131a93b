"""MUL_MAT and MUL_MAT_ID against float64, and against integer models of the quantised products."""

from __future__ import annotations

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.ops.tolerances import check, nmse
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16
from tests.support.quants import decode
from tests.support.wiretensor import Tensor

PLAIN = ["F32", "F16", "BF16"]
SMALL = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0", "Q2_0", "NVFP4"]
SUPER = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"]
SUPER += ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"]
TYPES = PLAIN + SMALL + SUPER
# Where the half-precision scales of a block lie: (offset, typical size) each.
HALVES = {
    "Q4_0": [(0, 0.1)],
    "Q4_1": [(0, 0.1), (2, -0.8)],
    "Q5_0": [(0, 0.05)],
    "Q5_1": [(0, 0.05), (2, -0.8)],
    "Q8_0": [(0, 0.01)],
    "IQ4_NL": [(0, 0.01)],
    "MXFP4": [],
    "Q2_K": [(80, 0.05), (82, 0.05)],
    "Q3_K": [(108, 0.01)],
    "Q4_K": [(0, 0.005), (2, 0.04)],
    "Q5_K": [(0, 0.0025), (2, 0.04)],
    "Q6_K": [(208, 0.0005)],
    "IQ4_XS": [(0, 0.0005)],
    "IQ2_XXS": [(0, 0.02)],
    "IQ2_XS": [(0, 0.02)],
    "IQ2_S": [(0, 0.02)],
    "IQ3_XXS": [(0, 0.01)],
    "IQ3_S": [(0, 0.01)],
    "IQ1_S": [(0, 0.1)],
    "IQ1_M": [],
    "TQ1_0": [(52, 0.5)],
    "TQ2_0": [(64, 0.5)],
    "Q1_0": [(0, 0.5)],
    "Q2_0": [(0, 0.5)],
    "NVFP4": [],
}
COLUMNS = [1, 2, 3, 7, 8, 9, 33]


def kind(type_name: str) -> str:
    """Return the tolerance that holds for products with weights of a type."""
    return {"F32": "product_f32", "F16": "product_f16", "BF16": "product_bf16"}.get(type_name, "product_quant")


def weights(rng: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """Return random contents of a tensor (every bit pattern of the quants occurs) and the values that they mean."""
    if type_name in PLAIN:
        x = rng.standard_normal(shape).astype(np.float32)
        if type_name == "F16":
            x = x.astype(np.float16)
            return x.tobytes(), x.astype(np.float64)
        if type_name == "BF16":
            bits = f32_to_bf16(x)
            return bits.tobytes(), bf16_to_f32(bits).astype(np.float64)
        return x.tobytes(), x.astype(np.float64)
    spec = TYPE_BY_NAME[type_name]
    n = int(np.prod(shape)) // spec.block
    blocks = rng.integers(0, 256, (n, spec.bytes), np.uint8)
    for offset, size in HALVES[type_name]:
        halves = (size * rng.uniform(0.5, 1.5, n)).astype(np.float16)
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(n, 2)
    if type_name == "MXFP4":
        blocks[:, 0] = rng.integers(120, 126, n)
    if type_name == "NVFP4":
        blocks[:, :4] = rng.integers(0x28, 0x38, (n, 4))
    if type_name == "IQ1_M":  # the scale's nibbles are the top ones of the last four words
        halves = (0.1 * rng.uniform(0.5, 1.5, n)).astype(np.float16).view(np.uint16)
        words = blocks[:, 48:].copy().view("<u2")
        words = (words & 0xFFF) | ((halves[:, None] >> np.array([0, 4, 8, 12], np.uint16)) & 15) << 12
        blocks[:, 48:] = words.astype("<u2").view(np.uint8)
    values = decode(blocks.reshape(*shape[:-1], -1), type_name)
    return blocks.tobytes(), values.reshape(shape).astype(np.float64)


def product(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return x times w transposed, w's leading axes repeated to x's, each matrix for neighbours."""
    rows: np.ndarray = w.reshape((1,) * (4 - w.ndim) + w.shape)
    columns: np.ndarray = x.reshape((1,) * (4 - x.ndim) + x.shape).astype(np.float64)
    for axis in (0, 1):
        rows = np.repeat(rows, columns.shape[axis] // rows.shape[axis], axis)
    return np.asarray(np.einsum("abmk,abnk->abnm", rows, columns))


def on_grid(x: np.ndarray, type_name: str, bf16_scales: bool = False) -> np.ndarray:
    """Return activations as products with weights of a type see them: rounded, or quantised on the grid of the type.

    With `bf16_scales` those for weights in blocks of 32 are on ik_llama.cpp's grid.
    """
    x = np.asarray(x, np.float32)
    if type_name == "F32":
        return x.astype(np.float64)
    if type_name == "F16":
        return x.astype(np.float16).astype(np.float64)
    if type_name == "BF16":
        return bf16_to_f32(f32_to_bf16(x)).astype(np.float64)
    block = 256 if type_name in SUPER else 32
    b = x.reshape(*x.shape[:-1], -1, block)
    if type_name in SUPER:
        extreme = np.take_along_axis(b, np.argmax(np.abs(b), -1)[..., None], -1)
        inverse = np.divide(np.float32(-127), extreme, out=np.zeros_like(extreme), where=extreme != 0)
        d = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse != 0)
    elif bf16_scales and TYPE_BY_NAME[type_name].block == 32:
        d = bf16_to_f32(f32_to_bf16(np.abs(b).max(-1, keepdims=True) / np.float32(127)))
        inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    else:
        largest = np.abs(b).max(-1, keepdims=True)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest != 0)
        d = (largest / np.float32(127)).astype(np.float16)
    return np.asarray(np.rint(b * inverse).astype(np.float64) * d).reshape(x.shape)


def minimum_correction(data: bytes, x: np.ndarray, type_name: str) -> np.ndarray | float:
    """Return what Q8_1 adds to the product: its sums of blocks are rounded to half, with the scale before rounding."""
    if type_name not in ("Q4_1", "Q5_1"):
        return 0.0
    k = x.shape[-1]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, TYPE_BY_NAME[type_name].bytes)
    minima = blocks[:, 2:4].copy().view(np.float16).reshape(-1, k // 32).astype(np.float64)
    b = x.reshape(-1, k // 32, 32)
    largest = np.abs(b).max(-1)
    sums = np.rint(b * (np.float32(127) / largest)[..., None]).sum(-1)
    rounded = (largest / np.float32(127) * sums).astype(np.float16).astype(np.float64)
    exact = sums * (largest / np.float32(127)).astype(np.float16).astype(np.float64)
    return np.asarray((rounded - exact) @ minima.T)


def mul_mat(bench: Bench, w: Tensor, x: Tensor) -> Tensor:
    """Return the node of a product."""
    return bench.node("MUL_MAT", "F32", (x.ne[3], x.ne[2], x.ne[1], w.ne[1]), [w, x])


# Against the product of the weights' values with the activations on their grid, only f32 roundings remain.
MODEL_BOUND = 1e-10


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("n", COLUMNS)
def test_types(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    for m, k in [(1, 32), (5, 96), (37, 256), (70, 512), (33, 1056), (17, 2048), (19, 896)]:
        if k % TYPE_BY_NAME[type_name].block:
            continue
        data, values = weights(rng, type_name, (m, k))
        x = rng.standard_normal((n, k)).astype(np.float32)
        node = mul_mat(bench, bench.put_raw(type_name, (m, k), data), bench.put(x))
        bench.run(node)
        got = bench.read(node)
        assert nmse(got, product(values, on_grid(x, type_name)) + minimum_correction(data, x, type_name)) < MODEL_BOUND
        if k >= 512:
            check(got, product(values, x), kind(type_name))


@pytest.mark.parametrize("type_name", ["Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K"])
def test_long_rows(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """A single column that is too long to be prepared in a worker's scratch."""
    shape = (3, 131072)
    data, values = weights(rng, type_name, shape)
    x = rng.standard_normal((1, shape[1])).astype(np.float32)
    node = mul_mat(bench, bench.put_raw(type_name, shape, data), bench.put(x))
    bench.run(node)
    expected = product(values, on_grid(x, type_name)) + minimum_correction(data, x, type_name)
    assert nmse(bench.read(node), expected) < MODEL_BOUND


@pytest.mark.parametrize("type_name", PLAIN)
@pytest.mark.parametrize("k", [1, 7, 15, 17, 33, 97, 131])
@pytest.mark.parametrize("n", [1, 5, 21])
def test_odd_lengths(bench: Bench, rng: np.random.Generator, type_name: str, k: int, n: int) -> None:
    data, values = weights(rng, type_name, (19, k))
    x = rng.standard_normal((n, k)).astype(np.float32)
    node = mul_mat(bench, bench.put_raw(type_name, (19, k), data), bench.put(x))
    bench.run(node)
    check(bench.read(node), product(values, x), kind(type_name))


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("n", [1, 3, 12])
def test_broadcast(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    data, values = weights(rng, type_name, (2, 3, 21, 256))
    x = rng.standard_normal((4, 6, n, 256)).astype(np.float32)
    node = mul_mat(bench, bench.put_raw(type_name, (2, 3, 21, 256), data), bench.put(x))
    bench.run(node)
    got, expected = bench.read(node), product(values, on_grid(x, type_name))
    assert nmse(got, expected) < MODEL_BOUND
    check(got, expected, kind(type_name))


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_cache_views(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    """Keys lie as [head_dim, heads, positions] in the cache and are read as [head_dim, positions, heads]."""
    heads, cells, used, dim = 3, 70, 45, 64
    data, values = weights(rng, type_name, (cells, heads, dim))
    cache = bench.put_raw(type_name, (cells, heads, dim), data)
    row = cache.nb[1]
    keys = bench.view(cache, type_name, (heads, used, dim), (row, heads * row, cache.nb[0]))
    q = rng.standard_normal((2 * heads, n, dim)).astype(np.float32)
    node = mul_mat(bench, keys, bench.put(q))
    bench.run(node)
    expected = product(values.transpose(1, 0, 2)[:, :used], on_grid(q, type_name))
    assert nmse(bench.read(node), expected) < MODEL_BOUND


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q4_0", "Q6_K"])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_permuted_activations(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    data, values = weights(rng, type_name, (2, 21, 256))
    x = rng.standard_normal((n, 2, 256)).astype(np.float32)
    node = mul_mat(bench, bench.put_raw(type_name, (2, 21, 256), data), bench.permute(bench.put(x), (0, 2, 1, 3)))
    bench.run(node)
    assert nmse(bench.read(node), product(values, on_grid(x.transpose(1, 0, 2), type_name))) < MODEL_BOUND


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q4_0", "Q6_K"])
@pytest.mark.parametrize("x_type", ["F32", "F16"])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_transposed_activations(bench: Bench, rng: np.random.Generator, type_name: str, x_type: str, n: int) -> None:
    """Elements of a row of activations that are not adjacent, nor where adjacent ones would be."""
    data, values = weights(rng, type_name, (21, 256))
    raw, x = weights(rng, x_type, (256, n))
    columns = bench.permute(bench.put_raw(x_type, (256, n), raw), (1, 0, 2, 3))
    node = mul_mat(bench, bench.put_raw(type_name, (21, 256), data), columns)
    bench.run(node)
    assert nmse(bench.read(node), product(values, on_grid(x.T, type_name))) < MODEL_BOUND


@pytest.mark.parametrize("type_name", PLAIN)
@pytest.mark.parametrize("narrow", ["F16", "BF16"])
@pytest.mark.parametrize("n", [1, 11])
def test_narrow_activations(bench: Bench, rng: np.random.Generator, type_name: str, narrow: str, n: int) -> None:
    data, values = weights(rng, type_name, (13, 100))
    raw, x = weights(rng, narrow, (n, 100))
    node = mul_mat(bench, bench.put_raw(type_name, (13, 100), data), bench.put_raw(narrow, (n, 100), raw))
    bench.run(node)
    assert nmse(bench.read(node), product(values, on_grid(x, type_name))) < MODEL_BOUND


def test_activations_of_one_source(bench: Bench, rng: np.random.Generator) -> None:
    """Products that share a source, in formats that can and cannot be shared, and a source that changes in between."""
    x = rng.standard_normal((3, 512)).astype(np.float32)
    source = bench.put(x)
    nodes, expected = [], []
    for type_name in ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "Q4_1", "F16"]:
        data, values = weights(rng, type_name, (24, 512))
        nodes.append(mul_mat(bench, bench.put_raw(type_name, (24, 512), data), source))
        expected.append(product(values, on_grid(x, type_name)) + minimum_correction(data, x, type_name))
    data, values = weights(rng, "Q8_0", (40, 512))
    w = bench.put_raw("Q8_0", (40, 512), data)
    doubled = bench.node("ADD", "F32", (3, 512), [source, source], out=source)
    nodes += [doubled, mul_mat(bench, w, doubled)]
    bench.run(*nodes)
    for node, values_expected in zip(nodes, expected, strict=False):
        assert nmse(bench.read(node), values_expected) < MODEL_BOUND
    assert nmse(bench.read(nodes[-1]), product(values, on_grid(2 * x, "Q8_0"))) < MODEL_BOUND


@pytest.mark.parametrize("n", [513, 700])
def test_many_columns(bench: Bench, rng: np.random.Generator, n: int) -> None:
    for type_name in ["Q4_0", "F16"]:
        data, values = weights(rng, type_name, (35, 96))
        x = rng.standard_normal((n, 96)).astype(np.float32)
        node = mul_mat(bench, bench.put_raw(type_name, (35, 96), data), bench.put(x))
        bench.run(node)
        assert nmse(bench.read(node), product(values, on_grid(x, type_name))) < MODEL_BOUND


def test_zeros_and_extremes(bench: Bench, rng: np.random.Generator) -> None:
    """Blocks of zeros, and integers at the ends of their range, where 16-bit sums of products would saturate."""
    x = np.tile(np.array([1.0, -1.0, 1.0, 1.0], np.float32), 128)[None].repeat(10, 0)
    x[:, 256:288] = 0
    x[4] = 0
    x[5] = 1
    for type_name in ["Q8_0", "Q6_K", "IQ4_XS", "IQ4_NL", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "NVFP4"]:
        spec = TYPE_BY_NAME[type_name]
        for fill in (0x00, 0x80, 0xFF, 0x7F):
            blocks = np.full((33 * 512 // spec.block, spec.bytes), fill, np.uint8)
            for offset, size in HALVES[type_name]:
                blocks[:, offset : offset + 2] = np.frombuffer(np.float16(size).tobytes(), np.uint8)
            values = decode(blocks.reshape(33, -1), type_name).astype(np.float64)
            for n in (1, 2, 10):
                node = mul_mat(bench, bench.put_raw(type_name, (33, 512), blocks.tobytes()), bench.put(x[:n]))
                bench.run(node)
                assert nmse(bench.read(node), product(values, on_grid(x[:n], type_name))) < MODEL_BOUND


def mul_mat_id(bench: Bench, w: Tensor, x: Tensor, ids: Tensor) -> Tensor:
    """Return the node of a product with chosen experts."""
    return bench.node("MUL_MAT_ID", "F32", (ids.ne[1], ids.ne[0], w.ne[1]), [w, x, ids])


def expert_product(values: np.ndarray, x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return row (token, slot) as the product of expert ids[token, slot] with x[token, slot % x.shape[1]]."""
    rows = [
        [values[expert] @ x[token, slot % x.shape[1]] for slot, expert in enumerate(chosen)]
        for token, chosen in enumerate(ids)
    ]
    return np.array(rows)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 4, 4), (3, 4, 1), (40, 3, 1), (17, 3, 3)])
def test_experts(bench: Bench, rng: np.random.Generator, type_name: str, shape: tuple[int, int, int]) -> None:
    experts, m, k = 6, 37, 256
    tokens, slots, rows = shape
    data, values = weights(rng, type_name, (experts, m, k))
    x = rng.standard_normal((tokens, rows, k)).astype(np.float32)
    chosen = rng.permuted(np.tile(np.arange(experts, dtype=np.int32), (tokens, 1)), axis=1)
    all_ids = bench.put(chosen)
    ids = bench.view(all_ids, "I32", (tokens, slots), (all_ids.nb[1], 4), 4)
    node = mul_mat_id(bench, bench.put_raw(type_name, (experts, m, k), data), bench.put(x), ids)
    bench.run(node)
    got = bench.read(node)[0]
    if type_name in ("Q4_1", "Q5_1"):  # the model leaves out how Q8_1 rounds sums
        check(got, expert_product(values, on_grid(x, type_name), chosen[:, 1 : slots + 1]), kind(type_name))
    else:
        assert nmse(got, expert_product(values, on_grid(x, type_name), chosen[:, 1 : slots + 1])) < MODEL_BOUND


def test_one_expert_for_all(bench: Bench, rng: np.random.Generator) -> None:
    data, values = weights(rng, "Q4_0", (4, 33, 64))
    x = rng.standard_normal((600, 1, 64)).astype(np.float32)
    chosen = np.full((600, 1), 2, np.int32)
    node = mul_mat_id(bench, bench.put_raw("Q4_0", (4, 33, 64), data), bench.put(x), bench.put(chosen))
    bench.run(node)
    assert nmse(bench.read(node)[0], expert_product(values, on_grid(x, "Q4_0"), chosen)) < MODEL_BOUND


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("bad", [-1, 6, 2**31 - 1, -(2**31)])
def test_illegal_expert(bench: Bench, rng: np.random.Generator, tokens: int, bad: int) -> None:
    data, _ = weights(rng, "Q4_0", (6, 33, 64))
    x = rng.standard_normal((tokens, 1, 64)).astype(np.float32)
    chosen = rng.integers(0, 6, (tokens, 2)).astype(np.int32)
    chosen[-1, 1] = bad
    node = mul_mat_id(bench, bench.put_raw("Q4_0", (6, 33, 64), data), bench.put(x), bench.put(chosen))
    with pytest.raises(RpcError, match=f"MUL_MAT_ID: index {bad} "):
        bench.run(node)


def test_type_without_kernel_is_named(bench: Bench) -> None:
    w, x = bench.place("Q8_K", (4, 256)), bench.place("F32", (1, 256))
    with pytest.raises(RpcError, match="op MUL_MAT, tensor 'mul_mat result': types Q8_K, F32 -> F32"):
        bench.run(mul_mat(bench, w, x))
