"""GLU in all its kinds and forms against float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.spec.enums import GluKind, UnaryKind
from tests.ops.test_unary import KINDS as UNARY
from tests.ops.test_unary import sigmoid
from tests.ops.tolerances import check
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16

ALPHA, LIMIT = 1.702, 1.25


def swiglu_oai(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    x = np.minimum(gate, LIMIT)
    return x * sigmoid(ALPHA * x) * (np.clip(up, -LIMIT, LIMIT) + 1)


def swiglu_clamp(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    x = np.minimum(gate, LIMIT)
    return x * sigmoid(x) * np.clip(up, -LIMIT, LIMIT)


ORACLE = {
    GluKind.REGLU: lambda g, u: UNARY[UnaryKind.RELU](g) * u,
    GluKind.GEGLU: lambda g, u: UNARY[UnaryKind.GELU](g) * u,
    GluKind.SWIGLU: lambda g, u: UNARY[UnaryKind.SILU](g) * u,
    GluKind.SWIGLU_OAI: swiglu_oai,
    GluKind.GEGLU_ERF: lambda g, u: UNARY[UnaryKind.GELU_ERF](g) * u,
    GluKind.GEGLU_QUICK: lambda g, u: UNARY[UnaryKind.GELU_QUICK](g) * u,
    GluKind.SWIGLU_CLAMP: swiglu_clamp,
}
ALL = pytest.mark.parametrize("kind", list(GluKind), ids=lambda k: k.name)


def params(kind: GluKind, swapped: bool = False) -> bytes:
    return struct.pack("<iiff", kind, swapped, ALPHA, LIMIT)


def test_every_kind_is_here() -> None:
    assert set(ORACLE) == set(GluKind)


@ALL
@pytest.mark.parametrize("n", [1, 15, 33, 97, 9001])
def test_two_sources(bench: Bench, rng: np.random.Generator, kind: GluKind, n: int) -> None:
    gate = (rng.standard_normal((2, 3, n)) * 2).astype(np.float32)
    up = (rng.standard_normal((2, 3, n)) * 2).astype(np.float32)
    node = bench.node("GLU", "F32", gate.shape, [bench.put(gate), bench.put(up)], params(kind))
    bench.run(node)
    check(bench.read(node)[0], ORACLE[kind](gate.astype(np.float64), up.astype(np.float64)), "f32")


@ALL
@pytest.mark.parametrize("swapped", [False, True])
def test_halves_of_one_source(bench: Bench, rng: np.random.Generator, kind: GluKind, swapped: bool) -> None:
    for n in (1, 17, 97, 10_000):
        x = (rng.standard_normal((3, 2 * n)) * 2).astype(np.float32)
        node = bench.node("GLU", "F32", (3, n), [bench.put(x)], params(kind, swapped))
        bench.run(node)
        gate, up = x[:, :n].astype(np.float64), x[:, n:].astype(np.float64)
        if swapped:
            gate, up = up, gate
        check(bench.read(node)[0, 0], ORACLE[kind](gate, up), "f32")


@ALL
@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_types(bench: Bench, rng: np.random.Generator, kind: GluKind, type_name: str) -> None:
    x = rng.standard_normal((4, 2 * 603)).astype(np.float32)
    x = x.astype(np.float16) if type_name == "F16" else bf16_to_f32(f32_to_bf16(x))
    node = bench.node("GLU", type_name, (4, 603), [bench.put(x, type_name)], params(kind, True))
    bench.run(node)
    wide = x.astype(np.float64)
    check(bench.read(node)[0, 0], ORACLE[kind](wide[:, 603:], wide[:, :603]), type_name.lower())


def test_sources_are_views_of_one_row(bench: Bench, rng: np.random.Generator) -> None:
    """Gate and up as two strided views of a joint projection."""
    x = rng.standard_normal((5, 200)).astype(np.float32)
    base = bench.put(x)
    gate = bench.view(base, "F32", (5, 100), (800, 4))
    up = bench.view(base, "F32", (5, 100), (800, 4), offset=400)
    node = bench.node("GLU", "F32", (5, 100), [gate, up], params(GluKind.SWIGLU))
    bench.run(node)
    wide = x.astype(np.float64)
    check(bench.read(node)[0, 0], ORACLE[GluKind.SWIGLU](wide[:, :100], wide[:, 100:]), "f32")


def test_in_place(bench: Bench, rng: np.random.Generator) -> None:
    gate = rng.standard_normal((7, 1030)).astype(np.float32)
    up = rng.standard_normal((7, 1030)).astype(np.float32)
    tg = bench.put(gate)
    node = bench.node("GLU", "F32", gate.shape, [tg, bench.put(up)], params(GluKind.GEGLU), out=tg)
    bench.run(node)
    check(bench.read(node)[0, 0], ORACLE[GluKind.GEGLU](gate.astype(np.float64), up.astype(np.float64)), "f32")
