"""Connections that break off, stall, stay silent or come in crowds; and odd requests that are legal."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time

import pytest

from ggml_rpc.spec import dialects, limits
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.enums import TensorFlag
from ggml_rpc.spec.ops import OP_BY_NAME
from tests.support.rawclient import RawClient, frame, split_endpoint
from tests.support.servers import RunningServer, running_server
from tests.support.wiretensor import graph_payload, tensor
from tests.wire.session import Attacker, Neighbour

MIB = 1 << 20
GIB = 1 << 30


def connect(server: RunningServer) -> socket.socket:
    """Open a bare connection."""
    return socket.create_connection(split_endpoint(server.endpoint), timeout=20)


def conversation(a: Attacker) -> bytes:
    """Return the bytes of three good requests: a write, a graph and a read."""
    d = a.dialect
    x = a.tensor(name="x")
    node = a.arena.node("SQR", "F32", (8, 4), [x])
    flag = b"\0" if d.set_tensor_cache_flag else b""
    return (
        frame(d.commands[Command.SET_TENSOR], x.pack(d) + flag + bytes(8) + bytes(x.nbytes()))
        + frame(d.commands[Command.GRAPH_COMPUTE], graph_payload(d, [node], uid=3))
        + frame(d.commands[Command.GET_TENSOR], node.pack(d) + struct.pack("<QQ", 0, node.nbytes()))
    )


# ---- Breaking off ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_close", [False, True], ids=["close", "half-close"])
def test_break_off_anywhere(
    server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour, half_close: bool
) -> None:
    """Cut a good conversation at every 61st byte, by closing or by closing only the sending side."""
    length = None
    cut = 0
    while length is None or cut < length:
        with RawClient(server.endpoint, dialect) as client:
            stream = conversation(Attacker(client))
            length = len(stream)
            client.send_raw(stream[:cut])
            if half_close:
                client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(4096):
                    pass
        cut += 61
    neighbour.check()


def test_reset_during_a_large_reply(server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour) -> None:
    """Ask for 64 MiB and leave without reading."""
    client = RawClient(server.endpoint, dialect)
    buffer = client.alloc(64 * MIB)
    big = tensor("F32", (1024, 16384), buffer=buffer.handle, data=buffer.base)
    client.send(dialect.commands[Command.GET_TENSOR], big.pack(dialect) + struct.pack("<QQ", 0, 64 * MIB))
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    neighbour.check()


# ---- Time --------------------------------------------------------------------------------------------------------


def test_stalls_are_closed_and_idle_sessions_are_not(dialect: dialects.Dialect) -> None:
    """Deadlines watch progress inside a message; a session that rests between two messages lives on."""
    with (
        running_server(proto=dialect.name, hello_seconds=1.0, stall_seconds=1.0) as server,
        contextlib.ExitStack() as clients,
    ):
        idle = Neighbour(server.endpoint, dialect)
        clients.callback(idle.close)
        idle.check()
        silent, half_hello = (clients.enter_context(connect(server)) for _ in range(2))
        half_hello.sendall(frame(Command.HELLO, bytes(dialect.hello_request))[:-1])
        stalled = []
        for part in (1, 5, 9, 200):
            client = clients.enter_context(RawClient(server.endpoint, dialect))
            client.send_raw(conversation(Attacker(client))[:part])
            stalled.append(client)
        time.sleep(1.5)
        assert [client.closed_by_peer() for client in stalled] == [True] * len(stalled)
        assert [bare.recv(1) for bare in (silent, half_hello)] == [b"", b""]
        idle.check()


def test_stopping_does_not_wait_for_half_open_connections(dialect: dialects.Dialect) -> None:
    with running_server(proto=dialect.name) as server:
        open_ones = [connect(server) for _ in range(20)]
        client = RawClient(server.endpoint, dialect)
        client.send_raw(conversation(Attacker(client))[:100])
    for bare in open_ones:
        with contextlib.suppress(ConnectionError):
            assert bare.recv(1) == b""
        bare.close()
    assert client.closed_by_peer()
    client.close()


# ---- Crowds ------------------------------------------------------------------------------------------------------


def test_more_connections_than_allowed(server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour) -> None:
    """Fill every place: the surplus is turned away, those inside are served, and places come free again."""
    turned_away = 0
    with contextlib.ExitStack() as crowd:
        for _ in range(limits.MAX_CONNECTIONS + 8):
            bare = crowd.enter_context(connect(server))
            try:
                bare.sendall(frame(dialect.commands[Command.HELLO], bytes(dialect.hello_request)))
                turned_away += bare.recv(64) == b""
            except ConnectionError:
                turned_away += 1
        neighbour.check()
    assert turned_away >= 8
    deadline = time.monotonic() + 20
    while True:
        try:
            with RawClient(server.endpoint, dialect) as client:
                client.barrier()
            break
        except ConnectionError:
            assert time.monotonic() < deadline, "no place came free"
            time.sleep(0.05)


def test_many_short_connections(server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour) -> None:
    """Clients open up to a hundred connections before the one that stays."""
    for _ in range(150):
        with RawClient(server.endpoint, dialect) as client:
            client.memory()
    neighbour.check()


# ---- Memory ------------------------------------------------------------------------------------------------------


def test_nothing_can_be_allocated_by_clients_of_ik_llama_cpp(
    server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour
) -> None:
    """Its clients ask for 0 bytes where a device gets no work, and give up without a buffer; others never do."""
    with RawClient(server.endpoint, dialect) as client:
        handle, _ = client.alloc_raw(0)
        assert (handle != 0) == dialect.ik_meaning
        if handle:
            assert client.base(handle) != 0


@pytest.mark.parametrize("size", [(1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 62, 1 << 50])
def test_absurd_allocations_are_refused_politely(
    server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour, size: int
) -> None:
    with RawClient(server.endpoint, dialect) as client:
        assert client.alloc_raw(size) == (0, 0)
        assert client.alloc(4096).size >= 4096
    neighbour.check()


def test_buffers_are_counted(server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour) -> None:
    """One session cannot hold more than its share of buffers; freeing one makes room."""
    with RawClient(server.endpoint, dialect) as client:
        handles = [client.alloc_raw(64)[0] for _ in range(limits.MAX_BUFFERS_PER_SESSION)]
        assert 0 not in handles
        assert len(set(handles)) == len(handles)
        assert client.alloc_raw(64) == (0, 0)
        client.free(handles[0])
        assert client.alloc_raw(64)[0] != 0
    neighbour.check()


def test_memory_of_a_dead_client_comes_back(
    server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour
) -> None:
    """Half a GiB that is promised counts as taken, until its owner dies in the middle of a write."""
    with RawClient(server.endpoint, dialect) as watcher:
        client = RawClient(server.endpoint, dialect)
        before = watcher.memory()[0]
        buffer = client.alloc(GIB // 2)
        during = watcher.memory()[0]
        assert during < before - GIB // 4
        big = tensor("F32", (1 << 20, 64), buffer=buffer.handle, data=buffer.base)
        flag = b"\0" if dialect.set_tensor_cache_flag else b""
        head = big.pack(dialect) + flag + bytes(8)
        client.send(dialect.commands[Command.SET_TENSOR], head + bytes(MIB), len(head) + big.nbytes())
        client.close()
        deadline = time.monotonic() + 20
        while watcher.memory()[0] < during + GIB // 4:
            assert time.monotonic() < deadline, "the memory did not come back"
            time.sleep(0.02)


# ---- Legal oddities ----------------------------------------------------------------------------------------------


def test_handles_are_not_addresses_and_differ(server: RunningServer, dialect: dialects.Dialect) -> None:
    """Two sessions never share a handle, and a session's ranges never overlap."""
    with RawClient(server.endpoint, dialect) as one, RawClient(server.endpoint, dialect) as two:
        buffers = [c.alloc(4096) for _ in range(20) for c in (one, two)]
        assert len({b.handle for b in buffers}) == len(buffers)
        for mine in (buffers[0::2], buffers[1::2]):
            ends = sorted((b.base, b.base + b.size) for b in mine)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))
            assert all(b.base % one.alignment() == 0 for b in mine)


def test_bases_are_not_used_again(server: RunningServer, dialect: dialects.Dialect) -> None:
    with RawClient(server.endpoint, dialect) as client:
        seen: set[int] = set()
        for _ in range(50):
            buffer = client.alloc(8192)
            assert buffer.base not in seen
            seen.add(buffer.base)
            client.free(buffer.handle)


def test_empty_tensors_are_legal(server: RunningServer, dialect: dialects.Dialect) -> None:
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        empty = a.tensor(ne=(8, 0, 3), name="empty")
        client.set(empty, b"")
        assert client.get(empty) == b""
        client.compute([a.arena.node("SQR", "F32", (8, 0, 3), [empty])])
        client.barrier()


def test_strides_of_single_dimensions_do_not_count(server: RunningServer, dialect: dialects.Dialect) -> None:
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        x = a.tensor(ne=(8, 1, 1, 1), name="x")
        y = a.arena.node("SQR", "F32", (8,), [x])
        x.nb[1:] = [0xFFFF_FFFC, 0, 4]
        client.set(x, struct.pack("<8f", *range(8)))
        client.compute([y])
        assert struct.unpack("<8f", client.get(y)) == tuple(float(i * i) for i in range(8))


def test_cast_to_itself_is_legal(server: RunningServer, dialect: dialects.Dialect) -> None:
    """A type cast is CPY whose second source is the node itself."""
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        x = a.tensor(name="x")
        cast = a.arena.node("CPY", "F16", (8, 4), [x])
        cast.src.append(cast)
        client.set(x, struct.pack("<32f", *range(32)))
        client.compute([cast])
        assert struct.unpack("<32e", client.get(cast)) == tuple(float(i) for i in range(32))


def test_rows_by_view_alone(server: RunningServer, dialect: dialects.Dialect) -> None:
    """Old clients name the target of SET_ROWS only as what the node views."""
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        values, ids, table = a.tensor(ne=(8, 2)), a.tensor("I64", (2,)), a.tensor(ne=(8, 4), name="table")
        client.set(values, struct.pack("<16f", *range(16)))
        client.set(ids, struct.pack("<2q", 3, 1))
        client.set(table, b"\x11" * 128)
        node = tensor("F32", (8, 4), buffer=table.buffer, data=table.data, op=OP_BY_NAME["SET_ROWS"].id)
        node.src, node.view_src, node.flags = [values, ids], table, int(TensorFlag.COMPUTE)
        if not dialect.set_rows_by_view:
            client.send(Command.GRAPH_COMPUTE, graph_payload(dialect, [node]))
            assert client.closed_by_peer()
            return
        client.compute([node])
        row = [client.get(table, 32 * i, 32) for i in range(4)]
        assert row[3] + row[1] == struct.pack("<16f", *range(16))
        assert row[0] == row[2] == b"\x11" * 32
        node.src += [None, a.tensor()]
        client.send(Command.GRAPH_COMPUTE, graph_payload(dialect, [node]))
        assert client.closed_by_peer()


def test_rows_out_of_range_are_zeros_in_ik(server: RunningServer, dialect: dialects.Dialect) -> None:
    """ik_llama.cpp marks unused slots by an index that names no row; elsewhere that is an error."""
    if not dialect.ik_meaning:
        pytest.skip("an index out of range is refused here")
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        x, ids = a.tensor(), a.tensor("I32", (4,))
        client.set(x, struct.pack("<32f", *range(1, 33)))
        client.set(ids, struct.pack("<4i", 2, -1, 4, -(1 << 31)))
        rows = a.arena.node("GET_ROWS", "F32", (8, 4), [x, ids])
        client.set(rows, b"\x55" * 128)
        client.compute([rows])
        assert struct.unpack("<32f", client.get(rows)) == (*(float(i) for i in range(17, 25)), *([0.0] * 24))
        weights = a.tensor(ne=(8, 2, 2))
        client.set(weights, struct.pack("<32f", *([1.0] * 32)))
        chosen = a.tensor("I32", (2, 1))
        client.set(chosen, struct.pack("<2i", 1, 7))
        column = a.tensor(ne=(8, 1, 1))
        client.set(column, struct.pack("<8f", *range(8)))
        product = a.arena.node("MUL_MAT_ID", "F32", (2, 2, 1), [weights, column, chosen])
        client.set(product, b"\x55" * 16)
        client.compute([product])
        assert struct.unpack("<4f", client.get(product)) == (28.0, 28.0, 0.0, 0.0)


def test_overlapping_copy(server: RunningServer, dialect: dialects.Dialect) -> None:
    """A copy onto an overlapping range is done right or declined."""
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        whole = a.tensor(ne=(64,), name="whole")
        data = struct.pack("<64f", *range(64))
        client.set(whole, data)
        low = tensor("F32", (32,), buffer=whole.buffer, data=whole.data)
        high = tensor("F32", (32,), buffer=whole.buffer, data=whole.data + 64)
        done = client.copy(low, high)
        assert client.get(whole) == (data[:64] + data[:128] + data[192:] if done else data)


def test_copy_of_unequal_tensors_is_declined_or_refused(
    server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour
) -> None:
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        big, small, beside = a.tensor(ne=(64, 4)), a.tensor(ne=(8,)), a.tensor(ne=(64, 8), name="beside")
        client.set(beside, b"\x11" * beside.nbytes())
        try:
            assert client.copy(big, small) == 0
        except ConnectionError:
            return
        assert client.get(beside) == b"\x11" * beside.nbytes()


def test_nodes_without_the_compute_flag_are_skipped(server: RunningServer, dialect: dialects.Dialect) -> None:
    if not dialect.compute_flag:
        pytest.skip("the protocol has no such flag")
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        x = a.tensor(name="x")
        y = a.arena.node("SQR", "F32", (8, 4), [x])
        client.set(x, struct.pack("<32f", *range(32)))
        client.set(y, b"\x55" * 128)
        y.flags = 0
        client.compute([y])
        assert client.get(y) == b"\x55" * 128


def test_1024_graphs_are_kept_and_then_forgotten_together(server: RunningServer, dialect: dialects.Dialect) -> None:
    """Both sides count graphs with a uid and clear when 1024 are stored."""
    if not dialect.graph_uid:
        pytest.skip("the protocol keeps one graph a device")
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        x = a.tensor(name="x")
        y = a.arena.node("SQR", "F32", (8, 4), [x])
        client.set(x, struct.pack("<32f", *([3.0] * 32)))
        for uid in range(1, limits.GRAPH_CACHE_MAX + 1):
            client.compute([y], uid=uid)
        client.memset(y, 0)
        client.recompute(uid=1)
        assert client.get(y, 0, 4) == struct.pack("<f", 9.0)
        client.compute([y], uid=5000)
        client.recompute(uid=5000)
        client.barrier()
        client.recompute(uid=1)
        assert client.closed_by_peer()
