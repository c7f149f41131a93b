"""Gemma 2: norms before and after each part, soft caps, and a sliding window in every second layer."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ..hparams import HParams, at_least, read_window
from .base import Architecture, LayerWeight
from .parts import attention_weights, dense_weights

if TYPE_CHECKING:
    from ggml_rpc.graph._tensor import Tensor

    from ..gguf_file import GgufFile
    from .blocks import LayerGraph


class Gemma2(Architecture):
    """Norm, attention, norm, norm, gated feed-forward part, norm. The output matrix is the embedding table."""

    name = "gemma2"
    may_untie = False

    wide_head_layers: ClassVar[int] = 46
    """The largest model, told by its layers, scales queries by the width a head would have, not by what it has."""

    def hparams(self, file: GgufFile) -> HParams:
        """Return a model's settings."""
        hp = super().hparams(file)
        window = read_window(file, hp, width=4096, period=2, rope_base=hp.rope.base)
        return replace(
            hp,
            window=window.width,
            windowed=window.layers,
            rope=replace(hp.rope, base_windowed=window.rope_base),
            attention_scale=self.query_scale(hp),
            embedding_scale=math.sqrt(hp.n_embd),
            attention_cap=at_least(file, "attn_logit_softcapping", 50.0),
            logit_cap=at_least(file, "final_logit_softcapping", 30.0),
        )

    def query_scale(self, hp: HParams) -> float:
        """Return what queries are multiplied by."""
        wide = hp.n_layer == self.wide_head_layers
        return 1.0 / math.sqrt(hp.n_embd // hp.n_head[0] if wide else hp.head_dim_k)

    def layer_weights(self, hp: HParams, il: int, names: Container[str]) -> Iterator[LayerWeight]:
        """Yield a layer's weights."""
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            yield LayerWeight(name + ".weight", (hp.n_embd,))
        yield from attention_weights(hp, il, names)
        yield from dense_weights(hp, il)

    def layer(self, b: LayerGraph, x: Tensor) -> Tensor:
        """Return the output of a layer."""
        q, k, v = b.qkv(b.norm(x, "attn_norm"))
        q, k = self.prepared(b, q, k)
        found = b.attention(b.g.scale(q, b.hp.attention_scale), k, v, scale=1.0)
        x = b.g.add(b.norm(b.rows_wanted(found), "post_attention_norm"), b.rows_wanted(x))
        y = b.norm(b.ffn(b.norm(x, "ffn_norm"), "gelu"), "post_ffw_norm")
        return b.g.add(y, x)

    def prepared(self, b: LayerGraph, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys with their positions."""
        return b.rope(q), b.rope(k)
