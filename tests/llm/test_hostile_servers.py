"""A server that leaves, hangs, answers what it should not or lies: at each step one clear error, and nothing stays."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggml_rpc.client import remote
from ggml_rpc.errors import (
    ComputeError,
    DeviceError,
    OutOfMemory,
    PlacementError,
    ProtocolError,
    RpcError,
    ServerRefused,
    VersionMismatch,
)
from ggml_rpc.llm.devices import open_devices
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.sampling import SamplingParams
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.server import Server
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command, ReplyKind
from tests.support.tamper import Announce, Close, Hang, Lie, Long, Reset, Short, Spoiler, Tamper

from .hostile import DRAWN, GREEDY, PLACES, Point, between, complaints, distinct, leftovers, order, points, run, tiny
from .remote import held, servers

DIALECT = dialects.find("8.0.0")
# Deadline of runs with a server that hangs; so many of them wait side by side.
DEADLINE = 2.0
AT_ONCE = 16


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
        assert {p.step for p in trace} == {"connect", "load", "cache", "prefill", "decode"}
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
        }


def faults(pair: tuple[Server, Server], found: list[Point], place: str, spoiler: Callable[[], Spoiler]) -> list[str]:
    """Spoil one point after the other, each in a run of its own; return what went wrong."""
    target, other = pair
    out = []
    for point in found:
        with between(target, point, spoiler()) as man:
            done = run(order(man, other, place), man)
            assert man.reached(), f"{point} was never reached"
            wrong = [*complaints(done, man), *leftovers(man, target, other)]
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
            out = list(complaints(done, man))
            # Where two threads use the connection the second may be the first to tell.
            if f"{DEADLINE:g} s" not in str(done.error):
                out.append(f"not a deadline: {done.error!r}")
            return [f"{point}: {text}" for text in out]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert [text for out in pool.map(one, distinct(traces[place])) for text in out] == []
    with Tamper(target.endpoint) as nobody:
        assert not list(leftovers(nobody, target, other))


@pytest.mark.parametrize("end", [Close, Reset, Hang])
def test_it_leaves_when_all_is_done(end: type[Spoiler], pair: tuple[Server, Server]) -> None:
    target, other = pair
    with Tamper(target.endpoint, Command.FREE_BUFFER, 1, end()) as man:
        with open_devices(order(man, other, "first"), threads=1) as devices:
            settings = ContextSettings(n_ctx=256)
            with Model.open(tiny(), devices, tensor_split="1,1", settings=settings) as m, m.context() as context:
                context.decode([1, 2, 3])
            devices.remote[1].memory()
            assert held(other) == 0
            assert man.reached()
        assert list(leftovers(man, target, other)) == []


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


# ---- Lies ------------------------------------------------------------------------------------------------------------


def u64(*values: int) -> Callable[[bytes], bytes]:
    """Return a lie of fixed numbers."""
    return lambda payload: struct.pack(f"<{len(values)}Q", *values)


def u32(value: int) -> Callable[[bytes], bytes]:
    """Return a lie of one small number."""
    return lambda payload: struct.pack("<I", value)


def changed(change: Callable[..., tuple[int, ...]]) -> Callable[[bytes], bytes]:
    """Return a lie that follows from the true numbers."""

    def lie(payload: bytes) -> bytes:
        layout = f"<{len(payload) // 8}Q"
        return struct.pack(layout, *(x % (1 << 64) for x in change(*struct.unpack(layout, payload))))

    return lie


class Repeat(Lie):
    """Give the first payload again and again."""

    def __init__(self) -> None:
        first: list[bytes] = []

        def lie(payload: bytes) -> bytes:
            first.append(payload)
            return first[0]

        super().__init__(lie)


def hello(*version: int) -> Callable[[bytes], bytes]:
    """Return a HELLO that announces another version."""
    return lambda payload: bytes(version) + payload[3:]


C = Command
LIES: dict[str, tuple[Command, int, Callable[[], Spoiler], type[RpcError], str]] = {
    "version 99": (C.HELLO, 1, lambda: Lie(hello(99, 0, 0)), VersionMismatch, "announces protocol 99.0.0"),
    "version 0": (C.HELLO, 1, lambda: Lie(hello(0, 0, 0)), VersionMismatch, "announces protocol 0.0.0"),
    "no devices": (C.DEVICE_COUNT, 1, lambda: Lie(u32(0)), ProtocolError, "announces 0 devices"),
    "10^9 devices": (C.DEVICE_COUNT, 1, lambda: Lie(u32(10**9)), ProtocolError, "announces 1000000000 devices"),
    "65 devices": (C.DEVICE_COUNT, 1, lambda: Lie(u32(65)), ProtocolError, "announces 65 devices"),
    "one device too many": (C.DEVICE_COUNT, 1, lambda: Lie(u32(2)), ServerRefused, "GET_ALIGNMENT"),
    "alignment 0": (C.GET_ALIGNMENT, 1, lambda: Lie(u64(0)), ProtocolError, "GET_ALIGNMENT: 0 "),
    "alignment 3": (C.GET_ALIGNMENT, 1, lambda: Lie(u64(3)), ProtocolError, "GET_ALIGNMENT: 3 "),
    "alignment 2^63": (C.GET_ALIGNMENT, 1, lambda: Lie(u64(1 << 63)), ProtocolError, "GET_ALIGNMENT: 9223"),
    "largest buffer 0": (C.GET_MAX_SIZE, 1, lambda: Lie(u64(0)), ProtocolError, "GET_MAX_SIZE"),
    "largest buffer 1": (C.GET_MAX_SIZE, 1, lambda: Lie(u64(1)), DeviceError, "the largest buffer is 1 bytes"),
    # Enough for each weight and not for a cache.
    "largest buffer small": (C.GET_MAX_SIZE, 1, lambda: Lie(u64(10000)), DeviceError, "10000 bytes"),
    "smaller than asked": (
        *(C.ALLOC_BUFFER, 1, lambda: Lie(changed(lambda handle, size: (handle, size - 1)))),
        *(ProtocolError, r"ALLOC_BUFFER: \d+ bytes were asked for, the server gave"),
    ),
    "larger than possible": (
        *(C.ALLOC_BUFFER, 1, lambda: Lie(changed(lambda handle, size: (handle, -1)))),
        *(ProtocolError, "BUFFER_GET_BASE: .* is no address for 18446744073709551615 bytes"),
    ),
    "no buffer": (C.ALLOC_BUFFER, 1, lambda: Lie(u64(0, 0)), OutOfMemory, "refuses a buffer"),
    "no buffer for the cache": (C.ALLOC_BUFFER, 2, lambda: Lie(u64(0, 1 << 40)), OutOfMemory, "refuses a buffer"),
    "a buffer twice": (C.ALLOC_BUFFER, 1, Repeat, RpcError, "ALLOC_BUFFER: "),
    "a large buffer twice": (
        *(C.ALLOC_BUFFER, 1, lambda: Lie(changed(lambda handle, size: (4096, 1 << 40)))),
        *(ServerRefused, "BUFFER_GET_BASE"),
    ),
    "base 0": (C.BUFFER_GET_BASE, 1, lambda: Lie(u64(0)), ProtocolError, "0x0 is no address"),
    "base askew": (
        *(C.BUFFER_GET_BASE, 2, lambda: Lie(changed(lambda base: (base + 1,)))),
        *(ProtocolError, "is no address"),
    ),
    "base at the end": (C.BUFFER_GET_BASE, 1, lambda: Lie(u64((1 << 64) - 4096)), ProtocolError, "is no address"),
    "base of another": (C.BUFFER_GET_BASE, 1, Repeat, RpcError, "(closed|broke) the connection"),
    "base beside": (
        *(C.BUFFER_GET_BASE, 1, lambda: Lie(changed(lambda base: (base - 4096,)))),
        *(ServerRefused, "(closed|broke) the connection"),
    ),
    "needs nothing": (C.GET_ALLOC_SIZE, 1, lambda: Lie(u64(0)), ProtocolError, "GET_ALLOC_SIZE: 0 bytes for"),
    "needs less": (
        *(C.GET_ALLOC_SIZE, 1, lambda: Lie(changed(lambda size: (size - 1,)))),
        *(ProtocolError, r"GET_ALLOC_SIZE: \d+ bytes for a tensor of"),
    ),
    "needs 2^62": (C.GET_ALLOC_SIZE, 1, lambda: Lie(u64(1 << 62)), OutOfMemory, "refuses a buffer"),
    "needs all": (C.GET_ALLOC_SIZE, 1, lambda: Lie(u64((1 << 64) - 1)), DeviceError, "1844674407370955"),
    "needs all in a graph": (C.GET_ALLOC_SIZE, 4, lambda: Lie(u64((1 << 64) - 1)), DeviceError, "1844674407370955"),
    "needs all later": (C.GET_ALLOC_SIZE, 8, lambda: Lie(u64((1 << 64) - 1)), DeviceError, "1844674407370955"),
    "no memory": (C.GET_DEVICE_MEMORY, 1, lambda: Lie(u64(0, 0)), PlacementError, "RPC0 lacks"),
    "more free than there is": (C.GET_DEVICE_MEMORY, 1, lambda: Lie(u64(2, 1)), ProtocolError, "2 of 1 bytes are free"),
    "all but a byte": (
        *(C.GET_DEVICE_MEMORY, 1, lambda: Lie(u64((1 << 64) - 1, (1 << 64) - 2))),
        *(ProtocolError, "bytes are free"),
    ),
    "hash result 7": (C.SET_TENSOR_HASH, 1, lambda: Lie(lambda _: b"\x07"), ProtocolError, "the result is 7"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, pair: tuple[Server, Server]) -> None:
    target, other = pair
    command, nth, spoiler, error, said = LIES[lie]
    with Tamper(target.endpoint, command, nth, spoiler()) as man:
        done = run(order(man, other, "first"), man)
        assert man.reached()
        assert [*complaints(done, man), *leftovers(man, target, other)] == []
    assert isinstance(done.error, error)
    assert re.search(said, str(done.error)), str(done.error)


HARMLESS: dict[str, tuple[Command, int, Callable[[], Spoiler]]] = {
    "all memory of the world": (C.GET_DEVICE_MEMORY, 1, lambda: Lie(u64((1 << 64) - 1, (1 << 64) - 1))),
    "larger than asked": (C.ALLOC_BUFFER, 1, lambda: Lie(changed(lambda handle, size: (handle, size + 4096)))),
    "needs more": (C.GET_ALLOC_SIZE, 1, lambda: Lie(changed(lambda size: (size + 100,)))),
    "unknown capabilities": (C.HELLO, 1, lambda: Lie(lambda payload: payload[:4] + b"\xa5" * 24)),
    "alignment 64 K": (C.GET_ALIGNMENT, 1, lambda: Lie(u64(1 << 16))),
    "largest buffer of a layer": (C.GET_MAX_SIZE, 1, lambda: Lie(u64(150_000))),
}


@pytest.mark.parametrize("split", ["1,1", None])
@pytest.mark.parametrize("oddity", HARMLESS)
def test_what_is_odd_and_may_be(oddity: str, split: str | None, pair: tuple[Server, Server]) -> None:
    target, other = pair
    command, nth, spoiler = HARMLESS[oddity]
    with Tamper(target.endpoint) as man:
        expected = run(order(man, other, "first"), man).tokens
    with Tamper(target.endpoint, command, nth, spoiler()) as man:
        done = run(order(man, other, "first"), man, tensor_split=split)
        assert man.reached()
        assert done.error is None
        assert done.tokens == expected
        assert list(leftovers(man, target, other)) == []


def test_a_server_that_claims_to_have_all_weights(pair: tuple[Server, Server]) -> None:
    # Nothing shows it but the text: what lies there instead is whatever was there, numbers or not.
    target, other = pair
    with Tamper(target.endpoint, C.SET_TENSOR_HASH, 1, Lie(lambda _: b"\x01")) as man:
        done = run(order(man, other, "first"), man)
        assert man.fired > 5
        assert C.SET_TENSOR in man.seen
        assert [*complaints(done, man, must_fail=False), *leftovers(man, target, other)] == []


def floats(value: float) -> Callable[[bytes], bytes]:
    """Return numbers in the place of logits or activations."""
    return lambda payload: np.full(len(payload) // 4, value, "<f4").tobytes()


def ids(value: int) -> Callable[[bytes], bytes]:
    """Return the same token in the place of all."""
    return lambda payload: np.full(len(payload) // 4, value, "<i4").tobytes()


# Of a token the last server sends the best logits first and then their ids.
RESULTS = {
    "NaN logits": ("last", DRAWN, 1, floats(np.nan), "is NaN"),
    "infinite logits": ("last", DRAWN, 1, floats(np.inf), "is inf"),
    "no logits": ("last", DRAWN, 3, floats(-np.inf), "-inf"),
    "NaN activations": ("first", DRAWN, 1, floats(np.nan), "is NaN"),
    "NaN activations of a later token": ("first", DRAWN, 6, floats(np.nan), "is NaN"),
    "a token past the vocabulary": ("last", DRAWN, 2, ids(96), "names token 96 among the best of 96"),
    "a token far past the vocabulary": ("last", DRAWN, 2, ids(2**31 - 1), "names token 2147483647"),
    "a negative token": ("last", DRAWN, 4, ids(-1), "names token -1"),
    "one token four times": ("last", DRAWN, 2, ids(5), "names token 5 twice"),
    "the best token past the vocabulary": ("last", GREEDY, 1, ids(96), "names token 96"),
    "the best token far below": ("last", GREEDY, 2, ids(-(2**31)), "names token -2147483648"),
    "NaN among all logits": ("last", SamplingParams(temperature=1.0, top_k=0), 1, floats(np.nan), "is NaN"),
}


@pytest.mark.parametrize("what", RESULTS)
def test_results_that_cannot_be(what: str, pair: tuple[Server, Server]) -> None:
    target, other = pair
    place, sampling, nth, lie, said = RESULTS[what]
    # Products with quantised weights make zeros of what is no number.
    kind = "F32" if "activations" in what else "Q8_0"
    with Tamper(target.endpoint, C.GET_TENSOR, nth, Lie(lie), times=1) as man:
        done = run(order(man, other, place), man, sampling=sampling, kind=kind)
        assert man.reached()
        assert [*complaints(done, man), *leftovers(man, target, other)] == []
    assert isinstance(done.error, ComputeError)
    assert said in str(done.error)


def test_a_copy_with_an_impossible_result() -> None:
    with (
        Server("CPU,CPU", port=0, threads=1) as target,
        Tamper(target.endpoint, C.COPY_TENSOR, 1, Lie(lambda _: b"\x07")) as man,
    ):
        done = run([man.endpoint], man)
        assert man.reached()
        assert [*complaints(done, man), *leftovers(man, target)] == []
    assert isinstance(done.error, ProtocolError)
    assert "COPY_TENSOR: the result is 7" in str(done.error)


def test_a_copy_that_a_server_does_not_do() -> None:
    with Server("CPU,CPU", port=0, threads=1) as target:
        with Tamper(target.endpoint) as man:
            expected = run([man.endpoint], man).tokens
            assert C.COPY_TENSOR in man.seen
        with Tamper(target.endpoint, C.COPY_TENSOR, 1, Lie(lambda _: b"\0")) as man:
            assert run([man.endpoint], man).tokens == expected
            assert man.reached()


# ---- Bytes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def n_sent(pair: tuple[Server, Server]) -> int:
    """Return how many bytes the first of two servers sends in a run."""
    with Tamper(pair[0].endpoint) as man:
        run(order(man, pair[1], "first"), man)
        return man.n_sent


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_what_the_server_sends(data: st.DataObject, pair: tuple[Server, Server], n_sent: int) -> None:
    target, other = pair
    # The first kilobyte holds all that is said before activations are.
    places = st.one_of(st.integers(0, 1000), st.integers(0, n_sent - 1))
    flips = data.draw(st.dictionaries(places, st.integers(1, 255), min_size=0, max_size=3))
    cut = data.draw(st.none() | places)

    def stream(payload: bytes, before: int) -> bytes:
        out = bytearray(payload)
        for at, mask in flips.items():
            if before <= at < before + len(out):
                out[at - before] ^= mask
        if cut is not None and before + len(out) > cut:
            del out[max(cut - before, 0) :]
        return bytes(out)

    with Tamper(target.endpoint, stream=stream, ends_at=cut) as man:
        done = run(order(man, other, "first"), man, timeout=DEADLINE)
        assert [*complaints(done, man, must_fail=False), *leftovers(man, target, other)] == []
