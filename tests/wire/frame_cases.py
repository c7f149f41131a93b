"""Frames, sessions and buffers that break a rule: the connection must close."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import Dialect
from tests.support.rawclient import frame
from tests.wire.session import Attacker


@dataclass(frozen=True)
class Case:
    """One hostile act: what it does after HELLO, and what the log line must name.

    Parameters
    ----------
    name : str
        Name of the test.
    act : callable
        Does it; a connection that breaks on the way counts as closed.
    command : str
        Name that the log line must hold; alternatives stand between bars.
    tensor : str
        Tensor that the log line must name, empty where there is none.
    """

    name: str
    act: Callable[[Attacker], None]
    command: str = ""
    tensor: str = ""


LENGTHS = {"2^64-1": (1 << 64) - 1, "2^63": 1 << 63, "2^40": 1 << 40}


def _announce(number: int, payload: bytes, length: int) -> Callable[[Attacker], None]:
    return lambda a: a.client.send(number, payload, length)


def wrong_lengths(dialect: Dialect) -> Iterator[Case]:
    """Announce a length that the command does not have."""
    for command, number in dialect.commands.items():
        if command is Command.HELLO:
            continue
        size = dialect.request_size(command)
        header = dialect.request_header(command)
        if size is None:
            lengths = {"short by 1": header - 1, "empty": 0, "2^64-1": (1 << 64) - 1, "2^63": 1 << 63}
        else:
            lengths = {"1 more": size + 1, **LENGTHS}
            if size:
                lengths |= {"1 less": size - 1, "empty": 0}
        for label, length in lengths.items():
            if length != size:
                payload = bytes(min(length, 8192))
                yield Case(f"{command.name} {label}", _announce(number, payload, length), command.name)


def unknown_commands(dialect: Dialect) -> Iterator[Case]:
    """Send bytes that are no command of the protocol."""
    known = set(dialect.commands.values())
    for number in (*(n for n in range(15, 26) if n not in known), 100, 127, 128, 255):
        yield Case(f"command {number}", _announce(number, b"", 0), str(number))


def devices(dialect: Dialect) -> Iterator[Case]:
    """Name a device that is not there."""
    for command in dialect.commands:
        fields = dialect.request_fields(command)
        if not fields or fields[0].name != "device":
            continue
        for device in (1, 7, 0x7FFF_FFFF, 0xFFFF_FFFF):

            def act(a: Attacker, command: Command = command, device: int = device) -> None:
                size = a.dialect.request_size(command)
                if command is Command.GRAPH_COMPUTE:
                    node = a.arena.node("SQR", "F32", (8, 4), [a.tensor()])
                    a.client.compute([node], device=device)
                    return
                rest = a.dialect.request_header(command) if size is None else size
                a.client.send(a.dialect.commands[command], struct.pack("<I", device) + bytes(rest - 4))

            yield Case(f"{command.name} device {device:#x}", act, command.name)


def handles(dialect: Dialect) -> Iterator[Case]:
    """Use handles that this session does not own."""
    commands = (Command.BUFFER_GET_BASE, Command.FREE_BUFFER, Command.BUFFER_CLEAR)
    for command in commands:
        tail = b"\x55" if command is Command.BUFFER_CLEAR else b""
        for label, change in {"0": None, "1": 1, "neighbouring": 8, "2^64-1": -1}.items():

            def act(a: Attacker, command: Command = command, change: int | None = change, tail: bytes = tail) -> None:
                base = a.buffer.handle if change == 8 else 0
                handle = 0 if change is None else (base + change) & ((1 << 64) - 1)
                a.client.send(a.dialect.commands[command], struct.pack("<Q", handle) + tail)

            yield Case(f"{command.name} handle {label}", act, command.name)

        def freed(a: Attacker, command: Command = command, tail: bytes = tail) -> None:
            a.client.free(a.buffer.handle)
            a.client.send(a.dialect.commands[command], struct.pack("<Q", a.buffer.handle) + tail)

        yield Case(f"{command.name} handle freed before", freed, command.name)


def _second_hello(a: Attacker) -> None:
    a.client.send(a.dialect.commands[Command.HELLO], bytes(a.dialect.hello_request))


def _recompute_nothing(a: Attacker) -> None:
    a.client.recompute(uid=12345)


def _recompute_uid_0(a: Attacker) -> None:
    node = a.arena.node("SQR", "F32", (8, 4), [a.tensor()])
    a.client.compute([node], uid=0)
    a.client.recompute(uid=0)


def _recompute_freed(a: Attacker) -> None:
    node = a.arena.node("SQR", "F32", (8, 4), [a.tensor()])
    a.client.compute([node], uid=5)
    a.client.free(a.buffer.handle)
    a.client.recompute(uid=5)


def session_rules(dialect: Dialect) -> Iterator[Case]:
    """Break a rule of the session."""
    yield Case("second HELLO", _second_hello, "HELLO")
    if Command.GRAPH_RECOMPUTE not in dialect.commands:
        return
    yield Case("GRAPH_RECOMPUTE without a graph", _recompute_nothing, "GRAPH_RECOMPUTE")
    yield Case("GRAPH_RECOMPUTE after FREE_BUFFER", _recompute_freed, "GRAPH_RECOMPUTE")
    if dialect.graph_uid:
        yield Case("GRAPH_RECOMPUTE of uid 0", _recompute_uid_0, "GRAPH_RECOMPUTE")


def all_cases(dialect: Dialect) -> list[Case]:
    """Return every case for a protocol."""
    makers = (wrong_lengths, unknown_commands, devices, handles, session_rules)
    return [case for maker in makers for case in maker(dialect)]


def first_messages(dialect: Dialect) -> dict[str, bytes]:
    """Return what must not be the first bytes of a connection, by name."""
    hello = dialect.commands[Command.HELLO]
    out = {
        "GET_DEVICE_MEMORY": frame(Command.GET_DEVICE_MEMORY, bytes(4 if dialect.has_devices else 0)),
        "ALLOC_BUFFER": frame(Command.ALLOC_BUFFER, bytes(12 if dialect.has_devices else 8)),
        "unknown command": frame(200),
        "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a TLS hello": bytes.fromhex("16030100a5010000a10303") + bytes(160),
        "zeros": bytes(4096),
    }
    for length in (0, 1, 23, 24, 25, 1 << 20, (1 << 64) - 1):
        if length != dialect.hello_request:
            out[f"HELLO of {length} bytes"] = frame(hello, bytes(min(length, 4096)), length)
    return out


def random_bytes(seed: int, dialect: Dialect) -> bytes:
    """Return a seeded mixture of garbage and frames of known commands with random payloads and lengths."""
    rng = random.Random(seed)
    size = dialect.record.size
    near_records = (size, size + 16, size + 17)
    out = bytearray()
    for _ in range(rng.randrange(1, 6)):
        number = rng.choice([*dialect.commands.values(), rng.randrange(256)])
        payload = rng.randbytes(rng.choice([0, 4, 8, 12, *near_records, rng.randrange(4096)]))
        length = rng.choice([len(payload), len(payload), rng.randrange(1 << 16), rng.getrandbits(64)])
        out += frame(number, payload, length)
    if rng.random() < 0.3:
        out += rng.randbytes(rng.randrange(64))
    return bytes(out)
