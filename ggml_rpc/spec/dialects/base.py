"""What a dialect is: the tables and choices by which one protocol number differs from another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Any

from .. import limits
from ..commands import REPLY_FIELDS, REQUEST_FIELDS, Command, FieldList, ReplyKind
from ..ops import OP_BY_NAME
from ..types import TYPE_BY_NAME

DEAD = -1
"""Entry of a wire-number table for a number that names nothing."""

_KIND_BYTES = {"u8": 1, "u32": 4, "u64": 8, "caps": limits.CONN_CAPS_BYTES, "host": 64, "bytes": 0}


class GraphCache(Enum):
    """Which graphs a server keeps for GRAPH_RECOMPUTE."""

    NONE = "none"
    LAST = "last graph per connection and device"
    BY_UID = "per connection, device and uid; both sides clear at 1024"


class HashCacheRule(Enum):
    """When SET_TENSOR writes its data to the server's tensor cache."""

    SIZE = "more than 10485760 bytes"
    FLAG = "cache_flag is not 0"


@dataclass(frozen=True)
class RecordLayout:
    """Lay out one tensor record (`rpc_tensor`); all offsets follow from three facts.

    Parameters
    ----------
    max_src : int
        Source slots.
    dim_bytes : int
        Bytes of each `ne` and `nb`: 4, or 8 in ik_llama.cpp 5.5.5.
    has_use_count : bool
        The last four bytes are a use count (from 5.1.0), not padding.
    """

    max_src: int = 10
    dim_bytes: int = 4
    has_use_count: bool = True

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Return field name -> byte offset, with the record's size under `end`."""
        sizes = {
            "id": 8,
            "type": 4,
            "buffer": 8,
            "ne": limits.MAX_DIMS * self.dim_bytes,
            "nb": limits.MAX_DIMS * self.dim_bytes,
            "op": 4,
            "op_params": limits.OP_PARAMS_BYTES,
            "flags": 4,
            "src": 8 * self.max_src,
            "view_src": 8,
            "view_offs": 8,
            "data": 8,
            "name": limits.MAX_NAME,
            "use_count": 4,
        }
        offsets, at = {}, 0
        for name, size in sizes.items():
            offsets[name] = at
            at += size
        offsets["end"] = at
        return MappingProxyType(offsets)

    @property
    def size(self) -> int:
        """Return the bytes of one record, called T elsewhere."""
        return self.offsets["end"]

    @cached_property
    def struct_format(self) -> str:
        """Return the record as a `struct` format: id, type, buffer, ne x4, nb x4, op, params x16, flags, src, ..."""
        dim = "Q" if self.dim_bytes == 8 else "I"
        tail = "i" if self.has_use_count else "4s"
        return f"<QIQ4{dim}4{dim}I{limits.OP_PARAMS_WORDS}ii{self.max_src}QQQQ{limits.MAX_NAME}s{tail}"


@dataclass(frozen=True)
class Field:
    """One field of a message: name, byte offset, kind and size in bytes (0 for a tail of any length)."""

    name: str
    offset: int
    kind: str
    size: int


@dataclass(frozen=True, eq=False)
class Dialect:
    """Hold everything that one protocol number fixes. Below the wire layer no number of a dialect is seen.

    Parameters
    ----------
    name : str
        Short name, unique, as `--proto` takes it: `8.0.0`, `ik-3.5.2`.
    family : str
        `llama.cpp` or `ik_llama.cpp`.
    announce : tuple of int
        Major, minor and patch in the HELLO reply.
    aliases : tuple of str
        Other names that `find` accepts.
    hello_request, hello_reply : int
        Payload bytes of HELLO.
    commands : mapping of Command to int
        Commands that the dialect has, with their byte.
    command_limit : int
        Bytes from here on are not commands, in upstream's own check.
    has_devices : bool
        Requests name a device, and DEVICE_COUNT exists (from 3.0.0).
    record : RecordLayout
        The tensor record.
    no_reply : frozenset of Command
        Commands without a reply.
    empty_reply : frozenset of Command
        Commands answered by an empty reply.
    graph_status_reply : bool
        GRAPH_COMPUTE is answered by one status byte (2.0.0 and 3.0.0).
    set_tensor_cache_flag : bool
        SET_TENSOR has a flag byte between tensor and offset (from 7.0.0).
    graph_uid : bool
        GRAPH_COMPUTE and GRAPH_RECOMPUTE carry a uid (8.0.0).
    recompute_view_offsets : bool
        GRAPH_RECOMPUTE carries new offsets of the CPY nodes (ik_llama.cpp 5.5.5).
    alloc_size_has_srcs : bool
        GET_ALLOC_SIZE carries the sources (from 3.6.0).
    hash_cache_rule : HashCacheRule
        When SET_TENSOR writes to the cache.
    compute_flag : bool
        Nodes without flag COMPUTE are skipped.
    graph_cache : GraphCache
        What GRAPH_RECOMPUTE can name.
    ops, unary, glu, types : tuple of int
        Wire number -> internal id, DEAD where the number names nothing.
    enums : mapping of str to mapping of int to int
        For each enumeration of op parameters: wire value -> internal value.
    kv_bound : bool
        FLASH_ATTN_EXT's word 4 bounds the used cache (from 6.0.0); elsewhere it is not read.
    set_rows_by_view : bool
        SET_ROWS may come without its third source, the tensor that it writes into: seen in 2.0.0, which has it as
        `view_src` only; 3.6.1 sends both.
    ik_meaning : bool
        Some ops have parameters as ik_llama.cpp means them, and an index out of range names a row of zeros.
    """

    name: str
    family: str
    announce: tuple[int, int, int]
    aliases: tuple[str, ...]
    hello_request: int
    hello_reply: int
    commands: Mapping[Command, int]
    command_limit: int
    has_devices: bool
    record: RecordLayout
    no_reply: frozenset[Command]
    empty_reply: frozenset[Command]
    graph_status_reply: bool
    set_tensor_cache_flag: bool
    graph_uid: bool
    recompute_view_offsets: bool
    alloc_size_has_srcs: bool
    hash_cache_rule: HashCacheRule
    compute_flag: bool
    graph_cache: GraphCache
    ops: tuple[int, ...]
    unary: tuple[int, ...]
    glu: tuple[int, ...]
    types: tuple[int, ...]
    enums: Mapping[str, Mapping[int, int]] = field(repr=False)
    kv_bound: bool
    set_rows_by_view: bool
    ik_meaning: bool

    # ---- Requests ------------------------------------------------------------------------------------------------

    def _field_list(self, command: Command) -> FieldList:
        device: FieldList = (("device", "u32"),)
        uid: FieldList = (("uid", "u64"),) if self.graph_uid else ()
        if command is Command.HELLO:
            fields: FieldList = (("conn_caps", "caps"),) if self.hello_request else ()
        elif command is Command.SET_TENSOR:
            flag: FieldList = (("cache_flag", "u8"),) if self.set_tensor_cache_flag else ()
            fields = (("tensor", "tensor"), *flag, ("offset", "u64"), ("data", "bytes"))
        elif command is Command.GRAPH_COMPUTE:
            fields = (*device, *uid, ("n_nodes", "u32"), ("graph", "bytes"))
        elif command is Command.GRAPH_RECOMPUTE:
            offsets: FieldList = (("n_view_offs", "u32"), ("view_offs", "bytes")) if self.recompute_view_offsets else ()
            fields = (*device, *uid, *offsets)
        elif command is Command.GET_ALLOC_SIZE:
            srcs: FieldList = (("srcs", "srcs"),) if self.alloc_size_has_srcs else ()
            fields = (*device, ("tensor", "tensor"), *srcs)
        else:
            fields = REQUEST_FIELDS[command]
        return fields if self.has_devices else tuple(f for f in fields if f[0] != "device")

    def _layout(self, fields: FieldList) -> tuple[Field, ...]:
        out, at = [], 0
        for name, kind in fields:
            if kind == "tensor":
                size = self.record.size
            elif kind == "srcs":
                size = self.record.size * self.record.max_src
            else:
                size = _KIND_BYTES[kind]
            out.append(Field(name, at, kind, size))
            at += size
        return tuple(out)

    def request_fields(self, command: Command) -> tuple[Field, ...]:
        """Return the fields of a request in wire order, with their offsets in the payload."""
        return self._layout(self._field_list(command))

    def request_header(self, command: Command) -> int:
        """Return the bytes of a request before its tail; all of it where the size is fixed."""
        return sum(f.size for f in self.request_fields(command))

    def request_size(self, command: Command) -> int | None:
        """Return the payload bytes of a request, or None where they vary."""
        fields = self.request_fields(command)
        return None if any(f.kind == "bytes" for f in fields) else sum(f.size for f in fields)

    # ---- Replies -------------------------------------------------------------------------------------------------

    def reply_kind(self, command: Command) -> ReplyKind:
        """Return what follows a request of this command."""
        if command in self.no_reply:
            return ReplyKind.NONE
        if command in self.empty_reply:
            return ReplyKind.EMPTY
        if command in (Command.GET_TENSOR, Command.GET_TENSOR_2D):
            return ReplyKind.SIZED
        return ReplyKind.FIXED

    def reply_fields(self, command: Command) -> tuple[Field, ...]:
        """Return the fields of a reply; empty where nothing or an empty reply is sent."""
        if self.reply_kind(command) in (ReplyKind.NONE, ReplyKind.EMPTY):
            return ()
        if command is Command.HELLO:
            version: FieldList = (("major", "u8"), ("minor", "u8"), ("patch", "u8"))
            caps: FieldList = (("padding", "u8"), ("conn_caps", "caps")) if self.hello_request else ()
            return self._layout((*version, *caps))
        if command is Command.GRAPH_COMPUTE:
            return self._layout((("status", "u8"),))
        return self._layout(REPLY_FIELDS[command])

    def reply_size(self, command: Command) -> int | None:
        """Return the payload bytes of a reply; None where there is none or the request decides."""
        kind = self.reply_kind(command)
        if kind is ReplyKind.EMPTY:
            return 0
        if kind is ReplyKind.FIXED:
            return sum(f.size for f in self.reply_fields(command))
        return None

    # ---- Numbers -------------------------------------------------------------------------------------------------

    @cached_property
    def command_by_number(self) -> Mapping[int, Command]:
        """Return command byte -> command."""
        return MappingProxyType({number: command for command, number in self.commands.items()})

    @cached_property
    def op_numbers(self) -> Mapping[int, int]:
        """Return internal op id -> wire number, for clients."""
        return _inverse(self.ops)

    @cached_property
    def type_numbers(self) -> Mapping[int, int]:
        """Return internal type id -> wire number, for clients."""
        return _inverse(self.types)


def _inverse(table: tuple[int, ...]) -> Mapping[int, int]:
    return MappingProxyType({internal: wire for wire, internal in enumerate(table) if internal != DEAD})


def derive(parent: Dialect, **changes: Any) -> Dialect:
    """Return a dialect that differs from `parent` in `changes` only.

    `name`, `announce` and `aliases` must be among the changes, so that no two dialects share a name.

    Raises
    ------
    ValueError
        If one of these three is missing.
    """
    missing = {"name", "announce", "aliases"} - set(changes)
    if missing:
        raise ValueError(f"a derived dialect must state {sorted(missing)}")
    return replace(parent, **changes)


def op_table(names: Iterable[str]) -> tuple[int, ...]:
    """Return internal op ids in the order of `names`, the wire order."""
    return tuple(OP_BY_NAME[name].id for name in names)


def insert_ops(table: tuple[int, ...], at: int, *names: str) -> tuple[int, ...]:
    """Return an op table with the named ops put in at wire number `at`; later numbers move up."""
    return (*table[:at], *op_table(names), *table[at:])


def without_ops(table: tuple[int, ...], *names: str) -> tuple[int, ...]:
    """Return an op table without the named ops; later numbers move down.

    Raises
    ------
    ValueError
        If one of them is not in the table.
    """
    return without(table, *op_table(names))


def without(table: tuple[int, ...], *ids: int) -> tuple[int, ...]:
    """Return `table` without `ids`; later numbers move down.

    Raises
    ------
    ValueError
        If one of the ids is not in the table.
    """
    absent = [i for i in ids if i not in table]
    if absent:
        raise ValueError(f"ids {absent} are not in the table")
    return tuple(i for i in table if i not in ids)


def without_types(table: tuple[int, ...], *names: str) -> tuple[int, ...]:
    """Return a type table in which the named types are dead; dead numbers at its end are cut off.

    Raises
    ------
    ValueError
        If one of them is not in the table.
    """
    gone = {TYPE_BY_NAME[name].id for name in names}
    if not gone <= set(table):
        raise ValueError(f"ids {sorted(gone - set(table))} are not in the table")
    rest = [DEAD if i in gone else i for i in table]
    while rest[-1] == DEAD:
        rest.pop()
    return tuple(rest)


def type_table(numbers: Mapping[int, str], count: int) -> tuple[int, ...]:
    """Return a table of `count` wire numbers with the named types at their numbers and DEAD elsewhere."""
    return tuple(TYPE_BY_NAME[numbers[i]].id if i in numbers else DEAD for i in range(count))


def commands_without(commands: Mapping[Command, int], *gone: Command) -> Mapping[Command, int]:
    """Return `commands` without those in `gone`."""
    return MappingProxyType({c: n for c, n in commands.items() if c not in gone})


def commands_with(commands: Mapping[Command, int], *new: Command) -> Mapping[Command, int]:
    """Return `commands` and those in `new`, the latter with their internal id as the byte."""
    return MappingProxyType({**commands, **{c: int(c) for c in new}})
