"""Tiny models with random weights of architectures that differ in kind, made from metadata alone.

`ARCHITECTURES` describes them, `cached` writes the file of one in a type of weights and keeps it in the cache folder.
Stock llama.cpp loads each: shapes are what its loader asks for, sizes the least at which every part is at work.
The models of `tests.llm.models` are those that our own client runs too.
"""

from __future__ import annotations

from . import attention, encoders, recurrent
from .model import BOTH, DECODER, ENCODER, N_VOCAB, TinyModel
from .writer import KINDS, cached

__all__ = ["ARCHITECTURES", "BOTH", "DECODER", "ENCODER", "KINDS", "N_VOCAB", "TinyModel", "cached"]

_MAKERS = (
    attention.gemma3n,
    attention.deepseek2,
    attention.deepseek2_whole,
    attention.deepseek32,
    attention.deepseek4,
    attention.minicpm3,
    attention.gpt_oss,
    attention.bloom,
    recurrent.mamba,
    recurrent.mamba2,
    recurrent.jamba,
    recurrent.granite_hybrid,
    recurrent.falcon_h1,
    recurrent.lfm2,
    recurrent.qwen3next,
    recurrent.kimi_linear,
    recurrent.rwkv6,
    recurrent.rwkv6_qwen2,
    recurrent.rwkv7,
    encoders.bert,
    encoders.t5,
    encoders.t5_encoder,
)
ARCHITECTURES = {model.name: model for model in (make() for make in _MAKERS)}
