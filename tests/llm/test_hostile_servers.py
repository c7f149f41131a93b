"""A server that leaves, hangs, answers what it should not or lies: at each step one clear error, and nothing stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ggml_rpc.client import remote
from ggml_rpc.server import Server
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command, ReplyKind
from tests.support.tamper import Announce, Close, Hang, Lie, Long, Reset, Short, Spoiler, Tamper

from .hostile import Point, between, complaints, distinct, leftovers, order, points, run
from .remote import servers

DIALECT = dialects.find("8.0.0")
PLACES = ("first", "last")
# Deadline of runs with a server that hangs; so many of them wait side by side.
DEADLINE = 2.0
AT_ONCE = 10


@pytest.fixture(autouse=True)
def hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask servers by hash for tensors of a kilobyte already."""
    monkeypatch.setattr(remote, "HASH_THRESHOLD_BYTES", 1024)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """Run two servers."""
    with servers(2) as (a, b):
        yield a, b


@pytest.fixture(scope="module")
def traces(pair: tuple[Server, Server]) -> dict[str, list[Point]]:
    """Return the requests of a whole run to the first and to the last of two servers."""
    target, other = pair
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "HASH_THRESHOLD_BYTES", 1024)
        for place in PLACES:
            with Tamper(target.endpoint) as man:
                done = run(order(man, other, place), man)
                assert done.error is None
                assert not list(leftovers(man, target, other))
                out[place] = points(man.seen, done)
    return out


def replied(found: list[Point]) -> list[Point]:
    """Return the points with a reply."""
    return [p for p in found if DIALECT.reply_kind(p.command) is not ReplyKind.NONE]


def test_every_step_is_there(traces: dict[str, list[Point]]) -> None:
    for trace in traces.values():
        assert {p.step for p in trace} == {"connect", "load", "cache", "prefill", "decode", "close"}
        assert {p.command for p in replied(trace)} == {
            Command.HELLO,
            Command.DEVICE_COUNT,
            Command.GET_ALIGNMENT,
            Command.GET_MAX_SIZE,
            Command.GET_DEVICE_MEMORY,
            Command.GET_ALLOC_SIZE,
            Command.ALLOC_BUFFER,
            Command.BUFFER_GET_BASE,
            Command.SET_TENSOR_HASH,
            Command.GET_TENSOR,
        }
        assert {p.command for p in trace} - {p.command for p in replied(trace)} == {
            Command.INIT_TENSOR,
            Command.SET_TENSOR,
            Command.BUFFER_CLEAR,
            Command.GRAPH_COMPUTE,
            Command.GRAPH_RECOMPUTE,
            Command.FREE_BUFFER,
        }


def faults(pair: tuple[Server, Server], found: list[Point], place: str, spoiler: Callable[[], Spoiler]) -> list[str]:
    """Spoil one point after the other, each in a run of its own; return what went wrong."""
    target, other = pair
    out = []
    for point in found:
        with between(target, point, spoiler()) as man:
            done = run(order(man, other, place), man)
            assert man.fired, f"{point} was never reached"
            # When all is done already a server may go.
            wrong = [*complaints(done, man, must_fail=point.step != "close"), *leftovers(man, target, other)]
            out += [f"{point}: {text}" for text in wrong]
    return out


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("end", [Close, Reset])
def test_it_leaves_before_any_request(
    end: type[Spoiler], place: str, pair: tuple[Server, Server], traces: dict[str, list[Point]]
) -> None:
    assert faults(pair, traces[place], place, end) == []


@pytest.mark.parametrize("place", PLACES)
def test_it_hangs(place: str, pair: tuple[Server, Server], traces: dict[str, list[Point]]) -> None:
    target, other = pair

    def one(point: Point) -> list[str]:
        with between(target, point, Hang()) as man:
            done = run(order(man, other, place), man, timeout=DEADLINE)
            out = list(complaints(done, man, must_fail=point.step != "close"))
            # Where two threads use the connection the second may be the first to tell.
            if point.step != "close" and f"{DEADLINE:g} s" not in str(done.error):
                out.append(f"not a deadline: {done.error!r}")
            return [f"{point}: {text}" for text in out]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert [text for out in pool.map(one, distinct(traces[place])) for text in out] == []
    with Tamper(target.endpoint) as nobody:
        assert not list(leftovers(nobody, target, other))


SPOILT_REPLIES: dict[str, Callable[[], Spoiler]] = {
    "short": Short,
    "long": Long,
    "announces nothing": lambda: Announce(lambda n: 0),
    "announces one byte": lambda: Announce(lambda n: 1),
    "announces one more": lambda: Announce(lambda n: n + 1, then_close=True),
    "announces 4 GiB": lambda: Announce(lambda n: 1 << 32),
    "announces 2^62": lambda: Announce(lambda n: 1 << 62),
    "announces -1": lambda: Announce(lambda n: -1),
    "empty": lambda: Lie(lambda payload: b""),
    "one byte less": lambda: Lie(lambda payload: payload[:-1]),
    "one byte more": lambda: Lie(lambda payload: payload + b"\0"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", SPOILT_REPLIES)
def test_replies_of_wrong_lengths(
    how: str, place: str, pair: tuple[Server, Server], traces: dict[str, list[Point]]
) -> None:
    # One byte is what SET_TENSOR_HASH answers.
    right = {"announces one byte"} & {how}
    found = [p for p in distinct(replied(traces[place])) if not (right and p.command is Command.SET_TENSOR_HASH)]
    assert faults(pair, found, place, SPOILT_REPLIES[how]) == []
