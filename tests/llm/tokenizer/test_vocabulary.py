"""What a vocabulary may hold, and what its tokens do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ggml_rpc.errors import ModelError
from ggml_rpc.llm.tokenizer import Tokenizer
from ggml_rpc.llm.tokenizer._spm import ScoreMerger

from .toy import SPACE, bpe_metadata, changed, spm_metadata

SPM_TOKENS: list[str] = spm_metadata()["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": None}, "lacks tokenizer.ggml.model"),
        ({"model": 3}, "is not a text"),
        ({"model": "rwkv"}, "tokenizer 'rwkv', which is not known here"),
        ({"tokens": None}, "lacks tokenizer.ggml.tokens"),
        ({"tokens": []}, "is empty"),
        ({"tokens": "abc"}, "not a list of texts"),
        ({"tokens": [*SPM_TOKENS[:-1], 7]}, "not a list of texts"),
        ({"tokens": [*SPM_TOKENS[:-1], "a\ud800"]}, "not valid UTF-8"),
        ({"tokens": [*SPM_TOKENS[:-1], "a"]}, "have the same text"),
        ({"tokens": [*SPM_TOKENS[:-1], "字" * 4097]}, "has a token of 4,097 characters; at most 4,096"),
        ({"model": "\x1b" * 60000}, r"which is not known here"),
        ({"scores": [0.0]}, "has 1 entries for 266 tokens"),
        ({"scores": [math.nan] * 266}, "score of token 0 is not a number"),
        ({"scores": ["x"] * 266}, "not a list of numbers"),
        ({"scores": [[0.0], [0.0, 1.0]]}, "not a list of numbers"),
        ({"scores": 1.0}, "not a list of numbers"),
        ({"token_type": [1] * 3}, "has 3 entries for 266 tokens"),
        ({"token_type": [1.5] * 266}, "not a number of 32 bits"),
        ({"token_type": [2**40] * 266}, "not a number of 32 bits"),
        ({"token_type": [6] * 266}, "token 0 stands for a byte, but its text is '<unk>'"),
        ({"bos_token_id": 266}, "bos_token_id of the model file is 266, and there are 266 tokens"),
        ({"eos_token_id": "2"}, "eos_token_id of the model file is not a whole number"),
        ({"eos_token_id": True}, "not a whole number"),
        ({"add_bos_token": 1}, "add_bos_token of the model file is not a yes or no"),
        ({"add_space_prefix": "no"}, "not a yes or no"),
    ],
)
def test_bad_vocabularies_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ModelError, match=line) as caught:
        Tokenizer.from_metadata(spm_metadata(**changes))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pre": "of-tomorrow"}, "wants a pre-tokenizer 'of-tomorrow', which is not known here"),
        ({"pre": 5}, "is not a text"),
        ({"merges": None}, "lacks tokenizer.ggml.merges"),
        ({"merges": ["ab"]}, "entry 0 of tokenizer.ggml.merges is not two texts"),
        ({"merges": ["a b", "a "]}, "entry 1"),
        ({"merges": [1]}, "not a list of texts"),
        (
            {"pre": "chatglm-bpe", "add_bos_token": True},
            "but the file lacks tokenizer.ggml.bos_token_id",
        ),
    ],
)
def test_bad_merges_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ModelError, match=line):
        Tokenizer.from_metadata(bpe_metadata(**changes))


def test_scores_decide_and_ties_go_left() -> None:
    words = {"ab": -1.0, "bc": -1.0, "abc": -5.0, "aa": -2.0, "aaa": -3.0}
    tokenizer = Tokenizer.from_metadata(spm_metadata(words, add_space_prefix=False, add_bos_token=False))

    def split(text: str) -> list[str]:
        return [tokenizer.token_text(token) for token in tokenizer.encode(text)]

    assert split("abc") == ["abc"]
    assert split("abb") == ["ab", "b"]
    assert split("aaaa") == ["aa", "aa"]
    assert split("aaaaa") == ["aa", "aaa"]
    assert split("é a") == ["<0xC3>", "<0xA9>", SPACE, "a"]


def test_vocabularies_without_a_byte_refuse_only_texts_that_need_it() -> None:
    tokens, types = ["<unk>", "<s>", "</s>", SPACE, "a", "\n"], [2, 3, 3, 1, 1, 1]
    tokenizer = Tokenizer.from_metadata(spm_metadata(tokens=tokens, token_type=types, scores=[0.0] * 6))
    assert tokenizer.encode("a a\n") == [1, 3, 4, 3, 4, 5]
    with pytest.raises(ModelError, match="no token for the byte 0xC3"):
        tokenizer.encode("aé")


def test_the_merger_checks_its_arguments() -> None:
    none = [-1] * 256
    assert ScoreMerger([b"a", b"\xff"], np.zeros(2, np.float32), none).encode(b"a\xff") == [0, 1]
    assert ScoreMerger([], np.zeros(0, np.float32), none).encode(b"") == []
    for tokens, scores, bytes_ in (
        ([b"a"], [0.0, 0.0], none),
        ([b"a"], [0.0], none[1:]),
        ([b"a"], [0.0], [1, *none[1:]]),
        ([b"a", b"a"], [0.0, 0.0], none),
        ([b"a"], [math.nan], none),
    ):
        with pytest.raises(ModelError):
            ScoreMerger(tokens, np.array(scores, np.float32), bytes_)
    for text in (b"\xf0", b"a\xe2\x82", b"\x80\x80"):  # characters that end before they should
        with pytest.raises(ModelError, match="no token for the byte"):
            ScoreMerger([b"a"], np.zeros(1, np.float32), none).encode(text)


def test_merges_whose_result_is_no_token_fall_apart_again() -> None:
    metadata = bpe_metadata(["a b", "ab c"])
    tokens = [text for text in metadata["tokenizer.ggml.tokens"] if text != "abc"]
    metadata["tokenizer.ggml.tokens"] = tokens
    tokenizer = Tokenizer.from_metadata(metadata)
    assert [tokenizer.token_text(token) for token in tokenizer.encode("abc ab")] == ["a", "b", "c", "\u0120", "ab"]


def test_special_tokens_are_found_only_when_asked() -> None:
    tokenizer = Tokenizer.from_metadata(bpe_metadata(special=("<|end|>", "<|end|>>")))
    end, longer = tokenizer.token_id("<|end|>"), tokenizer.token_id("<|end|>>")
    assert end not in tokenizer.encode("a<|end|>")
    assert tokenizer.encode("ab<|end|>>c<|end|>", parse_special=True)[1::2] == [longer, end]
    assert tokenizer.piece(tokenizer.token_id("<|end|>") or 0) == b""
    assert tokenizer.piece(tokenizer.token_id("<|end|>") or 0, special=True) == b"<|end|>"
    assert tokenizer.is_end(end or 0)
    assert tokenizer.is_control(end or 0)
    assert not tokenizer.is_end(0)
    assert tokenizer.token_id("nothing of the sort") is None


def test_text_that_the_maker_added_is_always_found() -> None:
    metadata = bpe_metadata(special=("    ", "  "))
    metadata["tokenizer.ggml.token_type"][-2:] = [4, 4]
    tokenizer = Tokenizer.from_metadata(metadata)
    four, two = tokenizer.token_id("    "), tokenizer.token_id("  ")
    assert tokenizer.encode("a" + 11 * " " + "b", add_special=False) == [
        tokenizer.token_id("a"),
        *(four, four, two),
        tokenizer.token_id("\u0120"),
        tokenizer.token_id("b"),
    ]


def test_a_token_stands_for_a_bounded_number_of_bytes() -> None:
    """A letter that stands for no byte is shown with the token around it."""
    tokens = [*bpe_metadata()["tokenizer.ggml.tokens"], "字" * 4096]
    tokenizer = Tokenizer.from_metadata(bpe_metadata(tokens=tokens, token_type=None))
    assert len(tokenizer.piece(len(tokens) - 1)) < 1 << 26
    tokens[-1] += "字"
    with pytest.raises(ModelError, match="token of 4,097 characters"):
        Tokenizer.from_metadata(bpe_metadata(tokens=tokens, token_type=None))


def test_models_without_a_vocabulary_take_ids_only() -> None:
    metadata = {"general.architecture": "llama", "llama.vocab_size": 100, "tokenizer.ggml.model": "none"}
    tokenizer = Tokenizer.from_metadata(metadata)
    assert (tokenizer.n_vocab, tokenizer.bos_id, tokenizer.is_end(2)) == (100, None, False)
    with pytest.raises(ModelError, match="no vocabulary: give token ids"):
        tokenizer.encode("a")
    with pytest.raises(ModelError, match="is no token"):
        tokenizer.piece(5)


def test_a_missing_pre_tokenizer_is_told() -> None:
    assert Tokenizer.from_metadata(bpe_metadata()).notes == ()
    (note,) = Tokenizer.from_metadata(bpe_metadata(pre=None)).notes
    assert "names no pre-tokenizer" in note


def test_ends_follow_texts_and_ids() -> None:
    def ends(*special: str) -> set[str]:
        tokenizer = Tokenizer.from_metadata(bpe_metadata(special=special, eos_token_id=1))
        return {tokenizer.token_text(token) for token in tokenizer.end_ids} - {tokenizer.token_text(1)}

    assert ends("<|end|>", "<|file_sep|>", "<|im_start|>") == {"<|end|>", "<|file_sep|>"}
    assert ends("<|end|>", "<|return|>", "<|call|>") == {"<|return|>", "<|call|>"}  # a message has several parts
    assert ends("</s>", "<|tool_response>") == {"<|tool_response>"}  # markup


def test_numpy_values_are_as_good() -> None:
    metadata = spm_metadata()
    for name in ("scores", "token_type"):
        values = metadata[f"tokenizer.ggml.{name}"]
        metadata = changed(metadata, {name: np.array(values)})
    metadata["tokenizer.ggml.bos_token_id"] = np.uint32(1)
    assert Tokenizer.from_metadata(metadata).encode("abc") == Tokenizer.from_metadata(spm_metadata()).encode("abc")
