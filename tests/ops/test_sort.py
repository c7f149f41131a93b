"""ARGSORT and TOP_K: exact permutations, ties by index, NaN last."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.spec import dialects
from ggml_rpc.spec.enums import SortOrder
from tests.ops.conftest import device
from tests.support.device import Bench

LENGTHS = [1, 2, 15, 17, 33, 64, 97, 128, 250, 256, 257, 500, 2047, 2048, 5000]


def oracle(x: np.ndarray, descending: bool) -> np.ndarray:
    """Sort rows stably; NumPy puts NaN last, and a negated NaN is one still."""
    return np.argsort(-x if descending else x, axis=-1, kind="stable")


def argsort(bench: Bench, x: np.ndarray, order: SortOrder) -> np.ndarray:
    node = bench.node("ARGSORT", "I32", x.shape, [bench.put(x)], struct.pack("<i", order))
    bench.run(node)
    return bench.read(node).reshape(x.shape)


def top_k(bench: Bench, x: np.ndarray, k: int) -> np.ndarray:
    shape = (*x.shape[:-1], k)
    node = bench.node("TOP_K", "I32", shape, [bench.put(x)])
    bench.run(node)
    return bench.read(node).reshape(shape)


@pytest.mark.parametrize("order", list(SortOrder), ids=lambda o: o.name)
@pytest.mark.parametrize("n", LENGTHS)
def test_argsort(bench: Bench, rng: np.random.Generator, order: SortOrder, n: int) -> None:
    x = rng.standard_normal((2, 3, n)).astype(np.float32)
    np.testing.assert_array_equal(argsort(bench, x, order), oracle(x, order == SortOrder.DESC))


@pytest.mark.parametrize("order", list(SortOrder), ids=lambda o: o.name)
@pytest.mark.parametrize("n", [7, 60, 255, 300, 4000])
def test_ties_stay_in_index_order(bench: Bench, rng: np.random.Generator, order: SortOrder, n: int) -> None:
    x = rng.integers(-3, 4, (4, n)).astype(np.float32)
    x[x == 0] *= np.where(rng.random((x == 0).sum()) < 0.5, -1, 1)  # +0 and -0 are equal
    np.testing.assert_array_equal(argsort(bench, x, order), oracle(x, order == SortOrder.DESC))


@pytest.mark.parametrize("order", list(SortOrder), ids=lambda o: o.name)
@pytest.mark.parametrize("n", [1, 8, 60, 255, 300, 4000])
def test_ties_of_ik_llama_cpp(level: str, rng: np.random.Generator, order: SortOrder, n: int) -> None:
    """Its descending order is that of pairs of value and index: of equal values the later comes first."""
    bench = Bench(device(level), dialect=dialects.find("ik-3.5.2"))
    x = rng.integers(-3, 4, (4, n)).astype(np.float32)
    x[:, 0] = np.nan
    expected = np.argsort(x, axis=-1, kind="stable")
    if order == SortOrder.DESC:  # of the reversed row, so that the later index is the smaller one
        expected = n - 1 - oracle(x[:, ::-1], True)
    np.testing.assert_array_equal(argsort(bench, x, order), expected)


# Values, and the indices that std::partial_sort of the GNU library (g++ 12) put first.
SELECTED = [
    ("30123333", [4, 0]),
    ("01230122", [3, 2]),
    ("20320033", [6, 2]),
    ("00332230", [6, 3, 2, 5]),
    ("03100310", [5, 1, 6, 2]),
    ("310201220213", [0, 11, 3, 9, 7]),
    ("3303010023100033", [3, 1, 15, 9, 14, 0, 8, 10]),
    ("21301330301031333133", [6, 8, 12, 14, 2, 5]),
    ("03132111113323221333", [10, 1, 3]),
    ("230013110", [1, 5, 0, 7, 4, 6, 3, 2]),
    ("32200", [0]),
]


@pytest.mark.parametrize(("values", "first"), SELECTED, ids=[v for v, _ in SELECTED])
def test_ties_of_a_router(level: str, values: str, first: list[int]) -> None:
    """Behind a softmax ik_llama.cpp selects by values alone; which of equal ones it takes is its library's choice."""
    bench = Bench(device(level), dialect=dialects.find("ik-3.5.2"))
    x = np.array([[float(v) for v in values], [0.0] * len(values)], np.float32)
    chances = bench.node("SOFT_MAX", "F32", x.shape, [bench.put(x)], struct.pack("<2f", 1.0, 0.0))
    node = bench.node("ARGSORT", "I32", x.shape, [chances], struct.pack("<2i", SortOrder.DESC, len(first)))
    bench.run(chances, node)
    got = bench.read(node).reshape(x.shape)
    assert got[0, : len(first)].tolist() == first
    assert np.array_equal(np.sort(got, -1), [range(len(values))] * 2)


@pytest.mark.parametrize("order", list(SortOrder), ids=lambda o: o.name)
@pytest.mark.parametrize("n", [9, 60, 255, 300, 4000])
def test_any_bits_give_a_permutation(bench: Bench, rng: np.random.Generator, order: SortOrder, n: int) -> None:
    x = rng.integers(0, 2**32, (4, n), dtype=np.uint32).view(np.float32)
    x[:, ::5] = np.array([np.nan, np.inf, -np.inf, -np.nan, 0.0], np.float32)[rng.integers(0, 5, x[:, ::5].shape)]
    np.testing.assert_array_equal(argsort(bench, x, order), oracle(x, order == SortOrder.DESC))


def test_argsort_of_strided_rows(bench: Bench, rng: np.random.Generator) -> None:
    for n in (70, 700):
        x = rng.standard_normal((3, 5, n)).astype(np.float32)
        turned = bench.permute(bench.put(x), (0, 2, 1, 3))
        node = bench.node("ARGSORT", "I32", (5, 3, n), [turned], struct.pack("<i", SortOrder.ASC))
        bench.run(node)
        np.testing.assert_array_equal(bench.read(node)[0], oracle(x.transpose(1, 0, 2), False))


@pytest.mark.parametrize("k", [1, 2, 5, 40])
@pytest.mark.parametrize("n", [40, 97, 1000, 9001])
def test_top_k(bench: Bench, rng: np.random.Generator, n: int, k: int) -> None:
    x = rng.standard_normal((5, n)).astype(np.float32)
    np.testing.assert_array_equal(top_k(bench, x, k), oracle(x, True)[:, :k])


@pytest.mark.parametrize("shape", ["rising", "falling", "equal", "nan first", "all nan", "ties", "minus infinity"])
def test_top_k_of_awkward_rows(bench: Bench, rng: np.random.Generator, shape: str) -> None:
    n, k = 3000, 20
    x = {
        "rising": np.arange(n),
        "falling": -np.arange(n),
        "equal": np.zeros(n),
        "nan first": np.concatenate([np.full(100, np.nan), rng.standard_normal(n - 100)]),
        "all nan": np.full(n, np.nan),
        "ties": rng.integers(0, 30, n),
        "minus infinity": np.concatenate([np.full(n - 7, -np.inf), np.arange(7)]),
    }[shape].astype(np.float32)
    np.testing.assert_array_equal(top_k(bench, x[None], k), oracle(x[None], True)[:, :k])


def test_vocabulary_sized_rows(bench: Bench, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 262_144)).astype(np.float32)
    expected = oracle(x, True)
    np.testing.assert_array_equal(top_k(bench, x, 64), expected[:, :64])
    np.testing.assert_array_equal(argsort(bench, x, SortOrder.DESC), expected)
