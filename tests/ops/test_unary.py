"""UNARY in all its kinds, SQR, SQRT, LOG, SIN, COS, SCALE, CLAMP and LEAKY_RELU against float64."""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import erf

import numpy as np
import pytest

from ggml_rpc.spec.enums import UnaryKind
from tests.ops.tolerances import check
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16

Function = Callable[[np.ndarray], np.ndarray]

XIELU = (0.8, 0.6, 0.5, -1e-6)  # alpha_n, alpha_p, beta, eps
LENGTHS = (1, 15, 17, 33, 97, 1000)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def half_away(x: np.ndarray) -> np.ndarray:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def xielu(x: np.ndarray) -> np.ndarray:
    alpha_n, alpha_p, beta, eps = XIELU
    return np.where(x > 0, alpha_p * x * x + beta * x, (np.expm1(np.minimum(x, eps)) - x) * alpha_n + beta * x)


KINDS: dict[UnaryKind, Function] = {
    UnaryKind.ABS: np.abs,
    UnaryKind.SGN: np.sign,
    UnaryKind.NEG: np.negative,
    UnaryKind.STEP: lambda x: (x > 0).astype(np.float64),
    UnaryKind.TANH: np.tanh,
    UnaryKind.ELU: lambda x: np.where(x > 0, x, np.expm1(x)),
    UnaryKind.RELU: lambda x: np.maximum(x, 0),
    UnaryKind.SIGMOID: sigmoid,
    UnaryKind.GELU: lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * x * (1 + 0.044715 * x * x))),
    UnaryKind.GELU_QUICK: lambda x: x * sigmoid(1.702 * x),
    UnaryKind.SILU: lambda x: x * sigmoid(x),
    UnaryKind.HARDSWISH: lambda x: x * np.clip((x + 3) / 6, 0, 1),
    UnaryKind.HARDSIGMOID: lambda x: np.clip((x + 3) / 6, 0, 1),
    UnaryKind.EXP: np.exp,
    UnaryKind.EXPM1: np.expm1,
    UnaryKind.SOFTPLUS: lambda x: np.logaddexp(0, x),
    UnaryKind.GELU_ERF: lambda x: 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))),
    UnaryKind.XIELU: xielu,
    UnaryKind.FLOOR: np.floor,
    UnaryKind.CEIL: np.ceil,
    UnaryKind.ROUND: half_away,
    UnaryKind.TRUNC: np.trunc,
}

# op -> parameters, oracle, samples are positive
OPS: dict[str, tuple[bytes, Function, bool]] = {
    "SQR": (b"", np.square, False),
    "SQRT": (b"", np.sqrt, True),
    "LOG": (b"", np.log, True),
    "SIN": (b"", np.sin, False),
    "COS": (b"", np.cos, False),
    "SCALE": (struct.pack("<2f", 0.375, -1.25), lambda x: x * 0.375 - 1.25, False),
    "CLAMP": (struct.pack("<2f", -1.5, 0.25), lambda x: np.clip(x, -1.5, 0.25), False),
    "LEAKY_RELU": (struct.pack("<f", 0.125), lambda x: np.where(x > 0, x, 0.125 * x), False),
}


def params_of(kind: UnaryKind) -> bytes:
    return struct.pack("<i4f", kind, *XIELU)


def run_kind(bench: Bench, kind: UnaryKind, x: np.ndarray) -> np.ndarray:
    node = bench.node("UNARY", "F32", x.shape, [bench.put(x)], params_of(kind))
    bench.run(node)
    return bench.read(node).reshape(x.shape)


def test_every_kind_is_here() -> None:
    """Those of ik_llama.cpp alone are among its ops."""
    assert set(KINDS) == {k for k in UnaryKind if k <= UnaryKind.TRUNC}


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda k: k.name)
def test_kinds(bench: Bench, rng: np.random.Generator, kind: UnaryKind) -> None:
    for n in LENGTHS:
        x = (rng.standard_normal((3, n)) * 3).astype(np.float32)
        check(run_kind(bench, kind, x), KINDS[kind](x.astype(np.float64)), "f32")


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda k: k.name)
def test_kinds_over_the_whole_range(bench: Bench, rng: np.random.Generator, kind: UnaryKind) -> None:
    """Small, middling and large arguments each keep their relative accuracy as a row of their own."""
    for scale in (1e-6, 1e-2, 1.0, 10.0, 60.0):
        x = (rng.uniform(-1, 1, (1, 500)) * scale).astype(np.float32)
        check(run_kind(bench, kind, x), KINDS[kind](x.astype(np.float64)), "f32")


@pytest.mark.parametrize("op", list(OPS))
def test_ops(bench: Bench, rng: np.random.Generator, op: str) -> None:
    params, oracle, positive = OPS[op]
    for n in LENGTHS:
        x = (rng.standard_normal((2, 3, n)) * 3).astype(np.float32)
        if positive:
            x = np.abs(x)
        node = bench.node(op, "F32", x.shape, [bench.put(x)], params)
        bench.run(node)
        check(bench.read(node).reshape(x.shape), oracle(x.astype(np.float64)), "f32")


@pytest.mark.parametrize(
    "kind", [UnaryKind.SILU, UnaryKind.GELU, UnaryKind.TANH, UnaryKind.EXPM1], ids=lambda k: k.name
)
@pytest.mark.parametrize(("src", "dst"), [("F16", "F16"), ("BF16", "BF16"), ("F16", "F32"), ("BF16", "F32")])
def test_types(bench: Bench, rng: np.random.Generator, kind: UnaryKind, src: str, dst: str) -> None:
    x = rng.standard_normal((5, 611)).astype(np.float32)
    x = x.astype(np.float16) if src == "F16" else bf16_to_f32(f32_to_bf16(x))
    node = bench.node("UNARY", dst, x.shape, [bench.put(x, src)], params_of(kind))
    bench.run(node)
    check(bench.read(node).reshape(x.shape), KINDS[kind](x.astype(np.float64)), dst.lower())


@pytest.mark.parametrize("kind", [UnaryKind.SILU, UnaryKind.NEG], ids=lambda k: k.name)
def test_permuted_and_padded_sources(bench: Bench, rng: np.random.Generator, kind: UnaryKind) -> None:
    x = rng.standard_normal((4, 5, 33)).astype(np.float32)
    base = bench.put(x)
    turned = bench.permute(base, (0, 2, 1, 3))
    a = bench.node("UNARY", "F32", (5, 4, 33), [turned], params_of(kind))
    part = bench.view(base, "F32", (4, 5, 20), (5 * 33 * 4, 33 * 4, 4), offset=7 * 4)  # rows of a longer row
    b = bench.node("UNARY", "F32", (4, 5, 20), [part], params_of(kind))
    bench.run(a, b)
    oracle = KINDS[kind](x.astype(np.float64))
    check(bench.read(a)[0], oracle.transpose(1, 0, 2), "f32")
    check(bench.read(b)[0], oracle[:, :, 7:27], "f32")


def test_in_place_and_long_rows(bench: Bench, rng: np.random.Generator) -> None:
    """A row of several parts, shared by workers, written over its source."""
    x = rng.standard_normal(100_003).astype(np.float32)
    t = bench.put(x)
    node = bench.node("UNARY", "F32", x.shape, [t], params_of(UnaryKind.GELU), out=t)
    after = bench.place("F32", (64,))
    bench.run(node)
    check(bench.read(node)[0, 0], KINDS[UnaryKind.GELU](x.astype(np.float64))[None, :], "f32")
    assert set(bench.raw(after)) == {0xCB}, "written past the end"


SPECIAL = np.array(
    [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 3.4e38, -3.4e38, 88.9, -88.9, 104.5, -104.5],
    np.float32,
)

# The value at minus infinity where float64's evaluation of the formula is infinity times zero.
LIMIT_AT_MINUS_INFINITY = {
    UnaryKind.GELU: 0.0,
    UnaryKind.GELU_QUICK: 0.0,
    UnaryKind.GELU_ERF: 0.0,
    UnaryKind.SILU: 0.0,
}
# Comparisons with NaN are false, as in C.
AT_NAN = {UnaryKind.SGN: 0.0, UnaryKind.STEP: 0.0, UnaryKind.RELU: 0.0, UnaryKind.HARDSIGMOID: 0.0}


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k not in (UnaryKind.XIELU, UnaryKind.HARDSWISH)], ids=lambda k: k.name
)
def test_special_values(bench: Bench, kind: UnaryKind) -> None:
    with np.errstate(all="ignore"):
        expected = KINDS[kind](SPECIAL.astype(np.float64))
        expected[1] = LIMIT_AT_MINUS_INFINITY.get(kind, expected[1])
        expected[2] = AT_NAN.get(kind, np.nan)
        if kind in LIMIT_AT_MINUS_INFINITY:
            expected[10] = 0.0  # -3.4e38 times a zero
        rounded = expected.astype(np.float32)
    got = run_kind(bench, kind, SPECIAL)
    # 1 / (1 + e^-x) is 0 in f32 where e^-x overflows, as in the stock library; elsewhere subnormals count.
    atol = np.full(SPECIAL.shape, 3e-44)
    if kind != UnaryKind.EXP:
        atol[np.abs(SPECIAL) > 88] = 1e-36
    np.testing.assert_array_equal(np.isfinite(got.ravel()), np.isfinite(rounded))
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(got.ravel()[~finite], rounded[~finite])
    error = np.abs(got.ravel()[finite].astype(np.float64) - rounded[finite])
    assert (error <= 1e-5 * np.abs(rounded[finite]) + atol[finite]).all(), (got, rounded)


@pytest.mark.parametrize(
    "kind",
    [UnaryKind.TANH, UnaryKind.EXPM1, UnaryKind.FLOOR, UnaryKind.CEIL, UnaryKind.ROUND, UnaryKind.TRUNC, UnaryKind.NEG],
    ids=lambda k: k.name,
)
def test_sign_of_zero(bench: Bench, kind: UnaryKind) -> None:
    x = np.array([0.0, -0.0, -1e-45, 1e-45], np.float32)
    expected = KINDS[kind](x.astype(np.float64))
    np.testing.assert_array_equal(np.signbit(run_kind(bench, kind, x)).ravel(), np.signbit(expected))


@pytest.mark.parametrize(
    "kind", [UnaryKind.FLOOR, UnaryKind.CEIL, UnaryKind.ROUND, UnaryKind.TRUNC], ids=lambda k: k.name
)
def test_rounding_is_exact(bench: Bench, kind: UnaryKind) -> None:
    near = np.array([0.5, 1.5, 2.5, 0.49999997, 1.0, 8388607.5, 8388608.0, 8388609.0, 2147483648.0, 1e30], np.float32)
    x = np.concatenate([near, -near])
    check(run_kind(bench, kind, x), KINDS[kind](x.astype(np.float64)), "exact")


@pytest.mark.parametrize("op", ["SQRT", "LOG", "SIN", "COS"])
def test_special_values_of_ops(bench: Bench, op: str) -> None:
    x = SPECIAL if op in ("SQRT", "LOG") else np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-39], np.float32)
    node = bench.node(op, "F32", x.shape, [bench.put(x)])
    bench.run(node)
    with np.errstate(all="ignore"):
        expected = OPS[op][1](x.astype(np.float64))
    np.testing.assert_allclose(bench.read(node).ravel(), expected, rtol=1e-6, atol=1e-45)


@pytest.mark.parametrize("op", ["SIN", "COS"])
def test_large_arguments(bench: Bench, rng: np.random.Generator, op: str) -> None:
    """Quadrant reduction holds up to its bound, and the C library takes over beyond."""
    for scale in (1e2, 8e3, 1e5, 1e20):
        x = (rng.uniform(-1, 1, 300) * scale).astype(np.float32)
        node = bench.node(op, "F32", x.shape, [bench.put(x)])
        bench.run(node)
        check(bench.read(node).reshape(x.shape), OPS[op][1](x.astype(np.float64)), "f32")


def test_log_of_all_magnitudes(bench: Bench) -> None:
    x = np.exp2(np.linspace(-148, 127, 4001)).astype(np.float32)
    node = bench.node("LOG", "F32", x.shape, [bench.put(x)])
    bench.run(node)
    np.testing.assert_allclose(bench.read(node).ravel(), np.log(x.astype(np.float64)), rtol=3e-7, atol=1e-7)


def test_clamp_to_infinity(bench: Bench) -> None:
    x = np.array([-5.0, 5.0, np.inf, -np.inf, 0.0], np.float32)
    node = bench.node("CLAMP", "F32", x.shape, [bench.put(x)], struct.pack("<2f", 0.0, np.inf))
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node).ravel(), [0, 5, np.inf, 0, 0])
