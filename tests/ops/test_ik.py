"""Ops and forms of ops that only ik_llama.cpp sends, against float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.spec import dialects
from ggml_rpc.spec.enums import UnaryKind
from tests.ops import test_matmul
from tests.ops.conftest import device
from tests.ops.test_matmul import kind, product, weights
from tests.ops.test_softmax import slopes
from tests.ops.test_unary import sigmoid
from tests.ops.tolerances import check
from tests.support.device import NUMPY_TYPES, Bench, bf16_to_f32, f32_to_bf16
from tests.support.wiretensor import Tensor

IK = dialects.find("ik-3.5.2")
RELU, SIGMOID, SILU, GELU = UnaryKind.RELU, UnaryKind.SIGMOID, UnaryKind.SILU, UnaryKind.GELU
SWIGLU, SWIGLU_OAI, SQRT_SOFTPLUS = UnaryKind.SWIGLU, UnaryKind.SWIGLU_OAI, UnaryKind.SQRT_SOFTPLUS
LENGTHS = [1, 15, 17, 33, 97]

# An index outside leaves a row of zeros.
ABSENT = [-1, -(2**31), 9, 2**31 - 1]


@pytest.fixture
def bench(level: str) -> Bench:
    """Return memory and a device at one level, reached by ik_llama.cpp's protocol."""
    return Bench(device(level), dialect=IK)


def on_grid(x: np.ndarray, type_name: str) -> np.ndarray:
    """Return activations as products here see them."""
    return test_matmul.on_grid(x, type_name, bf16_scales=True)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def gate_params(activation: int, limit: float = 0.0) -> bytes:
    return struct.pack("<if", activation, limit)


def activation(code: int, x: np.ndarray) -> np.ndarray:
    """Return what a gate lets through."""
    if code == SIGMOID:
        return sigmoid(x)
    if code == SILU:
        return x * sigmoid(x)
    if code == RELU:
        return np.maximum(x, 0)
    if code == GELU:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert code == SWIGLU_OAI
    low = np.minimum(x, 7)
    return low * sigmoid(1.702 * low)


def gated(code: int, gate: np.ndarray, up: np.ndarray, limit: float = 0.0) -> np.ndarray:
    """Return activation(gate) * up; the limit bounds both factors."""
    g, u = activation(code, gate.astype(np.float64)), up.astype(np.float64)
    if limit > 1e-6:
        g = np.minimum(g, limit)
    if code == SWIGLU_OAI:
        u = 1 + np.clip(u, -7, 7)
    elif limit > 1e-6:
        u = np.clip(u, -limit, limit)
    return g * u


def normal(rng: np.random.Generator, shape: tuple[int, ...], size: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * size).astype(np.float32)


def rows_apart(bench: Bench, x: np.ndarray, gap: int = 5) -> Tensor:
    """Place a matrix as a view of a wider one."""
    wide = np.full((x.shape[0], x.shape[1] + gap), np.nan, np.float32)
    wide[:, : x.shape[1]] = x
    return bench.view(bench.put(wide), "F32", x.shape, (wide.shape[1] * 4, 4))


# ---- Norms ----


@pytest.mark.parametrize("op", ["FUSED_RMS_NORM", "FUSED_NORM"])
@pytest.mark.parametrize("n", [*LENGTHS, 2048])
def test_fused_norm(bench: Bench, rng: np.random.Generator, op: str, n: int) -> None:
    x, weight = normal(rng, (2, 3, n)) + 0.5, normal(rng, (n,))
    node = bench.node(op, "F32", x.shape, [bench.put(x), bench.put(weight)], floats(1e-5))
    bench.run(node)
    wide = x.astype(np.float64)
    if op == "FUSED_NORM":
        wide = wide - wide.mean(-1, keepdims=True)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight
    check(bench.read(node)[0], expected, "f32")


def test_fused_rms_norm_without_weight(bench: Bench, rng: np.random.Generator) -> None:
    x = normal(rng, (3, 97))
    node = bench.node("FUSED_RMS_NORM", "F32", x.shape, [bench.put(x)], floats(1e-6))
    bench.run(node)
    wide = x.astype(np.float64)
    check(bench.read(node)[0, 0], wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6), "f32")


def test_fused_rms_norm_of_heads_inside_a_joint_projection(bench: Bench, rng: np.random.Generator) -> None:
    """Heads of k lie behind those of q in each row; the result goes where they lie."""
    joint, weight = normal(rng, (5, 6 * 64)), normal(rng, (64,))
    base = bench.put(joint)
    heads = bench.view(base, "F32", (5, 2, 64), (6 * 64 * 4, 64 * 4, 4), offset=4 * 64 * 4)
    node = bench.node("FUSED_RMS_NORM", "F32", (5, 2, 64), [heads, bench.put(weight)], floats(1e-6), out=heads)
    bench.run(node)
    x = joint[:, 256:].reshape(5, 2, 64).astype(np.float64)
    check(bench.read(node)[0], x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight, "f32")
    np.testing.assert_array_equal(bench.read(base)[0, 0, :, :256], joint[:, :256])


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n", [1, 33, 1030])
def test_sum_of_two_norms(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    a, b = normal(rng, (4, n)), normal(rng, (4, n), 3.0)
    if type_name != "F32":
        narrow = (lambda x: bf16_to_f32(f32_to_bf16(x))) if type_name == "BF16" else (lambda x: x.astype(np.float16))
        a, b = narrow(a), narrow(b)
    wa, wb = normal(rng, (n,)), normal(rng, (n,))
    sources = [bench.put(a, type_name), bench.put(wa), bench.put(b, type_name), bench.put(wb)]
    node = bench.node("FUSED_RMS_RMS_ADD", "F32", a.shape, sources, floats(1e-6))
    bench.run(node)
    wide = [x.astype(np.float64) for x in (a, b)]
    norms = [x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) for x in wide]
    check(bench.read(node)[0, 0], norms[0] * wa + norms[1] * wb, "f32")


# ---- Element by element ----


@pytest.mark.parametrize("code", [GELU, RELU, SILU])
@pytest.mark.parametrize("n", [*LENGTHS, 9001])
def test_gate(bench: Bench, rng: np.random.Generator, code: int, n: int) -> None:
    a, b = normal(rng, (3, n), 2.0), normal(rng, (3, n), 2.0)
    for ta, tb in [(bench.put(a), bench.put(b)), (rows_apart(bench, a), rows_apart(bench, b, 3))]:
        node = bench.node("FUSED_MUL_UNARY", "F32", a.shape, [ta, tb], gate_params(code))
        bench.run(node)
        check(bench.read(node)[0, 0], gated(code, a, b), "f32")


def test_gate_in_place(bench: Bench, rng: np.random.Generator) -> None:
    a, b = normal(rng, (3, 130)), normal(rng, (3, 130))
    ta = bench.put(a)
    node = bench.node("FUSED_MUL_UNARY", "F32", a.shape, [ta, bench.put(b)], gate_params(SILU), out=ta)
    bench.run(node)
    check(bench.read(node)[0, 0], gated(SILU, a, b), "f32")


def test_limit_of_a_gate_is_for_silu_alone(bench: Bench, rng: np.random.Generator) -> None:
    a, b = normal(rng, (3, 130), 3.0), normal(rng, (3, 130), 3.0)
    for code, limit, effective in [(SILU, 1.5, 1.5), (SILU, 1e-7, 0.0), (SILU, -2.0, 0.0), (GELU, 1.5, 0.0)]:
        node = bench.node("FUSED_MUL_UNARY", "F32", a.shape, [bench.put(a), bench.put(b)], gate_params(code, limit))
        bench.run(node)
        check(bench.read(node)[0, 0], gated(code, a, b, effective), "f32")


@pytest.mark.parametrize("code", [SILU, SIGMOID])
@pytest.mark.parametrize("n", [15, 33, 97, 9001])
@pytest.mark.parametrize("limit", [0.0, 0.75])
def test_gate_of_a_row(bench: Bench, rng: np.random.Generator, code: int, n: int, limit: float) -> None:
    a, b = normal(rng, (2, 3, 1), 2.0), normal(rng, (2, 3, n), 2.0)
    tb = bench.put(b)
    node = bench.node("FUSED_MUL_UNARY", "F32", b.shape, [bench.put(a), tb], gate_params(code, limit), out=tb)
    bench.run(node)
    check(bench.read(node)[0], gated(code, a, b, limit), "f32")


@pytest.mark.parametrize("n", [*LENGTHS, 9001])
def test_softcap(bench: Bench, rng: np.random.Generator, n: int) -> None:
    x = normal(rng, (3, n), 60.0)
    for source in (bench.put(x), rows_apart(bench, x)):
        node = bench.node("SOFTCAP", "F32", x.shape, [source], floats(1 / 50, 50.0), out=source)
        bench.run(node)
        check(bench.read(node)[0, 0], 50 * np.tanh(x.astype(np.float64) * np.float32(1 / 50)), "f32")


def test_square_root_of_softplus(bench: Bench, rng: np.random.Generator) -> None:
    x = np.concatenate([normal(rng, (500,), 10.0), np.float32([-80, -20, 0, 20, 100])])
    node = bench.node("UNARY", "F32", x.shape, [bench.put(x)], struct.pack("<i", SQRT_SOFTPLUS))
    bench.run(node)
    got, expected = bench.read(node)[0, 0, 0], np.sqrt(np.logaddexp(0, x.astype(np.float64)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("form", ["SWIGLU", "SWIGLU_OAI", "SWIGLU_OAI of halves"])
def test_gates_that_are_unary_there(bench: Bench, rng: np.random.Generator, form: str, n: int) -> None:
    """Their alpha and limit travel with the node."""
    gate, up = normal(rng, (3, n), 3.0), normal(rng, (3, n), 3.0)
    halves = bench.put(np.concatenate([gate, up], -1))
    if form == "SWIGLU":
        node = bench.node("UNARY", "F32", gate.shape, [halves], struct.pack("<i", SWIGLU))
        expected = gated(SILU, gate, up)
    else:
        sources = [halves] if "halves" in form else [bench.put(gate), bench.put(up)]
        node = bench.node("UNARY", "F32", gate.shape, sources, struct.pack("<iiff", SWIGLU_OAI, 0, 1.5, 2.0))
        low = np.minimum(gate.astype(np.float64), 2)
        expected = low * sigmoid(1.5 * low) * (1 + np.clip(up.astype(np.float64), -2, 2))
    bench.run(node)
    check(bench.read(node)[0, 0], expected, "f32")


def test_scale_by_zero_resets(bench: Bench) -> None:
    """A recurrent state may hold anything before its first use."""
    x = np.float32([1, np.nan, np.inf, -np.inf, -3] * 20)
    source = bench.put(x)
    node = bench.node("SCALE", "F32", x.shape, [source], floats(0.0, 0.0), out=source)
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node)[0, 0, 0], np.zeros(100))


@pytest.mark.parametrize("types", ["F16 F32 F32", "F32 F16 F16", "BF16 F32 BF16", "F32 BF16 F32", "F16 F16 F32"])
def test_add_of_mixed_types(bench: Bench, rng: np.random.Generator, types: str) -> None:
    names = types.split()
    values, tensors = [], []
    for name in names[:2]:
        x = normal(rng, (4, 97))
        values.append(bf16_to_f32(f32_to_bf16(x)) if name == "BF16" else x.astype(NUMPY_TYPES[name]))
        tensors.append(bench.put(values[-1], name))
    # Split graphs leave a hint there, of no meaning here.
    node = bench.node("ADD", names[2], (4, 97), tensors, struct.pack("<i", 0xFF))
    bench.run(node)
    check(bench.read(node)[0, 0], values[0].astype(np.float64) + values[1].astype(np.float64), names[2].lower())


# ---- Softmax of capped logits ----


@pytest.mark.parametrize("n", [*LENGTHS, 5000])
@pytest.mark.parametrize(("mask_type", "max_bias"), [("none", 0.0), ("F16", 0.0), ("F16", 8.0), ("F32", 8.0)])
def test_soft_cap_max(bench: Bench, rng: np.random.Generator, n: int, mask_type: str, max_bias: float) -> None:
    x = normal(rng, (1, 6, 4, n), 60.0)
    logits = 0.25 * 50 * np.tanh(x.astype(np.float64) * np.float32(0.02))
    sources = [bench.put(x)]
    if mask_type != "none":
        mask = normal(rng, (32, n)).astype(NUMPY_TYPES[mask_type])  # more rows than tokens
        mask[:, n // 2 + 1 :] = -np.inf
        sources.append(bench.put(mask))
        logits = logits + slopes(6, max_bias)[:, None, None] * mask[:4].astype(np.float64)
    node = bench.node("SOFT_CAP_MAX", "F32", x.shape, sources, floats(0.25, max_bias, 0.02, 50.0), out=sources[0])
    bench.run(node)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    check(bench.read(node), e / e.sum(-1, keepdims=True), "f32")


# ---- Sums ----


@pytest.mark.parametrize("n", [*LENGTHS, 9001])
@pytest.mark.parametrize("used", [1, 4, 70])
def test_weighted_sum(bench: Bench, rng: np.random.Generator, n: int, used: int) -> None:
    x, w = normal(rng, (3, used, n)), normal(rng, (3, used, 1))
    node = bench.node("MUL_MULTI_ADD", "F32", (3, n), [bench.put(x), bench.put(w)])
    bench.run(node)
    check(bench.read(node)[0, 0], (x.astype(np.float64) * w).sum(1), "f32")


def scaled(bench: Bench, rng: np.random.Generator, ids: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Return a sum whose experts have factors of their own, and what it is."""
    x, w, scale = normal(rng, (3, 4, 97)), normal(rng, (3, 4, 1)), normal(rng, (9,))
    order = np.zeros((3, 9), np.int32)
    order[:, :4] = ids
    listed = bench.view(bench.put(order), "I32", (3, 4), (9 * 4, 4))
    sources = [bench.put(x), bench.put(w), bench.put(scale), listed]
    node = bench.node("MUL_MULTI_ADD", "F32", (3, 97), sources)
    return node, (x.astype(np.float64) * w * scale[ids % 9][..., None]).sum(1)


def test_weighted_sum_with_factors_of_experts(bench: Bench, rng: np.random.Generator) -> None:
    node, expected = scaled(bench, rng, rng.integers(0, 9, (3, 4), np.int32))
    bench.run(node)
    check(bench.read(node)[0, 0], expected, "f32")


@pytest.mark.parametrize("bad", ABSENT)
def test_factor_of_an_expert_that_is_not_there(bench: Bench, rng: np.random.Generator, bad: int) -> None:
    ids = rng.integers(0, 9, (3, 4), np.int32)
    ids[2, 3] = bad
    node, _ = scaled(bench, rng, ids)
    with pytest.raises(RpcError, match="MUL_MULTI_ADD"):
        bench.run(node)


@pytest.mark.parametrize("n", LENGTHS)
def test_sum_of_rows_behind_a_view(bench: Bench, rng: np.random.Generator, n: int) -> None:
    """The view shows the first expert of each token; the op reads the others behind it."""
    experts = normal(rng, (5, 3, n))
    first = bench.view(bench.put(experts), "F32", (5, n), (3 * n * 4, 4))
    node = bench.node("MULTI_ADD", "F32", (5, n), [first], struct.pack("<i", 3))
    bench.run(node)
    check(bench.read(node)[0, 0], experts.astype(np.float64).sum(1), "f32")


def test_sum_of_rows_must_stay_in_the_viewed_tensor(bench: Bench, rng: np.random.Generator) -> None:
    first = bench.view(bench.put(normal(rng, (5, 3, 8))), "F32", (5, 8), (3 * 8 * 4, 4))
    node = bench.node("MULTI_ADD", "F32", (5, 8), [first], struct.pack("<i", 4))
    with pytest.raises(RpcError, match="all rows must lie in the tensor"):
        bench.run(node)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("n", LENGTHS)
def test_sum_over_a_dimension(bench: Bench, rng: np.random.Generator, dim: int, n: int) -> None:
    x = normal(rng, (3, 4, 5, n))
    expected = x.astype(np.float64).sum(3 - dim, keepdims=True)
    node = bench.node("SUM_ROWS", "F32", expected.shape, [bench.put(x)], struct.pack("<i", dim))
    bench.run(node)
    check(bench.read(node), expected, "f32")


# ---- Walsh-Hadamard transform ----


def walsh(n: int) -> np.ndarray:
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64, 128])
def test_hadamard(bench: Bench, rng: np.random.Generator, n: int) -> None:
    x = normal(rng, (2, 3, 3 * n))
    source = bench.put(x)
    node = bench.node("HADAMARD", "F32", x.shape, [source], struct.pack("<i", n))
    bench.run(node)
    expected = (x.reshape(-1, n).astype(np.float64) @ walsh(n)).reshape(x.shape)
    check(bench.read(node)[0], expected, "f32")
    there = bench.node("HADAMARD", "F32", x.shape, [source], struct.pack("<i", n), out=source)
    bench.run(there)
    check(bench.read(there)[0], expected, "f32")


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_hadamard_of_a_cache(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    data, values = weights(rng, type_name, (7, 128))
    node = bench.node("HADAMARD", "F32", (7, 128), [bench.put_raw(type_name, (7, 128), data)], struct.pack("<i", 64))
    bench.run(node)
    check(bench.read(node)[0, 0], (values.reshape(-1, 64) @ walsh(64)).reshape(7, 128), "f32")


# ---- Products ----


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q4_K"])
@pytest.mark.parametrize("n", [1, 3, 33])
def test_product(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    """Activations for weights in blocks of 32 have scales of bf16, others llama.cpp's."""
    data, values = weights(rng, type_name, (37, 512))
    x = normal(rng, (n, 512))
    x[0, 32:64] = 0
    node = bench.node("MUL_MAT", "F32", (n, 37), [bench.put_raw(type_name, (37, 512), data), bench.put(x)])
    bench.run(node)
    check(bench.read(node), product(values, on_grid(x, type_name)), "product_f32")


def test_product_with_each_expert(bench: Bench, rng: np.random.Generator) -> None:
    data, values = weights(rng, "Q4_0", (3, 37, 64))
    x, ids = normal(rng, (20, 1, 64)), rng.integers(0, 3, (20, 2), np.int32)
    sources = [bench.put_raw("Q4_0", (3, 37, 64), data), bench.put(x), bench.put(ids)]
    node = bench.node("MUL_MAT_ID", "F32", (20, 2, 37), sources)
    bench.run(node)
    expected = np.einsum("tk,tumk->tum", on_grid(x, "Q4_0")[:, 0], values[ids])
    check(bench.read(node)[0], expected, "product_f32")


# ---- Products with gates ----

GATED_TYPES = ["F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q4_K", "Q6_K"]


@pytest.mark.parametrize("type_name", GATED_TYPES)
@pytest.mark.parametrize("n", [1, 5, 40])
def test_up_and_gate(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    m, k = 70, 512
    up, gate = weights(rng, type_name, (m, k)), weights(rng, type_name, (m, k))
    x = normal(rng, (n, k), 0.1)
    sources = [bench.put_raw(type_name, (m, k), up[0]), bench.put_raw(type_name, (m, k), gate[0]), bench.put(x)]
    node = bench.node("FUSED_UP_GATE", "F32", (n, m), sources, gate_params(SILU))
    bench.run(node)
    seen = on_grid(x, type_name)
    check(bench.read(node)[0, 0], gated(SILU, seen @ gate[1].T, seen @ up[1].T), kind(type_name))


@pytest.mark.parametrize("code", [SILU, GELU, RELU, SWIGLU_OAI])
@pytest.mark.parametrize("limit", [0.0, 0.8])
def test_activations_of_up_and_gate(bench: Bench, rng: np.random.Generator, code: int, limit: float) -> None:
    for m, k, n in [(1, 32, 1), (17, 96, 3), (33, 64, 700)]:
        up, gate = weights(rng, "Q8_0", (m, k)), weights(rng, "Q8_0", (m, k))
        x = normal(rng, (n, k), 0.8)
        sources = [bench.put_raw("Q8_0", (m, k), up[0]), bench.put_raw("Q8_0", (m, k), gate[0]), bench.put(x)]
        node = bench.node("FUSED_UP_GATE", "F32", (n, m), sources, gate_params(code, limit))
        bench.run(node)
        seen = on_grid(x, "Q8_0")
        check(bench.read(node)[0, 0], gated(code, seen @ gate[1].T, seen @ up[1].T, limit), "product_f32")


def test_up_and_gate_share_activations(bench: Bench, rng: np.random.Generator) -> None:
    up, gate = weights(rng, "Q4_0", (33, 64)), weights(rng, "Q4_0", (33, 64))
    x = normal(rng, (3, 64))
    matrices, source = [bench.put_raw("Q4_0", (33, 64), w[0]) for w in (up, gate)], bench.put(x)
    before = bench.node("MUL_MAT", "F32", (3, 33), [matrices[0], source])
    node = bench.node("FUSED_UP_GATE", "F32", (3, 33), [*matrices, source], gate_params(SILU))
    bench.run(before, node)
    seen = on_grid(x, "Q4_0")
    check(bench.read(before)[0, 0], seen @ up[1].T, "product_f32")
    check(bench.read(node)[0, 0], gated(SILU, seen @ gate[1].T, seen @ up[1].T), "product_f32")


class Experts:
    """A layer of experts: matrices, activations, and the experts of each token as the head of a sorted list."""

    n_experts, m, k = 9, 37, 64

    def __init__(
        self, rng: np.random.Generator, tokens: int, used: int, *, shared_x: bool, merged: bool, biased: bool
    ) -> None:
        e, m, k = self.n_experts, self.m, self.k
        self.merged = merged
        self.up, self.gate = weights(rng, "Q8_0", (e, m, k)), weights(rng, "Q8_0", (e, m, k))
        self.bias = (normal(rng, (e, m), 0.3), normal(rng, (e, m), 0.3)) if biased else None
        self.x = normal(rng, (tokens, 1 if shared_x else used, k), 0.5)
        self.order = np.argsort(rng.standard_normal((tokens, e)), -1).astype(np.int32)
        self.used = used

    def node(self, bench: Bench, code: int = SILU, limit: float = 0.0) -> Tensor:
        e, m, k = self.n_experts, self.m, self.k
        ids = bench.view(bench.put(self.order), "I32", (len(self.x), self.used), (e * 4, 4))
        sources: list[Tensor | None]
        if self.merged:
            pair = [np.frombuffer(w[0], np.uint8).reshape(e, -1) for w in (self.gate, self.up)]
            both = bench.put_raw("Q8_0", (e, 2 * m, k), np.concatenate(pair, 1).tobytes())
            sources = [both, None, bench.put(self.x), ids]
            if self.bias is not None:
                sources.append(bench.put(np.concatenate(self.bias[::-1], 1)))
        else:
            matrices = [bench.put_raw("Q8_0", (e, m, k), w[0]) for w in (self.up, self.gate)]
            sources = [*matrices, bench.put(self.x), ids]
            if self.bias is not None:
                sources += [bench.put(b) for b in self.bias]
        shape = (len(self.x), self.used, m)
        return bench.node("MOE_FUSED_UP_GATE", "F32", shape, sources, gate_params(code, limit))

    def expected(self, code: int = SILU, limit: float = 0.0) -> np.ndarray:
        seen = np.repeat(on_grid(self.x, "Q8_0"), self.used // self.x.shape[1], 1)
        chosen = self.order[:, : self.used]
        there = (chosen >= 0) & (chosen < self.n_experts)
        at = np.where(there, chosen, 0)
        up, gate = (np.einsum("tuk,tumk->tum", seen, w[1][at]) for w in (self.up, self.gate))
        if self.bias is not None:
            up, gate = up + self.bias[0][at], gate + self.bias[1][at]
        return np.where(there[..., None], gated(code, gate, up, limit), 0.0)


@pytest.mark.parametrize("tokens", [1, 3, 50])
@pytest.mark.parametrize("form", ["", "merged", "biased", "merged biased"])
@pytest.mark.parametrize("shared_x", [True, False], ids=["one x", "x of each"])
def test_experts(bench: Bench, rng: np.random.Generator, tokens: int, form: str, shared_x: bool) -> None:
    layer = Experts(rng, tokens, 4, shared_x=shared_x, merged="merged" in form, biased="biased" in form)
    for code, limit in [(SILU, 0.0), (SWIGLU_OAI, 0.0), (GELU, 0.6)]:
        node = layer.node(bench, code, limit)
        bench.run(node)
        check(bench.read(node)[0], layer.expected(code, limit), "product_f32")


@pytest.mark.parametrize("tokens", [2, 50])
def test_only_up_is_biased(bench: Bench, rng: np.random.Generator, tokens: int) -> None:
    layer = Experts(rng, tokens, 2, shared_x=True, merged=False, biased=True)
    assert layer.bias is not None
    node = layer.node(bench)
    node.src[5] = None
    layer.bias = (layer.bias[0], np.zeros_like(layer.bias[1]))
    bench.run(node)
    check(bench.read(node)[0], layer.expected(), "product_f32")


@pytest.mark.parametrize("tokens", [2, 50])
@pytest.mark.parametrize("absent", ABSENT)
def test_absent_experts_leave_zeros(bench: Bench, rng: np.random.Generator, tokens: int, absent: int) -> None:
    layer = Experts(rng, tokens, 4, shared_x=True, merged=False, biased=True)
    layer.order[tokens // 2, 1:3] = absent
    node = layer.node(bench)
    bench.run(node)
    check(bench.read(node)[0], layer.expected(), "product_f32")
    assert not bench.read(node)[0, tokens // 2, 1:3].any()


@pytest.mark.parametrize("tokens", [2, 50])
@pytest.mark.parametrize("absent", ABSENT)
def test_absent_experts_of_a_product(bench: Bench, rng: np.random.Generator, tokens: int, absent: int) -> None:
    data, values = weights(rng, "Q8_0", (9, 37, 64))
    x = normal(rng, (tokens, 4, 64))
    ids = rng.integers(0, 9, (tokens, 4), np.int32)
    ids[tokens // 2, 1:3] = absent
    sources = [bench.put_raw("Q8_0", (9, 37, 64), data), bench.put(x), bench.put(ids)]
    node = bench.node("MUL_MAT_ID", "F32", (tokens, 4, 37), sources)
    bench.run(node)
    expected = np.einsum("tuk,tumk->tum", on_grid(x, "Q8_0"), values[np.clip(ids, 0, 8)])
    expected[tokens // 2, 1:3] = 0
    check(bench.read(node)[0], expected, "product_f32")


# ---- Rows by index ----


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("absent", ABSENT)
def test_absent_rows_are_zero(bench: Bench, rng: np.random.Generator, type_name: str, absent: int) -> None:
    data, values = weights(rng, type_name, (9, 256))
    ids = np.int32([3, absent, 0, 8, absent])
    node = bench.node("GET_ROWS", "F32", (5, 256), [bench.put_raw(type_name, (9, 256), data), bench.put(ids)])
    bench.run(node)
    expected = values[[3, 0, 0, 8, 0]]
    expected[[1, 4]] = 0
    np.testing.assert_allclose(bench.read(node)[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q4_K"])
def test_rows_as_they_are(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    data, _ = weights(rng, type_name, (9, 256))
    rows = np.frombuffer(data, np.uint8).reshape(9, -1)
    ids = np.int32([3, 8, -1, 3])
    node = bench.node("GET_ROWS", type_name, (4, 256), [bench.put_raw(type_name, (9, 256), data), bench.put(ids)])
    bench.run(node)
    expected = rows[[3, 8, 0, 3]].copy()
    expected[2] = 0
    assert bench.raw(node) == expected.tobytes()


@pytest.mark.parametrize("type_name", ["F16", "Q8_0", "Q4_0"])
def test_copy_into_a_cache(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """Rows go behind those that are there, into a view of one dimension."""
    x = normal(rng, (3, 2, 64))
    empty = bench.place(type_name, (10, 128))
    bench.write(empty, bytes(empty.nbytes()))
    row = empty.nb[1]
    into = bench.view(empty, type_name, (3 * 128,), (empty.nb[0],), offset=4 * row)
    node = bench.node("CPY", type_name, (3 * 128,), [bench.put(x), into], out=into)
    node.view_src = empty
    node.view_offs = 4 * row
    back = bench.node("GET_ROWS", "F32", (10, 128), [empty, bench.put(np.arange(10, dtype=np.int32))])
    bench.run(node, back)
    got = bench.read(back)[0, 0]
    assert not got[:4].any()
    assert not got[7:].any()
    np.testing.assert_allclose(got[4:7], x.reshape(3, 128), atol={"F16": 2e-3, "Q8_0": 2e-2, "Q4_0": 0.3}[type_name])


# ---- Choice of experts ----


def grouped(x: np.ndarray, groups: int, top: int, n_best: int, k: int) -> np.ndarray:
    """Return the k largest entries of the groups whose best n entries have the largest sums; ties: the later one."""
    out = np.empty((len(x), k), np.int32)
    size = x.shape[1] // groups
    for t, row in enumerate(x.astype(np.float64)):
        sums = np.sort(row.reshape(groups, size), -1)[:, -n_best:].sum(-1)
        kept = sorted(range(groups), key=lambda g: (sums[g], g))[-top:]
        members = [g * size + i for g in kept for i in range(size)]
        out[t] = sorted(members, key=lambda i: (row[i], i))[::-1][:k]
    return out


@pytest.mark.parametrize("shape", [(256, 8, 4, 2, 8), (12, 3, 1, 1, 4), (7, 1, 1, 7, 7), (64, 64, 5, 1, 3)])
def test_grouped_choice(bench: Bench, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    n, groups, top, n_best, k = shape
    x = np.abs(normal(rng, (20, n)))
    x[3] = np.round(x[3], 1)  # many are equal
    params = struct.pack("<3i", groups, top, n_best)
    node = bench.node("GROUPED_TOPK", "I32", (20, k), [bench.put(x)], params)
    bench.run(node)
    got, expected = bench.read(node)[0, 0], grouped(x, groups, top, n_best, k)
    np.testing.assert_array_equal(np.delete(got, 3, 0), np.delete(expected, 3, 0))
    np.testing.assert_array_equal(x[3][got[3]], x[3][expected[3]])
    assert len(set(got[3])) == k


def test_sorting_of_the_first_entries_sorts_all(bench: Bench, rng: np.random.Generator) -> None:
    x = normal(rng, (5, 33))
    node = bench.node("ARGSORT", "I32", x.shape, [bench.put(x)], struct.pack("<2i", 1, 4))
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node)[0, 0], np.argsort(-x, -1))
