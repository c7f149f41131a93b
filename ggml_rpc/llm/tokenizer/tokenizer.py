"""Text to token ids and back, as a model file describes it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ...errors import ModelError
from ._spm import ScoreMerger
from .bpe import BpeEncoder, bytes_of_letters
from .special import Partition
from .vocabulary import SPACE, Attribute, Vocabulary
from .wpm import WordPieceEncoder

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


class _ScoreEncoder:
    """Turn text without special tokens into token ids by the tokens' scores."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = vocabulary.ids
        byte_ids = [ids.get(f"<0x{byte:02X}>", ids.get(chr(byte), -1) if byte < 128 else -1) for byte in range(256)]
        self._merger = ScoreMerger([text.encode() for text in vocabulary.texts], vocabulary.scores, byte_ids)

    def encode(self, text: str) -> list[int]:
        return self._merger.encode(text.replace(" ", SPACE).encode())


class Tokenizer:
    """Turn text into token ids and back.

    Make one with `from_metadata`. It may be used from several threads.

    Attributes
    ----------
    kind : str
        ``llama`` (merges by score), ``gpt2`` and ``gemma4`` (merges by rank), ``bert`` (longest match), ``none`` or
        ``no_vocab``.
    n_vocab : int
        Number of tokens; 0 if the model has no vocabulary and does not say how many ids it knows.
    bos_id, eos_id : int or None
        The tokens that start and end a text.
    eot_id : int or None
        The token that ends a turn of a chat.
    end_ids : frozenset of int
        All tokens that end a generation.
    adds_bos, adds_eos : bool
        Whether `encode` puts them around a text.
    notes : tuple of str
        What a user should know about the vocabulary, a sentence each.
    """

    def __init__(self, vocabulary: Vocabulary, encoder: _Encoder | None) -> None:
        self._vocabulary = vocabulary
        self._encoder = encoder
        self._pieces: dict[int, bytes] = {}
        self._partitions: dict[bool, Partition] = {}
        self.kind = vocabulary.kind
        self.n_vocab = vocabulary.n_tokens
        self.bos_id = vocabulary.special.get("bos")
        self.eos_id = vocabulary.special.get("eos")
        self.eot_id = vocabulary.special.get("eot")
        self.end_ids = vocabulary.ends
        self.adds_bos = vocabulary.add_bos
        self.adds_eos = vocabulary.add_eos
        self.notes = tuple(vocabulary.notes)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Make the tokenizer that a model file describes.

        Parameters
        ----------
        metadata : mapping of str to object
            Keys of the GGUF file, such as ``tokenizer.ggml.tokens``, and their values: texts, numbers, yes or no, lists
            or NumPy arrays of them.

        Raises
        ------
        ModelError
            If the vocabulary is of an unknown kind or does not hold together.
        """
        vocabulary = Vocabulary(metadata)
        encoder: _Encoder | None = None
        if vocabulary.kind == "llama":
            encoder = _ScoreEncoder(vocabulary)
        elif vocabulary.kind == "bert":
            encoder = WordPieceEncoder(vocabulary, metadata)
        elif vocabulary.pre is not None:
            encoder = BpeEncoder(vocabulary, metadata)
        return cls(vocabulary, encoder)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text.

        Parameters
        ----------
        text : str
            Any text; halves of surrogate pairs become U+FFFD.
        add_special : bool
            Put the tokens that start and end a text around it, where the model wants them.
        parse_special : bool
            Take the names of control tokens, such as ``<|im_end|>``, for these tokens. Leave it off for text from users
            that are not trusted to steer the conversation.

        Raises
        ------
        ModelError
            If the model has no vocabulary, or lacks a token for a byte of the text.
        """
        if self._encoder is None:
            raise ModelError("the model has no vocabulary: give token ids instead of text")
        text = _LONE_SURROGATE.sub("\ufffd", text)
        special = self._vocabulary.special
        out = [special["bos"]] if add_special and self.adds_bos else []
        prefix = " " if self._vocabulary.add_space_prefix and self.kind == "llama" else ""
        after_special = True
        for part in self._partition(parse_special).split(text):
            if isinstance(part, int):
                out.append(part)
            else:
                out.extend(self._encoder.encode(prefix + part if after_special else part))
            after_special = isinstance(part, int)
        if add_special and self.kind == "bert":
            out.append(special["seperator"])
        elif add_special and self.adds_eos:
            out.append(special["eos"])
        return out

    def _partition(self, control: bool) -> Partition:
        if control not in self._partitions:
            self._partitions[control] = Partition(self._vocabulary, control=control)
        return self._partitions[control]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Return the text of token ids: what `encode` made of a text becomes that text again.

        Parameters
        ----------
        ids : iterable of int
            Token ids.
        special : bool
            Write the names of control tokens.

        Raises
        ------
        ModelError
            If an id is no token.
        """
        out = bytearray()
        starts = self._vocabulary.add_space_prefix  # the space that encoding puts before text is no part of it
        for token in ids:
            piece = self.piece(token, special=special)
            if self._vocabulary.is_cut_out(token):
                starts = self._vocabulary.add_space_prefix
            else:
                piece = piece[1:] if starts and piece.startswith(b" ") else piece
                starts = False
            out += piece
        return out.decode("utf-8", "replace")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token; they may be part of a character.

        Parameters
        ----------
        token : int
            Token id.
        special : bool
            Give the names of control tokens; without it they are empty.

        Raises
        ------
        ModelError
            If the id is no token.
        """
        piece = self._pieces.get(token)
        if piece is None:
            if not 0 <= token < len(self._vocabulary.texts):
                raise ModelError(f"{token} is no token: the vocabulary has {len(self._vocabulary.texts)}")
            piece = self._pieces[token] = self._make_piece(token)
        return piece if special or not self._vocabulary.is_silent(token) else b""

    def _make_piece(self, token: int) -> bytes:
        text = self._vocabulary.texts[token]
        attributes = self._vocabulary.attributes[token]
        if self._vocabulary.is_cut_out(token):
            return text.encode()
        if attributes & Attribute.NORMAL:
            if self._vocabulary.escapes_spaces:
                return text.replace(SPACE, " ").encode()
            known = bytes_of_letters()
            out = bytearray()
            for letter in text:
                if letter in known:
                    out.append(known[letter])
                else:  # a text that no merge of bytes makes; shown as llama.cpp shows it
                    out += f"[UNK_BYTE_0x{letter.encode().hex()}{text}]".encode()
            return bytes(out)
        if attributes & Attribute.BYTE:
            return bytes([self._vocabulary.byte(token)])
        return b""

    def is_end(self, token: int) -> bool:
        """Tell whether a token ends the generation."""
        return token in self.end_ids

    def is_control(self, token: int) -> bool:
        """Tell whether a token steers the model and is no text for a reader."""
        return 0 <= token < len(self._vocabulary.texts) and self._vocabulary.is_silent(token)

    def token_id(self, text: str) -> int | None:
        """Return the token whose name or text in the model file is exactly `text`, None if there is none."""
        return self._vocabulary.ids.get(text)

    def token_text(self, token: int) -> str:
        """Return the name or text of a token as the model file has it.

        Raises
        ------
        ModelError
            If the id is no token.
        """
        if not 0 <= token < len(self._vocabulary.texts):
            raise ModelError(f"{token} is no token: the vocabulary has {len(self._vocabulary.texts)}")
        return self._vocabulary.texts[token]


class Decoder:
    """Turn a stream of tokens into text, holding back the bytes of a character until it is complete.

    Parameters
    ----------
    tokenizer : Tokenizer
        Gives the tokens' bytes.
    special : bool
        Write the names of control tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that this token completes, perhaps none.

        Raises
        ------
        ModelError
            If the id is no token.
        """
        return self._decoder.decode(self._tokenizer.piece(token, special=self._special))

    def finish(self) -> str:
        """Return what is held back, U+FFFD for incomplete characters, and start anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
