"""How well a model predicts a text: perplexity window by window, as llama-perplexity counts, and each token's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import ContextError

from .sampling import log_softmax_at

if TYPE_CHECKING:
    from .context import Context
    from .model import Model

_ROWS_BYTES = 64 << 20
"""Logits brought at once: a row of a large vocabulary takes a MiB, a window of 512 tokens half a GiB."""


@dataclass(frozen=True)
class Score:
    """What is known after a window.

    Attributes
    ----------
    window, n_windows : int
        Which window this was, from 0, and how many there are.
    nll : ndarray
        float64: minus the logarithm of the probability of each token that this window scored.
    n_tokens : int
        Tokens scored so far.
    perplexity : float
        Of all windows so far.
    error : float
        Its standard error; 0 while a single token is all there is.
    """

    window: int
    n_windows: int
    nll: NDArray[np.float64]
    n_tokens: int
    perplexity: float
    error: float


def perplexity(
    model: Model, text: str | Sequence[int], *, n_ctx: int = 512, n_windows: int | None = None
) -> Iterator[Score]:
    """Score a text as llama-perplexity does.

    The text is cut into windows of `n_ctx` tokens; what is left is not read. Each is read anew, with the token that
    starts a text, if the model has one, in place of its first; the tokens of its second half are scored.

    Parameters
    ----------
    model : Model
        Open; a context of its own is made.
    text : str or sequence of int
        The text or its tokens.
    n_ctx : int
        Tokens of a window.
    n_windows : int, optional
        Most windows; by default all.

    Yields
    ------
    Score
        After each window.

    Raises
    ------
    ContextError
        If the text has fewer than two windows, or a window fewer than 4 tokens.
    ConnectionLost, DeadlineExceeded, ServerRefused, DeviceError
        From the devices.
    """
    tokens = np.array(model.tokenizer.encode(text) if isinstance(text, str) else text, np.int64)
    if n_ctx < 4:
        raise ContextError(f"a window of {n_ctx} tokens is too short: 4 are the least")
    if len(tokens) < 2 * n_ctx:
        raise ContextError(
            f"the text has {len(tokens)} tokens, fewer than two chunks of {n_ctx}: take more text, or"
            " a smaller context (-c, n_ctx)"
        )
    if n_windows is not None and n_windows < 1:
        raise ContextError(f"{n_windows} windows cannot be scored; 1 is the least")
    return _scores(model, tokens, n_ctx, min(len(tokens) // n_ctx, n_windows or len(tokens)))


def _scores(model: Model, tokens: NDArray[np.int64], n_ctx: int, n_windows: int) -> Iterator[Score]:
    first = n_ctx // 2
    start = model.tokenizer.bos_id if model.tokenizer.adds_bos else None
    total = squares = 0.0
    count = 0
    with replace(model.settings, n_ctx=n_ctx).open(model.weights, model.devices.host) as context:
        for window in range(n_windows):
            inputs = tokens[window * n_ctx : (window + 1) * n_ctx].copy()
            targets = inputs[1:].copy()
            if start is not None:
                inputs[0] = start
            nll = nll_of(context, inputs[:-1], targets, first=first)
            total += float(nll.sum())
            squares += float((nll * nll).sum())
            count += len(nll)
            mean = total / count
            variance = max(0.0, squares / count - mean * mean)
            value = float(np.exp(mean))
            error = value * float(np.sqrt(variance / (count - 1))) if count > 1 else 0.0
            yield Score(window, n_windows, nll, count, value, error)


def nll_of(
    context: Context,
    inputs: Sequence[int] | NDArray[np.int64],
    targets: Sequence[int] | NDArray[np.int64],
    *,
    first: int = 0,
) -> NDArray[np.float64]:
    """Return minus the logarithm of the probability of each target after the inputs up to it.

    Parameters
    ----------
    context : Context
        What it holds is forgotten first.
    inputs, targets : sequence of int
        [n] each: target i follows input i.
    first : int
        The first target that is scored.

    Returns
    -------
    ndarray
        float64 [n - first].
    """
    wanted = np.asarray(targets, np.int64)
    if len(wanted) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs need as many targets, not {len(wanted)}")
    out = np.empty(max(0, len(wanted) - first), np.float64)
    for at, logits in rows_of(context, inputs, first=first):
        out[at - first : at - first + len(logits)] = -log_softmax_at(logits, wanted[at : at + len(logits)])
    return out


def rows_of(
    context: Context, inputs: Sequence[int] | NDArray[np.int64], *, first: int = 0
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Read tokens and yield the logits after each from `first` on, in pieces that take little memory.

    Parameters
    ----------
    context : Context
        What it holds is forgotten first.
    inputs : sequence of int
        Tokens.
    first : int
        The first token after which logits are wanted.

    Yields
    ------
    at : int
        The token after which the first of these rows comes.
    logits : ndarray
        float32 [rows, n_vocab].
    """
    tokens = np.asarray(inputs, np.int64)
    rows = max(1, min(context.n_ubatch, _ROWS_BYTES // (4 * context.weights.hparams.n_vocab)))
    context.clear()
    if first > 0:
        context.decode(tokens[:first], logits=None)
    for at in range(first, len(tokens), rows):
        logits = context.decode(tokens[at : at + rows], logits="all").logits
        assert logits is not None
        yield at, logits
