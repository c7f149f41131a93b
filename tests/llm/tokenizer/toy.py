"""Vocabularies of a few hundred tokens."""

from __future__ import annotations

from typing import Any

from ggml_rpc.llm.tokenizer.bpe import letters_of_bytes

SPACE = "\u2581"


def spm_metadata(words: dict[str, float] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a vocabulary by scores: three special tokens, the bytes, letters, and `words` with their scores."""
    given = words if words is not None else {"ab": -1.0, "abc": -2.0, SPACE + "a": -3.0}
    letters = dict.fromkeys([SPACE, "a", "b", "c", *given])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [given.get(text, -100.0) for text in letters],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(letters),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return changed(metadata, changes)


def bpe_metadata(
    pairs: list[str] | None = None, special: tuple[str, ...] = ("<|end|>",), **changes: Any
) -> dict[str, Any]:
    """Return a vocabulary by ranks: the bytes, what `pairs` make, and control tokens."""
    given = pairs if pairs is not None else ["a b", "ab c"]
    made = dict.fromkeys(merge.replace(" ", "") for merge in given)
    tokens = [*letters_of_bytes(), *made, *special]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (256 + len(made)) + [3] * len(special),
        "tokenizer.ggml.merges": given,
    }
    return changed(metadata, changes)


def changed(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Replace or, for None, remove values; names are without ``tokenizer.ggml.``."""
    for name, value in changes.items():
        key = f"tokenizer.ggml.{name}"
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value
    return metadata
