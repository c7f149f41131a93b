"""Choosing the next token from logits."""

from __future__ import annotations

from .candidates import Candidates, Need, Undecided
from .logprobs import log_softmax_at
from .params import SamplingParams
from .sampler import Sampler

__all__ = ["Candidates", "Need", "Sampler", "SamplingParams", "Undecided", "log_softmax_at"]
