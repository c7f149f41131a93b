"""FNV-1a-64 is that of the published definition, however it is computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ggml_rpc.wire._hash import fnv1a_64, fnv1a_64_many, hash_levels

OFFSET = 0xCBF29CE484222325
PRIME = 0x100000001B3
MASK = (1 << 64) - 1
# The largest block of any level is 3072 bytes, the smallest 256.
LONGEST = 10_000


def plain(data: bytes, state: int = OFFSET) -> int:
    """Return the hash by the definition."""
    for byte in data:
        state = (state ^ byte) * PRIME & MASK
    return state


def noise(seed: int, size: int) -> bytes:
    """Return bytes of one of several kinds: all values, few values, runs."""
    rng = np.random.default_rng(seed)
    top = (256, 2, 16, 256)[seed % 4]
    low = 240 if seed % 4 == 3 else 0
    return rng.integers(low, top, size, dtype=np.uint8).tobytes()


levels = pytest.mark.parametrize("level", hash_levels())
lengths = st.one_of(
    st.integers(0, 300),
    st.integers(0, LONGEST),
    st.builds(lambda k, d: max(0, 256 * k + d), st.integers(0, 36), st.integers(-2, 2)),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"", OFFSET), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)],
)
@levels
def test_published_values(level: str, text: bytes, value: int) -> None:
    assert plain(text) == value
    assert fnv1a_64(text, level=level) == value
    assert fnv1a_64_many([text], interleave=True) == [value]


@levels
@settings(max_examples=120)
@given(size=lengths, offset=st.integers(0, 70), seed=st.integers(0, MASK), kind=st.integers(0, 1 << 30))
@example(size=3072, offset=0, seed=MASK, kind=0)
@example(size=LONGEST, offset=1, seed=0, kind=3)
def test_every_length_alignment_and_state(level: str, size: int, offset: int, seed: int, kind: int) -> None:
    data = noise(kind, size + offset)
    assert fnv1a_64(memoryview(data)[offset:], seed, level=level) == plain(data[offset:], seed)


@levels
def test_all_short_lengths(level: str) -> None:
    data = noise(0, 1100)
    state = OFFSET
    for size in range(len(data) + 1):
        assert fnv1a_64(data[:size], level=level) == state, size
        if size < len(data):
            state = (state ^ data[size]) * PRIME & MASK


@levels
@settings(max_examples=60)
@given(cuts=st.lists(lengths, min_size=1, max_size=5), kind=st.integers(0, 1 << 30))
def test_chunks_go_on_from_a_state(level: str, cuts: list[int], kind: int) -> None:
    data = noise(kind, sum(cuts))
    state, at = OFFSET, 0
    for size in cuts:
        state = fnv1a_64(memoryview(data)[at : at + size], state, level=level)
        at += size
    assert state == plain(data)


@levels
@pytest.mark.parametrize("value", [0, 1, 0x7F, 0x80, 0xFF])
def test_extremes_do_not_overflow(level: str, value: int) -> None:
    data = bytes([value]) * 20_000
    assert fnv1a_64(data, level=level) == plain(data)


@pytest.mark.parametrize("interleave", [False, True], ids=["best", "interleaved"])
@settings(max_examples=60)
@given(sizes=st.lists(lengths, max_size=24), threads=st.integers(1, 4), kind=st.integers(0, 1 << 30))
@example(sizes=[0] * 9, threads=1, kind=0)
@example(sizes=[LONGEST, *range(20)], threads=3, kind=0)
def test_many_buffers(interleave: bool, sizes: list[int], threads: int, kind: int) -> None:
    buffers = [noise(kind + i, size) for i, size in enumerate(sizes)]
    assert fnv1a_64_many(buffers, threads=threads, interleave=interleave) == [plain(b) for b in buffers]


def test_levels_end_with_the_byte_loop() -> None:
    assert hash_levels()[-1] == "bytes"
    with pytest.raises(ValueError, match="list"):
        fnv1a_64(b"", level="none")
