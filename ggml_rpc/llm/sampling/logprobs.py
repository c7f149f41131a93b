"""Log-probabilities of given tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._select import log_sum_exp


def log_softmax_at(logits: ArrayLike, ids: ArrayLike) -> NDArray[np.float64]:
    """Return the natural logarithm of the probability of given tokens.

    Parameters
    ----------
    logits : array of float32, shape (n_vocab,) or (n, n_vocab)
        One row or several.
    ids : array of int
        For one row: tokens, any shape. For several: shape (n,), a token a row, or (n, m), m tokens a row.

    Returns
    -------
    numpy.ndarray of float64
        Shape of `ids`; exact to about 1e-6.

    Raises
    ------
    ValueError
        If the shapes do not fit or an id is no token.
    ComputeError
        If a logit is NaN or inf, or all of a row are -inf.
    """
    rows = np.ascontiguousarray(logits, np.float32)
    tokens = np.asarray(ids)
    if rows.ndim not in (1, 2):
        raise ValueError(f"logits must have one dimension or two, not {rows.ndim}")
    n_vocab = rows.shape[-1]
    if tokens.size and (tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= n_vocab):
        raise ValueError(f"ids must be integers from 0 to {n_vocab - 1}")
    tokens = tokens.astype(np.intp, copy=False)
    if rows.ndim == 1:
        return np.asarray(rows[tokens] - log_sum_exp(rows[None])[0], np.float64)
    if tokens.ndim not in (1, 2) or len(tokens) != len(rows):
        raise ValueError(f"{len(rows)} rows need ids of shape ({len(rows)},) or ({len(rows)}, m), not {tokens.shape}")
    wanted = tokens.reshape(len(rows), -1) if len(rows) else tokens.reshape(0, 1)
    found = np.take_along_axis(rows, wanted, axis=1) - log_sum_exp(rows)[:, None]
    return found.reshape(tokens.shape)
