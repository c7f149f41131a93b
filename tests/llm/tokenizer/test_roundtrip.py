"""Text survives encoding and decoding; streams of tokens become text without broken characters."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggml_rpc.errors import ModelError
from ggml_rpc.llm.tokenizer import Decoder, Tokenizer

from .conftest import CORPUS
from .toy import bpe_metadata, spm_metadata

# Those that have a token for every byte.
COMPLETE = ("command-r", "deepseek-llm", "gemma-3", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")
# U+2581 stands for a space in most vocabularies, and comes back as one.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60)


@pytest.mark.parametrize("name", COMPLETE)
def test_decoding_gives_the_text_back(name: str, tokenizer: Callable[[str], Tokenizer]) -> None:
    ours = tokenizer(name)

    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(TEXT)
    def check(text: str) -> None:
        assert ours.decode(ours.encode(text)) == text

    check()
    assert ours.decode(ours.encode(CORPUS)) == CORPUS


@pytest.mark.parametrize("metadata", [spm_metadata(), bpe_metadata()], ids=["spm", "bpe"])
def test_a_stream_of_tokens_gives_whole_characters(metadata: dict[str, object]) -> None:
    tokenizer = Tokenizer.from_metadata({**metadata, "tokenizer.ggml.add_space_prefix": False})
    text = "aé世😀 b"
    decoder = Decoder(tokenizer)
    parts = [decoder.feed(token) for token in tokenizer.encode(text, add_special=False)]
    assert "".join(parts) == text
    assert "" in parts  # a byte of a character alone is held back
    assert all("\ufffd" not in part for part in parts)
    assert decoder.finish() == ""
    first = tokenizer.encode("世", add_special=False)[0]
    assert decoder.feed(first) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.feed(tokenizer.encode("a", add_special=False)[0]) == "a"


def test_random_ids_decode_to_something() -> None:
    tokenizer = Tokenizer.from_metadata(spm_metadata())
    generator = random.Random(1)
    ids = generator.choices(range(tokenizer.n_vocab), k=500)
    assert isinstance(tokenizer.decode(ids), str)
    for wrong in (-1, tokenizer.n_vocab):
        with pytest.raises(ModelError, match="is no token"):
            tokenizer.decode([wrong])


def test_halves_of_surrogate_pairs_become_the_replacement_character() -> None:
    for metadata in (spm_metadata(), bpe_metadata()):
        tokenizer = Tokenizer.from_metadata(metadata)
        assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
