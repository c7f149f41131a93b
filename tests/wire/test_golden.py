"""Exact bytes: what a reply must look like on the wire, and records as stock clients wrote them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.limits import MAX_NAME
from ggml_rpc.spec.ops import OP_BY_ID
from tests.replay.replayer import load
from tests.support.rawclient import RawClient
from tests.support.servers import RunningServer
from tests.support.wiretensor import Tensor, enum_values
from tests.wire.golden import GOLDEN, Golden
from tests.wire.session import Attacker

CAPTURES = Path(__file__).parents[1] / "replay" / "captures"


@pytest.fixture
def golden(dialect: dialects.Dialect) -> Golden:
    """Return the hand-written bytes of the protocol."""
    return GOLDEN[dialect.name]


class Wire:
    """Send bytes and compare what comes back, byte by byte."""

    def __init__(self, client: RawClient) -> None:
        self.client = client

    def exchange(self, request: str | bytes, reply_bytes: int) -> str:
        """Send and return so many bytes of the answer in hexadecimal."""
        self.client.send_raw(bytes.fromhex(request) if isinstance(request, str) else request)
        return self.client.receive_exactly(reply_bytes).hex()

    def expect(self, request: str | bytes, reply: str) -> None:
        """Send, and require this answer."""
        wanted = bytes.fromhex(reply)
        assert self.exchange(request, len(wanted)) == wanted.hex()


def raw(text: str, *values: int) -> bytes:
    """Return bytes given in hexadecimal, and u64 values behind them."""
    return bytes.fromhex(text) + struct.pack(f"<{len(values)}Q", *values)


@pytest.fixture
def wire(server: RunningServer, dialect: dialects.Dialect, golden: Golden) -> Iterator[Wire]:
    """Connect and say HELLO in golden bytes."""
    with RawClient(server.endpoint, dialect, hello=False) as client:
        wire = Wire(client)
        wire.expect(golden.hello, golden.hello_reply)
        yield wire


def test_hello_twice(wire: Wire, golden: Golden) -> None:
    """The first went well, or there would be no fixture; the second ends the session."""
    wire.client.send_raw(bytes.fromhex(golden.hello))
    assert wire.client.closed_by_peer()


def test_hello_of_the_other_length(server: RunningServer, dialect: dialects.Dialect, golden: Golden) -> None:
    other = "0e0000000000000000" if len(golden.hello) > 18 else "0e1800000000000000" + "00" * 24
    with RawClient(server.endpoint, dialect, hello=False) as client:
        client.send_raw(bytes.fromhex(other))
        assert client.closed_by_peer()


def test_caps_of_a_client_are_ignored(server: RunningServer, dialect: dialects.Dialect) -> None:
    """A client that offers another transport is answered with zeros and stays on TCP."""
    if dialect.hello_request == 0:
        pytest.skip("the protocol knows no other transport")
    with RawClient(server.endpoint, dialect, hello=False) as client:
        got = Wire(client).exchange(bytes.fromhex("0e1800000000000000") + b"\x7f" * 24, 36)
        assert got.endswith("00" * 24)
        assert client.device_count() == 1


def test_queries(wire: Wire, golden: Golden) -> None:
    alignment = bytes.fromhex(wire.exchange(golden.alignment, 16))
    value = int.from_bytes(alignment[8:], "little")
    assert alignment[:8].hex() == "0800000000000000"
    assert value >= 32
    assert value & (value - 1) == 0
    assert wire.exchange(golden.max_size, 16).startswith("0800000000000000")
    assert wire.exchange(golden.memory, 24).startswith("1000000000000000")
    if golden.count:
        wire.expect(golden.count, "0400000000000000 01000000")
    else:
        wire.client.send_raw(bytes.fromhex("0f0000000000000000"))
        assert wire.client.closed_by_peer()


def test_conversation(wire: Wire, golden: Golden) -> None:
    """Every command that needs a buffer, each with all its bytes and all of its answer."""
    reply = bytes.fromhex(wire.exchange(raw(golden.alloc, 4096), 24))
    length, handle, size = struct.unpack("<QQQ", reply)
    assert length == 16
    assert size >= 4096
    length, base = struct.unpack("<QQ", bytes.fromhex(wire.exchange(raw("030800000000000000", handle), 16)))
    assert length == 8
    wire.expect(raw("050900000000000000", handle) + b"\x11", golden.done)
    x = golden.record.pack(id=1, buffer=handle, ne=(8, 4), data=base)
    y = golden.record.pack(
        id=2, buffer=handle, ne=(8, 4), data=base + 1024, op=golden.scale, params=struct.pack("<f", 2.0), src=1
    )
    wire.expect(raw(golden.init) + x, golden.done)
    before = struct.pack("<32f", *range(32))
    wire.expect(raw(golden.set) + x + raw(golden.set_flag, 0) + before, "")
    wire.expect(raw(golden.hash) + x + raw("", 0, 0x1234), "0100000000000000 00")
    wire.expect(raw(golden.get) + x + raw("", 0, 128), "8000000000000000" + before.hex())
    unplaced = golden.record.pack(id=1, buffer=0, ne=(8, 4), data=0)
    device = bytes.fromhex(golden.device)
    n_sources = (len_of(golden.alloc_size) - len(device)) // golden.record.size - 1
    sources = bytes(n_sources * golden.record.size)
    wire.expect(raw(golden.alloc_size) + device + unplaced + sources, "0800000000000000 8000000000000000")
    graph = raw(golden.graph, 2) + b"\x02\0\0\0" + x + y
    wire.expect(graph, golden.status)
    after = struct.pack("<32f", *(2.0 * i for i in range(32)))
    wire.expect(raw(golden.get) + y + raw("", 0, 128), "8000000000000000" + after.hex())
    wire.expect(raw(golden.copy) + y + x, "0100000000000000 01")
    if golden.recompute:
        wire.expect(golden.recompute, "")
    else:
        wire.expect(graph, golden.status)
    twice = struct.pack("<32f", *(4.0 * i for i in range(32)))
    wire.expect(raw(golden.get) + y + raw("", 0, 128), "8000000000000000" + twice.hex())
    if golden.memset:
        wire.expect(raw(golden.memset) + y + raw("", 4, 8) + b"\x55", golden.memset_reply)
        wire.expect(raw(golden.get) + y + raw("", 0, 16), "1000000000000000 00000000" + "55" * 8 + "00004041")
    wire.expect(raw("040800000000000000", handle), golden.done)
    assert wire.exchange(golden.memory, 24).startswith("1000000000000000")


def len_of(head: str) -> int:
    """Return the payload length that a request's head announces."""
    return int.from_bytes(bytes.fromhex(head)[1:9], "little")


def test_commands_without_a_reply_send_nothing(wire: Wire, dialect: dialects.Dialect, golden: Golden) -> None:
    """Several such commands back to back; the first bytes that come are those of the query behind them."""
    if golden.done:
        pytest.skip("all commands in question have replies")
    a = Attacker(wire.client)
    x = a.tensor(name="x")
    node = a.arena.node("ADD", "F32", (8, 4), [x, x])
    clear = struct.pack("<QB", a.buffer.handle, 0)
    wire.client.send(dialect.commands[Command.BUFFER_CLEAR], clear)
    wire.client.init(x)
    wire.client.set(x, bytes(128))
    wire.client.memset(x, 1)
    wire.client.compute([node], uid=1)
    wire.client.recompute(uid=1)
    wire.expect(golden.count, "0400000000000000 01000000")


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*/llama-fa0.json")), ids=lambda p: p.parent.name)
def test_our_records_equal_those_of_stock_clients(path: Path) -> None:
    """Take every record of a recorded graph apart and build it anew: the same bytes."""
    capture = load(path)
    d = capture.dialect
    checked = 0
    for m in (m for c in capture.connections for m in c if m.from_client and m.command is Command.GRAPH_COMPUTE):
        payload = capture.c2s[m.offset + 9 : m.offset + m.length]
        head = d.request_header(Command.GRAPH_COMPUTE)
        (n_nodes,) = struct.unpack_from("<I", payload, head - 4)
        (n_tensors,) = struct.unpack_from("<I", payload, head + 8 * n_nodes)
        at = head + 8 * n_nodes + 4
        assert len(payload) == at + n_tensors * d.record.size
        known: dict[int, Tensor] = {}
        for _ in range(n_tensors):
            record = payload[at : at + d.record.size]
            t = _unpack(d, record, known)
            known[t.id] = t
            assert t.pack(d) == record
            at += d.record.size
            checked += 1
    assert checked > 100


def _internal(d: dialects.Dialect, op: int, params: bytes) -> bytes:
    """Return parameter words with values of enumerations by their internal ids."""
    words = list(struct.unpack("<16I", params))
    for p in OP_BY_ID[op].params:
        if p.enum is not None:
            wire = words[p.word] & p.mask
            words[p.word] = words[p.word] & ~p.mask | enum_values(d, p.enum).get(wire, wire)
    return struct.pack("<16I", *words)


def _unpack(d: dialects.Dialect, record: bytes, known: dict[int, Tensor]) -> Tensor:
    """Return a record as a tensor whose sources are the ones met before it."""
    v = struct.unpack(d.record.struct_format, record)
    params, rest = struct.pack("<16i", *v[12:28]), v[28:]
    behind = 1 + d.record.max_src
    flags, src, (view_src, view_offs, data, name) = rest[0], rest[1:behind], rest[behind : behind + 4]
    last = max((i for i, s in enumerate(src) if s), default=-1)
    return Tensor(
        id=v[0],
        type=d.types[v[1]],
        buffer=v[2],
        ne=list(v[3:7]),
        nb=list(v[7:11]),
        op=d.ops[v[11]],
        params=_internal(d, d.ops[v[11]], params),
        flags=flags,
        src=[known[s] if s else None for s in src[: last + 1]],
        view_src=known[view_src] if view_src else None,
        view_offs=view_offs,
        data=data,
        name=name[:MAX_NAME].split(b"\0")[0].decode(),
        use_count=rest[-1] if d.record.has_use_count else 0,
    )
