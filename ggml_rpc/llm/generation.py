"""The answer to a prompt, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import ComputeError

from .results import Timings, Token
from .sampling import Candidates, Need, Sampler, log_softmax_at
from .session import Session
from .stop import StopStrings
from .tokenizer import Decoder, Tokenizer
from .ubatch_graph import Best

if TYPE_CHECKING:
    from .context import Decoded


@dataclass(frozen=True)
class Options:
    """How far a generation goes and what it tells; see `LLM.generate`."""

    max_tokens: int | None
    stops: StopStrings
    logprobs: int | None
    ignore_eos: bool
    on_token: Callable[[Token], None] | None


class Generation(Iterator[Token]):
    """The answer to a prompt, as it comes. Made by `LLM.generate`.

    Attributes
    ----------
    prompt : list of int
        The prompt's tokens.
    tokens : list of int
        Those of the answer so far, one that ends it included.
    text : str
        The answer so far.
    reason : str or None
        Why it ended: "stop" (a token that ends answers, or a stop string), "length" (`max_tokens` or the context is
        reached), "cancelled" (`cancel`), "error" (an exception, which was raised then); None while it has not.
    stop_string : str or None
        The stop string that ended it.
    seed : int
        Of the sampler.
    timings : Timings
        Where the time went.
    superseded : bool
        Another generation was begun; this one cannot go on.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        prompt: list[int],
        sampler: Sampler,
        options: Options,
    ) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.text = ""
        self.reason: str | None = None
        self.seed = sampler.seed
        self.timings = Timings(n_prompt=len(prompt))
        self.superseded = False
        self._session = session
        self._sampler = sampler
        self._max_tokens = options.max_tokens
        self._stops = options.stops
        self._logprobs = options.logprobs
        self._ends = frozenset() if options.ignore_eos else tokenizer.end_ids
        self._on_token = options.on_token
        # A model without a vocabulary gives ids alone.
        self._decoder = None if tokenizer.kind in ("none", "no_vocab") else Decoder(tokenizer)
        self._cancelled = False

    @property
    def stop_string(self) -> str | None:
        """Return the stop string that ended the answer."""
        return self._stops.found

    def cancel(self) -> None:
        """End the answer after the token at hand; for other threads and signal handlers."""
        self._cancelled = True

    def finish(self) -> str:
        """Wait for the end and return the whole answer."""
        for _ in self:
            pass
        return self.text

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Token:
        """Compute the next token.

        Raises
        ------
        ConnectionLost, DeadlineExceeded, ServerRefused
            If a server is lost and `on_loss` is "error"; the model is closed then.
        ComputeError
            If the model's logits are no numbers.
        ValueError
            If another generation was begun meanwhile, or the model was closed.
        """
        if self.reason is None and self._cancelled:
            self.reason = "cancelled"
        if self.reason is not None:
            raise StopIteration
        if self.superseded:
            raise ValueError("another generation was begun, or the model was closed: this one cannot go on")
        begin = time.perf_counter()
        try:
            row: Fetched = self._first() if not self.tokens else self._following()
            token = self._choose(row)
        except BaseException:
            # The context may hold the last token by now: to go on would take it in a second time.
            self.reason = "error"
            raise
        out = self._take(token, row)
        spent = time.perf_counter() - begin
        if len(self.tokens) == 1:
            self.timings.prompt_seconds += spent
        else:
            self.timings.n_generated += 1
            self.timings.generate_seconds += spent
        if self._on_token is not None:
            self._on_token(out)
        return out

    # ---- One token -----------------------------------------------------------------------------------------------

    def _first(self) -> Fetched:
        """Take the prompt in."""
        self._sampler.reset(self.prompt)
        kept = self._session.rewind(self.prompt)
        self.timings.n_reused = kept
        return self._decode(self.prompt[kept:])

    def _following(self) -> Fetched:
        return self._decode(self.tokens[-1:])

    def _decode(self, tokens: Sequence[int]) -> Fetched:
        need = Need.full if self._logprobs is not None else self._sampler.need()
        best = best_of(need)
        extra = need.extra_ids if best is not None else ()
        return Fetched(self._session, self._session.decode(tokens, best, extra), full=best is None)

    def _choose(self, row: Fetched) -> int:
        try:
            return self._sampler.next(row)
        except ComputeError as e:
            # What one device made passes through all that follow: any of them may be the one.
            model = self._session.model
            devices = ", ".join(str(model.devices.find(name)) for name in model.placement.devices)
            raise ComputeError(f"{e} (computed by {devices})") from None

    def _take(self, token: int, row: Fetched) -> Token:
        """Note a token; see whether it is the last."""
        self.tokens.append(token)
        if token in self._ends:
            self.reason = "stop"
        elif len(self.tokens) == self._max_tokens or len(self._session.tokens) == self._session.n_ctx:
            self.reason = "length"
        text = ""
        if token not in self._ends and self._decoder is not None:
            text, stopped = self._stops.feed(self._decoder.feed(token))
            if stopped:
                self.reason = "stop"
        if self.reason is not None and self._stops.found is None and self._decoder is not None:
            rest, stopped = self._stops.feed(self._decoder.finish())
            text += rest + self._stops.flush()
            if stopped:
                self.reason = "stop"
        self.text += text
        logprob, likeliest = self._probabilities(token, row)
        return Token(token, text, logprob, likeliest)

    def _probabilities(self, token: int, row: Fetched) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        if self._logprobs is None:
            return None, ()
        logits = row(Need.full)
        assert isinstance(logits, np.ndarray)
        best = Candidates.of(logits, Need.top(self._logprobs)).ids if self._logprobs else np.empty(0, np.int32)
        values = log_softmax_at(logits, np.array([token, *best], np.int64))
        return float(values[0]), tuple((int(t), float(p)) for t, p in zip(best, values[1:], strict=True))


class Fetched:
    """Logits after one token, as far as they were brought; more is brought when it is asked for."""

    def __init__(self, session: Session, decoded: Decoded, *, full: bool) -> None:
        self._session = session
        self._decoded = decoded
        self._full = full

    def __call__(self, need: Need) -> NDArray[np.float32] | Candidates:
        """Return what a sampler needs."""
        if need.kind == "full" and not self._full:
            self._decoded = self._session.again()
            self._full = True
        logits, ids, extra = self._decoded.logits, self._decoded.ids, self._decoded.extra
        if ids is None:
            assert logits is not None
            row: NDArray[np.float32] = logits[0]
            return row
        values = np.zeros(len(ids[0]), np.float32) if logits is None else logits[0]
        return Candidates(ids[0], values, () if extra is None else extra[0])


def best_of(need: Need) -> Best | None:
    """Return how the device that makes the logits is to reduce them, None if all of them are needed."""
    if need.kind == "full":
        return None
    return Best(need.k, len(need.extra_ids))
