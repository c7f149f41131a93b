"""The sampler: history, needs, draws."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import ComputeError

from ._chain import Chain
from .candidates import Candidates, Need, Undecided
from .params import SamplingParams

# The best k are fetched instead of the row while they are at most so many, and at most an eighth of the row: an entry
# is an id and a logit, twice the bytes of a logit alone, and a device sorts to find them.
MAX_FETCHED = 1024
# Extra ids come in multiples of this, so that the fetching graph seldom changes.
EXTRA_STEP = 64


class Sampler:
    """Choose tokens one after another.

    One sampler serves one sequence, in one thread at a time. With the same seed and the same logits the result is the
    same, whichever of the forms of `sample` the logits come in.

    Parameters
    ----------
    params : SamplingParams
        How to choose.
    n_vocab : int
        Number of tokens, the length of a row of logits.

    Attributes
    ----------
    seed : int
        Seed of the generator: the given one, or the one that was drawn.

    Raises
    ------
    ValueError
        If the vocabulary is empty or `params` names a token beyond it.
    """

    def __init__(self, params: SamplingParams, n_vocab: int) -> None:
        if not 0 < n_vocab < 2**31:
            raise ValueError(f"n_vocab must be from 1 to 2**31 - 1, not {n_vocab!r}")
        beyond = [token for token in params.logit_bias if token >= n_vocab]
        if beyond:
            raise ValueError(f"logit_bias names token {beyond[0]}, but the vocabulary ends at {n_vocab - 1}")
        self.params = params
        self.n_vocab = n_vocab
        # 32 bits, so that it is easily typed again.
        self.seed = secrets.randbits(32) if params.seed is None else params.seed
        self._chain = Chain(
            n_vocab,
            temperature=params.temperature,
            top_k=min(params.top_k, n_vocab),
            top_p=params.top_p,
            min_p=params.min_p,
            typical_p=params.typical_p,
            repeat_penalty=params.repeat_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
        )
        greedy = params.temperature <= 0 and params.typical_p >= 1
        self._k = 1 if greedy else params.top_k  # 0: the whole row
        self._changes = params.penalizes or bool(params.logit_bias)
        self.reset()
        # Without penalties and bias the need is always this one.
        self._plain_need = None if self._changes else Need.argmax if greedy else self._need_of(0)

    def reset(self, history: Iterable[int] = ()) -> None:
        """Forget what was accepted, take `history` (the prompt, say) instead, and start the generator anew.

        Raises
        ------
        ValueError
            If the history holds an id that is no token.
        """
        # A bit generator's raw stream never changes between versions of NumPy, unlike the methods above it.
        self._bits = np.random.PCG64(self.seed)
        size = self.params.repeat_last_n
        self._recent: deque[int] = deque(maxlen=size if size >= 0 else None)
        self._counts: dict[int, int] = {}
        self._changed_ids: NDArray[np.int32] | None = None
        for token in history:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Append a token to the history.

        Raises
        ------
        ValueError
            If `token` is none.
        """
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token {token} is not one of {self.n_vocab}")
        if not self.params.penalizes:
            return
        token = int(token)
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._recent.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        self._changed_ids = None

    def need(self) -> Need:
        """Return what must be fetched for the next token."""
        if self._plain_need is not None:
            return self._plain_need
        return self._need_of(len(self._changed()))

    def sample(self, candidates: NDArray[np.float32] | Candidates) -> int:
        """Draw a token; the caller passes it to `accept`.

        Parameters
        ----------
        candidates : numpy.ndarray of float32, shape (n_vocab,), or Candidates
            The whole row, always enough, or what `need` asks for.

        Raises
        ------
        Undecided
            If the candidates end in a tie that only the whole row decides; see `next`.
        ComputeError
            If a logit is NaN or inf, all are -inf, or candidates name a token twice or none.
        ValueError
            If there are fewer candidates than needed, or the row has another length.
        """
        if isinstance(candidates, Candidates) and len(candidates.ids) == 1 and self.need().kind == "argmax":
            return self._named(int(candidates.ids[0]))
        self._apply(candidates)
        if self.params.temperature <= 0:
            return self._chain.token(0.0)
        # The upper 53 bits as a fraction.
        return self._chain.token((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def next(self, fetch: Callable[[Need], NDArray[np.float32] | Candidates]) -> int:
        """Fetch what is needed, draw a token and accept it.

        Parameters
        ----------
        fetch : callable
            Given a `Need`, returns it; called a second time, with ``Need.full``, where a tie makes that necessary.
        """
        try:
            token = self.sample(fetch(self.need()))
        except Undecided:
            token = self.sample(fetch(Need.full))
        self.accept(token)
        return token

    def distribution(
        self, candidates: NDArray[np.float32] | Candidates
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return the tokens that the next draw chooses from, and their probabilities, without drawing.

        Parameters and errors are those of `sample`. The best token comes first, unless nothing limits the choice: then
        all tokens come by id.
        """
        self._apply(candidates)
        return self._chain.survivors()

    def _changed(self) -> NDArray[np.int32]:
        """Return the tokens whose logits are changed, and tell the chain if that is new."""
        if self._changed_ids is None:
            bias = self.params.logit_bias
            ids = dict.fromkeys((*bias, *self._counts))
            self._changed_ids = np.fromiter(ids, np.int32, len(ids))
            self._chain.change(
                self._changed_ids,
                np.fromiter((self._counts.get(token, 0) for token in ids), np.int32, len(ids)),
                np.fromiter((bias.get(token, 0.0) for token in ids), np.float32, len(ids)),
            )
        return self._changed_ids

    def _need_of(self, changed: int) -> Need:
        """Return the need where so many logits are changed.

        Why the best k' = top_k + changed + 1 of the row as it is on the device, and the changed tokens' own logits, are
        enough: order tokens by (logit, id), and call those that are not changed plain. At most `changed` of the best k'
        are changed tokens, so top_k + 1 plain ones came. A plain token that did not come is behind all that came, in
        the row as it is and, since none of these changes, among the plain ones of the changed row: top_k plain tokens
        are ahead of it, and it cannot survive top-k. So top-k chooses among tokens whose changed logits are known. That
        holds exactly if the device orders by id too; as it need not, a token that did not come may be *equal* to the
        least that came, and `Chain.few` says so unless top-k's last survivor is above that. What follows top-k sees its
        survivors only, sorted.
        """
        if not self._k:
            return Need.full
        room = -(-max(changed, 1) // EXTRA_STEP) * EXTRA_STEP if self._changes else 0
        k = self._k + room + 1
        if k + room > min(MAX_FETCHED, self.n_vocab // 8):
            return Need.full
        if not room:
            return Need.top(k)
        extra = np.zeros(room, np.int32)
        extra[:changed] = self._changed()
        return Need.top(k, extra)

    def _apply(self, candidates: NDArray[np.float32] | Candidates) -> None:
        """Run the chain up to the draw."""
        changed = len(self._changed()) if self._changes else 0
        if not isinstance(candidates, Candidates):
            row = np.ascontiguousarray(candidates, np.float32)
            if row.shape != (self.n_vocab,):
                raise ValueError(f"a row of logits has shape ({self.n_vocab},), not {row.shape}")
            self._chain.row(row)
            return
        if not self._k:
            raise ValueError("without top_k the sampler needs the whole row of logits, not the best of them")
        wanted = min(self._k + changed + 1, self.n_vocab)
        if len(candidates.ids) < wanted or len(candidates.extra_logits) < changed:
            raise ValueError(
                f"the sampler needs the best {wanted} logits and {changed} of its own choice, "
                f"not {len(candidates.ids)} and {len(candidates.extra_logits)}"
            )
        if not self._chain.few(candidates.ids, candidates.logits, candidates.extra_logits):
            raise Undecided("the candidates end in tokens of equal logits: fetch the whole row")

    def _named(self, token: int) -> int:
        """Return the token that a device named as the best."""
        if not 0 <= token < self.n_vocab:
            raise ComputeError(f"a device names token {token} as the best of {self.n_vocab}")
        return token
