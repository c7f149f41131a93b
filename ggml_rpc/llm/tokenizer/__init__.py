"""Text to token ids and back, as a model file describes it."""

from __future__ import annotations

from .tokenizer import Decoder, Tokenizer

__all__ = ["Decoder", "Tokenizer"]
