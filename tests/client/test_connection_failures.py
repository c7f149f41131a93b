"""Servers that lie, stop half-way, hang or leave: one clear error, and nothing on the connection after it."""

from __future__ import annotations

import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ggml_rpc.client.connection import Connection, Pending
from ggml_rpc.errors import ConnectionLost, DeadlineExceeded, ProtocolError, RpcError, ServerRefused
from ggml_rpc.spec.commands import Command
from tests.support.servers import running_server

from .fakeserver import SECONDS, FakeServer, Leave, Peer, Script, answering

DEVICE = bytes(4)
SOON = 0.1  # a deadline that a test waits for
N_BYTES = 1 << 17  # of a tensor: more than is read ahead
GUARD = 64
REGION = struct.pack("<QQ", 0, N_BYTES)


def leave(peer: Peer) -> None:
    """Close the connection."""
    raise Leave


def after_request(*steps: Script) -> Script:
    """Take a request, then do these."""

    def step(peer: Peer) -> None:
        peer.request()
        for each in steps:
            each(peer)

    return step


def send(data: bytes) -> Script:
    """Send bytes as they are."""
    return lambda peer: peer.send(data)


def reply(payload: bytes, length: int | None = None) -> Script:
    """Send a reply whose header may lie."""
    return lambda peer: peer.reply(payload, length)


@contextmanager
def connected(*steps: Script, version: tuple[int, ...] = (8, 0, 0), **options: float) -> Iterator[Connection]:
    """Connect to a server that takes these steps after HELLO."""
    with (
        FakeServer(answering(*steps, version=version)) as server,
        Connection(server.endpoint, **options) as connection,  # type: ignore[arg-type]
    ):
        yield connection


def ask_memory(connection: Connection) -> Pending:
    """Ask for a reply of fixed size."""
    return connection.call(Command.GET_DEVICE_MEMORY, DEVICE)


def ask_tensor(connection: Connection, into: memoryview | None = None) -> Pending:
    """Ask for a large reply."""
    return connection.call(Command.GET_TENSOR, bytes(connection.dialect.record.size), REGION, into=into)


def check_over(connection: Connection, ends: list[RpcError | None], first: RpcError) -> None:
    """Check that whoever uses the connection now is told the first cause, and that its end was told once."""
    assert connection.closed
    assert ends == [first]
    for use in (
        connection.flush,
        lambda: connection.send(Command.BUFFER_CLEAR, bytes(9)),
        lambda: ask_memory(connection),
    ):
        with pytest.raises(ConnectionLost) as failure:
            use()
        assert type(failure.value) is ConnectionLost
        assert str(first) in str(failure.value)
    connection.close()
    assert ends == [first]


# ---- Lies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [ask_memory, ask_tensor], ids=["fixed", "sized"])
@pytest.mark.parametrize("off", [-1, 1, 1 << 20, (1 << 64) - (1 << 20), None])
def test_a_lie_about_a_size(ask: Callable[[Connection], Pending], off: int | None) -> None:
    right = 16 if ask is ask_memory else N_BYTES
    length = 0 if off is None else right + off
    with connected(after_request(reply(bytes(right + 1), length), Peer.hang), timeout=SECONDS) as connection:
        ends: list[RpcError | None] = []
        connection.on_close.append(ends.append)
        pending = ask(connection)
        with pytest.raises(ProtocolError, match=f" with {length} bytes instead of {right}$") as failure:
            pending.result()
        assert pending.command.name in str(failure.value)
        assert connection.endpoint in str(failure.value)
        with pytest.raises(ConnectionLost, match="has ended"):
            pending.result()
        check_over(connection, ends, failure.value)


def test_an_empty_reply_must_be_empty() -> None:
    with connected(after_request(reply(b"\1")), Peer.hang, version=(5, 0, 0)) as connection:
        connection.send(Command.BUFFER_CLEAR, bytes(9))
        with pytest.raises(ProtocolError, match="answered BUFFER_CLEAR with 1 bytes instead of 0"):
            ask_memory(connection).result()


@pytest.mark.parametrize("length", [0, N_BYTES - 1, N_BYTES + 1, 2 * N_BYTES])
def test_nothing_is_written_beside_the_callers_memory(length: int) -> None:
    memory = bytearray(b"\xee") * (N_BYTES + 2 * GUARD)
    with connected(after_request(reply(bytes(2 * N_BYTES), length), Peer.hang)) as connection:
        pending = ask_tensor(connection, memoryview(memory)[GUARD : GUARD + N_BYTES])
        with pytest.raises(ProtocolError):
            pending.result()
    assert memory == b"\xee" * len(memory), "a reply of a wrong size is not written at all"


def test_more_than_the_announced_size_is_not_written() -> None:
    memory = bytearray(b"\xee") * (N_BYTES + 2 * GUARD)
    with connected(after_request(reply(bytes(N_BYTES + 8), N_BYTES)), after_request(Peer.hang)) as connection:
        pending = ask_tensor(connection, memoryview(memory)[GUARD : GUARD + N_BYTES])
        pending.result()
        assert memory == b"\xee" * GUARD + bytes(N_BYTES) + b"\xee" * GUARD
        with pytest.raises(ProtocolError, match="answered GET_DEVICE_MEMORY with 0 bytes instead of 16"):
            ask_memory(connection).result()


def test_bytes_that_nobody_asked_for() -> None:
    answer = struct.pack("<Q", 16) + bytes(16)
    with connected(after_request(send(answer + b"more")), Peer.hang) as connection:
        ends: list[RpcError | None] = []
        connection.on_close.append(ends.append)
        pending = ask_memory(connection)
        with pytest.raises(ProtocolError, match=f"{connection.endpoint} sent 4 bytes that nobody asked for") as failure:
            pending.result()
        check_over(connection, ends, failure.value)


def test_garbage_after_hello() -> None:
    with connected(send(b"Welcome to this server!\r\n"), Peer.hang) as connection, pytest.raises(ProtocolError):
        ask_memory(connection).result()


# ---- Silence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        [Peer.hang],
        [after_request(Peer.hang)],
        [after_request(send(b"\x10\0\0"), Peer.hang)],
        [after_request(send(struct.pack("<Q", N_BYTES)), Peer.hang)],
        [after_request(reply(bytes(N_BYTES - 1), N_BYTES), Peer.hang)],
    ],
    ids=["hello", "request", "header", "size", "body"],
)
def test_a_server_that_hangs(steps: list[Script]) -> None:
    with connected(*steps, timeout=SOON) as connection:
        ends: list[RpcError | None] = []
        connection.on_close.append(ends.append)
        pending = ask_tensor(connection)
        with pytest.raises(DeadlineExceeded, match=r"no answer to GET_TENSOR from .* for 0\.1 s") as failure:
            pending.result()
        assert connection.endpoint in str(failure.value)
        check_over(connection, ends, failure.value)


def test_a_result_may_have_a_deadline_of_its_own() -> None:
    with connected(Peer.hang, timeout=SECONDS) as connection, pytest.raises(DeadlineExceeded, match=r"for 0\.05 s"):
        ask_memory(connection).result(timeout=0.05)
    pause = threading.Event()
    late = after_request(lambda _: bool(pause.wait(3 * SOON)), reply(bytes(16)))
    with connected(late, Peer.hang, timeout=SOON) as connection:
        assert ask_memory(connection).result(timeout=SECONDS) == bytes(16)
    with connected(late, Peer.hang, timeout=SOON) as connection:
        assert ask_memory(connection).result(timeout=float("inf")) == bytes(16)


def test_a_deadline_counts_from_the_last_progress() -> None:
    pause = threading.Event()

    def slowly(peer: Peer) -> None:
        for i in range(8):
            peer.send((struct.pack("<Q", 16) + bytes(16))[3 * i : 3 * i + 3])
            pause.wait(0.15)

    with connected(after_request(slowly), Peer.hang, timeout=1.0) as connection:
        assert ask_memory(connection).result() == bytes(16)


def test_a_server_that_takes_nothing() -> None:
    done = threading.Event()
    with connected(lambda peer: peer.stall(done), timeout=SOON) as connection:
        ends: list[RpcError | None] = []
        connection.on_close.append(ends.append)
        with pytest.raises(DeadlineExceeded, match=r"did not take SET_TENSOR for 0\.1 s") as failure:
            connection.send(Command.SET_TENSOR, bytes(64 << 20))
        done.set()
        check_over(connection, ends, failure.value)


# ---- Leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [leave, Peer.reset], ids=["close", "reset"])
@pytest.mark.parametrize(
    ("steps", "error", "text"),
    [
        ([after_request()], ServerRefused, "after GET_TENSOR; its log may say why"),
        ([after_request(send(b"\x10\0\0"))], ConnectionLost, "within its answer to GET_TENSOR"),
        ([after_request(send(struct.pack("<Q", N_BYTES)))], ConnectionLost, "within its answer to GET_TENSOR"),
        ([after_request(reply(bytes(N_BYTES - 1), N_BYTES))], ConnectionLost, "within its answer to GET_TENSOR"),
    ],
    ids=["request", "header", "size", "body"],
)
def test_a_server_that_leaves(end: Script, steps: list[Script], error: type[RpcError], text: str) -> None:
    seen = threading.Event()

    def step(peer: Peer) -> None:
        for each in steps:
            each(peer)
        # What was sent before a reset may be lost with it, unless it has been read.
        assert not seen.wait(0.02)
        end(peer)

    with connected(step, timeout=SECONDS) as connection:
        ends: list[RpcError | None] = []
        connection.on_close.append(ends.append)
        pending = ask_tensor(connection)
        with pytest.raises(error) as failure:
            pending.result()
        assert type(failure.value) is error
        assert text in str(failure.value)
        assert connection.endpoint in str(failure.value)
        check_over(connection, ends, failure.value)


def test_the_error_names_all_that_was_not_answered() -> None:
    def step(peer: Peer) -> None:
        while peer.request()[0] != Command.GRAPH_COMPUTE:
            pass
        peer.request()

    with connected(after_request(reply(bytes(16))), step, timeout=SECONDS) as connection:
        ask_memory(connection).result()
        for _ in range(3):
            connection.send(Command.SET_TENSOR, bytes(400))
        connection.send(Command.GRAPH_COMPUTE, bytes(20))
        with pytest.raises(
            ServerRefused, match=r"after SET_TENSOR \(3 times\), GRAPH_COMPUTE, GET_DEVICE_MEMORY; its log"
        ):
            ask_memory(connection).result()


def test_a_long_list_is_cut() -> None:
    with connected(after_request(), timeout=SECONDS) as connection:
        for _ in range(20):
            connection.send(Command.SET_TENSOR, bytes(400))
            connection.send(Command.BUFFER_CLEAR, bytes(9))
        with pytest.raises(ServerRefused, match=r"after \.\.\., BUFFER_CLEAR, SET_TENSOR, .*, GET_DEVICE_MEMORY; "):
            ask_memory(connection).result()


def test_leaving_while_nothing_is_asked() -> None:
    with (
        FakeServer(answering(after_request(reply(bytes(16))), leave)) as server,
        Connection(server.endpoint) as connection,
    ):
        ask_memory(connection).result()
        assert server.ended.acquire(timeout=SECONDS)
        with pytest.raises((ConnectionLost, ServerRefused), match=f"{server.endpoint} (closed|broke) the connection"):
            ask_memory(connection).result()


def test_leaving_within_a_large_send_is_noticed_there() -> None:
    """And what was answered before still counts."""

    def step(peer: Peer) -> None:
        peer.request()
        peer.reply(bytes(16))
        peer.receive(1 << 20)

    with connected(step, timeout=SECONDS) as connection:
        answered = ask_memory(connection)
        with pytest.raises(ServerRefused, match="after SET_TENSOR; its log may say why"):
            connection.send(Command.SET_TENSOR, bytes(64 << 20))
        assert answered.result() == bytes(16)


def test_a_real_server_refuses() -> None:
    with running_server() as server, Connection(server.endpoint) as connection:
        connection.send(Command.GRAPH_COMPUTE, bytes(20))
        with pytest.raises(ServerRefused, match=f"{server.endpoint} (closed|broke).* after GRAPH_COMPUTE, GET_DEVICE_"):
            ask_memory(connection).result()


# ---- Interrupts ------------------------------------------------------------------------------------------------------


@contextmanager
def interrupting(waits: Callable[[Connection], object]) -> Iterator[tuple[Script, list[Connection]]]:
    """Give a step that interrupts the main thread as Ctrl-C does, once the connection put into the list waits."""
    main = threading.main_thread().ident
    pause = threading.Event()
    connections: list[Connection] = []
    assert main is not None

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def step(_: Peer) -> None:
        while not (connections and waits(connections[0])):
            pause.wait(0.001)
        pause.wait(0.02)
        signal.pthread_kill(main, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield step, connections
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_an_interrupted_wait_ends_the_connection() -> None:
    with (
        interrupting(lambda connection: connection._reader) as (interrupt, connections),
        connected(after_request(send(b"\x10\0\0"), interrupt, Peer.hang)) as connection,
    ):
        connections.append(connection)
        ends: list[RpcError | None] = []
        connection.on_close.append(ends.append)
        pending = ask_memory(connection)
        with pytest.raises(KeyboardInterrupt):
            pending.result()
        with pytest.raises(ConnectionLost, match=r"waiting for GET_DEVICE_MEMORY from .* was interrupted"):
            pending.result()
        (end,) = ends
        assert end is not None
        check_over(connection, ends, end)


def test_an_interrupted_send_ends_the_connection() -> None:
    done = threading.Event()
    with (
        interrupting(lambda connection: connection._sending) as (interrupt, connections),
        connected(interrupt, lambda peer: peer.stall(done)) as connection,
    ):
        connections.append(connection)
        with pytest.raises(KeyboardInterrupt):
            connection.send(Command.SET_TENSOR, bytes(64 << 20))
        done.set()
        assert connection.closed
        with pytest.raises(ConnectionLost, match=r"sending to .* was interrupted"):
            connection.flush()
