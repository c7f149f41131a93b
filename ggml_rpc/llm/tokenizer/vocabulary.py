"""The tokens of a model file: texts, kinds, special ids, and what ends a generation."""

from __future__ import annotations

import re
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ..gguf_header import shown
from . import metadata as read
from . import pretokenizers
from .metadata import Metadata
from .pretokenizers import PreTokenizer

SPACE = "\u2581"
MAX_TOKEN = 4096
"""Characters of a token, some ten times as many as the longest that is known: what they stand for can be many times as
long."""
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_NOT_SET = (-1, 0xFFFFFFFF)


class Attribute(IntFlag):
    """What a token is; one may be several things."""

    UNDEFINED = 0
    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32
    LSTRIP = 64
    RSTRIP = 128


_CUT_OUT = int(Attribute.CONTROL | Attribute.USER_DEFINED | Attribute.UNKNOWN)
_SILENT = int(Attribute.CONTROL | Attribute.UNKNOWN)
# By the numbers of tokenizer.ggml.token_type.
_BY_TYPE = {
    1: Attribute.NORMAL,
    2: Attribute.UNKNOWN,
    3: Attribute.CONTROL,
    4: Attribute.USER_DEFINED,
    5: Attribute.UNUSED,
    6: Attribute.BYTE,
}

# The special ids that stand if the file does not give them, by the name in tokenizer.ggml.model.
_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0},
    "none": {},
    "no_vocab": {},
}
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "fim_pad", "fim_rep", "fim_sep")

# Tokens that have a purpose by their text, if the file does not name one; the first that is there counts.
_BY_TEXT: dict[str, tuple[str, ...]] = {
    "eot": (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_KEYS = {
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
}
# Tokens that end a generation wherever they are.
_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
    *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~["),
)
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # structure of gpt-oss that callers parse


class Vocabulary:
    """Read and check the tokens of a model file.

    Parameters
    ----------
    metadata : mapping of str to object
        Keys and values of a GGUF file.

    Attributes
    ----------
    kind : str
        ``llama``, ``gpt2``, ``gemma4``, ``bert``, ``none`` or ``no_vocab``.
    texts : list of str
        The tokens' texts.
    ids : dict of str to int
        The token of each text.
    scores : numpy.ndarray
        float32, shape (tokens,).
    attributes : list of int
        `Attribute` of each token.
    special : dict of str to int
        Ids by purpose: ``bos``, ``eos``, ``eot``, ``eom``, ``unknown``, ``seperator``, ``padding``, ...
    ends : frozenset of int
        Tokens that end a generation.
    add_bos, add_eos, add_space_prefix : bool
        What encoding adds.
    pre : PreTokenizer or None
        How BPE kinds cut words.
    notes : list of str
        What a user should know about the file.

    Raises
    ------
    ModelError
        If the vocabulary cannot be used.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.notes: list[str] = []
        self.kind = read.text(metadata, "tokenizer.ggml.model")
        if self.kind not in _DEFAULTS:
            kind, known = shown(self.kind), ", ".join(_DEFAULTS)
            raise ModelError(f"the model has a tokenizer {kind}, which is not known here; known are {known}")
        self.pre: PreTokenizer | None = None
        self.ids: dict[str, int] = {}
        self.texts: list[str] = []
        self.attributes: list[int] = []
        self.special: dict[str, int] = {}
        self.scores: NDArray[np.float32] = np.zeros(0, np.float32)
        self.add_bos = self.add_eos = self.add_space_prefix = False
        self.ends: frozenset[int] = frozenset()
        self.n_tokens = 0
        if self.kind in ("none", "no_vocab"):
            architecture = read.text(metadata, "general.architecture", "")
            self.n_tokens = max(read.integer(metadata, f"{architecture}.vocab_size") or 0, 0)
            return
        if self.kind in ("gpt2", "gemma4"):
            self._choose_pre(metadata)
        self._read_tokens(metadata)
        self._read_special(metadata)
        self._read_flags(metadata)
        self._find_by_text()
        self._find_ends()
        self._set_strips(metadata)

    @property
    def escapes_spaces(self) -> bool:
        """Tell whether tokens have U+2581 where text has a space."""
        return self.pre.escape_spaces if self.pre else True

    def _choose_pre(self, metadata: Metadata) -> None:
        name = read.text(metadata, "tokenizer.ggml.pre", "") if self.kind == "gpt2" else "gemma4"
        if not name:
            self.notes.append("the model file names no pre-tokenizer: the default one is used, results may be worse")
        self.pre = pretokenizers.find(name or "default")

    def _read_tokens(self, metadata: Metadata) -> None:
        key = "tokenizer.ggml.tokens"
        texts = read.texts(metadata, key)
        if not texts:
            raise ModelError(f"{key} of the model file is empty")
        if (longest := max(map(len, texts))) > MAX_TOKEN:
            raise ModelError(f"{key} has a token of {longest:,} characters; at most {MAX_TOKEN:,} are possible")
        self.texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
        self.n_tokens = len(texts)
        self.ids = {text: i for i, text in enumerate(self.texts)}
        if len(self.ids) != len(texts):
            twice = next(i for i, text in enumerate(self.texts) if self.ids[text] != i)
            raise ModelError(f"tokens {twice} and {self.ids[self.texts[twice]]} have the same text")
        scores = read.numbers(metadata, "tokenizer.ggml.scores", self.n_tokens, np.float32)
        self.scores = np.zeros(self.n_tokens, np.float32) if scores is None else scores
        if np.isnan(self.scores).any():
            token = int(np.isnan(self.scores).argmax())
            raise ModelError(f"the score of token {token} is not a number")
        types = read.numbers(metadata, "tokenizer.ggml.token_type", self.n_tokens, np.int32)
        if types is None:
            self.attributes = [int(Attribute.NORMAL)] * self.n_tokens
        else:
            self.attributes = [int(_BY_TYPE.get(kind, Attribute.UNDEFINED)) for kind in types.tolist()]
            for token in np.flatnonzero(types == 6).tolist():
                if _BYTE.fullmatch(self.texts[token]) is None:
                    raise ModelError(f"token {token} stands for a byte, but its text is {self.texts[token][:20]!r}")

    def _read_special(self, metadata: Metadata) -> None:
        defaults = {**_DEFAULTS[self.kind]}
        if self.pre is not None and not self.pre.default_bos:
            del defaults["bos"]
        self.special = {name: token for name, token in defaults.items() if token < self.n_tokens}
        for name in (*_SPECIAL, *_KEYS):
            for suffix in _KEYS.get(name, (f"{name}_token_id",)):
                key = f"tokenizer.ggml.{suffix}"
                token = read.integer(metadata, key)
                if token is None or token in _NOT_SET:
                    continue
                if not 0 <= token < self.n_tokens:
                    raise ModelError(f"{key} of the model file is {token}, and there are {self.n_tokens} tokens")
                self.special[name] = token

    def _read_flags(self, metadata: Metadata) -> None:
        spm, bert = self.kind == "llama", self.kind == "bert"
        self.add_space_prefix = read.flag(metadata, "tokenizer.ggml.add_space_prefix", spm)
        add_bos = spm or bert or (self.pre is not None and self.pre.add_bos)
        self.add_bos = read.flag(metadata, "tokenizer.ggml.add_bos_token", add_bos)
        if bert or (self.pre is not None and self.pre.always_bos):
            self.add_bos = True
        self.add_eos = read.flag(metadata, "tokenizer.ggml.add_eos_token", False)
        for wanted, name in ((self.add_bos, "bos"), (self.add_eos, "eos"), (bert, "seperator")):
            if wanted and name not in self.special:
                raise ModelError(
                    f"the model wants a token around each text, but the file lacks tokenizer.ggml.{name}_token_id"
                )

    def _find_by_text(self) -> None:
        for name, texts in _BY_TEXT.items():
            found = next((self.ids[text] for text in texts if text in self.ids), None)
            if found is not None and name not in self.special:
                self.special[name] = found
                self.attributes[found] |= Attribute.CONTROL
        for token, attribute in enumerate(self.attributes):
            if attribute & Attribute.CONTROL and "unused" in self.texts[token]:
                self.attributes[token] |= Attribute.UNUSED

    def _find_ends(self) -> None:
        ends = {self.special[name] for name in ("fim_pad", "fim_rep", "fim_sep") if name in self.special}
        for text in _ENDS:
            if text in self.ids:
                ends.add(self.ids[text])
                self.attributes[self.ids[text]] |= Attribute.CONTROL
        for text in _SHOWN:
            if text in self.ids:
                self.attributes[self.ids[text]] = int(Attribute.USER_DEFINED)
        ends.update(self.special[name] for name in ("eos", "eot", "eom") if name in self.special)
        texts = {self.texts[token]: token for token in ends}
        # Where a message has several parts, <|end|> ends a part.
        calls = "<|call|>" in texts or "<|calls|>" in texts
        if "<|end|>" in texts and calls and ("<|return|>" in texts or "<|flush|>" in texts):
            ends.discard(texts["<|end|>"])
            self.attributes[texts["<|end|>"]] = int(Attribute.USER_DEFINED)
        # Here </s> is markup.
        if "</s>" in texts and ("<|tool_response>" in texts or "<|plamo:eos|>" in texts):
            ends.discard(texts["</s>"])
            self.attributes[texts["</s>"]] = int(Attribute.NORMAL)
        self.ends = frozenset(ends)

    def _set_strips(self, metadata: Metadata) -> None:
        """Let some models' special tokens swallow the spaces beside them; files do not say which."""
        name = read.text(metadata, "general.name", "").lower()
        pre = read.text(metadata, "tokenizer.ggml.pre", "")
        architecture = read.text(metadata, "general.architecture", "")
        left: tuple[str, ...] = ()
        marked = any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code"))
        if marked or any(part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")):
            left = ("<mask>",)
        elif "phi-3" in name or "phi3" in name:
            for token, attribute in enumerate(self.attributes):
                if attribute & _CUT_OUT and self.texts[token] not in ("<unk>", "<s>", "<|endoftext|>"):
                    self.attributes[token] |= Attribute.RSTRIP
        elif "modern-bert" in name:
            left = ("[MASK]",)
        for text in left:
            if text in self.ids:
                self.attributes[self.ids[text]] |= Attribute.LSTRIP

    def is_cut_out(self, token: int) -> bool:
        """Tell whether a token's text is looked for in a text before anything else."""
        return bool(self.attributes[token] & _CUT_OUT)

    def is_silent(self, token: int) -> bool:
        """Tell whether a token has no text for a reader: control tokens and the unknown one."""
        return bool(self.attributes[token] & _SILENT)

    def byte(self, token: int) -> int:
        """Return the byte that a byte token stands for."""
        found = _BYTE.fullmatch(self.texts[token])
        if found is None:
            raise ModelError(f"token {token} stands for no byte")
        return int(found[1], 16)
