"""Compute the nodes of recorded graphs one by one on a stock server and on ours, both with the same inputs.

Both servers are sent every message of a recorded conversation. A graph is sent once for each of its nodes, with the
COMPUTE flag on that node alone; then both results are read and compared, and stock's is written into our server's
memory. So an error is that of one kernel, and never one that grew over the nodes before.

From the command line, with the endpoints of two fresh servers: `python -m tests.support.parity STOCK OURS CAPTURE...`
prints the worst error of each op and combination of types.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.enums import GluKind, TensorFlag, UnaryKind
from ggml_rpc.spec.ops import OP_BY_ID
from ggml_rpc.spec.types import TYPE_BY_ID
from tests.replay.replayer import REQUEST_HEADER, Capture, Connection, Message, Report, load, row_errors
from tests.support.quants import decode
from tests.support.rawclient import split_endpoint
from tests.support.wiretensor import Tensor, tensor

PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True)
class Deviation:
    """How far our result of one node lies from stock's.

    Parameters
    ----------
    op : str
        Op of the node, with the kind of a UNARY or GLU.
    types : str
        Types of the sources, then that of the result.
    shape : tuple of int
        `ne` of the result.
    mean, worst : float
        Normalised squared error of the whole result and of its worst row.
    changed : float
        Share of elements that differ at all; of bytes in quantised types.
    where : str
        Capture, number of the graph, and name of the node.
    """

    op: str
    types: str
    shape: tuple[int, ...]
    mean: float
    worst: float
    changed: float
    where: str


def records(dialect: dialects.Dialect, graph: bytes) -> tuple[list[Tensor], dict[int, Tensor], dict[int, int]]:
    """Take a GRAPH_COMPUTE payload apart: its nodes, its tensors by id, and where each one's record lies in it."""
    start = sum(f.size for f in dialect.request_fields(Command.GRAPH_COMPUTE))
    (n_nodes,) = struct.unpack_from("<I", graph, start - 4)
    node_ids = struct.unpack_from(f"<{n_nodes}Q", graph, start)
    (n_tensors,) = struct.unpack_from("<I", graph, start + 8 * n_nodes)
    first = start + 8 * n_nodes + 4
    tensors: dict[int, Tensor] = {}
    sources: dict[int, tuple[int, ...]] = {}
    places: dict[int, int] = {}
    n_src = dialect.record.max_src
    for at in range(first, first + n_tensors * dialect.record.size, dialect.record.size):
        values = struct.unpack_from(dialect.record.struct_format, graph, at)
        number = values[0]
        places[number] = at
        sources[number] = values[29 : 29 + n_src]
        tensors[number] = Tensor(
            dialect.types[values[1]],
            list(values[3:7]),
            list(values[7:11]),
            buffer=values[2],
            data=values[31 + n_src],
            op=dialect.ops[values[11]],
            params=struct.pack("<16i", *values[12:28]),
            flags=values[28],
            name=values[32 + n_src].split(b"\0")[0].decode("utf-8", "replace"),
            id=number,
        )
    for number, t in tensors.items():
        t.src = [tensors.get(s) for s in sources[number]]
    return [tensors[i] for i in node_ids], tensors, places


def label(t: Tensor) -> str:
    """Return the name of a node's op; UNARY and GLU with their kind."""
    name = OP_BY_ID[t.op].name
    kinds = {"UNARY": UnaryKind, "GLU": GluKind}
    return kinds[name](*struct.unpack_from("<i", t.params)).name if name in kinds else name


def signature(t: Tensor) -> str:
    """Return the types of a node's sources and of its result."""
    sources = [TYPE_BY_ID[s.type].name for s in t.src if s is not None and s is not t]
    return f"{' '.join(sources)} -> {TYPE_BY_ID[t.type].name}"


def values(t: Tensor, data: bytes) -> npt.NDArray[np.float64]:
    """Return the elements of a result as rows of float64, from the bytes between its first and its last."""
    name = TYPE_BY_ID[t.type].name
    shape = tuple(reversed(t.ne))
    if name in PLAIN or name == "BF16":
        array = np.ndarray(shape, "<u2" if name == "BF16" else PLAIN[name], data, 0, tuple(reversed(t.nb)))
        if name == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float64).reshape(-1, t.ne[0])
    row = TYPE_BY_ID[t.type].row_bytes(t.ne[0])
    raw = np.ndarray((*shape[:3], row), np.uint8, data, 0, (*reversed(t.nb[1:]), 1))
    floats = decode(np.ascontiguousarray(raw).reshape(-1, row), name)
    return floats.astype(np.float64).reshape(-1, t.ne[0])


def compare(t: Tensor, ours: bytes, stock: bytes, where: str) -> Deviation:
    """Compare two results of a node, given as the bytes between its first and its last element."""
    got, want = values(t, ours), values(t, stock)
    per_row = row_errors(got, want)
    mean = float(row_errors(got.reshape(1, -1), want.reshape(1, -1))[0])
    if TYPE_BY_ID[t.type].block > 1:
        changed = np.frombuffer(ours, np.uint8) != np.frombuffer(stock, np.uint8)
    else:
        changed = (got != want) & ~(np.isnan(got) & np.isnan(want))
    shape = tuple(t.ne)
    return Deviation(label(t), signature(t), shape, mean, float(per_row.max()), float(changed.mean()), where)


def covering(t: Tensor) -> Tensor:
    """Return a tensor of single bytes from the first to the last of another."""
    return tensor("I8", [t.nbytes()], buffer=t.buffer, data=t.data, name=t.name)


def one_node_graphs(dialect: dialects.Dialect, graph: bytes) -> Iterator[tuple[Tensor, bytes]]:
    """Yield each node that computes, in order, with a GRAPH_COMPUTE payload that computes it alone."""
    nodes, _tensors, places = records(dialect, graph)
    flags_at = dialect.record.offsets["flags"]
    quiet = bytearray(graph)
    if dialect.graph_uid:
        quiet[4:12] = bytes(8)  # a graph without uid is not kept
    for node in nodes:
        struct.pack_into("<i", quiet, places[node.id] + flags_at, node.flags & ~TensorFlag.COMPUTE)
    for node in nodes:
        if node.flags & TensorFlag.COMPUTE and not OP_BY_ID[node.op].is_noop and 0 not in node.ne:
            one = bytearray(quiet)
            struct.pack_into("<i", one, places[node.id] + flags_at, node.flags)
            yield node, bytes(one)


def fetch(connection: Connection, t: Tensor) -> bytes:
    """Return the bytes from the first to the last element of a recorded tensor."""
    extent = covering(t)
    return connection.call(Command.GET_TENSOR, extent.pack(connection.dialect) + struct.pack("<QQ", 0, extent.nbytes()))


def store(connection: Connection, t: Tensor, data: bytes) -> None:
    """Write the bytes from the first to the last element of a recorded tensor."""
    flag = bytes(1) if connection.dialect.set_tensor_cache_flag else b""
    connection.call(Command.SET_TENSOR, covering(t).pack(connection.dialect) + flag + bytes(8) + data)


class Lockstep:
    """Two connections that are sent the same conversation, stock's first."""

    def __init__(self, stock: str, ours: str, capture: Capture, timeout: float = 60.0) -> None:
        self.capture, self.dialect = capture, capture.dialect
        self.pair = tuple(
            Connection(split_endpoint(end), capture, Report(capture.name), timeout) for end in (stock, ours)
        )
        self.graphs: dict[bytes, bytes] = {}
        self.n_graphs = 0

    def close(self) -> None:
        """Close both."""
        for connection in self.pair:
            connection.socket.close()

    def run(self, messages: Sequence[Message]) -> Iterator[Deviation]:
        """Walk through the messages and yield a result for each node that computes."""
        replies = [m for m in messages if not m.from_client]
        streams = [iter(replies), iter(replies)]
        for m in messages:
            if not m.from_client:
                continue
            payload = self.capture.c2s[m.offset + REQUEST_HEADER : m.offset + m.length]
            if m.command is Command.GRAPH_COMPUTE:
                # Device and uid lead both requests.
                self.graphs[payload[: 12 if self.dialect.graph_uid else 4]] = payload
                yield from self.single_nodes(payload)
            elif m.command is Command.GRAPH_RECOMPUTE:
                yield from self.single_nodes(self.graphs[payload])
            else:
                for connection, stream in zip(self.pair, streams, strict=True):
                    connection.exchange(m, stream)

    def single_nodes(self, graph: bytes) -> Iterator[Deviation]:
        """Compute the nodes of a graph one by one."""
        self.n_graphs += 1
        _stock, ours = self.pair
        for node, one in one_node_graphs(self.dialect, graph):
            results = []
            for connection in self.pair:
                connection.call(Command.GRAPH_COMPUTE, one)
                results.append(fetch(connection, node))
            yield compare(node, results[1], results[0], f"{self.capture.name} graph {self.n_graphs} {node.name}")
            store(ours, node, results[0])


def walk(stock: str, ours: str, capture: Capture) -> Iterator[Deviation]:
    """Compute every node of a capture on both servers.

    Parameters
    ----------
    stock, ours : str
        Endpoints `host:port`, each with the number of devices that was recorded.
    """
    for messages in capture.connections:
        pair = Lockstep(stock, ours, capture)
        try:
            yield from pair.run(messages)
        finally:
            pair.close()


def worst_by(deviations: Iterable[Deviation], key: Callable[[Deviation], str]) -> dict[str, Deviation]:
    """Return the node with the worst row for each key."""
    out: dict[str, Deviation] = {}
    for d in deviations:
        name = key(d)
        if name not in out or d.worst > out[name].worst:
            out[name] = d
    return dict(sorted(out.items()))


def table(deviations: Iterable[Deviation]) -> list[str]:
    """Return lines that show the worst node of every op and combination of types."""
    return [
        f"{name:58s} worst row {d.worst:.2e}  whole {d.mean:.2e}  changed {d.changed:.3f}  {list(d.shape)} {d.where}"
        for name, d in worst_by(deviations, lambda d: f"{d.op} {d.types}").items()
    ]


def main() -> int:
    """Print a table for captures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stock")
    parser.add_argument("ours")
    parser.add_argument("capture", type=Path, nargs="+")
    options = parser.parse_args()
    for path in options.capture:
        print(path)
        for line in table(walk(options.stock, options.ours, load(path))):
            print(" ", line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
