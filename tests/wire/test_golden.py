"""Exact bytes: what a reply must look like on the wire, and records as stock clients wrote them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.limits import MAX_NAME
from tests.replay.replayer import load
from tests.support.rawclient import RawClient, frame
from tests.support.servers import RunningServer
from tests.support.wiretensor import Tensor
from tests.wire.session import Attacker

CAPTURES = Path(__file__).parents[1] / "replay" / "captures"


def exchange(client: RawClient, request: bytes, reply_bytes: int) -> str:
    """Send bytes and return so many bytes of the answer in hexadecimal."""
    client.send_raw(request)
    return client.receive_exactly(reply_bytes).hex()


def test_hello(server: RunningServer, dialect: dialects.Dialect) -> None:
    with RawClient(server.endpoint, dialect, hello=False) as client:
        got = exchange(client, bytes.fromhex("0e1800000000000000") + bytes(24), 36)
        assert got == "1c00000000000000" + bytes(dialect.announce).hex() + "00" + "00" * 24


def test_caps_of_a_client_are_ignored(server: RunningServer, dialect: dialects.Dialect) -> None:
    """A client that offers another transport is answered with zeros and stays on TCP."""
    with RawClient(server.endpoint, dialect, hello=False) as client:
        got = exchange(client, bytes.fromhex("0e1800000000000000") + b"\x7f" * 24, 36)
        assert got.endswith("00" * 24)
        assert client.device_count() == 1


def test_queries(server: RunningServer, dialect: dialects.Dialect) -> None:
    with RawClient(server.endpoint, dialect) as client:
        assert exchange(client, bytes.fromhex("0f0000000000000000"), 12) == "040000000000000001000000"
        alignment = exchange(client, bytes.fromhex("01040000000000000000000000"), 16)
        assert alignment.startswith("0800000000000000")
        value = int.from_bytes(bytes.fromhex(alignment)[8:], "little")
        assert value >= 32
        assert value & (value - 1) == 0
        assert exchange(client, bytes.fromhex("0b040000000000000000000000"), 24).startswith("1000000000000000")


def test_commands_without_a_reply_send_nothing(server: RunningServer, dialect: dialects.Dialect) -> None:
    """Several such commands back to back; the first bytes that come are those of the query behind them."""
    with RawClient(server.endpoint, dialect) as client:
        a = Attacker(client)
        x = a.tensor(name="x")
        node = a.arena.node("ADD", "F32", (8, 4), [x, x])
        clear = struct.pack("<QB", a.buffer.handle, 0)
        client.send(dialect.commands[Command.BUFFER_CLEAR], clear)
        client.init(x)
        client.set(x, bytes(128))
        client.memset(x, 1)
        client.compute([node], uid=1)
        client.recompute(uid=1)
        assert exchange(client, frame(dialect.commands[Command.DEVICE_COUNT]), 12) == "040000000000000001000000"


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


def _unpack(d: dialects.Dialect, record: bytes, known: dict[int, Tensor]) -> Tensor:
    """Return a record as a tensor whose sources are the ones met before it."""
    v = struct.unpack(d.record.struct_format, record)
    params, rest = struct.pack("<16i", *v[12:28]), v[28:]
    flags, src, (view_src, view_offs, data, name, use_count) = rest[0], rest[1:11], rest[11:16]
    last = max((i for i, s in enumerate(src) if s), default=-1)
    return Tensor(
        id=v[0],
        type=d.types[v[1]],
        buffer=v[2],
        ne=list(v[3:7]),
        nb=list(v[7:11]),
        op=d.ops[v[11]],
        params=params,
        flags=flags,
        src=[known[s] if s else None for s in src[: last + 1]],
        view_src=known[view_src] if view_src else None,
        view_offs=view_offs,
        data=data,
        name=name[:MAX_NAME].split(b"\0")[0].decode(),
        use_count=use_count,
    )
