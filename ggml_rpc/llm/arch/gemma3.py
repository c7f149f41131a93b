"""Gemma 3: Gemma 2 with normed heads, no cap on attention, and another base of positions in windowed layers."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..hparams import HParams, at_least, read_window
from .base import Architecture, LayerWeight
from .gemma2 import Gemma2
from .parts import head_norms

if TYPE_CHECKING:
    from ggml_rpc.graph._tensor import Tensor

    from ..gguf_file import GgufFile
    from .blocks import LayerGraph


class Gemma3(Gemma2):
    """Of six layers five have a window; their positions are never stretched."""

    name = "gemma3"
    may_untie = True
    wide_head_layers = 62

    def hparams(self, file: GgufFile) -> HParams:
        """Return a model's settings."""
        hp = Architecture.hparams(self, file)
        window = read_window(file, hp, width=0, period=6, rope_base=10000.0)
        return replace(
            hp,
            window=window.width,
            windowed=window.layers,
            rope=replace(hp.rope, base_windowed=window.rope_base, scale_windowed=1.0),
            attention_scale=self.query_scale(hp),
            embedding_scale=math.sqrt(hp.n_embd),
            logit_cap=at_least(file, "final_logit_softcapping", 0.0),
        )

    def layer_weights(self, hp: HParams, il: int, names: Container[str]) -> Iterator[LayerWeight]:
        """Yield a layer's weights."""
        yield from super().layer_weights(hp, il, names)
        yield from head_norms(hp)

    def prepared(self, b: LayerGraph, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys, normed, with their positions."""
        return b.rope(b.norm(q, "attn_q_norm")), b.rope(b.norm(k, "attn_k_norm"))
