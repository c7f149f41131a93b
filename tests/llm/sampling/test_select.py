"""Selection and sums over rows against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggml_rpc.errors import ComputeError
from ggml_rpc.llm.sampling import log_softmax_at
from ggml_rpc.llm.sampling._select import top_k

LENGTHS = [1, 2, 15, 127, 128, 129, 255, 1000, 4096, 5001]


@settings(max_examples=200)
@given(
    st.sampled_from(LENGTHS),
    st.integers(1, 6000),
    st.integers(0, 2**32),
    st.sampled_from(["normal", "equal", "rounded", "banned", "rising", "falling", "zeros"]),
)
def test_top_k_is_the_end_of_the_sorted_row(n: int, k: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    row = {
        "normal": lambda: rng.normal(0, 5, n),
        "equal": lambda: np.full(n, -2.5),
        "rounded": lambda: rng.integers(-2, 3, n),
        "banned": lambda: np.where((rng.random(n) < 0.9) & (np.arange(n) > 0), -np.inf, rng.normal(0, 1e30, n)),
        "rising": lambda: np.arange(n),
        "falling": lambda: -np.arange(n),
        "zeros": lambda: np.copysign(0.0, rng.normal(0, 1, n)),
    }[kind]()
    row = np.asarray(row, np.float32)
    order = np.lexsort((np.arange(n), row))[::-1]
    order = order[row[order] > -np.inf][:k]
    ids, logits = top_k(row, k)
    assert ids.tolist() == order.tolist()
    np.testing.assert_array_equal(logits, row[order])


def test_top_k_refuses() -> None:
    row = np.zeros(300, np.float32)
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(row, 0)
    with pytest.raises(ComputeError, match="every logit"):
        top_k(row[:0], 1)
    row[299] = np.nan
    with pytest.raises(ComputeError, match="token 299 is NaN"):
        top_k(row, 1)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("scale", [0.0, 0.1, 5.0, 100.0, 1e30])
@pytest.mark.parametrize("shift", [0.0, 1000.0, -1e6])
def test_log_softmax(n: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(n)
    rows = (rng.normal(0, scale, (5, n)) + shift).astype(np.float32)
    rows[1, 1:] = -np.inf
    exact = rows.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    ids = rng.integers(0, n, 5)
    found = log_softmax_at(rows, ids)
    assert found.dtype == np.float64
    expected = exact[np.arange(5), ids]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-6)
    many = rng.integers(0, n, (5, 3))
    np.testing.assert_allclose(log_softmax_at(rows, many), np.take_along_axis(exact, many, 1), rtol=1e-12, atol=1e-6)
    np.testing.assert_allclose(log_softmax_at(rows[2], many), exact[2][many], rtol=1e-12, atol=1e-6)
    assert log_softmax_at(rows[0], int(ids[0])).shape == ()


def test_log_softmax_of_a_large_flat_row() -> None:
    """262144 equal terms: the sum's error does not grow with their number."""
    row = np.full(262144, -3.25, np.float32)
    row[0] = 5
    exact = -8.25 - np.log(1 + 262143 * np.exp(-8.25))
    assert abs(float(log_softmax_at(row, 77)) - exact) < 1e-6


def test_log_softmax_refuses() -> None:
    rows = np.zeros((3, 10), np.float32)
    for ids in ([0, 1], [0, 1, 10], [0, -1, 2], [0.5, 1, 2], np.zeros((3, 1, 1), int)):
        with pytest.raises(ValueError, match="ids"):
            log_softmax_at(rows, ids)
    with pytest.raises(ValueError, match="one dimension or two"):
        log_softmax_at(np.zeros((1, 1, 1), np.float32), [0])
    rows[1, 9] = np.inf
    with pytest.raises(ComputeError, match="token 9 is inf"):
        log_softmax_at(rows, [0, 0, 0])
    assert log_softmax_at(np.zeros((0, 10), np.float32), []).shape == (0,)
