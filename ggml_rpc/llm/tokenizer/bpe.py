"""BPE kinds: words are cut by regular expressions, then neighbours merge by the rank of their pair."""

from __future__ import annotations

import re
from functools import cache

from ...errors import ModelError
from ...extras import require
from . import metadata as read
from .metadata import Metadata
from .vocabulary import SPACE, Vocabulary

_NEWLINES = re.compile("(\n+)")


@cache
def letters_of_bytes() -> tuple[str, ...]:
    """Return the letter that stands for each byte: itself if it can be seen, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in visible else next(hidden)) for byte in range(256))


@cache
def bytes_of_letters() -> dict[str, int]:
    """Return the byte that each such letter stands for."""
    return {letter: byte for byte, letter in enumerate(letters_of_bytes())}


class BpeEncoder:
    """Turn text without special tokens into token ids.

    Parameters
    ----------
    vocabulary : Vocabulary
        The tokens.
    metadata : mapping of str to object
        For ``tokenizer.ggml.merges``.

    Raises
    ------
    ModelError
        If the merges cannot be used.
    RpcError
        If the package `tokenizers` is not installed.
    """

    def __init__(self, vocabulary: Vocabulary, metadata: Metadata) -> None:
        kind = vocabulary.pre
        if kind is None:
            raise ModelError("the vocabulary has no merges")
        self._kind = kind
        self._ids = vocabulary.ids
        self._n_tokens = vocabulary.n_tokens
        merges = _merges(metadata)
        # What merges make and what stands for bytes need ids to be worked with, be they tokens or not.
        needed = dict.fromkeys(text for left, right in merges for text in (left, right, left + right))
        if not kind.raw:
            needed.update(dict.fromkeys(letters_of_bytes()))
        # A character that has no token keeps its neighbours apart.
        unknown = "\0" * (1 + max(map(len, self._ids)))
        extra = [text for text in (*needed, unknown) if text not in self._ids]
        self._extra = [self._fallback(text) for text in extra[:-1]] + [[]]
        ids = {**self._ids, **{text: self._n_tokens + i for i, text in enumerate(extra)}}
        library = require("tokenizers", "a vocabulary of merges")
        pre_tokenizers = library.pre_tokenizers
        model = library.models.BPE(
            ids, merges, unk_token=unknown, ignore_merges=kind.ignore_merges, byte_fallback=kind.raw
        )
        self._tokenizer = library.Tokenizer(model)
        steps = [pre_tokenizers.Split(library.Regex(pattern), "isolated") for pattern in kind.patterns]
        if not kind.raw:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)

    def _fallback(self, text: str) -> list[int]:
        """Return the tokens for what is none: one for each byte that has one."""
        if self._kind.raw:
            names = [f"<0x{byte:02X}>" for byte in text.encode()]
        else:
            names = [letter for letter in text if letter.isascii()]
        return [self._ids[name] for name in names if name in self._ids]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        if self._kind.escape_spaces:
            text = text.replace(" ", SPACE)
        if not self._kind.newline_words:
            return self._encode(text)
        out: list[int] = []
        for i, part in enumerate(_NEWLINES.split(text)):
            known = self._ids.get(part) if i % 2 else None
            out.extend(self._encode(part) if known is None else [known])
        return out

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if max(ids, default=0) < self._n_tokens:
            return ids
        out: list[int] = []
        for token in ids:
            if token < self._n_tokens:
                out.append(token)
            else:
                out.extend(self._extra[token - self._n_tokens])
        return out


def _merges(metadata: Metadata) -> list[tuple[str, str]]:
    """Return the pairs in the order of their rank; of two alike the first counts."""
    key = "tokenizer.ggml.merges"
    pairs: dict[tuple[str, str], None] = {}
    for i, merge in enumerate(read.texts(metadata, key)):
        at = merge.find(" ", 1)
        if at < 0 or at + 1 == len(merge):
            raise ModelError(f"entry {i} of {key} is not two texts with a space between: {merge[:40]!r}")
        pairs[merge[:at], merge[at + 1 :]] = None
    return list(pairs)
