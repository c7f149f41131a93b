"""What a connection sends, when it sends it, and how it matches replies."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggml_rpc.client.connection import SMALL_BYTES, Connection
from ggml_rpc.errors import ConnectionLost, RpcError
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from tests.support.servers import RunningServer, running_server
from tests.support.wiretensor import Arena, Tensor, graph_payload

from .fakeserver import SECONDS, FakeServer, Peer, Script, WiredClient, answering

DEVICE = bytes(4)
CLEAR = bytes(9)
MEMORY = struct.pack("<QQ", 1, 2)


def serve(requests: list[tuple[int, bytes]], replies: dict[Command, bytes]) -> Script:
    """Note every request, and answer those that have a reply here, until the client leaves."""

    def step(peer: Peer) -> None:
        while True:
            number, payload = peer.request()
            requests.append((number, payload))
            if number in replies:
                peer.reply(replies[Command(number)])

    return step


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server of 8.0.0."""
    with running_server(threads=1) as running:
        yield running


@pytest.fixture
def connection(server: RunningServer) -> Iterator[Connection]:
    """Connect to it."""
    with Connection(server.endpoint, timeout=SECONDS) as connected:
        yield connected


def tensor_of(client: WiredClient, n_bytes: int) -> Tensor:
    """Return a tensor of bytes in a buffer of its own."""
    buffer = client.alloc(n_bytes)
    return Arena(buffer.handle, buffer.base, n_bytes).leaf("I8", (n_bytes,))


# ---- Sending ---------------------------------------------------------------------------------------------------------


def test_small_commands_are_gathered_and_leave_in_order() -> None:
    requests: list[tuple[int, bytes]] = []
    with FakeServer(answering(serve(requests, {Command.GET_ALIGNMENT: bytes(8)}))) as fake:
        with Connection(fake.endpoint) as connection:
            for value in range(3):
                connection.send(Command.BUFFER_CLEAR, bytes(8), bytes([value]))
            assert requests == []
            connection.call(Command.GET_ALIGNMENT, DEVICE).result()
            clears = [(Command.BUFFER_CLEAR, bytes(8) + bytes([value])) for value in range(3)]
            assert requests == [*clears, (Command.GET_ALIGNMENT, DEVICE)]
        assert fake.ended.acquire(timeout=SECONDS)


@pytest.mark.parametrize("how", ["flush", "graph", "again", "full"])
def test_what_pushes_out_gathered_commands(how: str) -> None:
    arrived = threading.Event()

    def step(peer: Peer) -> None:
        while peer.request() != (Command.BUFFER_CLEAR, CLEAR):
            pass
        arrived.set()
        peer.hang()

    with FakeServer(answering(step)) as fake, Connection(fake.endpoint) as connection:
        connection.send(Command.BUFFER_CLEAR, CLEAR)
        assert not arrived.wait(0.02)
        if how == "flush":
            connection.flush()
        elif how == "graph":
            connection.send(Command.GRAPH_COMPUTE, DEVICE, bytes(16))
        elif how == "again":
            connection.send(Command.GRAPH_RECOMPUTE, DEVICE, bytes(8))
        else:
            for _ in range(SMALL_BYTES // 18 + 1):
                connection.send(Command.BUFFER_CLEAR, bytes(8), b"\1")
        assert arrived.wait(SECONDS)


@pytest.mark.parametrize("sizes", [(0,), (1,), (SMALL_BYTES,), (SMALL_BYTES - 1, 1), (5, 3 << 20, 7, 1 << 20, 0, 9)])
def test_parts_arrive_as_one_payload(sizes: tuple[int, ...]) -> None:
    requests: list[tuple[int, bytes]] = []
    parts = [np.random.default_rng(i).bytes(n) for i, n in enumerate(sizes)]
    with FakeServer(answering(serve(requests, {Command.GET_ALIGNMENT: bytes(8)}))) as fake:
        with Connection(fake.endpoint) as connection:
            connection.send(Command.BUFFER_CLEAR, CLEAR)
            connection.send(Command.SET_TENSOR, *parts)
            # Other shapes and types of memory, too.
            connection.send(Command.SET_TENSOR, *(memoryview(np.frombuffer(p, np.uint8).reshape(-1, 1)) for p in parts))
            connection.send(Command.SET_TENSOR, *(bytearray(p) for p in parts))
            connection.call(Command.GET_ALIGNMENT, DEVICE).result()
        assert requests[0] == (Command.BUFFER_CLEAR, CLEAR)
        assert requests[1:4] == [(Command.SET_TENSOR, b"".join(parts))] * 3


def test_parts_may_be_reused_at_once(connection: Connection) -> None:
    client = WiredClient(connection)
    n_bytes = 8 << 20
    t = tensor_of(client, n_bytes)
    data = bytearray(b"\x07") * n_bytes
    head = t.pack(connection.dialect) + bytes(9)
    connection.send(Command.SET_TENSOR, head, data)
    data[:] = bytes(n_bytes)
    assert client.get(t) == b"\x07" * n_bytes


def test_mistakes_of_the_caller_do_no_harm(connection: Connection) -> None:
    record = tensor_of(WiredClient(connection), 16).pack(connection.dialect)
    region = struct.pack("<QQ", 0, 16)
    read_only = memoryview(bytes(16))
    strided = memoryview(np.zeros((4, 8), np.uint8)[:, :4])  # type: ignore[arg-type]
    for text, mistake in (
        ("GRAPH_COMPUTE has no reply in 8.0.0", lambda: connection.call(Command.GRAPH_COMPUTE, bytes(20))),
        ("GET_ALIGNMENT has a reply in 8.0.0", lambda: connection.send(Command.GET_ALIGNMENT, DEVICE)),
        ("GET_ALIGNMENT has 4 bytes in 8.0.0, not 3", lambda: connection.call(Command.GET_ALIGNMENT, bytes(3))),
        ("BUFFER_CLEAR has 9 bytes in 8.0.0, not 8", lambda: connection.send(Command.BUFFER_CLEAR, bytes(8))),
        ("does not fill memory", lambda: connection.call(Command.GET_ALIGNMENT, DEVICE, into=memoryview(bytearray(8)))),
        ("read-only", lambda: connection.call(Command.GET_TENSOR, record, region, into=read_only)),
        ("not 15", lambda: connection.call(Command.GET_TENSOR, record, region, into=memoryview(bytearray(15)))),
        ("contiguous", lambda: connection.call(Command.GET_TENSOR, record, region, into=strided)),
        ("contiguous", lambda: connection.send(Command.SET_TENSOR, record, strided)),
    ):
        with pytest.raises(ValueError, match=text):
            mistake()
    with running_server(proto="4.0.0") as older, Connection(older.endpoint) as connected:
        with pytest.raises(ValueError, match=r"MEMSET_TENSOR is no command of 4\.0\.0"):
            connected.send(Command.MEMSET_TENSOR, bytes(313))
        assert WiredClient(connected).alignment() >= 32
    assert WiredClient(connection).alignment() >= 32


# ---- Replies ---------------------------------------------------------------------------------------------------------


def test_replies_are_matched_in_order_whoever_is_asked_first(connection: Connection) -> None:
    client = WiredClient(connection)
    tensors = [tensor_of(client, n_bytes) for n_bytes in (10, 300_000, 1, 70_000)]
    contents = [np.random.default_rng(i).bytes(t.nbytes()) for i, t in enumerate(tensors)]
    for t, data in zip(tensors, contents, strict=True):
        client.set(t, data)

    def ask(t: Tensor, into: memoryview | None) -> object:
        return connection.call(
            Command.GET_TENSOR, t.pack(connection.dialect), struct.pack("<QQ", 0, t.nbytes()), into=into
        )

    places = [memoryview(np.zeros(t.nbytes(), np.uint8)) for t in tensors]  # type: ignore[arg-type]
    first = connection.call(Command.GET_ALIGNMENT, DEVICE)
    filled = [ask(t, place) for t, place in zip(tensors, places, strict=True)]
    made = [ask(t, None) for t in tensors]
    last = connection.call(Command.GET_ALIGNMENT, DEVICE)
    assert last.result() == first.result()
    for pending, data in reversed(list(zip(made, contents, strict=True))):
        assert pending.result() == data  # type: ignore[attr-defined]
    for pending, place, data in zip(filled, places, contents, strict=True):
        result = pending.result()  # type: ignore[attr-defined]
        assert result == place == data
        assert pending.result() is result  # type: ignore[attr-defined]


def test_reading_nothing(connection: Connection) -> None:
    client = WiredClient(connection)
    t = tensor_of(client, 16)
    assert client.get(t, size=0) == b""
    request = t.pack(connection.dialect), struct.pack("<QQ", 0, 0)
    assert connection.call(Command.GET_TENSOR, *request, into=memoryview(bytearray())).result() == b""
    assert client.alignment() >= 32


def test_two_dimensional_reads_have_the_size_of_all_copies(connection: Connection) -> None:
    client = WiredClient(connection)
    t = tensor_of(client, 64)
    client.set(t, bytes(range(64)))
    rows = b"".join(bytes(range(16 * i, 16 * i + 4)) for i in range(4))
    assert client.get_2d(t, offset=0, size=4, n_copies=4, stride=16) == rows
    place = np.zeros((4, 4), np.uint8)
    region = struct.pack("<4Q", 0, 4, 4, 16)
    pending = connection.call(Command.GET_TENSOR_2D, t.pack(connection.dialect), region, into=memoryview(place))  # type: ignore[arg-type]
    assert pending.result() == rows
    assert place.tobytes() == rows


def test_replies_in_all_pieces_are_put_together() -> None:
    wire = struct.pack("<QQQ", 16, 1, 2) + struct.pack("<Q", 0) + struct.pack("<Q", 24) + bytes(range(24))

    def step(peer: Peer) -> None:
        for _ in range(3):
            peer.request()
        for piece in (wire[:1], wire[1:7], wire[7:8], wire[8:9], wire[9:30], wire[30:33], wire[33:47], wire[47:]):
            peer.send(piece)
            assert not pause.wait(0.005)  # let it arrive alone
        peer.hang()

    pause = threading.Event()
    with FakeServer(answering(step, version=(5, 1, 0))) as fake, Connection(fake.endpoint) as connection:
        memory = connection.call(Command.GET_DEVICE_MEMORY, DEVICE)
        connection.send(Command.BUFFER_CLEAR, CLEAR)
        region = struct.pack("<QQ", 0, 24)
        tensor = connection.call(Command.GET_TENSOR, bytes(connection.dialect.record.size), region)
        assert tensor.result() == bytes(range(24))
        assert memory.result() == MEMORY


def test_empty_replies_need_nobody_to_wait(server: RunningServer) -> None:
    with running_server(proto="5.1.0") as older, Connection(older.endpoint) as connection:
        client = WiredClient(connection)
        buffer = client.alloc(64)
        for value in range(1000):
            client.clear(buffer.handle, value & 255)
        t = Arena(buffer.handle, buffer.base, 64).leaf("I8", (64,))
        assert client.get(t) == bytes([999 & 255]) * 64
        clear = struct.pack("<QB", buffer.handle, 5)
        assert connection.call(Command.BUFFER_CLEAR, clear).result() == b""
        assert client.get(t) == b"\5" * 64


def test_the_status_of_a_graph_is_a_reply_in_the_oldest_dialects() -> None:
    old = dialects.find("3.0.0")
    with running_server(proto="3.0.0") as server, Connection(server.endpoint) as connection:
        buffer = WiredClient(connection).alloc(256)
        arena = Arena(buffer.handle, buffer.base, 256)
        graph = graph_payload(old, [arena.node("SQR", "F32", (4,), [arena.leaf("F32", (4,))])])
        with pytest.raises(ValueError, match="GRAPH_COMPUTE has a reply"):
            connection.send(Command.GRAPH_COMPUTE, graph)
        assert connection.dialect is old
        assert connection.call(Command.GRAPH_COMPUTE, graph).result() == b"\0"


# ---- The end ---------------------------------------------------------------------------------------------------------


def test_closing_is_polite_and_final(server: RunningServer) -> None:
    connection = Connection(server.endpoint)
    ends: list[RpcError | None] = []
    connection.on_close.append(ends.append)
    forgotten: list[RpcError | None] = []
    connection.on_close.append(forgotten.append)
    connection.on_close.remove(forgotten.append)
    late = connection.call(Command.GET_ALIGNMENT, DEVICE)
    assert not connection.closed
    connection.close()
    connection.close()
    assert connection.closed
    assert ends == [None]
    assert forgotten == []
    connection.on_close.append(ends.append)
    assert ends == [None, None], "who comes late is told at once"
    for use in (
        connection.flush,
        late.result,
        lambda: connection.send(Command.BUFFER_CLEAR, CLEAR),
        lambda: connection.call(Command.GET_ALIGNMENT, DEVICE),
    ):
        with pytest.raises(ConnectionLost, match=f"{server.endpoint} has ended: it was closed"):
            use()
    assert "closed" in repr(connection)


def test_a_server_is_heard_out() -> None:
    """One that has an answer left when the client goes is ended by SIGPIPE if it is of a stock build."""
    said = threading.Event()

    def serve(peer: Peer) -> None:
        peer.hello(3, 6, 1)
        number, _ = peer.request()
        assert number == Command.FREE_BUFFER
        assert peer.sock.recv(1) == b"", "the client says first that nothing more comes"
        for _ in range(4):
            peer.send(bytes(2))
        said.set()

    with FakeServer(serve) as fake:
        connection = Connection(fake.endpoint)
        connection.send(Command.FREE_BUFFER, bytes(8))
        connection.flush()
        connection.close()
        assert said.wait(SECONDS)


def test_a_server_that_owes_an_answer_is_left_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggml_rpc.client.connection.LEAVE_SECONDS", 0.01)
    left = threading.Event()

    def serve(peer: Peer) -> None:
        peer.hello(3, 6, 1)
        peer.request()
        peer.stall(left)

    with FakeServer(serve) as fake:
        connection = Connection(fake.endpoint)
        connection.call(Command.GET_ALIGNMENT, DEVICE)
        connection.close()
        left.set()
        assert connection.closed


def test_a_result_outlives_its_connection(server: RunningServer) -> None:
    with Connection(server.endpoint) as connection:
        pending = connection.call(Command.GET_ALIGNMENT, DEVICE)
        value = pending.result()
    assert pending.result() == value


def test_a_forgotten_connection_closes_its_socket() -> None:
    with FakeServer(answering(Peer.hang)) as fake:
        connection = Connection(fake.endpoint)
        connection.flush()
        del connection
        gc.collect()
        assert fake.ended.acquire(timeout=SECONDS)


FORK = """
import os, sys
from ggml_rpc.client.connection import Connection
from ggml_rpc.errors import ConnectionLost
from ggml_rpc.spec.commands import Command

connection = Connection(sys.argv[1])
pending = connection.call(Command.GET_ALIGNMENT, bytes(4))
child = os.fork()
if child == 0:
    failed = 0
    for use in (pending.result, connection.flush, lambda: connection.call(Command.GET_ALIGNMENT, bytes(4))):
        try:
            use()
        except ConnectionLost as e:
            failed += "forked" in str(e)
    connection.close()
    del connection, pending
    os._exit(failed)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert pending.result() == connection.call(Command.GET_ALIGNMENT, bytes(4)).result()
connection.close()
"""


def test_a_forked_process_leaves_the_connection_alone(server: RunningServer) -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, server.endpoint],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
