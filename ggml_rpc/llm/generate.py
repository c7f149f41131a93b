"""Text from a model, token by token: the class that programs use.

with LLM("model.gguf", rpc="hostA:50052,hostB:50052") as llm:
    for token in llm.generate("Hello, my name is", max_tokens=64):
        print(token.text, end="", flush=True)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ggml_rpc.errors import ContextError

from .chat import ChatTemplate
from .devices import open_devices
from .generation import Generation, Options
from .model import Model
from .sampling import Sampler, SamplingParams
from .session import OnLoss, Redistribution, Session
from .sizing import ContextSettings, Flash
from .stop import StopStrings
from .ubatch_graph import Best

if TYPE_CHECKING:
    from ggml_rpc.spec.dialects import Dialect

    from .devices import DeviceSet
    from .loader import Progress
    from .results import Token
    from .tokenizer import Tokenizer


CONNECT_SECONDS = 10.0
"""For connecting to a server and for its HELLO, each, unless the timeout is shorter."""


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
    whole_window : bool
        Let layers with a sliding window remember all positions: more memory, but a prompt that leaves the text of
        before in the middle need not be computed from its beginning.
    on_loss : str
        What happens if a server is lost: `"error"`, or `"redistribute"`: its layers are brought to the devices that
        are left, the text so far is computed anew, and generation goes on. A server that cannot be reached at the
        beginning is an error nevertheless.
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
        whole_window: bool = False,
        on_loss: OnLoss = "error",
        timeout: float = 60.0,
        dialect: Dialect | str | None = None,
        devices: DeviceSet | None = None,
        check: bool = True,
        progress: Progress | None = None,
        on_redistribution: Callable[[Redistribution], None] | None = None,
    ) -> None:
        settings = ContextSettings(n_ctx, n_batch, n_ubatch, flash_attn, type_k, type_v, whole_window)
        begin = time.perf_counter()
        owned = devices is None
        if devices is None:
            patience = min(timeout, CONNECT_SECONDS)
            devices = open_devices(rpc, threads=threads, timeout=timeout, connect_timeout=patience, dialect=dialect)
        with ExitStack() as opened:
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
                survive=on_loss == "redistribute",
                close_devices=owned,
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
        if self._current is not None:
            self._current.superseded = True
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
            Text, in which names of control tokens stand for these tokens, or token ids.
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
        if isinstance(prompt, (bytes, bytearray)):
            raise TypeError("a prompt is a str or token ids, not bytes")
        tokens = self.tokenize(prompt, parse_special=True) if isinstance(prompt, str) else [int(t) for t in prompt]
        if not tokens and self.tokenizer.bos_id is not None:
            tokens = [self.tokenizer.bos_id]
        self._check_prompt(tokens)
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, or None for all that fit, not {max_tokens}")
        if logprobs is not None and logprobs < 0:
            raise ValueError(f"logprobs must be 0 or more, or None, not {logprobs}")
        sampler = Sampler(sampling or SamplingParams(), self.model.hparams.n_vocab)
        options = Options(max_tokens, StopStrings(stop), logprobs, ignore_eos, on_token)
        if self._current is not None:
            self._current.superseded = True
        self._current = Generation(self._session, self.tokenizer, tokens, sampler, options)
        return self._current

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
        TypeError
            If `messages` is no sequence of mappings.
        ValueError
            If there are none, or one has no role, or what `generate` raises it for.
        ModelError
            If the template cannot be used.
        ContextError
            If the conversation does not fit into the context.
        """
        if isinstance(messages, (str, bytes, Mapping)) or not all(isinstance(m, Mapping) for m in messages):
            raise TypeError("messages must be a list of mappings such as {'role': 'user', 'content': 'Hello'}")
        if not messages:
            raise ValueError("there are no messages to answer")
        for i, message in enumerate(messages):
            if "role" not in message:
                raise ValueError(f"message {i} has no role; it has {', '.join(map(str, message)) or 'nothing'}")
        template = self.template
        options["stop"] = (*options.get("stop", ()), *template.stop)
        return self.generate(template.encode(messages), **options)

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ContextError("the prompt is empty")
        n_ctx, n_vocab = self.n_ctx, self.model.hparams.n_vocab
        if len(tokens) > n_ctx:
            raise ContextError(
                f"the prompt has {len(tokens)} tokens, the context {n_ctx}: shorten it, or take a larger context"
                " (-c, n_ctx)"
            )
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise ContextError(f"the prompt holds {token}, which is no token of {n_vocab}")
