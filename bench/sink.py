"""A server that reads what a stock client sends and throws it away: the floor of a load, ``python -m bench.sink``.

It answers as a real one does, from memory that it makes up, reads payloads with one call for each 16 MiB into the same
memory, and never computes. With ``--known`` it says of every hash that it has the tensor.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import threading
from collections.abc import Sequence

from ggml_rpc.spec.commands import Command, ReplyKind
from ggml_rpc.spec.dialects import Dialect, find

HEADER = struct.Struct("<BQ")
RECEIVE = 16 << 20  # as our server asks for it
FREE = 64 << 30
NE, NB = struct.Struct("<4I"), struct.Struct("<4I")
NE_AT = 20  # of a tensor's record: id, type, buffer stand before


class Session(threading.Thread):
    """Answer one client until it leaves."""

    def __init__(self, sock: socket.socket, dialect: Dialect, *, known: bool) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._dialect = dialect
        self._known = known
        self._memory = memoryview(bytearray(RECEIVE))
        self._bases: dict[int, int] = {}

    def run(self) -> None:
        """Read messages to the end of the connection."""
        with self._sock:
            while (head := self._read(HEADER.size)) is not None:
                number, size = HEADER.unpack(head)
                start = self._read(min(size, 4096))
                if start is None:
                    return
                start = bytes(start)
                for left in range(size - len(start), 0, -RECEIVE):
                    self._read(min(left, RECEIVE))
                reply = self._reply(Command(number), start)
                if reply is not None:
                    self._sock.sendall(len(reply).to_bytes(8, "little") + reply)

    def _read(self, size: int) -> memoryview | None:
        at = 0
        while at < size:
            n = self._sock.recv_into(self._memory[at:size])
            if n == 0:
                return None
            at += n
        return self._memory[:size]

    def _reply(self, command: Command, request: bytes) -> bytes | None:
        if command is Command.HELLO:
            return bytes(self._dialect.announce).ljust(self._dialect.hello_reply, b"\0")
        if command is Command.ALLOC_BUFFER:
            size = int.from_bytes(request[-8:], "little")
            handle = len(self._bases) + 1
            self._bases[handle] = handle << 40
            return struct.pack("<QQ", handle, size)
        if command is Command.BUFFER_GET_BASE:
            return struct.pack("<Q", self._bases[int.from_bytes(request, "little")])
        if command is Command.GET_DEVICE_MEMORY:
            return struct.pack("<QQ", FREE, FREE)
        if command is Command.GET_ALIGNMENT:
            return struct.pack("<Q", 64)
        if command is Command.GET_MAX_SIZE:
            return struct.pack("<Q", (1 << 64) - 1)
        if command is Command.DEVICE_COUNT:
            return struct.pack("<I", 1)
        if command is Command.SET_TENSOR_HASH:
            return bytes([self._known])
        if command is Command.COPY_TENSOR:
            return b"\1"
        if command is Command.GET_ALLOC_SIZE:
            at = 4 + NE_AT
            ne, nb = NE.unpack_from(request, at), NB.unpack_from(request, at + NE.size)
            return struct.pack("<Q", ne[3] * nb[3])
        if command in (Command.GET_TENSOR, Command.GET_TENSOR_2D):
            return bytes(int.from_bytes(request[-8:], "little"))
        return b"" if self._dialect.reply_kind(command) is ReplyKind.EMPTY else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description=__doc__)
    parser.add_argument("-H", "--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--proto", default="7.0")
    parser.add_argument("--known", action="store_true")
    args = parser.parse_args(argv)
    dialect = find(args.proto)
    with socket.create_server((args.host, args.port)) as listener:
        print(f"endpoint : {args.host}:{listener.getsockname()[1]}", flush=True)
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Session(sock, dialect, known=args.known).start()


if __name__ == "__main__":
    sys.exit(main())
