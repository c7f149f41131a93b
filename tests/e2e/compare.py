"""Compare logits of two runs; every bound of the end-to-end tests stands here.

An engine that rounds differently in one place lands on another side of many quantisation steps further on, and a
quantised model amplifies that: stock against itself, flash attention on against off, differs by what NOISE says
(worst row, largest median; client 8.0.0, AVX2 build, texts and shapes of these tests). A wrong mask, position, scale
or row gives errors near 1 in some row. So the bounds are some three times the noise, and models whose weights are not
quantised carry the sharp bound of 5e-4, with a tenth of it for the median.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bound:
    """Limit the normalised mean square error of logits: its worst row and its median row."""

    worst: float
    median: float


NOISE = {
    "gemma": Bound(5.5e-2, 3.2e-3),
    "gemma-f16": Bound(1.8e-5, 4.7e-6),
    "float": Bound(7.4e-5, 4.5e-5),  # BF16; F16 and F32 1.6e-5
    "quantised": Bound(2.9e-3, 1.1e-3),  # Q5_K; Q4_0 4.2e-5
}
BOUNDS = {
    "gemma": Bound(1.6e-1, 1e-2),
    "gemma-f16": Bound(5e-4, 5e-5),
    "float": Bound(5e-4, 1.5e-4),
    "quantised": Bound(1e-2, 3e-3),
}


def row_nmse(result: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the normalised mean square error of each row of logits.

    Parameters
    ----------
    result, expected : numpy.ndarray
        Shape ``(rows, n_vocab)``.

    Returns
    -------
    numpy.ndarray
        Shape ``(rows,)``: the squared error over the squared deviation of the expected row from its mean, since a
        constant added to all logits of a row changes no probability and must not hide an error.
    """
    errors = []
    for got, want in zip(result, expected, strict=True):  # row by row: a float64 copy of all would need gigabytes
        want64 = want.astype(np.float64)
        spread = want64 - want64.mean()
        errors.append(float(np.square(got - want64).sum() / np.square(spread).sum()))
    return np.array(errors)


def assert_close(result: NDArray[np.float32], expected: NDArray[np.float32], kind: str, label: str) -> None:
    """Assert that logits agree within the bounds of a kind of model, and print by how much they differ."""
    assert result.shape == expected.shape
    assert np.isfinite(result).all()
    errors = row_nmse(result, expected)
    worst, median = float(errors.max()), float(np.median(errors))
    print(f"{label}: NMSE worst row {worst:.2e} (row {errors.argmax()} of {len(errors)}), median {median:.2e}")
    assert worst <= BOUNDS[kind].worst, f"{label}: row {errors.argmax()}"
    assert median <= BOUNDS[kind].median, label
