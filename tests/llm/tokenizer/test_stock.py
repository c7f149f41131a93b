"""Every vocabulary gives the ids that llama.cpp gives: its own cases, a corpus, and random text of many scripts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ggml_rpc.llm.tokenizer import Tokenizer, pretokenizers

from .conftest import CORPUS, read_metadata

SEPARATOR = "\n__ggml_vocab_test__\n"
WITH_CASES = (
    *(
        "bert-bge",
        "command-r",
        "deepseek-coder",
        "deepseek-llm",
        "falcon",
        "gemma-4",
        "gpt-2",
        "llama-bpe",
        "llama-spm",
    ),
    *("mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
ALL = (*WITH_CASES, "aquila", "baichuan", "gpt-neox", "gemma-3")
MARKED = (
    "<s>a</s>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|user|>\n  hello <|end|>  x\n<|assistant|> y",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "<|endoftext|><|endoftext|> a  <|endoftext|>  ",
    "<bos><eos><pad><unk> <mask> [MASK] [CLS]",
    "\n\n\n\n      \t\t\t x <unused5><unused17> <h1>x</h1> <0x0A>",
)
POOLS = (
    *("abcdefgXYZ  ", "0123456789", "'sStTrReEvVmMlLdD", "\n\n\r\t   ", '.,!?;:()[]{}<>@#$%^&*-_=+|\\/~`"', "éßñçüÀÖ"),
    *(
        "приветМИР",
        "你好世界汉字",
        "日本ごカタ",
        "한국어",
        "العربية",
        "हिन्दीक्",
        "ไทยภาษา",
        "😀🎉👩\u200d👧",
        "ﬁǅⅣ①²½٣४",
    ),
    *(
        "\u00a0\u2003\u3000\u200b\u0085\u2028",
        "\u0301\u0308",
        "\u2014\u2026\u201c\u201d\u2018\u2019\u3002\uff0c\u3001",
        "\x00\x01\x1c\x7f",
    ),
)


def random_texts(count: int) -> list[str]:
    generator = random.Random(7)
    texts = []
    for _ in range(count):
        parts = [
            "".join(generator.choices(generator.choice(POOLS), k=generator.randint(1, 5)))
            for _ in range(generator.randint(1, 25))
        ]
        texts.append("".join(parts))
    return texts


TEXTS = ["", " ", "\n", CORPUS, *CORPUS.split("\n"), *MARKED, *(7 * text for text in MARKED), *random_texts(200)]


def assert_same(tokenizer: Tokenizer, texts: list[str], expected: dict[str, Any]) -> None:
    """Compare ids with and without special tokens, text by text."""
    for text, plain, special in zip(texts, expected["plain"], expected["special"], strict=True):
        assert tokenizer.encode(text, add_special=False) == plain, repr(text)
        assert tokenizer.encode(text, parse_special=True) == special, repr(text)


@pytest.mark.parametrize("name", WITH_CASES)
def test_cases_of_the_source_package(
    name: str, vocabulary_file: Callable[[str], Path], tokenizer: Callable[[str], Tokenizer]
) -> None:
    path = vocabulary_file(name)
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer(name).encode(text, add_special=False) == list(map(int, line.split())), repr(text)


@pytest.mark.peer
@pytest.mark.parametrize("name", ALL)
def test_texts_and_pieces_equal_stock(
    name: str,
    vocabulary_file: Callable[[str], Path],
    tokenizer: Callable[[str], Tokenizer],
    ask_stock: Callable[..., list[dict[str, Any]]],
) -> None:
    job = {"model": str(vocabulary_file(name)), "texts": TEXTS, "pieces": True}
    (expected,) = ask_stock([job])
    ours = tokenizer(name)
    assert_same(ours, TEXTS, expected)
    assert [ours.piece(token).hex() for token in range(ours.n_vocab)] == expected["pieces"]
    assert [ours.piece(token, special=True).hex() for token in range(ours.n_vocab)] == expected["names"]
    assert sorted(ours.end_ids) == expected["ends"]
    assert [ours.adds_bos, ours.adds_eos] == expected["add"]
    assert [-1 if token is None else token for token in (ours.bos_id, ours.eos_id)] == [
        expected["bos"],
        expected["eos"],
    ]


@pytest.mark.peer
@pytest.mark.parametrize("part", range(6))
def test_every_pre_tokenizer_equals_stock(
    part: int, vocabulary_file: Callable[[str], Path], ask_stock: Callable[..., list[dict[str, Any]]]
) -> None:
    """Kinds whose vocabularies are not at hand cut words just as well with that of GPT-2."""
    path = vocabulary_file("gpt-2")
    names = pretokenizers.names()[part::6]
    texts = [
        *CORPUS.split("\n"),
        *random_texts(150),
        " 1234567 x  99",
        "x  1234",
        "a1000²333b",
        "WON'T I'LL HelloWorld ABCdef",
    ]
    answers = ask_stock([{"model": str(path), "pre": name, "texts": texts} for name in names])
    for name, expected in zip(names, answers, strict=True):
        ours = Tokenizer.from_metadata({**read_metadata(path), "tokenizer.ggml.pre": name})
        assert_same(ours, texts, expected)
        assert [ours.adds_bos, ours.adds_eos] == expected["add"], name
