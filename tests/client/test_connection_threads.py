"""Several threads on one connection, replies that wait while much is sent, finalizers that send."""

from __future__ import annotations

import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest

from ggml_rpc.client import connection as module
from ggml_rpc.client.connection import Connection, Pending
from ggml_rpc.errors import ConnectionLost, RpcError, ServerRefused
from ggml_rpc.spec.commands import Command
from tests.support.servers import running_server
from tests.support.wiretensor import Arena

from .fakeserver import SECONDS, FakeServer, Peer, WiredClient, answering

DEVICE = bytes(4)
N_THREADS = 6


def pause(seconds: float) -> None:
    """Let other threads run."""
    threading.Event().wait(seconds)


def in_threads(work: Callable[[int], None], n: int = N_THREADS) -> list[Exception]:
    """Run `work` in several threads; return what they raised."""
    failures: list[Exception] = []

    def run(i: int) -> None:
        try:
            work(i)
        except (RpcError, AssertionError, ValueError) as e:
            failures.append(e)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    return failures


@pytest.mark.parametrize("proto", ["8.0.0", "5.0.0", "3.0.0"])
def test_threads_share_a_connection(proto: str) -> None:
    with running_server(proto=proto, threads=1) as server, Connection(server.endpoint, timeout=SECONDS) as connection:

        def work(seed: int) -> None:
            random = np.random.default_rng(seed)
            client = WiredClient(connection)
            for n_bytes in (4, 3_000, 700_000):
                buffer = client.alloc(n_bytes)
                t = Arena(buffer.handle, buffer.base, n_bytes).leaf("I8", (n_bytes,))
                for _ in range(8):
                    data = random.bytes(n_bytes)
                    client.clear(buffer.handle, seed)
                    assert client.get(t) == bytes([seed]) * n_bytes
                    client.set(t, data)
                    assert client.alignment() >= 32
                    assert client.get(t) == data
                client.free(buffer.handle)

        assert in_threads(work) == []
        assert WiredClient(connection).alignment() >= 32


def test_a_reply_wakes_its_thread_while_another_waits_for_a_later_one() -> None:
    first_done = threading.Event()

    def step(peer: Peer) -> None:
        peer.request()
        peer.request()
        peer.reply(struct.pack("<Q", 1))
        assert first_done.wait(SECONDS), "the first reply is there, and its thread was not told"
        peer.reply(struct.pack("<Q", 2))
        peer.hang()

    with FakeServer(answering(step)) as server, Connection(server.endpoint, timeout=SECONDS) as connection:
        first = connection.call(Command.GET_ALIGNMENT, DEVICE)
        second = connection.call(Command.GET_ALIGNMENT, DEVICE)
        values: list[bytes | memoryview] = []
        later = threading.Thread(target=lambda: values.append(second.result()))
        later.start()
        while not connection._reader:  # until the other thread is the one that reads
            pause(0.001)
        assert first.result() == struct.pack("<Q", 1)
        first_done.set()
        later.join(SECONDS)
        assert values == [struct.pack("<Q", 2)]


def test_all_waiting_threads_learn_of_the_end() -> None:
    def step(peer: Peer) -> None:
        for _ in range(N_THREADS):
            peer.request()

    with FakeServer(answering(step)) as server, Connection(server.endpoint, timeout=SECONDS) as connection:
        failures = in_threads(lambda _: connection.call(Command.GET_ALIGNMENT, DEVICE).result() and None)
        assert len(failures) == N_THREADS
        assert sorted({type(e) for e in failures}, key=lambda t: t.__name__) == [ConnectionLost, ServerRefused]
        (first,) = (e for e in failures if type(e) is ServerRefused)
        assert all(str(first) in str(e) for e in failures)


def test_closing_ends_the_waits_of_other_threads() -> None:
    with FakeServer(answering(Peer.hang)) as server:
        connection = Connection(server.endpoint, timeout=SECONDS)
        pending = [connection.call(Command.GET_ALIGNMENT, DEVICE) for _ in range(N_THREADS)]
        timer = threading.Timer(0.05, connection.close)
        timer.start()
        failures = in_threads(lambda i: pending[i].result() and None)
        timer.join()
        assert [type(e) for e in failures] == [ConnectionLost] * N_THREADS
        assert not connection._close_socket.alive


# ---- Neither side may wait for the other -----------------------------------------------------------------------------

# Eight of the one, and one of the other: each more than two kernels hold for a connection.
TENSOR_BYTES = 2 << 20
SENT_BYTES = 16 << 20


def in_order(n_gets: int, sent: list[bytes]) -> Callable[[Peer], None]:
    """Serve strictly in order, blocking in each reply: take nothing while one cannot be sent."""

    def step(peer: Peer) -> None:
        for i in range(n_gets):
            assert peer.request()[0] == Command.GET_TENSOR
            peer.reply(bytes([i]) * TENSOR_BYTES)
        sent.append(peer.request()[1])
        assert peer.request()[0] == Command.GET_ALIGNMENT
        peer.reply(struct.pack("<Q", 64))
        peer.hang()

    return step


def test_large_sends_behind_replies_that_nobody_takes() -> None:
    sent: list[bytes] = []
    data = np.random.default_rng(1).bytes(SENT_BYTES)
    with (
        FakeServer(answering(in_order(8, sent))) as server,
        Connection(server.endpoint, timeout=SECONDS) as connection,
    ):
        request = bytes(connection.dialect.record.size), struct.pack("<QQ", 0, TENSOR_BYTES)
        pending = [connection.call(Command.GET_TENSOR, *request) for _ in range(8)]
        connection.send(Command.SET_TENSOR, data)
        last = connection.call(Command.GET_ALIGNMENT, DEVICE)
        assert last.result() == struct.pack("<Q", 64)
        assert sent == [data]
        for i, each in enumerate(pending):
            assert each.result() == bytes([i]) * TENSOR_BYTES


def test_a_sender_takes_over_from_a_thread_that_read() -> None:
    """While one thread reads, another sends and has to wait; when the first has its reply, the sender must read on."""
    go = threading.Event()
    sent: list[bytes] = []
    data = bytes(SENT_BYTES)
    gets = in_order(8, sent)

    def step(peer: Peer) -> None:
        peer.stall(go)
        gets(peer)

    with (
        FakeServer(answering(step)) as server,
        Connection(server.endpoint, timeout=10 * SECONDS) as connection,
    ):
        request = bytes(connection.dialect.record.size), struct.pack("<QQ", 0, TENSOR_BYTES)
        pending = [connection.call(Command.GET_TENSOR, *request) for _ in range(8)]
        reader = threading.Thread(target=pending[0].result)
        reader.start()
        while not connection._reader:
            pause(0.001)
        sender = threading.Thread(target=connection.send, args=(Command.SET_TENSOR, data))
        sender.start()
        while not connection._sending:
            pause(0.001)
        pause(0.05)  # until the kernel takes no more
        go.set()
        for thread in (reader, sender):
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert connection.call(Command.GET_ALIGNMENT, DEVICE).result() == struct.pack("<Q", 64)
        assert sent == [data]
        assert [bytes(p.result()[:1]) for p in pending] == [bytes([i]) for i in range(8)]


def test_many_empty_replies_that_nobody_takes() -> None:
    def step(peer: Peer) -> None:
        while peer.request()[0] == Command.BUFFER_CLEAR:
            peer.reply()
        peer.reply(struct.pack("<Q", 64))
        peer.hang()

    with (
        FakeServer(answering(step, version=(5, 1, 0)), buffer_bytes=1 << 14) as server,
        Connection(server.endpoint, timeout=SECONDS) as connection,
    ):
        for _ in range(20_000):
            connection.send(Command.BUFFER_CLEAR, bytes(9))
        assert connection.call(Command.GET_ALIGNMENT, DEVICE).result() == struct.pack("<Q", 64)


def test_a_real_server_does_not_block_either() -> None:
    with running_server(threads=1) as server, Connection(server.endpoint, timeout=SECONDS) as connection:
        client = WiredClient(connection)
        buffer = client.alloc(16 << 20)
        t = Arena(buffer.handle, buffer.base, 16 << 20).leaf("I8", (16 << 20,))
        record = t.pack(connection.dialect)
        pending: list[tuple[Pending, int]] = []
        for value in range(6):
            connection.send(Command.SET_TENSOR, record, bytes(9), bytes([value]) * (16 << 20))
            pending.append((connection.call(Command.GET_TENSOR, record, struct.pack("<QQ", 0, 16 << 20)), value))
        for each, value in pending:
            assert each.result() == bytes([value]) * (16 << 20)


# ---- Finalizers ------------------------------------------------------------------------------------------------------

LARGE = b"\xff" * 4_000_000


def test_a_finalizer_may_send_at_any_moment() -> None:
    """Whatever function of the connection is entered, a send may come in between, as from a garbage collection."""
    freed: list[int] = []
    numbers: list[int] = []

    def step(peer: Peer) -> None:
        while True:
            number, payload = peer.request()
            if payload != LARGE:
                numbers.append(number)
            if number == Command.FREE_BUFFER:
                freed.append(struct.unpack("<Q", payload)[0])
            elif number == Command.GET_TENSOR:
                peer.reply(bytes(struct.unpack("<QQ", payload[-16:])[1]))
            elif number == Command.GET_ALIGNMENT:
                peer.reply(bytes(8))

    with (
        FakeServer(answering(step)) as server,
        Connection(server.endpoint, timeout=SECONDS) as connection,
    ):
        n_freed = 0
        within = False
        entered: Counter[str] = Counter()

        def finalize(frame: FrameType, event: str, _: object) -> None:
            nonlocal n_freed, within
            code = frame.f_code
            # A finalizer within what sends for finalizers must come to an end, as real ones do.
            if event == "call" and code.co_filename == module.__file__ and not within and entered[code.co_name] < 4:
                within = True
                entered[code.co_name] += 1
                connection.send(Command.FREE_BUFFER, struct.pack("<Q", n_freed))
                connection.send(Command.SET_TENSOR, LARGE)  # cannot be gathered
                n_freed += 1
                within = False

        record = bytes(connection.dialect.record.size)
        sys.setprofile(finalize)
        try:
            pending = connection.call(Command.GET_TENSOR, record, struct.pack("<QQ", 0, 4 * SENT_BYTES))
            assert pending.result() == bytes(4 * SENT_BYTES)
            entered.clear()
            for size in (SENT_BYTES, 10, 100_000):
                pending = connection.call(Command.GET_TENSOR, record, struct.pack("<QQ", 0, size))
                connection.send(Command.BUFFER_CLEAR, bytes(9))
                connection.send(Command.SET_TENSOR, bytes(size))
                connection.send(Command.GRAPH_COMPUTE, bytes(20))
                assert pending.result() == bytes(size)
        finally:
            sys.setprofile(None)
        assert connection.call(Command.GET_ALIGNMENT, DEVICE).result() == bytes(8)
        assert n_freed > 30
        assert sorted(freed) == list(range(n_freed))
        ours = [n for n in numbers if n != Command.FREE_BUFFER]
        round_trip = [Command.GET_TENSOR, Command.BUFFER_CLEAR, Command.SET_TENSOR, Command.GRAPH_COMPUTE]
        assert ours == [Command.GET_TENSOR, *round_trip * 3, Command.GET_ALIGNMENT]
