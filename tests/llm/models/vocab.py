"""Vocabularies of a few hundred entries, merged from a short text, so that the random models also take text."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import gguf

TEXT = Path(__file__).parents[2] / "e2e" / "text.txt"
Merge = tuple[str, str]


def add_vocabulary(writer: gguf.GGUFWriter, kind: str, size: int) -> None:
    """Add a vocabulary to a file.

    Parameters
    ----------
    writer : gguf.GGUFWriter
        The file.
    kind : str
        ``"none"`` for models fed with token ids alone, ``"spm"`` for pieces with scores and byte tokens, ``"bpe"`` for
        merges over bytes.
    size : int
        Number of entries.
    """
    if kind == "none":
        writer.add_tokenizer_model("no_vocab")
    elif kind == "spm":
        _add_spm(writer, size)
    else:
        _add_bpe(writer, size)


def _add_spm(writer: gguf.GGUFWriter, size: int) -> None:
    types = gguf.TokenType
    control = [("<unk>", types.UNKNOWN), ("<s>", types.CONTROL), ("</s>", types.CONTROL)]
    entries = control + [(f"<0x{byte:02X}>", types.BYTE) for byte in range(256)]
    room = size - len(entries)
    characters, merges = _merges("▁", room)
    pieces = [*merges, *characters][:room]
    entries += [(piece, types.NORMAL) for piece in pieces]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _type in entries])
    scores = [0.0] * (len(entries) - len(pieces)) + [-float(rank) for rank in range(len(pieces))]
    writer.add_token_scores(scores)
    writer.add_token_types([kind for _text, kind in entries])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)


def _add_bpe(writer: gguf.GGUFWriter, size: int) -> None:
    alphabet = _byte_characters()
    control = ["<|endoftext|>"]
    room = size - len(alphabet) - len(control)
    _characters, merges = _merges(alphabet[ord(" ")], room)
    tokens = [*alphabet, *merges, *control]
    tokens += [f"<|unused{i}|>" for i in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    plain = len(alphabet) + len(merges)
    kinds = [gguf.TokenType.NORMAL] * plain + [gguf.TokenType.CONTROL] * (size - plain)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in merges.values()])
    writer.add_bos_token_id(plain)
    writer.add_eos_token_id(plain)
    writer.add_add_bos_token(False)


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in vocabularies over bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + i) for i in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


@cache
def _merges(space: str, count: int) -> tuple[list[str], dict[str, Merge]]:
    """Return the characters of the text's words and the `count` most useful merges: result -> halves, in order."""
    words = Counter(space + word for word in TEXT.read_text(encoding="utf-8").split() if word.isascii())
    split = {word: tuple(word) for word in words}
    characters = sorted({character for word in words for character in word})
    merges: dict[str, Merge] = {}
    while len(merges) < count:
        pairs: Counter[Merge] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges["".join(best)] = best
        split = {word: _joined(parts, best) for word, parts in split.items()}
    return characters, merges


def _joined(parts: tuple[str, ...], pair: Merge) -> tuple[str, ...]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)
