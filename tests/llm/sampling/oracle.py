"""The sampler chain in NumPy, float64, a step a function, without anything clever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.llm.sampling import SamplingParams


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def changed(row: NDArray[np.float32], params: SamplingParams, history: Sequence[int]) -> NDArray[np.float32]:
    """Return the row with bias and penalties."""
    row = row.copy()
    for token, bias in params.logit_bias.items():
        row[token] += np.float32(bias)
    recent = list(history) if params.repeat_last_n < 0 else list(history)[max(0, len(history) - params.repeat_last_n) :]
    for token, count in Counter(recent).items():
        row[token] *= np.float32(params.repeat_penalty) if row[token] <= 0 else 1 / np.float32(params.repeat_penalty)
        row[token] -= np.float32(count * params.frequency_penalty + params.presence_penalty)
    return row


def chain(row: NDArray[np.float32], params: SamplingParams) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the survivors, best first (of equal logits the higher id), and their probabilities."""
    ids = np.lexsort((np.arange(len(row)), row))[::-1]
    ids = ids[row[ids] > -np.inf]
    x = row.astype(np.float64)
    if params.top_k:
        ids = ids[: params.top_k]
    if params.typical_p < 1:
        p = softmax(x[ids])
        distance = np.abs(np.log(p) - np.sum(p * np.log(p)))
        order = np.argsort(distance, kind="stable")
        kept = order[: 1 + np.searchsorted(np.cumsum(p[order]), params.typical_p, side="right")]
        ids = ids[np.sort(kept)]
    if params.top_p < 1:
        ids = ids[: 1 + np.searchsorted(np.cumsum(softmax(x[ids])), params.top_p)]
    if params.min_p > 0:
        p = softmax(x[ids])
        ids = ids[p >= params.min_p * p[0]]
    if params.temperature <= 0:
        return ids[:1], np.ones(1)
    return ids, softmax(x[ids] / params.temperature)


def borderline(row: NDArray[np.float32], params: SamplingParams, near: float) -> bool:
    """Tell whether a cut of the chain falls so near to a token that rounding may move it to the other side.

    The cuts are at shares of probability; so is `near`, relative for min-p.
    """
    ids = np.sort(row[row > -np.inf].astype(np.float64))[::-1]
    if params.top_k:
        ids = ids[: params.top_k]
    if params.typical_p < 1:
        p = softmax(ids)
        distance = np.abs(np.log(p) - np.sum(p * np.log(p)))
        order = np.argsort(distance, kind="stable")
        total = np.cumsum(p[order])
        at = min(int(np.searchsorted(total, params.typical_p, side="right")), len(total) - 1)
        next_ones = distance[order][at : at + 2]
        if abs(total[at] - params.typical_p) < near or (at and abs(total[at - 1] - params.typical_p) < near):
            return True
        if len(next_ones) == 2 and next_ones[1] - next_ones[0] < near:
            return True
        ids = ids[np.sort(order[: at + 1])]
    if params.top_p < 1:
        total = np.cumsum(softmax(ids))
        if np.abs(total - params.top_p).min() < near:
            return True
        ids = ids[: 1 + np.searchsorted(total, params.top_p)]
    if params.min_p > 0:
        others = np.exp(ids[1:] - ids[0])  # the best itself always stays
        return bool((np.abs(others / params.min_p - 1) < near).any())
    return False
