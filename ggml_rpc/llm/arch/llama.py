"""Llama and what is built like it: Mistral, and Mixtral with its experts."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ggml_rpc.spec.enums import RopeMode

from ..hparams import HParams, wrong
from .base import Architecture, LayerWeight
from .parts import attention_weights, dense_weights, expert_weights

if TYPE_CHECKING:
    from ggml_rpc.graph._tensor import Tensor

    from ..gguf_file import GgufFile
    from .blocks import LayerGraph


class Llama(Architecture):
    """Norm, attention, norm, gated feed-forward part or experts."""

    name = "llama"
    rope_mode = RopeMode.NORMAL

    def hparams(self, file: GgufFile) -> HParams:
        """Return a model's settings; experts are as wide as a dense layer would be."""
        hp = super().hparams(file)
        if hp.rope.n_dims != hp.head_dim_k:
            raise wrong(file, "rope.dimension_count", f"{hp.rope.n_dims} is not the head's {hp.head_dim_k}")
        if not hp.n_expert:
            return hp
        if not hp.n_ff[0]:
            raise wrong(file, "feed_forward_length", "it is missing")
        return replace(hp, n_ff_expert=hp.n_ff[0])

    def rope_factors(self, hp: HParams) -> tuple[str, ...]:
        """Return one tensor for all contexts, or one for long and one for short ones."""
        if hp.rope.scaling == "longrope":
            return ("rope_factors_long.weight", "rope_factors_short.weight")
        return ("rope_freqs.weight",)

    def layer_weights(self, hp: HParams, il: int, names: Container[str]) -> Iterator[LayerWeight]:
        """Yield a layer's weights."""
        yield LayerWeight("attn_norm.weight", (hp.n_embd,))
        yield from attention_weights(hp, il, names)
        yield LayerWeight("attn_output.bias", (hp.n_embd,), optional=True)
        yield LayerWeight("ffn_norm.weight", (hp.n_embd,))
        if hp.n_expert:
            yield from expert_weights(hp)
        else:
            yield from dense_weights(hp, il, bias=True)

    def layer(self, b: LayerGraph, x: Tensor) -> Tensor:
        """Return the output of a layer."""
        q, k, v = b.qkv(b.norm(x, "attn_norm"))
        found = b.attention(b.rope(q), b.rope(k), v, scale=b.hp.kq_scale)
        x = b.g.add(b.rows_wanted(found), b.rows_wanted(x))
        y = b.norm(x, "ffn_norm")
        return b.g.add(b.experts(y) if b.hp.n_expert else b.ffn(y), x)
