"""Servers that leave or lie at any step of a run that redistributes: it goes on as if they had never been there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ggml_rpc.client import remote
from ggml_rpc.client.local import LocalDevice
from ggml_rpc.errors import PlacementError
from ggml_rpc.server import Server
from ggml_rpc.spec.commands import Command
from tests.support.tamper import Announce, Close, Hang, Lie, Reset, Spoiler, Tamper

from .hostile import GREEDY, PLACES, Point, between, distinct, leftovers, order, points, run
from .remote import servers


@pytest.fixture(autouse=True)
def hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask servers by hash for tensors of a kilobyte already."""
    monkeypatch.setattr(remote, "HASH_THRESHOLD_BYTES", 1024)


@pytest.fixture(scope="module")
def three() -> Iterator[list[Server]]:
    """Run three servers."""
    with servers(3) as running:
        yield running


@pytest.fixture(scope="module")
def alone(three: list[Server]) -> list[int]:
    """Return what a fresh run over one server says."""
    with Tamper(three[1].endpoint) as man:
        done = run([man.endpoint], man, sampling=GREEDY, tensor_split=None)
    assert done.error is None
    return done.tokens


def trace(three: list[Server], place: str) -> list[Point]:
    """Return the requests of a whole run to one of two servers."""
    with Tamper(three[0].endpoint) as man:
        return points(man.seen, run(order(man, three[1], place), man, sampling=GREEDY))


def survived(three: list[Server], place: str, found: list[Point], spoiler: Callable[[], Spoiler]) -> list[str]:
    """Spoil one point after the other in runs that redistribute; return what went wrong, and check what they say."""
    out = []
    with Tamper(three[1].endpoint) as man:
        expected = run([man.endpoint], man, sampling=GREEDY, tensor_split=None).tokens
    for point in found:
        with between(three[0], point, spoiler()) as man:
            done = run(order(man, three[1], place), man, sampling=GREEDY, on_loss="redistribute")
            assert man.reached(), f"{point} was never reached"
            if done.tokens != expected:
                out.append(f"{point}: {done.tokens} {done.error!r}")
            out += [f"{point}: {text}" for text in leftovers(man, *three[:2])]
    return out


@pytest.mark.parametrize("place", PLACES)
def test_it_leaves_before_any_request(place: str, three: list[Server]) -> None:
    found = [p for p in trace(three, place) if p.step != "connect"]
    assert {p.step for p in found} == {"load", "cache", "prefill", "decode"}
    assert survived(three, place, found, Close) == []


@pytest.mark.parametrize("place", PLACES)
def test_it_breaks_off_within_a_reply(place: str, three: list[Server]) -> None:
    with_reply = (Command.GET_DEVICE_MEMORY, Command.ALLOC_BUFFER, Command.SET_TENSOR_HASH, Command.GET_TENSOR)
    found = [p for p in distinct(trace(three, place)) if p.command in with_reply]
    for spoiler in (Reset, lambda: Announce(lambda n: n + 1)):
        assert survived(three, place, found, spoiler) == []


LIES = {
    "memory": (Command.GET_DEVICE_MEMORY, lambda _: b"\xff" * 8 + bytes(8)),
    "a buffer too small": (Command.ALLOC_BUFFER, lambda payload: payload[:8] + b"\1" + bytes(7)),
    "a base askew": (Command.BUFFER_GET_BASE, lambda payload: b"\1" + payload[1:]),
    "no room for a tensor": (Command.GET_ALLOC_SIZE, lambda _: bytes(8)),
    "a hash that is neither there nor not": (Command.SET_TENSOR_HASH, lambda _: b"\7"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_counts_as_lost(lie: str, place: str, three: list[Server]) -> None:
    command, how = LIES[lie]
    found = [p for p in distinct(trace(three, place)) if p.command is command]
    assert found
    assert survived(three, place, found, lambda: Lie(how)) == []


def test_it_hangs(three: list[Server]) -> None:
    point = next(p for p in trace(three, "last") if (p.step, p.command) == ("decode", Command.GET_TENSOR))
    with between(three[0], point, Hang()) as man:
        expected = run([three[1].endpoint], man, sampling=GREEDY, tensor_split=None).tokens
        done = run(order(man, three[1], "last"), man, sampling=GREEDY, on_loss="redistribute", timeout=2.0)
        assert man.reached()
        assert done.tokens == expected
        assert list(leftovers(man, *three[:2])) == []


@pytest.mark.parametrize("first_loss", ["load", "prefill", "decode"])
def test_a_second_server_leaves_while_the_first_is_replaced(first_loss: str, three: list[Server]) -> None:
    """The third, which is left, takes all."""
    lost = next(p for p in reversed(trace(three, "first")) if p.step == first_loss)
    options = {"sampling": GREEDY, "on_loss": "redistribute", "tensor_split": "1,1,1"}
    with Tamper(three[2].endpoint) as man:
        expected = run([man.endpoint], man, sampling=GREEDY, tensor_split=None).tokens

    with between(three[0], lost, Close()) as one, Tamper(three[1].endpoint) as two:
        one.on_fire = lambda: before.append(len(two.seen))
        before: list[int] = []
        done = run([one.endpoint, two.endpoint, three[2].endpoint], two, **options)
        assert done.tokens == expected
        everything = two.seen[: done.last]
    found = []
    for at in range(before[0], len(everything)):
        command = everything[at]
        nth = everything[: at + 1].count(command)
        # The first of each command after the loss, and the last: of a token that is computed anew.
        if command not in everything[before[0] : at] or nth == everything.count(command):
            found.append(Point("second", command, nth))
    assert len(found) > 5
    for second in found:
        with between(three[0], lost, Close()) as one, between(three[1], second, Close()) as two:
            done = run([one.endpoint, two.endpoint, three[2].endpoint], two, **options)
            assert two.reached(), str(second)
            assert done.tokens == expected, f"{second}: {done.error!r}"
            assert [*leftovers(one), *leftovers(two, *three)] == []


@pytest.mark.parametrize("step", ["load", "cache", "prefill", "decode"])
def test_all_servers_leave(step: str, three: list[Server], alone: list[int]) -> None:
    ends = []
    for i in (0, 1):
        with Tamper(three[i].endpoint) as man:
            rpc = order(man, three[1 - i], "first" if i == 0 else "last")
            found = points(man.seen, run(rpc, man, sampling=GREEDY))
        ends.append(next(p for p in reversed(found) if p.step == step))
    with between(three[0], ends[0], Close()) as one, between(three[1], ends[1], Close()) as two:
        done = run([one.endpoint, two.endpoint], one, sampling=GREEDY, on_loss="redistribute")
        assert done.tokens == alone
        assert one.reached()
        assert [*leftovers(one), *leftovers(two, *three)] == []


def test_all_servers_leave_and_this_machine_has_no_room(three: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalDevice, "memory", lambda self: (1000, 1 << 30))
    for point in (Point("load", Command.SET_TENSOR, 3), Point("decode", Command.GET_TENSOR, 2)):
        with between(three[0], point, Close()) as man:
            done = run([man.endpoint], man, sampling=GREEDY, on_loss="redistribute", tensor_split=None)
            assert man.reached()
            assert isinstance(done.error, PlacementError)
            assert "CPU lacks" in str(done.error)
            assert list(leftovers(man, *three)) == []
