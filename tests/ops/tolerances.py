"""The one table of tolerances of op results, and the comparison that uses it.

Errors are normalised: the sum of squared differences over the sum of squares of the expected values. Besides the mean
over the whole result every row is bounded, since a mean hides one wrong row.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

EXACT = 0.0

# kind of result -> largest normalised mean squared error against a float64 oracle
TOLERANCE: dict[str, float] = {
    "exact": EXACT,  # data movement, integers, (de)quantisation of a row
    "f32": 1e-10,  # f32 arithmetic, polynomials for exp and its kin
    "f16": 2e-6,  # results rounded to half: 2^-11 relative, squared, a third of it on average is 8e-8
    "bf16": 1e-4,  # 2^-8 relative
    "product_f32": 1e-10,
    "product_f16": 1e-5,  # f16 and bf16 weights: activations rounded too
    "product_bf16": 1e-4,
    "product_quant": 5e-4,  # activations quantised on the grid of the weight's type
}

# A single row may deviate by this factor more than the mean.
ROW_FACTOR = 20.0

# Tests that need another bound say so here, with the reason; the number of overrides in use is printed after the run.
OVERRIDES: dict[str, tuple[float, str]] = {
    "half_sums": (TOLERANCE["product_f16"], "F16 V, fewer than 64 queries: q and the sums over V in half, as in stock"),
    "long_half_sums": (5e-5, "as half_sums, over more than 256 positions: each of them rounds once more"),
}

used_overrides: Counter[str] = Counter()


def nmse(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the normalised mean squared error; infinite where finiteness differs."""
    got = np.asarray(got, np.float64)
    expected = np.asarray(expected, np.float64)
    same = np.isfinite(got) == np.isfinite(expected)
    special = ~np.isfinite(expected)
    if not same.all() or not np.array_equal(got[special], expected[special], equal_nan=True):
        return float("inf")
    difference = np.where(special, 0.0, got - np.where(special, 0.0, expected))
    difference[special] = 0.0
    scale = float(np.sum(np.square(expected, where=~special, out=np.zeros_like(expected))))
    error = float(np.sum(difference**2))
    return error / scale if scale > 0 else error


def check(got: np.ndarray, expected: np.ndarray, kind: str, override: str | None = None) -> float:
    """Assert that a result agrees with its oracle, in the mean and in every row; return the mean error.

    Parameters
    ----------
    got, expected : ndarray
        Result and oracle (float64) of equal shape.
    kind : str
        Key of `TOLERANCE`.
    override : str, optional
        Key of `OVERRIDES` whose bound takes the place of the table's.
    """
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    bound = TOLERANCE[kind]
    if override is not None:
        bound = OVERRIDES[override][0]
        used_overrides[override] += 1
    if bound == EXACT:
        np.testing.assert_array_equal(got, expected)
        return 0.0
    error = nmse(got, expected)
    assert error <= bound, f"normalised error {error:.3g} > {bound:.3g} ({kind})"
    if expected.size:
        rows_got = np.asarray(got).reshape(-1, got.shape[-1])
        rows_expected = np.asarray(expected, np.float64).reshape(rows_got.shape)
        # The scale of a row that is near zero beside the others is the mean row's.
        finite = np.isfinite(rows_expected)
        clean = np.where(finite, rows_expected, 0.0)
        floor = float(np.mean(np.sum(clean**2, axis=-1))) * 1e-3
        for i in range(rows_got.shape[0]):
            row_error = nmse(rows_got[i], rows_expected[i]) * float(np.sum(clean[i] ** 2) or 1.0)
            scale = max(float(np.sum(clean[i] ** 2)), floor)
            worst = row_error / scale if scale > 0 else row_error
            limit = bound * ROW_FACTOR
            assert worst <= limit, f"row {i}: normalised error {worst:.3g} > {limit:.3g} ({kind})"
    return error
