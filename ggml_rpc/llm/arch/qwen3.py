"""Qwen 3: heads are normed before they are turned."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from ..hparams import HParams
from .base import Architecture, LayerWeight
from .parts import attention_weights, dense_weights, head_norms

if TYPE_CHECKING:
    from ggml_rpc.graph._tensor import Tensor

    from .blocks import LayerGraph


class Qwen3(Architecture):
    """Norm, attention with normed heads, norm, gated feed-forward part."""

    name = "qwen3"

    def layer_weights(self, hp: HParams, il: int, names: Container[str]) -> Iterator[LayerWeight]:
        """Yield a layer's weights."""
        yield LayerWeight("attn_norm.weight", (hp.n_embd,))
        yield from attention_weights(hp, il, names)
        yield from head_norms(hp)
        yield LayerWeight("ffn_norm.weight", (hp.n_embd,))
        yield from self.ffn_weights(hp, il)

    def ffn_weights(self, hp: HParams, il: int) -> Iterator[LayerWeight]:
        """Yield the weights of the feed-forward part."""
        return dense_weights(hp, il)

    def layer(self, b: LayerGraph, x: Tensor) -> Tensor:
        """Return the output of a layer."""
        q, k, v = b.qkv(b.norm(x, "attn_norm"))
        q, k = b.rope(b.norm(q, "attn_q_norm")), b.rope(b.norm(k, "attn_k_norm"))
        found = b.attention(q, k, v, scale=b.hp.kq_scale)
        x = b.g.add(b.rows_wanted(found), b.rows_wanted(x))
        return b.g.add(self.ffn(b, b.norm(x, "ffn_norm")), x)

    def ffn(self, b: LayerGraph, x: Tensor) -> Tensor:
        """Return the feed-forward part's output."""
        return b.ffn(x)
