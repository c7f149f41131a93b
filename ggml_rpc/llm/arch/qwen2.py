"""Qwen 2 and 2.5: Llama with paired halves and biases on queries, keys and values."""

from __future__ import annotations

from ggml_rpc.spec.enums import RopeMode

from ..hparams import HParams
from .base import OUTPUT, WeightSpec
from .llama import Llama


class Qwen2(Llama):
    """The biases are the optional ones of `attention_weights`."""

    name = "qwen2"
    rope_mode = RopeMode.NEOX

    def rope_factors(self, hp: HParams) -> tuple[str, ...]:
        """Return none."""
        return ()

    def head_weights(self, hp: HParams) -> list[WeightSpec]:
        """Return the bias of the output matrix, which a file may have."""
        return [WeightSpec("output.bias", (hp.n_vocab,), OUTPUT, optional=True)]
