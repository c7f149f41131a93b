"""SUM, SUM_ROWS, MEAN, CUMSUM, ARGMAX and COUNT_EQUAL against float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.tolerances import check
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16

SHAPES = [(1,), (17,), (3, 33), (2, 3, 4, 97), (64, 1000), (300_001,), (1000, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sum(bench: Bench, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x = (rng.standard_normal(shape) + 0.25).astype(np.float32)
    node = bench.node("SUM", "F32", (1,), [bench.put(x)])
    bench.run(node)
    check(bench.read(node).reshape(1), np.array([x.astype(np.float64).sum()]), "f32")


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_sum_of_short_types(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    x = (rng.standard_normal((3, 20_000)) + 0.25).astype(np.float32)
    x = x.astype(np.float16) if type_name == "F16" else bf16_to_f32(f32_to_bf16(x))
    node = bench.node("SUM", type_name, (1,), [bench.put(x, type_name)])
    bench.run(node)
    check(bench.read(node).reshape(1), np.array([x.astype(np.float64).sum()]), type_name.lower())


def test_sum_of_a_view(bench: Bench, rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 1000)).astype(np.float32)
    part = bench.view(bench.put(x), "F32", (40, 900), (4000, 4), offset=40)
    node = bench.node("SUM", "F32", (1,), [part])
    bench.run(node)
    check(bench.read(node).reshape(1), np.array([x[:, 10:910].astype(np.float64).sum()]), "f32")


def test_sum_loses_nothing_beside_large_terms(bench: Bench) -> None:
    x = np.concatenate([[1e8], np.full(50_000, 0.5), [-1e8]]).astype(np.float32)
    node = bench.node("SUM", "F32", (1,), [bench.put(x)])
    bench.run(node)
    assert bench.read(node).item() == 25_000


@pytest.mark.parametrize("op", ["SUM_ROWS", "MEAN", "CUMSUM"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows(bench: Bench, rng: np.random.Generator, op: str, shape: tuple[int, ...]) -> None:
    x = (rng.standard_normal(shape) + 0.25).astype(np.float32)
    wide = x.astype(np.float64)
    expected = {
        "SUM_ROWS": wide.sum(-1, keepdims=True),
        "MEAN": wide.mean(-1, keepdims=True),
        "CUMSUM": wide.cumsum(-1),
    }[op]
    node = bench.node(op, "F32", expected.shape, [bench.put(x)])
    bench.run(node)
    check(bench.read(node).reshape(expected.shape), expected, "f32")


@pytest.mark.parametrize("op", ["SUM_ROWS", "MEAN", "CUMSUM"])
def test_rows_of_a_permuted_source(bench: Bench, rng: np.random.Generator, op: str) -> None:
    x = rng.standard_normal((4, 70, 9)).astype(np.float32)
    turned = bench.permute(bench.put(x), (0, 2, 1, 3))
    wide = x.transpose(1, 0, 2).astype(np.float64)
    expected = {
        "SUM_ROWS": wide.sum(-1, keepdims=True),
        "MEAN": wide.mean(-1, keepdims=True),
        "CUMSUM": wide.cumsum(-1),
    }[op]
    node = bench.node(op, "F32", expected.shape, [turned])
    bench.run(node)
    check(bench.read(node)[0], expected, "f32")


def last_argmax(x: np.ndarray) -> np.ndarray:
    """Take the last of equal maxima, as the stock CPU."""
    return x.shape[-1] - 1 - np.argmax(x[..., ::-1], axis=-1)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 97, 4096, 262_144])
def test_argmax(bench: Bench, rng: np.random.Generator, n: int) -> None:
    x = rng.standard_normal((5, n)).astype(np.float32)
    x[1] = np.round(x[1])  # ties
    x[2] = -np.inf
    x[3, 0] = 99  # first
    x[4, -1] = 99  # last
    node = bench.node("ARGMAX", "I32", (5,), [bench.put(x)])
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node).ravel(), last_argmax(x))


def test_argmax_passes_over_nan(bench: Bench, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 200)).astype(np.float32)
    x[0, ::3] = np.nan
    x[1, 1:] = np.nan
    x[2] = np.nan
    x[3, :190] = np.nan
    node = bench.node("ARGMAX", "I32", (4,), [bench.put(x)])
    bench.run(node)
    expected = last_argmax(np.where(np.isnan(x), -np.inf, x))
    expected[2] = 0
    np.testing.assert_array_equal(bench.read(node).ravel(), expected)


@pytest.mark.parametrize("shape", [(1,), (33,), (2, 3, 4, 97), (100_003,)])
def test_count_equal(bench: Bench, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    a = rng.integers(0, 3, shape).astype(np.int32)
    b = rng.integers(0, 3, shape).astype(np.int32)
    node = bench.node("COUNT_EQUAL", "I64", (1,), [bench.put(a), bench.put(b)])
    bench.run(node)
    assert bench.read(node).item() == int((a == b).sum())


def test_count_equal_of_a_permuted_source(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.integers(0, 3, (30, 40)).astype(np.int32)
    b = rng.integers(0, 3, (40, 30)).astype(np.int32)
    node = bench.node("COUNT_EQUAL", "I64", (1,), [bench.permute(bench.put(a), (1, 0, 2, 3)), bench.put(b)])
    bench.run(node)
    assert bench.read(node).item() == int((b == a.T).sum())
