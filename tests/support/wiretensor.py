"""Tensor records and graphs as a client sends them, built without the package's own codec."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.enums import TensorFlag
from ggml_rpc.spec.limits import MAX_NAME, OP_PARAMS_WORDS
from ggml_rpc.spec.ops import OP_BY_ID, OP_BY_NAME
from ggml_rpc.spec.types import TYPE_BY_ID, TYPE_BY_NAME

_ids = itertools.count(0x5500_0000_1000, 0x170)
_U32 = 0xFFFF_FFFF


@dataclass(eq=False)
class Tensor:
    """One tensor of a client, in internal ids. What has no number on the wire is sent as it is.

    Parameters
    ----------
    type : int
        Internal type id.
    ne, nb : list of int
        Elements per dimension and byte strides.
    buffer, data : int
        Handle and absolute address, 0 where the tensor lies nowhere.
    src : list of Tensor or None
        Sources by slot.
    params : bytes
        Up to 64 bytes of op parameters, values of enumerations by their internal ids.
    """

    type: int
    ne: list[int]
    nb: list[int]
    buffer: int = 0
    data: int = 0
    op: int = 0
    params: bytes = b""
    flags: int = 0
    src: list[Tensor | None] = field(default_factory=list)
    view_src: Tensor | None = None
    view_offs: int = 0
    name: str = ""
    use_count: int = 0
    id: int = field(default_factory=lambda: next(_ids))

    def nbytes(self) -> int:
        """Return the bytes from the first to the last element, with the given strides."""
        if 0 in self.ne:
            return 0
        t = TYPE_BY_ID[self.type]
        if t.block == 1:
            return t.bytes + sum((n - 1) * b for n, b in zip(self.ne, self.nb, strict=True))
        return (
            t.row_meta
            + self.ne[0] * self.nb[0] // t.block
            + sum((n - 1) * b for n, b in zip(self.ne[1:], self.nb[1:], strict=True))
        )

    def pack(self, dialect: dialects.Dialect) -> bytes:
        """Return the record in a dialect; clients of one without the flag COMPUTE never set it."""
        record = dialect.record
        mask = (1 << 8 * record.dim_bytes) - 1
        src = [0 if s is None else s.id for s in self.src]
        src += [0] * (record.max_src - len(src))
        return struct.pack(
            record.struct_format,
            self.id,
            dialect.type_numbers.get(self.type, self.type) & _U32,
            self.buffer,
            *(n & mask for n in self.ne),
            *(n & mask for n in self.nb),
            dialect.op_numbers.get(self.op, self.op) & _U32,
            *_wire_params(dialect, self.op, self.params),
            self.flags if dialect.compute_flag else self.flags & ~TensorFlag.COMPUTE,
            *src,
            0 if self.view_src is None else self.view_src.id,
            self.view_offs,
            self.data,
            self.name.encode()[: MAX_NAME - 1],
            self.use_count if record.has_use_count else b"",
        )


def _wire_params(dialect: dialects.Dialect, op: int, params: bytes) -> tuple[int, ...]:
    """Return the parameter words with values of enumerations as the dialect numbers them."""
    words = list(struct.unpack(f"<{OP_PARAMS_WORDS}I", params.ljust(4 * OP_PARAMS_WORDS, b"\0")))
    for p in OP_BY_ID[op].params if op in OP_BY_ID else ():
        if p.enum is None:
            continue
        ours = words[p.word] & p.mask
        for wire, internal in enum_values(dialect, p.enum).items():
            if internal == ours:
                words[p.word] = (words[p.word] & ~p.mask & _U32) | wire
                break
    return tuple(w - (1 << 32) if w >> 31 else w for w in words)


def enum_values(dialect: dialects.Dialect, enum: str) -> Mapping[int, int]:
    """Return wire value -> internal value of an enumeration of op parameters."""
    lists = {"unary": dialect.unary, "glu": dialect.glu}
    return dict(enumerate(lists[enum])) if enum in lists else dialect.enums[enum]


def default_strides(type: int, ne: Sequence[int]) -> list[int]:
    """Return the byte strides of a tensor without gaps."""
    t = TYPE_BY_ID[type]
    nb = [t.bytes, t.row_bytes(ne[0])]
    for n in ne[1:3]:
        nb.append(nb[-1] * n)
    return nb


def tensor(type: str, ne: Iterable[int], **fields: object) -> Tensor:
    """Return a tensor of a named type with default strides; missing dimensions are 1."""
    full = list(ne)
    full += [1] * (4 - len(full))
    number = TYPE_BY_NAME[type].id
    return Tensor(number, full, default_strides(number, full), **fields)  # type: ignore[arg-type]


class Arena:
    """Place tensors one after the other in a buffer."""

    def __init__(self, handle: int, base: int, size: int, alignment: int = 64) -> None:
        self.handle, self.base, self.size, self.alignment = handle, base, size, alignment
        self.used = 0

    def place(self, t: Tensor) -> Tensor:
        """Give a tensor the next free place and return it; raise MemoryError if the buffer is full."""
        at = -(-self.used // self.alignment) * self.alignment
        if at + t.nbytes() > self.size:
            raise MemoryError(f"{t.nbytes()} bytes do not fit behind {at} of {self.size}")
        self.used = at + t.nbytes()
        t.buffer, t.data = self.handle, self.base + at
        return t

    def leaf(self, type: str, ne: Iterable[int], name: str = "") -> Tensor:
        """Place a new tensor without op."""
        return self.place(tensor(type, ne, name=name))

    def node(
        self,
        op: str,
        type: str,
        ne: Iterable[int],
        src: Sequence[Tensor | None],
        *,
        params: bytes = b"",
        name: str = "",
    ) -> Tensor:
        """Place the result of an op."""
        flags = int(TensorFlag.COMPUTE)
        t = tensor(type, ne, op=OP_BY_NAME[op].id, src=list(src), params=params, flags=flags, name=name or op.lower())
        return self.place(t)


def view(
    of: Tensor, op: str, ne: Sequence[int], nb: Sequence[int], *, offset: int = 0, params: bytes = b"", name: str = ""
) -> Tensor:
    """Return a no-op node that looks at another tensor's data."""
    root = of.view_src or of
    return Tensor(
        of.type,
        list(ne),
        list(nb),
        buffer=of.buffer,
        data=of.data + offset,
        op=OP_BY_NAME[op].id,
        params=params,
        flags=int(TensorFlag.COMPUTE),
        src=[of],
        view_src=root,
        view_offs=of.view_offs + offset,
        name=name or op.lower(),
    )


def post_order(nodes: Iterable[Tensor]) -> list[Tensor]:
    """Return every tensor reachable from the nodes, once: sources, then the viewed tensor, then the tensor itself."""
    seen: set[int] = set()
    out: list[Tensor] = []
    for root in nodes:
        stack: list[tuple[Tensor, bool]] = [(root, False)]
        while stack:
            t, done = stack.pop()
            if done:
                out.append(t)
                continue
            if id(t) in seen:
                continue
            seen.add(id(t))
            stack.append((t, True))
            below = [s for s in (*t.src, t.view_src) if s is not None]
            stack += [(s, False) for s in reversed(below)]
    return out


def graph_payload(
    dialect: dialects.Dialect,
    nodes: Sequence[Tensor],
    *,
    uid: int = 0,
    device: int = 0,
    tensors: Sequence[Tensor] | None = None,
    count_uses: bool = True,
) -> bytes:
    """Return the payload of GRAPH_COMPUTE.

    Parameters
    ----------
    nodes : sequence of Tensor
        Nodes in the order of execution.
    tensors : sequence of Tensor, optional
        The tensor list; by default everything reachable, in the order clients use.
    count_uses : bool
        Set `use_count` from the uses as a source within the graph.
    """
    listed = post_order(nodes) if tensors is None else list(tensors)
    if count_uses:
        for t in listed:
            t.use_count = 0
        for t in nodes:
            for s in t.src:
                if s is not None:
                    s.use_count += 1
    values = {"device": device, "uid": uid, "n_nodes": len(nodes)}
    fields = dialect.request_fields(Command.GRAPH_COMPUTE)
    header = b"".join(values[f.name].to_bytes(f.size, "little") for f in fields if f.kind != "bytes")
    ids = struct.pack(f"<{len(nodes)}Q", *(n.id for n in nodes))
    return header + ids + struct.pack("<I", len(listed)) + b"".join(t.pack(dialect) for t in listed)


def patch(
    dialect: dialects.Dialect, record: bytes, field_name: str, value: int, *, index: int = 0, width: int = 0
) -> bytes:
    """Return a record with one number overwritten: entry `index` of a field, `width` bytes wide (0: the usual)."""
    usual = {"ne": dialect.record.dim_bytes, "nb": dialect.record.dim_bytes}
    for name in ("type", "op", "op_params", "flags", "use_count"):
        usual[name] = 4
    size = width or usual.get(field_name, 8)
    at = dialect.record.offsets[field_name] + index * size
    return record[:at] + (value & ((1 << 8 * size) - 1)).to_bytes(size, "little") + record[at + size :]
