"""Stop strings: what is passed on does not depend on the pieces, and is what a search of the whole text says."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ggml_rpc.llm.stop import StopStrings

TEXT = st.text("ab<|é", max_size=40)
STOPS = st.lists(st.text("ab<|é", min_size=1, max_size=6), max_size=4)


def searched(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Return the text up to the stop string that is complete first, the longest of several, and that stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(edges)]


@given(TEXT, STOPS, st.lists(st.integers(0, 1000), max_size=50))
@example("aab", ["ab"], [1, 2])
@example("xabc", ["ab", "xabc"], [])
@example("abab<", ["abab|", "b<"], [4])
def test_pieces_make_no_difference(text: str, stops: list[str], places: list[int]) -> None:
    stream = StopStrings(stops)
    emitted = ""
    expected, found = searched(text, stops)
    for piece in cut(text, places):
        emit, stopped = stream.feed(piece)
        emitted += emit
        assert expected.startswith(emitted)
        assert stopped == (stream.found is not None)
    emitted += stream.flush()
    assert (emitted, stream.found) == (expected, found)


@given(TEXT, STOPS)
def test_no_more_is_held_back_than_could_begin_a_stop(text: str, stops: list[str]) -> None:
    stream = StopStrings(stops)
    seen = emitted = ""
    for char in text:
        emit, stopped = stream.feed(char)
        if stopped:
            break
        seen += char
        emitted += emit
        held = seen[len(emitted) :]
        longest = max((n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n])), default=0)
        assert held == seen[len(seen) - longest :]


def test_after_a_stop_nothing_comes() -> None:
    stream = StopStrings(["</s>"])
    assert stream.feed("text</") == ("text", False)
    assert stream.feed("s> more") == ("", True)
    assert stream.found == "</s>"
    assert stream.feed("more") == ("", True)
    assert stream.flush() == ""
    stream.reset()
    assert stream.feed("more<") == ("more", False)
    assert stream.flush() == "<"


def test_work_is_linear() -> None:
    """A text that almost matches at each place: its steps, counted by the lookups of states, grow as its length."""

    class Counting(dict[str, int]):
        lookups = 0

        def __contains__(self, key: object) -> bool:
            Counting.lookups += 1
            return super().__contains__(key)

    def lookups(length: int) -> int:
        stream = StopStrings(["a" * 500 + "b"])
        stream._next = [Counting(following) for following in stream._next]
        Counting.lookups = 0
        stream.feed("a" * length)
        return Counting.lookups

    assert lookups(20000) <= 2 * 20000
    assert lookups(40000) <= 2 * 40000


@pytest.mark.parametrize(("stops", "error"), [(["a", ""], ValueError), ("abc", TypeError), ([1], TypeError)])
def test_bad_stops_are_refused(stops: list[str], error: type[Exception]) -> None:
    with pytest.raises(error, match="stop"):
        StopStrings(stops)
