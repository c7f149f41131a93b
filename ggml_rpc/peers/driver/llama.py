"""Drive a stock llama.cpp through the C API that llama-cpp-py-sync binds.

Everything in this folder runs in the stock peer's own Python, under another C library perhaps, and therefore imports
nothing of the package around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from llama_cpp_py_sync._cffi_bindings import get_backend_base_lib, get_ffi, get_lib
from llama_cpp_py_sync.rpc import rpc_devices
from numpy.typing import NDArray

FLASH = {"auto": -1, "off": 0, "on": 1}
CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}  # ggml_type
ALL_LAYERS = 999
_LAYER = re.compile(r"load_tensors: layer\s+(\d+) assigned to device (.+?), is_swa")

ffi = get_ffi()
lib = get_lib()


class Log:
    """Collect what the library logs; print it only when something goes wrong."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._callback = ffi.callback("ggml_log_callback", self._add)
        lib.llama_log_set(self._callback, ffi.NULL)

    def _add(self, _level: int, text: Any, _data: Any) -> None:
        self.lines.append(ffi.string(text).decode("utf-8", "replace"))

    def layers(self) -> dict[str, list[int]]:
        """Return the layers of the last model by device; the layer after the last block is the output."""
        found: dict[str, list[int]] = {}
        for number, device in _LAYER.findall("".join(self.lines)):
            found.setdefault(device, []).append(int(number))
        return found


class Model:
    """Load a GGUF file, wholly onto RPC servers or wholly onto the local CPU.

    Parameters
    ----------
    path : str
        GGUF file.
    servers : sequence of str
        Endpoints ``host:port``; their devices take the layers in this order. Empty: the local CPU.
    split : sequence of float
        Relative share of each device; empty lets the library share by free memory.
    progress : callable, optional
        Called with a number from 0 to 1 while tensors are loaded.
    repack : bool
        Let the local CPU lay weights out anew for its fastest kernels, as it does by default.
    vocab_only : bool
        Load the tokenizer alone.
    """

    def __init__(
        self,
        path: str,
        servers: Sequence[str] = (),
        *,
        split: Sequence[float] = (),
        progress: Callable[[float], None] | None = None,
        repack: bool = True,
        vocab_only: bool = False,
    ) -> None:
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.use_extra_bufts = repack
        params.n_gpu_layers = ALL_LAYERS if servers else 0
        devices = rpc_devices(list(servers), include_local=False) if servers else []
        base = get_backend_base_lib()
        # An RPC device describes itself by its server's endpoint.
        self.devices = {
            ffi.string(base.ggml_backend_dev_name(device)).decode(): ffi.string(
                base.ggml_backend_dev_description(device)
            ).decode()
            for device in devices
        }
        # The library keeps the pointers, so the arrays live as long as the model.
        self._devices = ffi.new("ggml_backend_dev_t[]", [*devices, ffi.NULL])
        params.devices = self._devices
        if split:
            padding = [0.0] * (lib.llama_max_devices() - len(split))
            self._split = ffi.new("float[]", [*split, *padding])
            params.tensor_split = self._split
        if progress is not None:
            report = progress

            def on_progress(value: float, _data: Any) -> bool:
                report(value)
                return True

            self._progress = ffi.callback("bool(float, void *)", on_progress)
            params.progress_callback = self._progress
        self.pointer = lib.llama_model_load_from_file(path.encode(), params)
        if self.pointer == ffi.NULL:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = lib.llama_model_get_vocab(self.pointer)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of `text`, with the model's start token first."""
        raw = text.encode()
        room = len(raw) + 8
        buffer = ffi.new("llama_token[]", room)
        count = lib.llama_tokenize(self.vocab, raw, len(raw), buffer, room, True, False)
        if count < 0:
            raise RuntimeError("llama.cpp cannot tokenize the text")
        return list(buffer[0:count])

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token; they may be part of a character."""
        buffer = ffi.new("char[]", 256)
        count = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return bytes(ffi.buffer(buffer, max(count, 0)))

    def close(self) -> None:
        """Free the model and its buffers on the servers."""
        lib.llama_model_free(self.pointer)


class Context:
    """Evaluate token batches of one sequence with a loaded model.

    Parameters
    ----------
    model : Model
        The model; it must outlive the context.
    n_ctx : int
        Positions the cache holds.
    n_batch, n_ubatch : int
        Largest number of tokens a call and a graph take.
    flash : str
        Flash attention: ``"auto"``, ``"on"`` or ``"off"``.
    cache_type : str
        Type of the key and value cache.
    threads : int
        Threads of the local CPU device.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        flash: str = "auto",
        cache_type: str = "f16",
        threads: int = 2,
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = n_batch
        params.n_ubatch = min(n_batch, n_ubatch)
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH[flash]
        params.type_k = params.type_v = CACHE_TYPES[cache_type]
        self.model = model
        self.pointer = lib.llama_init_from_model(model.pointer, params)
        if self.pointer == ffi.NULL:
            raise RuntimeError("llama.cpp cannot create a context")
        self.n_past = 0
        self._n_batch = n_batch
        self._batch = lib.llama_batch_init(n_batch, 0, 1)

    def clear(self) -> None:
        """Forget the sequence."""
        lib.llama_memory_clear(lib.llama_get_memory(self.pointer), False)
        self.n_past = 0

    def decode(self, tokens: Sequence[int], *, every: bool = False) -> NDArray[np.float32]:
        """Append a batch of tokens and return logits.

        Parameters
        ----------
        tokens : sequence of int
            Token ids, at most ``n_batch`` of them.
        every : bool
            Return a row for every token rather than for the last one.

        Returns
        -------
        numpy.ndarray
            Shape ``(rows, n_vocab)``, float32; a view that the next call overwrites.
        """
        if not 0 < len(tokens) <= self._n_batch:
            raise ValueError(f"a batch of {len(tokens)} tokens does not fit {self._n_batch}")
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.n_past + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == len(tokens) - 1
        status = lib.llama_decode(self.pointer, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        self.n_past += len(tokens)
        rows = len(tokens) if every else 1
        data = lib.llama_get_logits(self.pointer)  # waits for the result
        view = ffi.buffer(data, rows * self.model.n_vocab * 4)
        return np.frombuffer(view, np.float32).reshape(rows, self.model.n_vocab)

    def sample(self, *, temperature: float, seed: int) -> Iterator[int]:
        """Yield tokens without end, drawn from the last logits; the caller decodes each before taking the next.

        Parameters
        ----------
        temperature : float
            0 takes the likeliest token.
        seed : int
            Seed of the draw.
        """
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if temperature > 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(40))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(0.9, 1))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(temperature))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
        else:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        try:
            while True:
                yield int(lib.llama_sampler_sample(chain, self.pointer, -1))
        finally:
            lib.llama_sampler_free(chain)

    def is_end(self, token: int) -> bool:
        """Tell whether a token ends the generation."""
        return bool(lib.llama_vocab_is_eog(self.model.vocab, token))

    def close(self) -> None:
        """Free the context and its buffers on the servers."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self.pointer)
