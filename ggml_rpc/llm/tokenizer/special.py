"""Cut special tokens out of a text before anything else is done with it."""

from __future__ import annotations

from .vocabulary import Attribute, Vocabulary

_SPACES = " \t\n\v\f\r"
# Thousands of reserved tokens share their first letters: one look for those spares a look for each.
_PREFIX = 3


class Partition:
    """Find special tokens in texts, longer ones first wherever they stand.

    Parameters
    ----------
    vocabulary : Vocabulary
        The tokens.
    control : bool
        Look for control tokens too, not only for those that the model's maker has added as text.
    """

    def __init__(self, vocabulary: Vocabulary, *, control: bool) -> None:
        self._texts = vocabulary.texts
        self._attributes = vocabulary.attributes
        self._groups: dict[str, list[int]] = {}
        chosen = [
            token
            for token in range(vocabulary.n_tokens)
            if vocabulary.is_cut_out(token) and (control or not vocabulary.is_silent(token))
        ]
        # Bytes, not letters, as llama.cpp counts.
        chosen.sort(key=lambda token: -len(self._texts[token].encode()))
        self._rank = {token: i for i, token in enumerate(chosen)}
        for token in chosen:
            self._groups.setdefault(self._texts[token][:_PREFIX], []).append(token)

    def split(self, text: str) -> list[str | int]:
        """Return the text's parts in order: pieces of text, none of them empty, and token ids."""
        present = [
            token
            for prefix, tokens in self._groups.items()
            if prefix in text
            for token in tokens
            if self._texts[token] in text
        ]
        if not present:
            return [text] if text else []
        present.sort(key=self._rank.__getitem__)
        taken = bytearray(len(text))  # 1 where a token or a space that it swallows stands
        found: list[tuple[int, int, int]] = []
        for token in present:
            self._take(text, token, taken, found)
        found.sort()
        parts: list[str | int] = []
        at = 0
        for start, end, token in found:
            self._append_text(parts, text, taken, at, start)
            parts.append(token)
            at = end
        self._append_text(parts, text, taken, at, len(text))
        return parts

    @staticmethod
    def _append_text(parts: list[str | int], text: str, taken: bytearray, start: int, end: int) -> None:
        """Append what tokens have left of a stretch; they swallow spaces at its ends only."""
        start = taken.find(0, start, end)
        if start >= 0:
            parts.append(text[start : taken.rfind(0, start, end) + 1])

    def _take(self, text: str, token: int, taken: bytearray, found: list[tuple[int, int, int]]) -> None:
        """Mark the places of one token, from the left, that no longer one has taken."""
        word = self._texts[token]
        attributes = self._attributes[token]
        at = text.find(word)
        while at >= 0:
            end = at + len(word)
            blocked = taken.rfind(1, at, end)
            if blocked >= 0:
                free = taken.find(0, blocked)
                at = text.find(word, free) if free >= 0 else -1
                continue
            found.append((at, end, token))
            start = at
            if attributes & Attribute.LSTRIP:
                while start > 0 and not taken[start - 1] and text[start - 1] in _SPACES:
                    start -= 1
            if attributes & Attribute.RSTRIP:
                while end < len(text) and not taken[end] and text[end] in _SPACES:
                    end += 1
            taken[start:end] = b"\1" * (end - start)
            at = text.find(word, end)
