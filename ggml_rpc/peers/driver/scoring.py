"""Compare next-token distributions: by NumPy alone, so that processes with and without llama.cpp share it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Reference:
    """Score the logits of several runs at the same positions; the first run given is the reference of the others.

    Rows are treated one at a time: a row of 262144 logits stays in the core's cache, a batch of them does not.

    Parameters
    ----------
    targets : numpy.ndarray
        Shape ``(tokens,)``: the token that follows each position.
    """

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self._targets = targets
        self._rows: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def score(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the negative log-likelihood of each target and the divergence from the reference, in nats."""
        losses, divergences = np.zeros(len(logits)), np.zeros(len(logits))
        is_reference = not self._rows
        for i, row in enumerate(logits):
            scores = row - row.max()
            likelihood = np.exp(scores)
            total = likelihood.sum()  # NumPy adds float32 pairwise: 262144 terms cost below 1e-6 relative
            scores -= np.log(total)
            losses[i] = -scores[self._targets[i]]
            if is_reference:
                likelihood /= total
                self._rows.append((scores, likelihood))
            else:
                reference, weights = self._rows[i]
                divergences[i] = np.dot(weights, np.subtract(reference, scores, out=scores))
        return losses, divergences
