"""Phi 3 and 4: one matrix for queries, keys and values, one for both halves of the feed-forward part."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from ..hparams import HParams
from .base import Architecture, LayerWeight
from .parts import attention_weights

if TYPE_CHECKING:
    from ggml_rpc.graph._tensor import Tensor

    from .blocks import LayerGraph


class Phi3(Architecture):
    """Norm, attention, norm, gated feed-forward part. A window that a file states is not used, as in llama.cpp."""

    name = "phi3"

    def rope_factors(self, hp: HParams) -> tuple[str, ...]:
        """Return the factors for contexts beyond that of the training and for shorter ones."""
        return ("rope_factors_long.weight", "rope_factors_short.weight")

    def layer_weights(self, hp: HParams, il: int, names: Container[str]) -> Iterator[LayerWeight]:
        """Yield a layer's weights."""
        yield LayerWeight("attn_norm.weight", (hp.n_embd,))
        yield from attention_weights(hp, il, names)
        yield LayerWeight("ffn_norm.weight", (hp.n_embd,))
        yield LayerWeight("ffn_up.weight", (hp.n_embd, 2 * hp.n_ff[il]))
        yield LayerWeight("ffn_down.weight", (hp.n_ff[il], hp.n_embd))

    def layer(self, b: LayerGraph, x: Tensor) -> Tensor:
        """Return the output of a layer."""
        q, k, v = b.qkv(b.norm(x, "attn_norm"))
        found = b.attention(b.g.scale(b.rope(q), b.hp.kq_scale), b.rope(k), v, scale=1.0)
        x = b.g.add(b.rows_wanted(found), b.rows_wanted(x))
        return b.g.add(x, b.ffn(b.norm(x, "ffn_norm")))
