"""How BPE kinds cut text into words before they merge, by the name in ``tokenizer.ggml.pre``.

Each pattern cuts the pieces that the one before it left into matches and what lies between them. Categories follow
llama.cpp, whose matcher knows no case of letters: where another implementation tells capitals from small letters, these
do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ModelError
from ..gguf_header import shown


@dataclass(frozen=True)
class PreTokenizer:
    """Describe one way to cut text into words.

    Attributes
    ----------
    patterns : tuple of str
        Regular expressions, applied one after another.
    ignore_merges : bool
        A word that is a token as a whole is not built by merges.
    add_bos : bool
        Whether text starts with the start token if the file does not say.
    raw : bool
        Words are merged as they are, not as GPT-2's letters for bytes.
    escape_spaces : bool
        Spaces become U+2581 first.
    newline_words : bool
        A run of newlines that is a token is not built by merges.
    always_bos : bool
        Text starts with the start token even if the file denies it.
    default_bos : bool
        Whether the kind's usual start token stands if the file names none.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    raw: bool = False
    escape_spaces: bool = False
    newline_words: bool = False
    always_bos: bool = False
    default_bos: bool = True


_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LINES = r"\s*[\r\n]+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_LLAMA3 = "|".join((_CONTRACTION, _WORD, r"\p{N}{1,3}", _SIGNS, _LINES, _SPACES))
_QWEN2 = "|".join((_CONTRACTION, _WORD, r"\p{N}", _SIGNS, _LINES, _SPACES))
_QWEN35 = "|".join(
    (
        _CONTRACTION,
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        _LINES,
        _SPACES,
    )
)
_NEWLINES = r"[^\n]+|[\n]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3_START = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
)
_DEEPSEEK3 = _DEEPSEEK3_START + r"[\r\n]*|" + _LINES + "|" + _SPACES
# Groups of three digits counted from the right; text before the digits stays with the first group. Two steps, so that
# the rest of a long number is looked over once and not once a group.
_DIGITS_FROM_RIGHT = (
    r"(?:\P{N}++|(?<!\p{N}))\p{N}{1,3}(?=(?:\p{N}{3})*+(?!\p{N}))|\P{N}++",
    r"(?<!\P{N})\p{N}{3}",
)
# The same, but what follows the digits stays with the last group.
_THREES = "(?=(?:[0-9]{3})++(?![0-9]))"
_SUPERBPE = (
    r"\p{N}+",
    rf"(?<![0-9]){_THREES}|(?<=[^0-9][0-9]|\A[0-9]){_THREES}|(?<=[^0-9][0-9]{{2}}|\A[0-9]{{2}}){_THREES}",
    "[0-9]{3}(?=[0-9]{3})",
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


def _cased(letter: str, tail: str, digits: str, signs: str = _SIGNS_OR_SLASH) -> str:
    """Return the pattern of words whose capitals stand first; only ASCII letters have a case."""
    capital, small = rf"(?:(?={letter})[^a-z])", rf"(?:(?={letter})[^A-Z])"
    lead = r"[^\r\n\p{L}\p{N}]?"
    return "|".join(
        (f"{lead}{capital}*{small}+{tail}", f"{lead}{capital}+{small}*{tail}", digits, signs, _LINES, _SPACES)
    )


def _caseless(tail: str, digits: str) -> str:
    return "|".join((rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{tail}", digits, _SIGNS_OR_SLASH, _LINES, _SPACES))


_HAN = "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f"
_KIMI = "|".join(
    (
        f"[{_HAN}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?(?:(?![{_HAN}])\p{{L}})+{_CONTRACTION}?",
        r"\p{N}{1,3}",
        _SIGNS,
        _LINES,
        _SPACES,
    )
)
# Of AFMoE: scripts of East and South-East Asia, that are written without spaces.
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ud7ff\ue000-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\u1100-\u11ff]+"
)
# Of DeepSeek LLM: the letters that have a case.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
# Spaces of these ranges are none of them for llama.cpp, which has made them ASCII before.
_IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&\\S]+"

_KINDS: tuple[tuple[str, PreTokenizer], ...] = (
    # The names that the file may give, separated by spaces.
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    ),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    (
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code "
        "roberta-bpe exaone4 mpt olmo jais trillion granite-docling",
        PreTokenizer((_GPT2,)),
    ),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        PreTokenizer((r"\p{N}", _GPT2)),
    ),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
        PreTokenizer((_QWEN2,)),
    ),
    ("qwen35", PreTokenizer((_QWEN35,))),
    ("dbrx smaug-bpe", PreTokenizer((_LLAMA3,))),
    ("chatglm-bpe", PreTokenizer((_LLAMA3,), default_bos=False)),
    ("glm4 glm5", PreTokenizer((_LLAMA3,), ignore_merges=True, default_bos=False)),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), ignore_merges=True)),
    (
        "jais-2",
        PreTokenizer(
            (
                _LLAMA3.removesuffix(_SPACES)
                + "".join(rf"\s{{{count}}}(?!\S)|" for count in (512, 256, 128, 64, 32, 16, 8, 4))
                + r"\s{1,2}(?!\S)|\s",
            )
        ),
    ),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED_LETTERS}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+",
                r"\s+\z",
                _IDEOGRAPHS,
                r"\p{N}+",
            )
        ),
    ),
    ("deepseek-coder", PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, r"\p{N}"))),
    ("deepseek-v3 hunyuan-dense hy_v4 joyai-llm", PreTokenizer((r"\p{N}{1,3}", _CJK, _DEEPSEEK3))),
    (
        "spark2_5",
        PreTokenizer((r"\p{N}{1,3}", _CJK, _DEEPSEEK3_START + r"|[\r\n]|" + _SPACES, r"\p{N}")),
    ),
    (
        "youtu",
        PreTokenizer(
            (
                "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
                "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK,
                _caseless(_CONTRACTION + "?", r"\p{N}"),
            ),
            ignore_merges=True,
        ),
    ),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_BLOOM,))),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
    ("tekken", PreTokenizer((_cased(r"\p{L}", "", r"\p{N}"),), ignore_merges=True, add_bos=True)),
    (
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        PreTokenizer((_cased(r"\p{L}", _CONTRACTION + "?", r"\p{N}{1,3}"),)),
    ),
    (
        "granite-embed-multi-97m",
        PreTokenizer((_cased(r"[\p{L}\p{M}]", _CONTRACTION + "?", r"\p{N}{1,3}"),), ignore_merges=True),
    ),
    (
        "tiny_aya cohere2moe",
        PreTokenizer((*_DIGITS_FROM_RIGHT, _caseless(_CONTRACTION + "?", r"\p{N}{1,3}"))),
    ),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
    ),
    ("kimi-k2", PreTokenizer((_KIMI,))),
    ("superbpe", PreTokenizer(_SUPERBPE)),
    (
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(
            (
                "|".join(
                    (
                        "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
                        _WORD,
                        r"\p{N}",
                        _SIGNS,
                        r"\s*[\r\n]",
                        _SPACES,
                    )
                ),
            )
        ),
    ),
    (
        "seed-coder",
        PreTokenizer(
            ("|".join((_CONTRACTION, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _LINES, _SPACES)),),
        ),
    ),
    ("ufakzeka", PreTokenizer(("|".join((_WORD, r"\p{N}", _SIGNS, _LINES, _SPACES)),))),
    ("afmoe", PreTokenizer((*_DIGITS_FROM_RIGHT, _ASIAN, _DEEPSEEK3))),
    ("laguna", PreTokenizer((_NEWLINES, _QWEN2))),
    (
        "exaone-moe",
        PreTokenizer(
            (
                "|".join(
                    (
                        _CONTRACTION,
                        r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
                        r"\p{N}",
                        r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
                        r"\s*[\r\n]",
                        _SPACES,
                    )
                ),
            )
        ),
    ),
    (
        "gemma4 granite-embed-multi-311m",
        PreTokenizer((_NEWLINES,), raw=True, escape_spaces=True, newline_words=True, always_bos=True),
    ),
    ("sarvam-moe", PreTokenizer((_NEWLINES,), raw=True, escape_spaces=True)),
)
_BY_NAME = {name: kind for names, kind in _KINDS for name in names.split()}


def names() -> list[str]:
    """Return the names of all kinds that are known."""
    return sorted(_BY_NAME)


def find(name: str) -> PreTokenizer:
    """Return the kind of a name.

    Raises
    ------
    ModelError
        If there is none.
    """
    if name not in _BY_NAME:
        raise ModelError(f"the model wants a pre-tokenizer {shown(name)}, which is not known here")
    return _BY_NAME[name]
