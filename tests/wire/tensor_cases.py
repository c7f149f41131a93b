"""Tensor records and ranges that lie: the connection must close and nothing outside the buffer may be touched."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import DEAD, Dialect
from tests.support.rawclient import RawClient
from tests.support.wiretensor import patch, tensor
from tests.wire.frame_cases import Case
from tests.wire.session import Attacker

U32 = (1 << 32) - 1
U64 = (1 << 64) - 1
VICTIM_BYTES = 8 * 4 * 4

Payload = Callable[[Attacker, bytes], bytes]
"""From a tensor record to the payload of a command about that tensor."""


def _set(a: Attacker, record: bytes) -> bytes:
    flag = b"\0" if a.dialect.set_tensor_cache_flag else b""
    return record + flag + struct.pack("<Q", 0) + b"\xaa" * VICTIM_BYTES


def _good(a: Attacker) -> bytes:
    return a.tensor(name="good").pack(a.dialect)


def _alloc_size(a: Attacker, tensor_record: bytes, src: bytes) -> bytes:
    srcs = src + bytes(a.dialect.record.size * (a.dialect.record.max_src - 1))
    device = bytes(4 if a.dialect.has_devices else 0)
    return device + tensor_record + (srcs if a.dialect.alloc_size_has_srcs else b"")


PAYLOADS: dict[str, tuple[Command, Payload]] = {
    "SET_TENSOR": (Command.SET_TENSOR, _set),
    "SET_TENSOR_HASH": (Command.SET_TENSOR_HASH, lambda a, r: r + struct.pack("<QQ", 0, 1)),
    "GET_TENSOR": (Command.GET_TENSOR, lambda a, r: r + struct.pack("<QQ", 0, VICTIM_BYTES)),
    "COPY_TENSOR source": (Command.COPY_TENSOR, lambda a, r: r + _good(a)),
    "COPY_TENSOR target": (Command.COPY_TENSOR, lambda a, r: _good(a) + r),
    "INIT_TENSOR": (Command.INIT_TENSOR, lambda a, r: r),
    "GET_ALLOC_SIZE": (Command.GET_ALLOC_SIZE, lambda a, r: _alloc_size(a, r, bytes(len(r)))),
    "MEMSET_TENSOR": (Command.MEMSET_TENSOR, lambda a, r: r + struct.pack("<QQB", 0, VICTIM_BYTES, 1)),
    "SET_TENSOR_2D": (Command.SET_TENSOR_2D, lambda a, r: r + struct.pack("<QQQQ", 0, 4, 2, 32) + b"\xaa" * 8),
    "GET_TENSOR_2D": (Command.GET_TENSOR_2D, lambda a, r: r + struct.pack("<QQQQ", 0, 4, 2, 32)),
}

Spoil = Callable[[Attacker, bytes], bytes]
"""From a good tensor record to a bad one."""


def _put(field: str, value: int, index: int = 0) -> Spoil:
    return lambda a, r: patch(a.dialect, r, field, value, index=index)


def _moved(offset: int) -> Spoil:
    """Move the tensor to an address relative to the buffer's base."""
    return lambda a, r: patch(a.dialect, r, "data", a.buffer.base + offset)


def _behind(offset: int) -> Spoil:
    """Move the tensor to an address relative to the buffer's end, which the server may have set back."""
    return lambda a, r: patch(a.dialect, r, "data", a.buffer.base + a.buffer.size + offset)


def _all_dims(field: str, value: int, inner: Spoil | None = None) -> Spoil:
    def spoil(a: Attacker, r: bytes) -> bytes:
        for i in range(4):
            r = patch(a.dialect, r, field, value, index=i)
        return r if inner is None else inner(a, r)

    return spoil


def _quantised_odd(a: Attacker, r: bytes) -> bytes:
    r = patch(a.dialect, r, "type", 2)
    r = patch(a.dialect, r, "ne", 33)
    return patch(a.dialect, r, "nb", 18)


def dead_types(dialect: Dialect) -> list[int]:
    """Return numbers that name no type: the first and the last inside the table, and those right behind it."""
    n = len(dialect.types)
    inside = [i for i, t in enumerate(dialect.types) if t == DEAD]
    return [inside[0], inside[-1], n, n + 1, 511, 512]


# What no command may accept: the record contradicts itself, or its type does not exist.
BROKEN: dict[str, Spoil] = {
    "type 2^31": _put("type", 1 << 31),
    "type 2^32-1": _put("type", U32),
    "row that is no multiple of the block": _quantised_odd,
    "size that overflows": _all_dims("ne", U32, _all_dims("nb", U32 - 3)),
}

# What no command may accept for a tensor that names a live buffer.
MISPLACED: dict[str, Spoil] = {
    "end one element behind the buffer": _behind(4 - VICTIM_BYTES),
    "start at the end of the buffer": _behind(0),
    "start one element before the buffer": _moved(-4),
    "far behind": _moved(1 << 40),
    "address that wraps": _put("data", U64 - 63),
    "address 0": _put("data", 0),
    "more rows than the buffer holds": _put("ne", 1 << 20, 1),
    "stride that leaves the buffer": _put("nb", 1 << 20, 1),
    "size far beyond the buffer": _all_dims("ne", 1 << 16),
    "address that is no multiple of the element": _moved(2),
}

# What a command that touches data may not accept.
HOMELESS: dict[str, Spoil] = {
    "no buffer": _put("buffer", 0),
    "unknown handle": _put("buffer", 0x1234),
}

TOUCHING = [n for n in PAYLOADS if n not in ("INIT_TENSOR", "GET_ALLOC_SIZE")]


def records(dialect: Dialect) -> Iterator[Case]:
    """Send a bad record with each command that carries one."""
    for name, (command, payload) in PAYLOADS.items():
        if command not in dialect.commands:
            continue
        # GET_ALLOC_SIZE asks about tensors that are not placed yet.
        spoils = {
            **{f"dead type {n}": _put("type", n) for n in dead_types(dialect)},
            **BROKEN,
            **({} if name == "GET_ALLOC_SIZE" else MISPLACED),
            **(HOMELESS if name in TOUCHING else {}),
        }
        for label, spoil in spoils.items():

            def act(a: Attacker, command: Command = command, payload: Payload = payload, spoil: Spoil = spoil) -> None:
                record = spoil(a, a.tensor().pack(a.dialect))
                a.client.send(a.dialect.commands[command], payload(a, record))

            yield Case(f"{name}: {label}", act, command.name, "victim")


def foreign(dialect: Dialect, owner: RawClient) -> Iterator[Case]:
    """Send a record that lies in a live buffer of another session."""
    theirs = owner.alloc(4096)
    for name in TOUCHING:
        command, payload = PAYLOADS[name]
        if command not in dialect.commands:
            continue

        def act(a: Attacker, command: Command = command, payload: Payload = payload) -> None:
            victim = tensor("F32", (8, 4), name="victim", buffer=theirs.handle, data=theirs.base)
            a.client.send(a.dialect.commands[command], payload(a, victim.pack(a.dialect)))

        yield Case(f"{name}: another session's buffer", act, command.name, "victim")


def _ranges(offset: int, size: int) -> dict[str, tuple[Command, Callable[[Attacker, bytes], bytes]]]:
    """Return the commands that take a range, with payloads for that range."""

    def set_(a: Attacker, r: bytes) -> bytes:
        flag = b"\0" if a.dialect.set_tensor_cache_flag else b""
        return r + flag + struct.pack("<Q", offset) + b"\xaa" * min(size, 4096)

    out: dict[str, tuple[Command, Payload]] = {
        "GET_TENSOR": (Command.GET_TENSOR, lambda a, r: r + struct.pack("<QQ", offset, size)),
        "MEMSET_TENSOR": (Command.MEMSET_TENSOR, lambda a, r: r + struct.pack("<QQB", offset, size, 1)),
        "GET_TENSOR_2D": (Command.GET_TENSOR_2D, lambda a, r: r + struct.pack("<QQQQ", offset, size, 1, 0)),
    }
    if size <= 4096:
        out["SET_TENSOR"] = (Command.SET_TENSOR, set_)
        out["SET_TENSOR_2D"] = (
            Command.SET_TENSOR_2D,
            lambda a, r: r + struct.pack("<QQQQ", offset, size, 1, 0) + b"\xaa" * size,
        )
    return out


def ranges(dialect: Dialect) -> Iterator[Case]:
    """Ask for bytes outside a tensor that is itself in order."""
    bad = {
        "one byte too many": (0, VICTIM_BYTES + 1),
        "from the last byte two": (VICTIM_BYTES - 1, 2),
        "offset behind the end": (VICTIM_BYTES + 1, 1),
        "offset 2^64-1": (U64, 2),
        "offset that wraps onto the start": (U64 - 7, 16),
        "size 2^64-1": (1, U64),
        "size 2^63": (0, 1 << 63),
    }
    for label, (offset, size) in bad.items():
        for name, (command, payload) in _ranges(offset, size).items():
            if command not in dialect.commands:
                continue

            def act(a: Attacker, command: Command = command, payload: Payload = payload) -> None:
                a.client.send(a.dialect.commands[command], payload(a, a.tensor().pack(a.dialect)))

            yield Case(f"{name}: {label}", act, command.name, "victim")

    def hash_behind(a: Attacker) -> None:
        record = a.tensor().pack(a.dialect)
        a.client.send(a.dialect.commands[Command.SET_TENSOR_HASH], record + struct.pack("<QQ", VICTIM_BYTES + 1, 1))

    yield Case("SET_TENSOR_HASH: offset behind the end", hash_behind, "SET_TENSOR_HASH", "victim")


def grids(dialect: Dialect) -> Iterator[Case]:
    """Ask for rows (2-D transfers) that leave the tensor, overflow or are empty."""
    if Command.SET_TENSOR_2D not in dialect.commands:
        return
    bad = {
        "size 0": (0, 0, 2, 32),
        "no rows": (0, 4, 0, 32),
        "last row leaves the tensor": (0, 32, 5, 32),
        "stride that overflows": (0, 4, 3, U64),
        "product that overflows": (0, 1 << 33, 1 << 33, 4),
        "product that wraps to the data": (0, 1 << 63, 2, 0),
        "span that overflows": (0, 4, 1 << 62, 1 << 62),
        "offset behind the end": (VICTIM_BYTES, 4, 1, 0),
    }
    for label, numbers in bad.items():
        for command in (Command.GET_TENSOR_2D, Command.SET_TENSOR_2D):

            def act(a: Attacker, command: Command = command, numbers: tuple[int, int, int, int] = numbers) -> None:
                size, rows = numbers[1], numbers[2]
                data = b"\xaa" * (size * rows if size * rows <= 4096 else 64)
                data = data if command is Command.SET_TENSOR_2D else b""
                head = a.tensor().pack(a.dialect) + struct.pack("<QQQQ", *numbers)
                a.client.send(a.dialect.commands[command], head + data)

            yield Case(f"{command.name}: {label}", act, command.name, "" if "product" in label else "victim")
    for label, extra in {"one byte more than its rows": 9, "one byte less": 7}.items():

        def uneven(a: Attacker, extra: int = extra) -> None:
            head = a.tensor().pack(a.dialect) + struct.pack("<QQQQ", 0, 4, 2, 32)
            a.client.send(a.dialect.commands[Command.SET_TENSOR_2D], head + bytes(extra))

        yield Case(f"SET_TENSOR_2D: {label}", uneven, "SET_TENSOR_2D")


def all_cases(dialect: Dialect) -> list[Case]:
    """Return every case for a protocol that needs no second session."""
    return [case for maker in (records, ranges, grids) for case in maker(dialect)]
