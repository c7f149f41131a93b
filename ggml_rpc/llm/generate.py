"""Text from a model, token by token: the class that programs use.

with LLM("model.gguf", rpc="hostA:50052,hostB:50052") as llm:
    for token in llm.generate("Hello, my name is", max_tokens=64):
        print(token.text, end="", flush=True)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import ContextError

from .chat import ChatTemplate
from .devices import open_devices
from .model import Model
from .results import Timings, Token
from .sampling import Candidates, Need, Sampler, SamplingParams, log_softmax_at
from .session import OnLoss, Redistribution, Session
from .sizing import ContextSettings, Flash
from .stop import StopStrings
from .tokenizer import Decoder
from .ubatch_graph import Best

if TYPE_CHECKING:
    from ggml_rpc.spec.dialects import Dialect

    from .context import Decoded
    from .devices import DeviceSet
    from .loader import Progress
    from .tokenizer import Tokenizer


class LLM:
    """A language model over local and remote devices; a context manager.

    One generation runs at a time. What prompts have in common with the text before is not computed again.

    Parameters
    ----------
    path : str or PathLike
        GGUF file; the first of a split model's.
    rpc : str or sequence of str
        Servers: `hostA:50052,hostB:50052`. None: this machine alone.
    n_ctx : int
        Most tokens of prompt and answer together, rounded up to a multiple of 256; 0: as many as the model was trained
        for. A generation that reaches it ends with the reason "length".
    n_batch, n_ubatch : int
        Most tokens of a prompt under way at once, and in one graph.
    n_gpu_layers : int, optional
        How many of the last layers, the output counted as one, the servers take; by default all.
    tensor_split : str or sequence of float, optional
        Shares of the devices: `3,1`; by default they follow free memory.
    device : str or sequence of str, optional
        Which devices take layers: `RPC0,CPU`, or "none" for this machine's CPU alone.
    main_device : str, optional
        One of them that is to take all.
    override_tensor : str or sequence of str
        Entries `REGEX=DEVICE` that place weights by name.
    threads : int, optional
        Threads of this machine's CPU; by default half the cores.
    flash_attn : bool or str
        Fused attention: on, off or auto.
    type_k, type_v : str
        Types of the cached keys and values: F32, F16, BF16, Q8_0, Q4_0.
    on_loss : str
        What happens if a server is lost: `"error"`, or `"redistribute"`: its layers are brought to the devices that
        are left, the text so far is computed anew, and generation goes on.
    timeout : float
        Seconds without any progress after which a server that owes an answer counts as lost.
    dialect : Dialect or str, optional
        Protocol table of the servers where their number stands for several.
    devices : DeviceSet, optional
        Open devices in place of `rpc`, `threads`, `timeout` and `dialect`; they stay open.
    check : bool
        Refuse weights that are NaN or infinite.
    progress : callable, optional
        Told of each tensor that was loaded.
    on_redistribution : callable, optional
        Told of each loss that was survived.

    Raises
    ------
    RpcError
        If the file cannot be used, the model does not fit (`PlacementError`, with a table), or a server cannot be
        reached or is lost. Nothing stays allocated then.
    ValueError
        If an argument makes no sense.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rpc: str | Sequence[str] = (),
        n_ctx: int = 4096,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_gpu_layers: int | None = None,
        tensor_split: str | Sequence[float] | None = None,
        device: str | Sequence[str] | None = None,
        main_device: str | None = None,
        override_tensor: str | Sequence[str] = (),
        threads: int | None = None,
        flash_attn: Flash = "auto",
        type_k: str = "F16",
        type_v: str = "F16",
        on_loss: OnLoss = "error",
        timeout: float = 60.0,
        dialect: Dialect | str | None = None,
        devices: DeviceSet | None = None,
        check: bool = True,
        progress: Progress | None = None,
        on_redistribution: Callable[[Redistribution], None] | None = None,
    ) -> None:
        settings = ContextSettings(n_ctx, n_batch, n_ubatch, flash_attn, type_k, type_v)
        begin = time.perf_counter()
        with ExitStack() as opened:
            if devices is None:
                devices = open_devices(rpc, threads=threads, timeout=timeout, dialect=dialect)
                opened.callback(devices.close)
            self.model = Model.open(
                path,
                devices,
                device=device,
                main_device=main_device,
                n_gpu_layers=n_gpu_layers,
                tensor_split=tensor_split,
                override_tensor=override_tensor,
                settings=settings,
                check=check,
                progress=progress,
            )
            opened.callback(self.model.close)
            self._session = Session(self.model, on_loss=on_loss, on_redistribution=on_redistribution)
            opened.callback(self._session.close)
            self._opened = opened.pop_all()
        self._template: ChatTemplate | None = None
        self._current: Generation | None = None
        self.load_seconds = time.perf_counter() - begin

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free all memory on all devices and end the connections. Safe to call twice."""
        self._current = None
        self._opened.close()

    @property
    def n_ctx(self) -> int:
        """Return the most tokens of prompt and answer together."""
        return self._session.n_ctx

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        return self.model.tokenizer

    @property
    def template(self) -> ChatTemplate:
        """Return the model's chat template; ChatML if the file has none."""
        if self._template is None:
            self._template = ChatTemplate.from_metadata(self.model.file.file.metadata, self.tokenizer)
        return self._template

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text; see `Tokenizer.encode`."""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; see `Tokenizer.decode`."""
        return self.tokenizer.decode(tokens, special=special)

    def warm_up(self) -> None:
        """Run one token and forget it, so that the first answer does not pay for what is set up on first use."""
        session = self._session
        tokens = list(session.tokens)
        session.rewind([])
        session.decode([self.tokenizer.bos_id or 0], Best(1))
        session.rewind(tokens)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        ignore_eos: bool = False,
        on_token: Callable[[Token], None] | None = None,
    ) -> Generation:
        """Continue a prompt.

        Parameters
        ----------
        prompt : str or sequence of int
            Text, or token ids.
        max_tokens : int, optional
            Most tokens of the answer; by default as many as the context has room for.
        sampling : SamplingParams, optional
            How tokens are chosen.
        stop : sequence of str
            Texts that end the answer; they are no part of it.
        logprobs : int, optional
            Give each token its log-probability in the model's own distribution, and so many of the likeliest tokens.
            All logits cross the network then.
        ignore_eos : bool
            Go on after a token that ends an answer.
        on_token : callable, optional
            Called with each token before it is yielded.

        Returns
        -------
        Generation
            An iterator of tokens. Nothing is computed before the first is asked for.

        Raises
        ------
        ContextError
            If the prompt is empty or does not fit into the context.
        ModelError
            If the prompt is text that the model cannot read.
        ValueError
            If an argument makes no sense, or the model was closed.
        """
        tokens = self.tokenize(prompt, parse_special=True) if isinstance(prompt, str) else [int(t) for t in prompt]
        if not tokens and self.tokenizer.bos_id is not None:
            tokens = [self.tokenizer.bos_id]
        self._check_prompt(tokens)
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, or None for all that fit, not {max_tokens}")
        if logprobs is not None and logprobs < 0:
            raise ValueError(f"logprobs must be 0 or more, or None, not {logprobs}")
        sampler = Sampler(sampling or SamplingParams(), self.model.hparams.n_vocab)
        options = _Options(max_tokens, StopStrings(stop), logprobs, ignore_eos, on_token)
        generation = Generation(self, self._session, tokens, sampler, options)
        self._current = generation
        return generation

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Generation:
        """Answer a conversation, written as the model's template says.

        Parameters
        ----------
        messages : sequence of mapping
            Each with `role` and `content`.
        **options
            As for `generate`.

        Raises
        ------
        ModelError
            If the template cannot be used.
        ContextError
            If the conversation does not fit into the context.
        """
        return self.generate(self.template.encode(messages), **options)

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ContextError("the prompt is empty")
        n_ctx, n_vocab = self.n_ctx, self.model.hparams.n_vocab
        if len(tokens) > n_ctx:
            raise ContextError(
                f"the prompt has {len(tokens)} tokens, the context {n_ctx}: shorten it, or take a larger context (-c)"
            )
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise ContextError(f"the prompt holds {token}, which is no token of {n_vocab}")

    def _is_current(self, generation: Generation) -> bool:
        return self._current is generation


@dataclass(frozen=True)
class _Options:
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
        reached), "cancelled" (`cancel`); None while it has not.
    stop_string : str or None
        The stop string that ended it.
    seed : int
        Of the sampler.
    timings : Timings
        Where the time went.
    """

    def __init__(
        self,
        llm: LLM,
        session: Session,
        prompt: list[int],
        sampler: Sampler,
        options: _Options,
    ) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.text = ""
        self.reason: str | None = None
        self.seed = sampler.seed
        self.timings = Timings(n_prompt=len(prompt))
        self._llm = llm
        self._session = session
        self._sampler = sampler
        self._max_tokens = options.max_tokens
        self._stops = options.stops
        self._logprobs = options.logprobs
        self._ends = frozenset() if options.ignore_eos else llm.tokenizer.end_ids
        self._on_token = options.on_token
        self._decoder = Decoder(llm.tokenizer)
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
        if not self._llm._is_current(self):
            raise ValueError("another generation was begun, or the model was closed: this one cannot go on")
        begin = time.perf_counter()
        row: Fetched = self._first() if not self.tokens else self._following()
        token = self._sampler.next(row)
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
        return Fetched(self._session, self._session.decode(tokens, best), full=best is None)

    def _take(self, token: int, row: Fetched) -> Token:
        """Note a token; see whether it is the last."""
        self.tokens.append(token)
        if token in self._ends:
            self.reason = "stop"
        elif len(self.tokens) == self._max_tokens or len(self._session.tokens) == self._session.n_ctx:
            self.reason = "length"
        text = ""
        if token not in self._ends:
            text, stopped = self._stops.feed(self._decoder.feed(token))
            if stopped:
                self.reason = "stop"
        if self.reason is not None and self._stops.found is None:
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
        logits, ids = self._decoded.logits, self._decoded.ids
        if ids is None:
            assert logits is not None
            row: NDArray[np.float32] = logits[0]
            return row
        return Candidates(ids[0], np.zeros(len(ids[0]), np.float32) if logits is None else logits[0])


def best_of(need: Need) -> Best | None:
    """Return how the device that makes the logits is to reduce them, None if all of them are needed."""
    if need.kind == "argmax":
        return Best(1)
    # Logits of chosen tokens would need a graph of their own; a sampler with penalties looks at the whole row.
    if need.kind == "top" and not len(need.extra_ids):
        return Best(need.k)
    return None
