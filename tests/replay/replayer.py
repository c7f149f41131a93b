"""Replay a recorded conversation of a stock client against a server and compare the replies.

A capture is three files: `NAME.json` (connections and their messages), `NAME.c2s.zst` and `NAME.s2c.zst` (what client
and server sent; the former may need that of another capture as its dictionary). The client's requests are sent again
with handles and addresses rewritten to those of the server under test; every reply must have the recorded length, most
the recorded content, and tensors must agree within a tolerance.

From the command line: `python replayer.py HOST:PORT CAPTURE...` prints a line a capture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command, ReplyKind
from ggml_rpc.spec.types import TYPE_BY_ID

REQUEST_HEADER = 9
REPLY_HEADER = 8

EXACT = {Command.DEVICE_COUNT, Command.SET_TENSOR_HASH, Command.COPY_TENSOR, Command.GRAPH_COMPUTE, Command.COMM_INIT}
"""Commands whose reply must equal the recorded one byte for byte."""


MAX_ATTEMPTS = 5
"""Connections until `auto` must have offered what the client takes: so many numbers has the longer list."""


class ReplayError(AssertionError):
    """The server did not answer as recorded."""


class NotAccepted(Exception):
    """The client does not take the version that was announced: it hangs up."""


@dataclass(frozen=True)
class Message:
    """One recorded message: command, and where it lies in the stream of its direction, with its header."""

    from_client: bool
    command: Command
    offset: int
    length: int


@dataclass(frozen=True)
class Capture:
    """A recorded conversation.

    Parameters
    ----------
    name : str
        File name without endings.
    dialect : Dialect
        The protocol it speaks.
    c2s, s2c : bytes
        Both streams, all connections one after the other.
    connections : tuple of tuple of Message
        Messages of each connection in order.
    """

    name: str
    dialect: dialects.Dialect
    c2s: bytes
    s2c: bytes
    connections: tuple[tuple[Message, ...], ...]


@dataclass
class Read:
    """Compare one tensor that the client read: name, worst error of a row, elements, and whether it is bit-equal."""

    tensor: str
    nmse: float
    elements: int
    equal: bool


@dataclass
class Report:
    """Collect what a replay saw."""

    name: str
    replies: int = 0
    refused: int = 0
    reads: list[Read] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """Return the largest normalised squared error of a row, 0.0 if nothing was read."""
        return max((r.nmse for r in self.reads), default=0.0)

    def line(self) -> str:
        """Return one line for a table."""
        rows = [r.nmse for r in self.reads if r.tensor.startswith("result_output")]
        equal = sum(r.equal for r in self.reads)
        logits = f"{max(rows):.2e}" if rows else "-"
        return (
            f"{self.name:32s} {self.replies:5d} replies  {len(self.reads):4d} reads, {equal:4d} bit-equal, "
            f"worst NMSE {self.worst:.2e}, of logits {logits}"
        )


def load(path: Path) -> Capture:
    """Read a capture; `path` is that of one of its files or has no ending.

    Raises
    ------
    ValueError
        If a stream does not have the recorded checksum.
    """
    base = path.parent / path.name.removesuffix(".json")
    info: dict[str, Any] = json.loads(Path(f"{base}.json").read_text())
    connections = tuple(
        tuple(Message(d == "c2s", Command[c], offset, length) for d, c, offset, length in connection["messages"])
        for connection in info["connections"]
    )
    return Capture(
        f"{base.parent.name}/{base.name}",
        dialects.find(info["dialect"]),
        _stream(base, "c2s", info),
        _stream(base, "s2c", info),
        connections,
    )


def _stream(base: Path, side: str, info: dict[str, Any]) -> bytes:
    dictionary = None
    if side == "c2s" and "dictionary" in info:
        # Captures of one model share its weights, which are most of the stream.
        other = base.parents[1] / info["dictionary"]
        content = _stream(other, side, json.loads(Path(f"{other}.json").read_text()))
        dictionary = zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    packed = Path(f"{base}.{side}.zst").read_bytes()
    data = zstandard.ZstdDecompressor(dict_data=dictionary).decompress(packed, max_output_size=info[f"{side}_bytes"])
    if hashlib.sha256(data).hexdigest() != info[f"{side}_sha256"]:
        raise ValueError(f"{base}.{side}.zst is damaged")
    return data


def row_errors(ours: npt.NDArray[np.float64], recorded: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the normalised squared error of each row: sum of squared differences over sum of squares.

    Values that are not finite must agree in kind and place, or the row's error is infinite; the same holds for a row
    whose recorded values are all zero and ours are not.
    """
    fits = np.isfinite(recorded)
    both = fits & np.isfinite(ours)
    same = np.where(fits, both, (ours == recorded) | (np.isnan(ours) & np.isnan(recorded))).all(axis=1)
    reference = np.where(fits, recorded, 0.0)
    difference = np.where(both, ours, 0.0) - np.where(both, recorded, 0.0)
    up, down = (difference**2).sum(axis=1), (reference**2).sum(axis=1)
    error = np.where(down > 0, up / np.where(down > 0, down, 1.0), np.where(up > 0, np.inf, 0.0))
    return np.where(same, error, np.inf)


def _decode(type_name: str, data: bytes) -> npt.NDArray[np.float64] | None:
    """Return floats as float64, or None for types that are compared byte for byte."""
    size = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}.get(type_name)
    if size is None or len(data) % size:
        return None
    if type_name == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[type_name]).astype(np.float64)


class Connection:
    """Replay one connection: a socket and the maps from recorded to new handles and bases."""

    def __init__(
        self, endpoint: tuple[str, int], capture: Capture, report: Report, timeout: float, *, auto: bool = False
    ) -> None:
        self.auto = auto
        self.capture, self.dialect, self.report = capture, capture.dialect, report
        self.handles: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.bases: dict[int, tuple[int, int]] = {}
        self.socket = socket.create_connection(endpoint, timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close the sending side and demand that the server has nothing more to say."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
            rest = self.socket.recv(1)
        finally:
            self.socket.close()
        if rest:
            raise ReplayError(f"{self.capture.name}: the server sent more than recorded")

    def _receive(self, size: int, what: str) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.socket.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise ReplayError(f"{self.capture.name}: the server closed instead of answering {what}")
            data += piece
        return bytes(data)

    # ---- Rewriting -----------------------------------------------------------------------------------------------

    def _rewrite_record(self, payload: bytearray, at: int) -> None:
        offsets = self.dialect.record.offsets
        (handle,) = struct.unpack_from("<Q", payload, at + offsets["buffer"])
        if handle == 0:
            return
        (data,) = struct.unpack_from("<Q", payload, at + offsets["data"])
        struct.pack_into("<Q", payload, at + offsets["buffer"], self.handles[handle])
        if data:
            recorded, new = self.bases[handle]
            struct.pack_into("<Q", payload, at + offsets["data"], data - recorded + new)

    def rewrite(self, command: Command, recorded: bytes) -> bytes:
        """Return a recorded payload with the handles and addresses of this connection."""
        payload = bytearray(recorded)
        size = self.dialect.record.size
        for f in self.dialect.request_fields(command):
            if f.name == "remote_ptr":
                (handle,) = struct.unpack_from("<Q", payload, f.offset)
                struct.pack_into("<Q", payload, f.offset, self.handles[handle])
            elif f.kind in ("tensor", "srcs"):
                for at in range(f.offset, f.offset + f.size, size):
                    self._rewrite_record(payload, at)
            elif f.name == "graph":
                (n_nodes,) = struct.unpack_from("<I", payload, f.offset - 4)
                (n_tensors,) = struct.unpack_from("<I", payload, f.offset + 8 * n_nodes)
                first = f.offset + 8 * n_nodes + 4
                for at in range(first, first + n_tensors * size, size):
                    self._rewrite_record(payload, at)
        return bytes(payload)

    # ---- Comparing -----------------------------------------------------------------------------------------------

    def _compare_read(self, request: bytes, ours: bytes, recorded: bytes) -> None:
        record, offsets = self.dialect.record, self.dialect.record.offsets
        (number,) = struct.unpack_from("<I", request, offsets["type"])
        dims = struct.unpack_from(f"<4{'Q' if record.dim_bytes == 8 else 'I'}", request, offsets["ne"])
        name = request[offsets["name"] : offsets["name"] + 64].split(b"\0")[0].decode("utf-8", "replace")
        type_name = TYPE_BY_ID[self.dialect.types[number]].name
        got, want = _decode(type_name, ours), _decode(type_name, recorded)
        if got is None or want is None:
            if ours != recorded:
                raise ReplayError(f"{self.capture.name}: {type_name} tensor {name!r} differs")
            self.report.reads.append(Read(name, 0.0, len(ours), True))
            return
        row = dims[0] if dims[0] and want.size % dims[0] == 0 else max(want.size, 1)
        errors = row_errors(got.reshape(-1, row), want.reshape(-1, row))
        worst = float(errors.max()) if errors.size else 0.0
        self.report.reads.append(Read(name, worst, want.size, ours == recorded))

    def compare(self, command: Command, request: bytes, recorded_request: bytes, ours: bytes, recorded: bytes) -> None:
        """Check one reply against the recorded one and learn from it."""
        what = f"{self.capture.name}: {command.name}"
        self.report.replies += 1
        if len(ours) != len(recorded):
            raise ReplayError(f"{what}: {len(ours)} bytes instead of {len(recorded)}")
        if command is Command.HELLO and self.auto:
            if ours[0] != recorded[0] or ours[1] > recorded[1]:  # the check of stock clients
                raise NotAccepted
        elif command is Command.HELLO and ours[:3] != recorded[:3]:
            raise ReplayError(f"{what}: version {tuple(ours[:3])} instead of {tuple(recorded[:3])}")
        if command in EXACT and ours != recorded:
            raise ReplayError(f"{what}: {ours.hex()} instead of {recorded.hex()}")
        if command is Command.ALLOC_BUFFER:
            (old, old_size), (new, new_size) = struct.unpack("<QQ", recorded), struct.unpack("<QQ", ours)
            if new == 0 or new_size < old_size:
                raise ReplayError(f"{what}: got {new_size} bytes instead of {old_size}")
            self.handles[old] = new
        elif command is Command.BUFFER_GET_BASE:
            (handle,) = struct.unpack("<Q", recorded_request)
            (old,), (new,) = struct.unpack("<Q", recorded), struct.unpack("<Q", ours)
            if new == 0 or new % 32:
                raise ReplayError(f"{what}: base {new:#x} is not aligned to 32 bytes")
            self.bases[handle] = (old, new)
        elif command is Command.GET_ALLOC_SIZE:
            (old,), (new,) = struct.unpack("<Q", recorded), struct.unpack("<Q", ours)
            if new > old:
                raise ReplayError(f"{what}: {new} bytes, but the recorded layout has room for {old}")
        elif command in (Command.GET_TENSOR, Command.GET_TENSOR_2D):
            self._compare_read(request, ours, recorded)

    def exchange(self, m: Message, replies: Iterator[Message]) -> None:
        """Send one recorded request and check the reply, if it has one; `replies` gives the recorded ones in order."""
        head = self.capture.c2s[m.offset : m.offset + REQUEST_HEADER]
        old = self.capture.c2s[m.offset + REQUEST_HEADER : m.offset + m.length]
        request = self.rewrite(m.command, old)
        self.socket.sendall(head + request)
        if m.command is Command.FREE_BUFFER:
            (handle,) = struct.unpack("<Q", old)
            del self.handles[handle]
            self.bases.pop(handle, None)
        if self.dialect.reply_kind(m.command) is ReplyKind.NONE:
            return
        reply = next(replies)
        if reply.command is not m.command:
            raise ValueError(f"{self.capture.name}: reply to {reply.command.name} follows {m.command.name}")
        recorded = self.capture.s2c[reply.offset + REPLY_HEADER : reply.offset + reply.length]
        ours = self.receive_reply(m.command)
        if len(ours) != len(recorded):
            raise ReplayError(f"{self.capture.name}: {m.command.name}: {len(ours)} bytes instead of {len(recorded)}")
        self.compare(m.command, request, old, ours, recorded)

    def receive_reply(self, command: Command) -> bytes:
        """Receive one reply."""
        (size,) = struct.unpack("<Q", self._receive(REPLY_HEADER, command.name))
        return self._receive(size, command.name)

    def call(self, command: Command, recorded: bytes) -> bytes:
        """Send a request that was not recorded but names recorded handles and addresses; return the reply, if any."""
        request = self.rewrite(command, recorded)
        self.socket.sendall(struct.pack("<BQ", self.dialect.commands[command], len(request)) + request)
        return b"" if self.dialect.reply_kind(command) is ReplyKind.NONE else self.receive_reply(command)

    def run(self, messages: Sequence[Message]) -> None:
        """Replay the messages of this connection."""
        replies = iter([m for m in messages if not m.from_client])
        for m in messages:
            if m.from_client:
                self.exchange(m, replies)


def replay(endpoint: str, capture: Capture, timeout: float = 120.0, *, auto: bool = False) -> Report:
    """Replay a whole capture.

    Parameters
    ----------
    endpoint : str
        `host:port` of a server that has just been started, with as many devices as recorded.
    timeout : float
        Seconds that one send or receive may take.
    auto : bool
        The server may announce any version; if the client would not take it, hang up and come again.

    Raises
    ------
    ReplayError
        If the server never announces a version that fits, closes early, or a reply differs from the recorded one other
        than numerically.
    """
    host, _, port = endpoint.rpartition(":")
    report = Report(capture.name)
    for messages in capture.connections:
        address = host.strip("[]"), int(port)
        for _ in range(MAX_ATTEMPTS):
            connection = Connection(address, capture, report, timeout, auto=auto)
            try:
                connection.run(messages)
            except NotAccepted:
                report.refused += 1
                connection.close()
                continue
            except BaseException:
                connection.socket.close()
                raise
            connection.close()
            break
        else:
            raise ReplayError(f"{capture.name}: no version that fits in {MAX_ATTEMPTS} attempts")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay captures against a running server; exit status 1 if one differs by more than the tolerance."""
    parser = argparse.ArgumentParser(description="Replay recorded conversations against a server.")
    parser.add_argument("endpoint", help="host:port")
    parser.add_argument("captures", nargs="+", type=Path, help="path of a capture, with or without .json")
    parser.add_argument("--tolerance", type=float, default=5e-4, help="largest NMSE of a row (default: %(default)s)")
    parser.add_argument("--auto", action="store_true", help="take any version that a client of the capture would take")
    options = parser.parse_args(arguments)
    failed = False
    for path in options.captures:
        try:
            report = replay(options.endpoint, load(path), auto=options.auto)
        except ReplayError as error:
            print(f"FAILED {error}")
            failed = True
            continue
        print(report.line())
        failed |= report.worst > options.tolerance
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
