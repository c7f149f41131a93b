"""Whatever a record says, nothing outside the client's own buffers is seen or touched."""

from __future__ import annotations

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from tests.support.rawclient import RawClient
from tests.support.servers import RunningServer
from tests.support.wiretensor import graph_payload, patch
from tests.wire.kinds import heavy
from tests.wire.session import BUFFER_BYTES, Attacker, Neighbour

FILL = 0x5A

hostile = settings(
    max_examples=150,
    # The server and its neighbour are meant to live through all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

U32 = st.one_of(
    st.integers(0, 40),
    st.sampled_from([64, 128, 4096, 1 << 16, 1 << 20, (1 << 31) - 4, 1 << 31, (1 << 32) - 4, (1 << 32) - 1]),
    st.integers(0, (1 << 32) - 1),
)
OFFSETS = st.one_of(
    st.integers(0, 130),
    st.integers(0, 130),
    st.integers(0, 4096),
    st.integers(-64, 64).map(lambda n: (BUFFER_BYTES + n) & ((1 << 64) - 1)),
    st.integers(-256, -1).map(lambda n: n & ((1 << 64) - 1)),
    st.sampled_from([1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1]),
)
FIELDS = st.lists(
    st.one_of(
        st.tuples(st.just("type"), st.just(0), st.integers(0, 45)),
        st.tuples(st.just("ne"), st.integers(0, 3), U32),
        st.tuples(st.just("nb"), st.integers(0, 3), U32),
        st.tuples(st.just("base"), st.just(0), OFFSETS),
        st.tuples(st.just("view_offs"), st.just(0), OFFSETS),
        st.tuples(st.just("view_src"), st.just(0), st.sampled_from([0, 1, 0x1234])),
        st.tuples(st.just("flags"), st.just(0), U32),
    ),
    min_size=0,
    max_size=5,
)


def spoiled(a: Attacker, changes: list[tuple[str, int, int]]) -> bytes:
    """Return a record of a good tensor with some fields overwritten; `base` is an address relative to the buffer."""
    record = a.tensor().pack(a.dialect)
    for field, index, value in changes:
        if field == "base":
            record = patch(a.dialect, record, "data", a.buffer.base + value)
        else:
            record = patch(a.dialect, record, field, value, index=index)
    return record


@heavy
@hostile
@given(changes=FIELDS, offset=OFFSETS, size=OFFSETS)
def test_reads_show_only_the_own_buffer(
    *,
    server: RunningServer,
    dialect: dialects.Dialect,
    neighbour: Neighbour,
    changes: list[tuple[str, int, int]],
    offset: int,
    size: int,
) -> None:
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        client.clear(a.buffer.handle, FILL)
        request = spoiled(a, changes) + struct.pack("<QQ", offset, size)
        client.send(dialect.commands[Command.GET_TENSOR], request)
        try:
            data = client.reply()
        except ConnectionError:
            return
        assert len(data) == size <= BUFFER_BYTES
        assert data == bytes([FILL]) * size


@heavy
@hostile
@given(changes=FIELDS, offset=OFFSETS, size=OFFSETS)
def test_writes_touch_only_the_own_buffer(
    *,
    server: RunningServer,
    dialect: dialects.Dialect,
    neighbour: Neighbour,
    changes: list[tuple[str, int, int]],
    offset: int,
    size: int,
) -> None:
    """The guards are buffers of the same session on both sides in time; the neighbour checks its own."""
    with RawClient(server.endpoint, dialect) as client:
        before = Attacker(client)
        a = Attacker(client)
        after = Attacker(client)
        guards = [g.tensor(ne=(BUFFER_BYTES // 4,)) for g in (before, after)]
        for guard in guards:
            client.memset(guard, FILL)
        record = spoiled(a, changes)
        try:
            if Command.MEMSET_TENSOR in dialect.commands:
                client.send(Command.MEMSET_TENSOR, record + struct.pack("<QQB", offset, size, 0xA5))
            else:  # what exceeds the buffer is refused by its announced length
                request = record + struct.pack("<Q", offset) + b"\xa5" * min(size, 2 * BUFFER_BYTES)
                client.send(Command.SET_TENSOR, request, min(len(record) + 8 + size, (1 << 64) - 1))
            for guard in guards:
                assert client.get(guard) == bytes([FILL]) * BUFFER_BYTES
        except ConnectionError:
            return
    neighbour.check()


@heavy
@hostile
@given(data=st.data())
def test_changed_graphs_are_refused_or_run(
    server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour, data: st.DataObject
) -> None:
    """Change some bytes of a graph of three nodes: the connection closes or goes on, and no other notices."""
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        x = a.tensor(name="x")
        first = a.arena.node("ADD", "F32", (8, 4), [x, x])
        second = a.arena.node("MUL", "F32", (8, 4), [first, x])
        third = a.arena.node("SUB", "F32", (8, 4), [second, first])
        payload = bytearray(graph_payload(dialect, [first, second, third], uid=1))
        for _ in range(data.draw(st.integers(1, 6))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        try:
            client.call(Command.GRAPH_COMPUTE, bytes(payload))
            client.barrier()
        except ConnectionError:
            neighbour.check()
