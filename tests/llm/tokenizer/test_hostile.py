"""Made-up vocabularies: the merger does what its rule says, and nonsense is refused with an error of the package."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ggml_rpc.errors import ModelError
from ggml_rpc.llm.tokenizer import Tokenizer
from ggml_rpc.llm.tokenizer._spm import ScoreMerger

from .toy import bpe_metadata, spm_metadata

PIECES = st.text("abé", min_size=1, max_size=5)
SCORES = st.sampled_from([-3.0, -2.0, -1.0, -0.0, 0.0, 1e30, -1e-30, float("inf"), float("-inf")])


def slow_merge(text: str, scores: dict[str, float]) -> list[str]:
    """Merge the best pair of neighbours, of equal ones the leftmost, until none is a token."""
    parts = list(text)
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@settings(max_examples=300)
@given(st.dictionaries(PIECES, SCORES, max_size=12), st.text("abé", max_size=30))
def test_merging_follows_the_scores(scores: dict[str, float], text: str) -> None:
    given_scores = {**dict.fromkeys("abé", -9.0), **scores}
    merger = ScoreMerger(
        [token.encode() for token in given_scores], np.array(list(given_scores.values()), np.float32), [-1] * 256
    )
    tokens = list(given_scores)
    # float32 is what the model file has.
    rounded = {token: float(np.float32(score)) for token, score in given_scores.items()}
    assert [tokens[token] for token in merger.encode(text.encode())] == slow_merge(text, rounded)


@settings(max_examples=200)
@given(st.lists(st.binary(min_size=0, max_size=4), unique=True, max_size=20), st.binary(max_size=40), st.data())
def test_any_bytes_are_merged_or_refused(tokens: list[bytes], text: bytes, data: st.DataObject) -> None:
    ids = st.integers(-1, len(tokens) - 1)
    byte_ids = [data.draw(ids)] * 256
    merger = ScoreMerger(tokens, np.zeros(len(tokens), np.float32), byte_ids)
    with contextlib.suppress(ModelError):
        assert all(0 <= token < len(tokens) for token in merger.encode(text))


JUNK = st.one_of(
    st.none(),
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.one_of(st.text(max_size=4), st.integers(-300, 300), st.floats(), st.none()), max_size=5),
    st.lists(st.text("ab \u0120\ud800", max_size=4), max_size=300, unique=True),
    st.lists(st.integers(-1, 7), min_size=250, max_size=280),
)
NAMES = ("model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id", "add_bos_token")


@settings(max_examples=300)
@given(st.booleans(), st.dictionaries(st.sampled_from(NAMES), JUNK, min_size=1, max_size=3))
def test_any_metadata_is_used_or_refused(spm: bool, changes: dict[str, Any]) -> None:
    metadata = spm_metadata(**changes) if spm else bpe_metadata(**changes)
    with contextlib.suppress(ModelError):
        tokenizer = Tokenizer.from_metadata(metadata)
        ids = tokenizer.encode("ab <|end|> é\n\n  c", parse_special=True)
        assert all(0 <= token < tokenizer.n_vocab for token in ids)
        tokenizer.decode(ids, special=True)
