"""Tokens of one call -> ubatches: the tokens of one graph each, and which of their rows the caller wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import ContextError

Wanted = Literal["last", "all"] | Sequence[int] | NDArray[np.integer] | None
"""Tokens whose logits are wanted: the last, all, those at these indices of the batch (rising), or none."""


@dataclass(frozen=True, slots=True)
class Ubatch:
    """Tokens `start` to `stop` of a batch.

    Attributes
    ----------
    start, stop : int
        Indices into the batch.
    rows : ndarray
        int32 indices, from `start` on, of the tokens whose logits are wanted.
    """

    start: int
    stop: int
    rows: NDArray[np.int32]

    @property
    def n_tokens(self) -> int:
        """Return how many tokens."""
        return self.stop - self.start


def split(n_tokens: int, n_ubatch: int, wanted: Wanted) -> list[Ubatch]:
    """Cut a batch into ubatches of at most `n_ubatch` tokens.

    Raises
    ------
    ContextError
        If an index in `wanted` is outside the batch, or the indices do not rise.
    """
    return list(_ubatches(n_tokens, n_ubatch, _rows(n_tokens, wanted)))


def _ubatches(n_tokens: int, n_ubatch: int, rows: NDArray[np.int32]) -> Iterator[Ubatch]:
    for start in range(0, n_tokens, n_ubatch):
        stop = min(start + n_ubatch, n_tokens)
        first, last = np.searchsorted(rows, (start, stop))
        yield Ubatch(start, stop, rows[first:last] - np.int32(start))


def _rows(n_tokens: int, wanted: Wanted) -> NDArray[np.int32]:
    if wanted is None:
        return np.empty(0, np.int32)
    if isinstance(wanted, str):
        if wanted == "last":
            return np.array([n_tokens - 1], np.int32)
        if wanted == "all":
            return np.arange(n_tokens, dtype=np.int32)
        raise ContextError(f"logits are wanted of 'last', 'all', None or a list of indices, not {wanted!r}")
    rows = np.asarray(wanted, np.int64).reshape(-1)
    if rows.size and (rows[0] < 0 or rows[-1] >= n_tokens or (np.diff(rows) <= 0).any()):
        raise ContextError(f"the tokens whose logits are wanted must rise from 0 to {n_tokens - 1}")
    return rows.astype(np.int32)
