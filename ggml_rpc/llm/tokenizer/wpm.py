"""The tokenizer of BERT: words and signs apart, each from the longest tokens that fit."""

from __future__ import annotations

import unicodedata

from . import metadata as read
from .metadata import Metadata
from .vocabulary import SPACE, Vocabulary

_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPieceEncoder:
    """Turn text without special tokens into token ids.

    Parameters
    ----------
    vocabulary : Vocabulary
        The tokens; those that start a word begin with U+2581.
    metadata : mapping of str to object
        For what is done to letters first.
    """

    def __init__(self, vocabulary: Vocabulary, metadata: Metadata) -> None:
        self._ids = vocabulary.ids
        self._longest = max(map(len, vocabulary.texts))
        unknown = vocabulary.special.get("unknown")
        self._unknown = [] if unknown is None else [unknown]
        self._lower = read.flag(metadata, "tokenizer.ggml.normalizer.lowercase", True)
        self._strip = read.flag(metadata, "tokenizer.ggml.normalizer.strip_accents", self._lower)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; a word that tokens cannot form is the unknown token."""
        out: list[int] = []
        for word in self._words(text):
            out.extend(self._pieces(SPACE + word) or self._unknown)
        return out

    def _pieces(self, word: str) -> list[int]:
        out: list[int] = []
        at = 0
        while at < len(word):
            for end in range(min(len(word), at + self._longest), at, -1):
                token = self._ids.get(word[at:end])
                if token is not None:
                    out.append(token)
                    at = end
                    break
            else:
                return []
        return out

    def _words(self, text: str) -> list[str]:
        """Return words and single signs, accents and controls removed."""
        words = [""]
        for given in text:
            letter = unicodedata.normalize("NFD", given)[0] if self._strip else given
            category = unicodedata.category(letter)
            if letter.isspace() and not "\x1c" <= letter <= "\x1f":
                words.append("")
                continue
            if letter in "\0\ufffd" or category in ("Cc", "Cf", "Cs", "Co") or (self._strip and category[0] == "M"):
                continue
            lower = letter.lower() if self._lower else letter
            code = ord(letter)
            alone = category[0] == "P" or (code < 0x7F and category[0] == "S")
            if alone or any(first <= code <= last for first, last in _IDEOGRAPHS):
                words += [lower, ""]
            else:
                words[-1] += lower
        return [word for word in words if word]
