"""The graphs in recorded conversations, with the buffers that were alive when each was sent."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import Dialect
from tests.replay.replayer import REPLY_HEADER, REQUEST_HEADER, Capture, load

CAPTURES = Path(__file__).parents[1] / "replay" / "captures"

Buffers = list[tuple[int, int, int, int]]
"""Handle, base, size, device."""


@dataclass(frozen=True)
class Recorded:
    """One GRAPH_COMPUTE: its payload, the session's buffers and the number of its devices."""

    name: str
    dialect: Dialect
    payload: bytes
    buffers: Buffers
    n_devices: int


def graphs(capture: Capture) -> Iterator[Recorded]:
    """Yield every graph of a conversation in order."""
    for messages in capture.connections:
        alive: dict[int, tuple[int, int]] = {}  # handle -> size, device
        bases: dict[int, int] = {}
        devices = 1
        replies = iter([m for m in messages if not m.from_client])
        for m in messages:
            if not m.from_client:
                continue
            payload = capture.c2s[m.offset + REQUEST_HEADER : m.offset + m.length]
            if m.command is Command.GRAPH_COMPUTE:
                listed = [(h, bases[h], size, device) for h, (size, device) in alive.items() if h in bases]
                yield Recorded(capture.name, capture.dialect, payload, listed, devices)
            elif m.command is Command.FREE_BUFFER:
                alive.pop(struct.unpack("<Q", payload)[0])
            if m.command not in (Command.ALLOC_BUFFER, Command.BUFFER_GET_BASE):
                continue
            reply = next(r for r in replies if r.command is m.command)
            data = capture.s2c[reply.offset + REPLY_HEADER : reply.offset + reply.length]
            if m.command is Command.ALLOC_BUFFER:
                device = struct.unpack_from("<I", payload)[0] if capture.dialect.has_devices else 0
                handle, size = struct.unpack("<QQ", data)
                alive[handle] = (size, device)
                devices = max(devices, device + 1)
            else:
                bases[struct.unpack("<Q", payload)[0]] = struct.unpack("<Q", data)[0]


def paths() -> list[Path]:
    """Return the captures in this tree."""
    return sorted(CAPTURES.glob("*/*.json"))


def all_graphs() -> Iterator[Recorded]:
    """Yield the graphs of every capture in this tree."""
    for path in paths():
        yield from graphs(load(path))
