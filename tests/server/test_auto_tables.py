"""`--proto auto`: what a client sends settles which table it speaks, and what could mean two things is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.graph._graph import check_graph
from ggml_rpc.server import Server
from ggml_rpc.server.protocols import CANDIDATES
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.spec.enums import GluKind, TensorFlag
from ggml_rpc.spec.ops import OP_BY_NAME
from ggml_rpc.wire._codec import Codec
from tests.graph.examples import EXAMPLES
from tests.server.stock import Work, auto_server, join, leave
from tests.support.rawclient import RawClient
from tests.support.wiretensor import Arena, Tensor, graph_payload, patch, post_order
from tests.wire.session import ServerLog, captured_log

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    """Run a server that knows nothing of its clients yet."""
    with auto_server() as running:
        yield running


@pytest.fixture
def log() -> Iterator[ServerLog]:
    """Collect the server's log."""
    with captured_log() as lines:
        yield lines


def tables_of(dialect: Dialect) -> tuple[Dialect, ...]:
    """Return the tables among which a client of this dialect is to be found out."""
    return next(a.tables for c in CANDIDATES.values() for a in c if dialect in a.tables)


def settled(log: ServerLog, dialect: Dialect) -> list[str]:
    """Return the tables that were left, by the log, for the last client."""
    left = [t.name for t in tables_of(dialect)]
    for line in log.lines:
        names = line.rpartition(": ")[2].split(", ")
        if set(names) <= set(left):
            left = names
    return left


# ---- Graphs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dialects.NAMES)
def test_the_right_table_is_never_dropped(server: Server, log: ServerLog, name: str) -> None:
    dialect = dialects.find(name)
    client, _ = join(server, dialect)
    Work(client).check()
    leave(server, client)
    assert name in settled(log, dialect)
    assert not [line for line in log.lines if "connection closed" in line]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("4.0.0", ["4.0.0"]),
        ("4.0.1", ["4.0.1"]),
        ("4.0.2", ["4.0.2"]),
        ("4.0.3", ["4.0.3"]),
        ("5.0.0", ["5.1.0", "5.0.0"]),
        ("3.0.0@2025-10-04", ["3.0.0@2025-10-15", "3.0.0@2025-10-04"]),
        ("3.0.0@2025-11-13", ["3.0.0@2025-11-13"]),
        ("3.0.0", ["3.0.0"]),
        ("3.5.0", ["3.6.0@2025-12-05", "3.5.0"]),
        ("3.6.0@2026-01-19", ["3.6.0@2026-01-19"]),
        ("3.6.1", ["3.6.1", "3.6.0"]),
        ("ik-3.5.1@2025-11-30", ["ik-3.5.1@2025-11-30"]),
        ("ik-3.5.2@2026-05-19", ["ik-3.5.2@2026-05-19"]),
    ],
)
def test_a_graph_settles_it(server: Server, log: ServerLog, name: str, expected: list[str]) -> None:
    """The numbers of UNARY and GLU tell what no length does."""
    client, _ = join(server, dialects.find(name))
    Work(client).check()
    leave(server, client)
    assert settled(log, client.dialect) == expected


def test_what_is_settled_stays(server: Server) -> None:
    """After a graph of 4.0.0 the session takes no number of 4.0.3 any more."""
    client, _ = join(server, dialects.find("4.0.0"))
    work = Work(client)
    work.check()
    client.send(Command.GRAPH_COMPUTE, graph_payload(dialects.find("4.0.3"), work.nodes))
    assert client.closed_by_peer()
    leave(server, client)


class Outcome(NamedTuple):
    """What became of a graph: refused for good, refused for its two meanings, or computed."""

    refused: bool
    ambiguous: bool


AMBIGUOUS_KINDS = (
    "4.0.0",
    "4.0.2",
    "4.0.3",
    "3.0.0",
    "3.0.0@2025-10-15",
    "3.5.0",
    "ik-3.5.1",
    "ik-3.5.2@2026-02-25",
)


def expected_outcome(dialect: Dialect, payload: bytes, arena: Arena) -> Outcome:
    """Read the graph by each table on its own, and compare what they make of it."""
    buffers = [(arena.handle, arena.base, arena.size)]
    flagged = dialect.compute_flag
    same_size = [t for t in tables_of(dialect) if t.record.size == dialect.record.size]
    readings = set()
    for table in same_size:
        if table.compute_flag != flagged:
            continue
        try:
            graph = check_graph(Codec(table), payload, buffers)
        except RpcError:
            continue
        readings.add(tuple((t.op, t.flags >> 16, t.compute) for t in graph.tensors))
    return Outcome(refused=len(readings) != 1, ambiguous=len(readings) > 1)


@pytest.mark.parametrize("name", AMBIGUOUS_KINDS)
def test_a_graph_of_two_meanings_is_never_computed(server: Server, log: ServerLog, name: str) -> None:
    """Each example graph as a client's first: refused with a hint if another table reads it otherwise."""
    dialect = dialects.find(name)
    wrong, ambiguous, computed = [], 0, 0
    for example in EXAMPLES:
        if OP_BY_NAME[example.op].id not in dialect.ops:
            continue
        client, _ = join(server, dialect)
        buffer = client.alloc(8 * MIB)
        arena = Arena(buffer.handle, buffer.base, 8 * MIB)
        try:
            subject = example.build(arena)
        except MemoryError:
            leave(server, client)
            continue
        nodes = [t for t in post_order([subject]) if t.op]
        payload = graph_payload(dialect, nodes)
        client.clear(buffer.handle, 0x55)
        expected = expected_outcome(dialect, payload, arena)
        if expected.refused:
            log.clear()
            client.send(Command.GRAPH_COMPUTE, payload)
            if not client.closed_by_peer(timeout=3.0):
                wrong.append(f"{example.id}: not refused")
            elif expected.ambiguous:
                ambiguous += 1
                line = log.wait_for(lambda line: "connection closed" in line)
                if "name one with --proto" not in line or "means one thing in" not in line:
                    wrong.append(f"{example.id}: {line}")
        else:
            computed += 1
            log.clear()
            client.send(Command.GRAPH_COMPUTE, payload)
            try:
                if dialect.graph_status_reply:
                    client.reply()
                client.memory()
            except ConnectionError:
                line = log.wait_for(lambda line: "connection closed" in line)
                # Whatever the kernels say to a buffer of one byte value is theirs.
                if "GraphError" in line or "ProtocolError" in line:
                    wrong.append(f"{example.id}: {line}")
        leave(server, client)
    assert not wrong, "\n".join(wrong)
    assert ambiguous > 0
    assert computed > 10


def test_two_meanings_are_named(server: Server, log: ServerLog) -> None:
    """ROPE in one table of 3.0.0, ROPE_BACK in another: the angle's sign."""
    client, _ = join(server, dialects.find("3.0.0"))
    buffer = client.alloc(MIB)
    arena = Arena(buffer.handle, buffer.base, MIB)
    x, positions = arena.leaf("F32", (8, 2, 3)), arena.leaf("I32", (3,))
    rope = struct.pack("<5i6f", 0, 8, 0, 0, 64, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0)
    node = arena.node("ROPE", "F32", (8, 2, 3), [x, positions], params=rope, name="turned")
    client.clear(buffer.handle, 0)
    client.send(Command.GRAPH_COMPUTE, graph_payload(client.dialect, [node]))
    assert client.closed_by_peer()
    line = log.wait_for(lambda line: "name one with --proto" in line)
    assert "tensor 'turned' means one thing in 3.0.0 and another in 3.0.0@2025-10-15" in line
    leave(server, client)


# ---- The flag COMPUTE ---------------------------------------------------------------------------------------------


def doubled(client: RawClient) -> tuple[Tensor, Tensor]:
    """Return two nodes: x + x, and x * x."""
    work = Work(client)
    twice = work.arena.node("ADD", "F32", (32, 4), [work.a, work.a])
    square = work.arena.node("MUL", "F32", (32, 4), [work.a, work.a])
    return twice, square


@pytest.mark.parametrize(("name", "flag"), [("3.6.1", True), ("3.5.0", False), ("ik-3.5.2@2026-02-25", False)])
def test_the_flag_tells_old_from_new(server: Server, log: ServerLog, name: str, flag: bool) -> None:
    dialect = dialects.find(name)
    client, _ = join(server, dialect)
    twice, square = doubled(client)
    client.compute([twice, square])
    client.memory()
    leave(server, client)
    left = [dialects.find(n) for n in settled(log, dialect)]
    assert dialect in left
    assert {d.compute_flag for d in left} == {flag}


def test_nodes_without_the_flag_are_skipped_beside_flagged_ones(server: Server) -> None:
    client, _ = join(server, dialects.find("3.6.1"))
    twice, square = doubled(client)
    client.set(square, b"\x55" * square.nbytes())
    square.flags = 0
    client.compute([twice, square])
    assert client.get(square) == b"\x55" * square.nbytes()
    a = np.frombuffer(client.get(twice.src[0]), np.float32)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.frombuffer(client.get(twice), np.float32), a + a)
    leave(server, client)


def test_a_graph_without_any_flag_is_computed_whole(server: Server) -> None:
    client, _ = join(server, dialects.find("3.5.0"))
    twice, square = doubled(client)
    client.compute([twice, square])
    a = np.frombuffer(client.get(twice.src[0]), np.float32)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.frombuffer(client.get(twice), np.float32), a + a)
    np.testing.assert_array_equal(np.frombuffer(client.get(square), np.float32), a * a)
    leave(server, client)


def test_where_all_tables_know_the_flag_nothing_bears_it_and_nothing_is_computed(server: Server) -> None:
    client, _ = join(server, dialects.find("4.0.2"))
    twice, _ = doubled(client)
    client.set(twice, b"\x55" * twice.nbytes())
    twice.flags = 0
    client.compute([twice])
    assert client.get(twice) == b"\x55" * twice.nbytes()
    leave(server, client)


def test_a_bad_graph_of_an_old_client_is_not_taken_for_one_without_work(server: Server) -> None:
    """Tables with the flag would allow it, because they would pass over its node."""
    client, _ = join(server, dialects.find("3.5.0"))
    work = Work(client)
    node = work.arena.node("MUL_MAT", "F32", (6, 4), [work.w, work.c], name="victim")
    client.send(Command.GRAPH_COMPUTE, graph_payload(client.dialect, [node]))
    assert client.closed_by_peer()
    leave(server, client)


def test_a_bad_graph_of_a_new_client_is_not_taken_for_an_old_ones(server: Server, log: ServerLog) -> None:
    """ik_llama.cpp's SOFT_MAX has a number that is ROPE in llama.cpp: flagged, it is a ROPE without positions."""
    client, _ = join(server, dialects.find("3.6.1"))
    work = Work(client)
    node = work.arena.node("SOFT_MAX", "F32", (32, 4), [work.a], params=struct.pack("<2f", 1.0, 0.0), name="victim")
    ik = dialects.find("ik-3.5.2@2026-02-25")
    payload = graph_payload(ik, [node])
    at = len(payload) - ik.record.size
    client.send(Command.GRAPH_COMPUTE, payload[:at] + patch(ik, payload[at:], "flags", int(TensorFlag.COMPUTE)))
    assert client.closed_by_peer()
    log.wait_for(lambda line: "'victim'" in line and "ROPE" in line)
    leave(server, client)


def test_views_say_nothing_about_the_flag(server: Server, log: ServerLog) -> None:
    """A graph of views alone keeps old and new tables; the next one settles it."""
    for name, flag in (("3.6.1", True), ("3.6.0@2025-12-05", False)):
        log.clear()
        dialect = dialects.find(name)
        client, _ = join(server, dialect)
        work = Work(client)
        client.alloc_size(work.a)  # leaves 3.6 only
        view = work.arena.node("RESHAPE", "F32", (64, 2), [work.a])
        view.view_src, view.data, view.flags = work.a, work.a.data, 0
        client.compute([view])
        client.memory()
        assert {dialects.find(n).compute_flag for n in settled(log, dialect)} == {True, False}
        work.check()
        assert {dialects.find(n).compute_flag for n in settled(log, dialect)} == {flag}
        leave(server, client)


# ---- Sizes of records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "ends"),
    [
        ("ik-3.5.2@2026-04-13", 296, ["3.6.1", "ik-3.5.1@2025-11-30"]),
        ("ik-3.5.2@2026-05-19", 312, ["ik-3.5.2@2026-05-19"] * 2),
        ("ik-3.5.2", 344, ["ik-3.5.2", "ik-3.5.2@2026-06-29"]),
    ],
)
def test_a_write_shows_the_size_of_the_record(
    server: Server, log: ServerLog, name: str, size: int, ends: list[str]
) -> None:
    """SET_TENSOR has any length: what stands in it must lie in the client's buffer, by one reading only."""
    dialect = dialects.find(name)
    assert dialect.record.size == size
    client, _ = join(server, dialect)
    work = Work(client)  # alloc, base, SET_TENSOR and nothing else
    client.memory()
    left = settled(log, dialect)
    assert [left[0], left[-1]] == ends
    assert {dialects.find(n).record.size for n in left} == {size}
    data = np.arange(128, dtype=np.float32)
    client.set(work.a, data.tobytes())
    assert client.get(work.a) == data.tobytes()
    leave(server, client)


@pytest.mark.parametrize("name", ["3.6.1", "3.5.0", "ik-3.5.2@2026-05-19", "ik-3.5.2"])
@pytest.mark.parametrize("size", [0, 1, 16, 48, 56, 4096])
def test_writes_of_any_length_are_told_apart(server: Server, name: str, size: int) -> None:
    client, _ = join(server, dialects.find(name))
    buffer = client.alloc(MIB)
    t = Arena(buffer.handle, buffer.base, MIB).leaf("I8", (8192,), "x")
    data = bytes(i % 251 for i in range(size))
    client.set(t, data, 100)
    assert client.get(t, 100, size) == data
    leave(server, client)


def test_a_record_that_can_be_read_in_two_sizes_is_refused(server: Server, log: ServerLog) -> None:
    """The address that the shorter record would have stands among the sources of the longer one."""
    dialect = dialects.find("ik-3.5.2")
    client, _ = join(server, dialect)
    buffer = client.alloc(MIB)
    t = Arena(buffer.handle, buffer.base, MIB).leaf("I8", (8192,), "x")
    record = patch(dialect, t.pack(dialect), "src", t.data, index=12)
    client.send(Command.SET_TENSOR, record + bytes(8) + bytes(100))
    assert client.closed_by_peer()
    line = log.wait_for(lambda line: "can be read as" in line)
    assert "--proto" in line
    leave(server, client)


@pytest.mark.parametrize("length", [0, 1, 8, 200, 303, 304, 319, 351])
def test_short_writes_are_refused(server: Server, log: ServerLog, length: int) -> None:
    client, _ = join(server, dialects.find("ik-3.5.2"))
    client.alloc(MIB)
    client.send(Command.SET_TENSOR, bytes(length))
    assert client.closed_by_peer()
    log.wait_for(lambda line: "SET_TENSOR" in line and "connection closed" in line)
    leave(server, client)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("3.0.0@2025-11-13", Command.GET_ALLOC_SIZE),
        ("3.6.1", Command.GET_ALLOC_SIZE),
        ("3.5.0", Command.GET_ALLOC_SIZE),
        ("ik-3.5.2", Command.GET_ALLOC_SIZE),
        ("ik-3.5.2@2026-05-19", Command.INIT_TENSOR),
        ("ik-3.5.2", Command.COPY_TENSOR),
        ("ik-3.5.2@2026-05-19", Command.GET_TENSOR),
        ("ik-3.5.2", Command.SET_TENSOR_HASH),
    ],
)
def test_fixed_lengths_show_the_size_of_the_record(server: Server, log: ServerLog, name: str, command: Command) -> None:
    dialect = dialects.find(name)
    client, _ = join(server, dialect)
    buffer = client.alloc(MIB)
    arena = Arena(buffer.handle, buffer.base, MIB)
    t, other = arena.leaf("F32", (8, 4)), arena.leaf("F32", (8, 4))
    if command is Command.GET_ALLOC_SIZE:
        assert client.alloc_size(t) == 128
    elif command is Command.INIT_TENSOR:
        client.init(t)
    elif command is Command.COPY_TENSOR:
        assert client.copy(t, other) == 1
    elif command is Command.GET_TENSOR:
        assert len(client.get(t)) == 128
    else:
        assert client.set_hash(t, 1) == 0
    leave(server, client)
    left = [dialects.find(n) for n in settled(log, dialect)]
    assert dialect in left
    assert {d.request_size(command) for d in left} == {dialect.request_size(command)}


def test_a_type_shows_the_table(server: Server, log: ServerLog) -> None:
    """IQ4_KS exists in ik_llama.cpp only."""
    dialect = dialects.find("ik-3.5.2@2026-02-25")
    client, _ = join(server, dialect)
    buffer = client.alloc(MIB)
    t = Arena(buffer.handle, buffer.base, MIB).leaf("IQ4_KS", (256, 4))
    client.init(t)
    leave(server, client)
    assert all(n.startswith("ik-") for n in settled(log, dialect))


def test_glu_kinds_are_known_in_all_these_tables() -> None:
    """The kind that `Work` uses has one number everywhere, so that only the op's number differs."""
    assert {d.glu.index(int(GluKind.REGLU)) for d in dialects.DIALECTS} == {0}
