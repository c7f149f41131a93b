"""Qwen 3 with experts in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..hparams import HParams, wrong
from .base import LayerWeight
from .parts import expert_weights
from .qwen3 import Qwen3

if TYPE_CHECKING:
    from ggml_rpc.graph._tensor import Tensor

    from ..gguf_file import GgufFile
    from .blocks import LayerGraph


class Qwen3Moe(Qwen3):
    """Qwen 3 whose feed-forward part is a choice of experts."""

    name = "qwen3moe"

    def hparams(self, file: GgufFile) -> HParams:
        """Return a model's settings."""
        hp = super().hparams(file)
        if not hp.n_expert:
            raise wrong(file, "expert_count", "this architecture needs experts")
        n_ff = hp.n_ff_expert or hp.n_ff[0] // hp.n_expert_used
        if not n_ff:
            raise wrong(file, "expert_feed_forward_length", "neither it nor a width to derive it from is there")
        return replace(hp, n_ff_expert=n_ff)

    def ffn_weights(self, hp: HParams, il: int) -> Iterator[LayerWeight]:
        """Yield the router and the experts."""
        return expert_weights(hp)

    def ffn(self, b: LayerGraph, x: Tensor) -> Tensor:
        """Return the experts' output."""
        return b.experts(x)
