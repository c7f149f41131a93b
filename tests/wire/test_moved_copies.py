"""ik_llama.cpp 5.5.5 runs a graph again with its CPY nodes moved: where they write to stands in GRAPH_RECOMPUTE."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.enums import TensorFlag
from ggml_rpc.spec.ops import OP_BY_NAME
from tests.support.rawclient import RawClient
from tests.support.servers import RunningServer
from tests.support.wiretensor import Tensor, tensor
from tests.wire.session import Attacker, Neighbour, ServerLog

ROW = 32
"""Bytes of a row of 8 F32."""
CELLS = 16
FILL = b"\x11"

pytestmark = pytest.mark.parametrize("dialect", ["ik-5.5.5"], indirect=True, scope="module")


class Caches:
    """Two caches of 16 rows, each written by a copy of one row into a view of it, and a sum that reads one of them."""

    def __init__(self, client: RawClient, start: Sequence[int] = (0, 0)) -> None:
        self.a = Attacker(client)
        self.client = client
        self.fresh = [self.a.tensor(ne=(8,), name=f"fresh {i}") for i in range(2)]
        self.caches = [self.a.tensor(ne=(8, CELLS), name=f"cache {i}") for i in range(2)]
        self.beside = self.a.tensor(ne=(8,), name="beside")
        for t in (*self.caches, self.beside):
            client.set(t, FILL * t.nbytes())
        self.nodes: list[Tensor] = []
        for fresh, cache, cell in zip(self.fresh, self.caches, start, strict=True):
            # As the client builds it: a view into the cache, and the copy, itself a view of the same place.
            place = self._at(cache, cell * ROW, OP_BY_NAME["VIEW"].id, "place")
            place.src = [cache]
            copy = self._at(cache, cell * ROW, OP_BY_NAME["CPY"].id, "victim")
            copy.src = [fresh, place]
            self.nodes += [place, copy]
        self.total = self.a.arena.node("SUM", "F32", (1,), [self.caches[0]])
        self.nodes.append(self.total)

    @staticmethod
    def _at(cache: Tensor, offset: int, op: int, name: str) -> Tensor:
        t = tensor("F32", (8,), op=op, flags=int(TensorFlag.COMPUTE), name=name, buffer=cache.buffer)
        t.view_src, t.view_offs, t.data = cache, offset, cache.data + offset
        return t

    def feed(self, value: float) -> bytes:
        """Set both fresh rows; return the first's bytes."""
        rows = [struct.pack("<8f", *[value + i] * 8) for i in range(2)]
        for t, row in zip(self.fresh, rows, strict=True):
            self.client.set(t, row)
        return rows[0]

    def cells(self, which: int) -> list[float | None]:
        """Return the value of each cell; None where nothing was written."""
        data = self.client.get(self.caches[which])
        rows = [data[i : i + ROW] for i in range(0, len(data), ROW)]
        out: list[float | None] = []
        for row in rows:
            values = set(struct.unpack("<8f", row))
            assert len(values) == 1, "a row was written in part"
            out.append(None if row == FILL * ROW else values.pop())
        return out


@pytest.fixture
def client(server: RunningServer, dialect: dialects.Dialect) -> RawClient:
    """Connect; the server closes with the module."""
    return RawClient(server.endpoint, dialect)


def expected(written: dict[int, float]) -> list[float | None]:
    """Return the cells of a cache in which only these were written."""
    return [written.get(i) for i in range(CELLS)]


def test_copies_land_where_the_offsets_say(client: RawClient, neighbour: Neighbour) -> None:
    with client:
        c = Caches(client)
        c.feed(1.0)
        client.compute(c.nodes)
        first, second = {0: 1.0}, {0: 2.0}
        assert c.cells(0) == expected(first)
        for step, cells in enumerate([(1, 1), (2, 5), (15, 0), (15, 0), (3, 4)]):
            value = 10.0 * (step + 1)
            c.feed(value)
            client.recompute(view_offs=[n * ROW for n in cells])
            first[cells[0]], second[cells[1]] = value, value + 1
            assert c.cells(0) == expected(first)
            assert c.cells(1) == expected(second)
        assert client.get(c.beside) == FILL * ROW
        # The node behind the copies runs on the moved graph as on the first.
        total = struct.unpack("<f", client.get(c.total))[0]
        unwritten = struct.unpack("<f", FILL * 4)[0]
        assert total == pytest.approx(8 * (sum(first.values()) + unwritten * (CELLS - len(first))))


def test_the_same_offsets_change_nothing(client: RawClient) -> None:
    with client:
        c = Caches(client, start=(3, 7))
        c.feed(1.0)
        client.compute(c.nodes)
        for value in (2.0, 3.0):
            c.feed(value)
            client.recompute(view_offs=[3 * ROW, 7 * ROW])
            assert c.cells(0) == expected({3: value})
            assert c.cells(1) == expected({7: value + 1})


def test_offsets_back_to_back(client: RawClient) -> None:
    """Runs that wait behind each other each write to their own place."""
    with client:
        c = Caches(client)
        c.feed(5.0)
        client.compute(c.nodes)
        for cell in range(1, CELLS):
            client.recompute(view_offs=[cell * ROW, (CELLS - cell) * ROW])
        assert c.cells(0) == [5.0] * CELLS
        assert c.cells(1) == [6.0] * CELLS


def test_a_new_graph_replaces_the_moved_one(client: RawClient) -> None:
    with client:
        c = Caches(client)
        c.feed(1.0)
        client.compute(c.nodes)
        client.recompute(view_offs=[ROW, ROW])
        client.compute(c.nodes[1:2])  # one copy, at its first place
        c.feed(9.0)
        client.recompute(view_offs=[4 * ROW])
        assert c.cells(0) == expected({0: 1.0, 1: 1.0, 4: 9.0})
        assert c.cells(1) == expected({0: 2.0, 1: 2.0})


def test_a_cast_does_not_move(client: RawClient) -> None:
    """A CPY whose target is itself views nothing: its offset is 0 and stays so."""
    with client:
        a = Attacker(client)
        x = a.tensor(name="x")
        cast = a.arena.node("CPY", "F16", (8, 4), [x], name="victim")
        cast.src.append(cast)
        client.set(x, struct.pack("<32f", *range(32)))
        client.compute([cast])
        client.set(x, struct.pack("<32f", *range(32, 64)))
        client.recompute(view_offs=[0])
        assert struct.unpack("<32e", client.get(cast)) == tuple(float(i) for i in range(32, 64))
        client.recompute(view_offs=[16])
        assert client.closed_by_peer()


BAD_OFFSETS = {
    "behind the last row": CELLS * ROW,
    "half behind the end": CELLS * ROW - ROW // 2,
    "one element behind the end": (CELLS - 1) * ROW + 4,
    "far behind": 1 << 30,
    "behind the buffer": 1 << 21,
    "before the cache": (1 << 64) - ROW,
    "wrapping onto the cache": (1 << 64) - 64,
    "2^63": 1 << 63,
    "2^64-1": (1 << 64) - 1,
    "at an odd address": ROW + 2,
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("label", BAD_OFFSETS)
def test_bad_offsets_are_refused(
    client: RawClient, neighbour: Neighbour, log: ServerLog, label: str, which: int
) -> None:
    with client:
        c = Caches(client)
        c.feed(1.0)
        client.compute(c.nodes)
        client.barrier()
        offsets = [ROW, ROW]
        offsets[which] = BAD_OFFSETS[label]
        client.recompute(view_offs=offsets)
        assert client.closed_by_peer()
        log.wait_for(lambda line: "connection closed" in line and ("'place'" in line or "'victim'" in line))


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        (0, 0),
        (1, 1),
        (3, 3),
        (4096, 4096),
        (2, 1),
        (2, 3),
        (1, 2),
        (3, 2),
        (0, 2),
        ((1 << 32) - 1, 2),
        ((1 << 31) + 2, 2),
        (0x2000_0002, 2),  # 8 times that is 16 in 32 bits
    ],
)
def test_wrong_counts_are_refused(
    client: RawClient, neighbour: Neighbour, log: ServerLog, said: int, sent: int
) -> None:
    """Of a graph with two CPY nodes."""
    with client:
        c = Caches(client)
        c.feed(1.0)
        client.compute(c.nodes)
        client.barrier()
        client.send(Command.GRAPH_RECOMPUTE, struct.pack("<II", 0, said) + struct.pack(f"<{sent}Q", *[ROW] * sent))
        assert client.closed_by_peer()
        log.wait_for(lambda line: "connection closed" in line and "GRAPH_RECOMPUTE" in line)


@pytest.mark.parametrize("length", [0, 4, 7, 9, 15, 23, 25, 1 << 40, 1 << 63, (1 << 64) - 1])
def test_wrong_lengths_are_refused(client: RawClient, log: ServerLog, length: int) -> None:
    with client:
        c = Caches(client)
        client.compute(c.nodes)
        client.barrier()
        client.send(
            Command.GRAPH_RECOMPUTE, struct.pack("<IIQQ", 0, 2, ROW, ROW).ljust(32, b"\0")[: min(length, 32)], length
        )
        assert client.closed_by_peer()
        log.wait_for(lambda line: "connection closed" in line and "GRAPH_RECOMPUTE" in line)


@pytest.mark.parametrize("offsets", [[], [0], [0, 0]])
def test_nothing_stored(client: RawClient, log: ServerLog, offsets: list[int]) -> None:
    with client:
        client.recompute(view_offs=offsets)
        assert client.closed_by_peer()
        log.wait_for(lambda line: "holds no graph" in line)


def test_another_device(client: RawClient, log: ServerLog) -> None:
    with client:
        c = Caches(client)
        client.compute(c.nodes)
        client.recompute(device=1, view_offs=[ROW, ROW])
        assert client.closed_by_peer()
        log.wait_for(lambda line: "GRAPH_RECOMPUTE" in line and "device 1" in line)


def test_a_freed_cache(client: RawClient, log: ServerLog) -> None:
    """A graph that names a freed buffer is gone, moved or not."""
    with client:
        c = Caches(client)
        client.compute(c.nodes)
        client.recompute(view_offs=[ROW, ROW])
        client.free(c.a.buffer.handle)
        client.recompute(view_offs=[0, 0])
        assert client.closed_by_peer()
        log.wait_for(lambda line: "holds no graph" in line)


def test_a_copy_onto_what_it_reads(client: RawClient) -> None:
    """An offset that lets a copy write over its own source is refused, or done as if they did not overlap."""
    with client:
        a = Attacker(client)
        whole = a.tensor(ne=(64,), name="whole")
        client.set(whole, struct.pack("<64f", *range(64)))
        source = tensor("F32", (16,), name="source", buffer=whole.buffer, data=whole.data)
        source.view_src, source.op, source.src = whole, OP_BY_NAME["VIEW"].id, [whole]
        place = tensor("F32", (16,), name="place", buffer=whole.buffer, data=whole.data + 128)
        place.view_src, place.view_offs, place.op, place.src = whole, 128, OP_BY_NAME["VIEW"].id, [whole]
        copy = tensor("F32", (16,), name="victim", buffer=whole.buffer, data=place.data, op=OP_BY_NAME["CPY"].id)
        copy.view_src, copy.view_offs, copy.src = whole, 128, [source, place]
        client.compute([source, place, copy])
        client.recompute(view_offs=[8])
        try:
            got = struct.unpack("<64f", client.get(whole))
        except ConnectionError:
            return
        assert got[2:18] == tuple(float(i) for i in range(16))
