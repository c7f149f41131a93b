"""Requests and replies in hexadecimal, written from the description of the protocol and not from the package's tables.

A request is its command byte, eight bytes of length, and the payload. T is the size of one tensor record.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

EMPTY = "0000000000000000"
"""An empty reply: a length of 0."""


@dataclass(frozen=True)
class Record:
    """Where the fields of a tensor record stand, for those that differ; `dim` is the format of one `ne` or `nb`."""

    size: int
    op: int
    flags: int
    src: int
    data: int
    name: int
    dim: str = "I"

    def pack(
        self, *, id: int, buffer: int, ne: tuple[int, ...], data: int, op: int = 0, params: bytes = b"", src: int = 0
    ) -> bytes:
        """Return a contiguous F32 tensor called `x`, flagged COMPUTE if it has an op, with one source or none."""
        out = bytearray(self.size)
        nb = [4, 4 * ne[0], 4 * ne[0] * ne[1], 4 * ne[0] * ne[1]]
        struct.pack_into("<QIQ", out, 0, id, 0, buffer)
        struct.pack_into(f"<8{self.dim}", out, 20, *ne, 1, 1, *nb)
        struct.pack_into("<I", out, self.op, op)
        out[self.op + 4 : self.op + 4 + len(params)] = params
        struct.pack_into("<i", out, self.flags, 16 if op else 0)
        struct.pack_into("<Q", out, self.src, src)
        struct.pack_into("<Q", out, self.data, data)
        out[self.name : self.name + 1] = b"x"
        return bytes(out)


LLAMA = Record(296, op=52, flags=120, src=124, data=220, name=228)
IK_16 = Record(344, op=52, flags=120, src=124, data=268, name=276)
IK_WIDE = Record(376, op=84, flags=152, src=156, data=300, name=308, dim="Q")


@dataclass(frozen=True)
class Golden:
    """What a dialect's messages begin with, and what answers them.

    Parameters
    ----------
    hello, hello_reply : str
        All of HELLO and its reply.
    device : str
        How payloads begin that name a device, here device 0.
    done : str
        Reply of FREE_BUFFER, BUFFER_CLEAR and INIT_TENSOR.
    count, alignment, max_size, memory, alloc : str
        Requests about devices, ALLOC_BUFFER without its size; empty where there is no such command.
    init, set, hash, get, copy, alloc_size : str
        Heads of commands that carry a record; SET_TENSOR is one of 128 bytes.
    set_flag : str
        What stands between record and offset in SET_TENSOR.
    memset, memset_reply : str
        Head of MEMSET_TENSOR, and its reply.
    graph, status : str
        GRAPH_COMPUTE with one node and two tensors, up to the node's id; and its reply.
    recompute : str
        All of GRAPH_RECOMPUTE for that graph.
    scale : int
        Number of the op SCALE.
    """

    hello: str
    hello_reply: str
    record: Record
    scale: int
    graph: str
    recompute: str
    alloc_size: str
    set: str = "06b001000000000000"
    set_flag: str = ""
    device: str = "00000000"
    done: str = EMPTY
    count: str = "0f0000000000000000"
    alignment: str = "010400000000000000 00000000"
    max_size: str = "020400000000000000 00000000"
    memory: str = "0b0400000000000000 00000000"
    alloc: str = "000c00000000000000 00000000"
    init: str = "0c2801000000000000"
    hash: str = "073801000000000000"
    get: str = "083801000000000000"
    copy: str = "095002000000000000"
    memset: str = ""
    memset_reply: str = ""
    status: str = ""


_CAPS = "00" * 24
_HELLO_24 = "0e1800000000000000" + _CAPS
_HELLO_0 = "0e0000000000000000"
_ALLOC_SIZE_SOURCES = "0dbc0c000000000000"  # 4 + 11 T
_RECOMPUTE = "100400000000000000 00000000"

GOLDEN: dict[str, Golden] = {
    "8.0.0": Golden(
        hello=_HELLO_24,
        hello_reply="1c00000000000000 08000000" + _CAPS,
        record=LLAMA,
        scale=32,
        graph="0a6c02000000000000 00000000 0700000000000000 01000000",
        recompute="100c00000000000000 00000000 0700000000000000",
        alloc_size=_ALLOC_SIZE_SOURCES,
        set="06b101000000000000",
        set_flag="00",
        done="",
        memset="113901000000000000",
    ),
    "7.0.0": Golden(
        hello=_HELLO_24,
        hello_reply="1c00000000000000 07000000" + _CAPS,
        record=LLAMA,
        scale=32,
        graph="0a6402000000000000 00000000 01000000",
        recompute=_RECOMPUTE,
        alloc_size=_ALLOC_SIZE_SOURCES,
        set="06b101000000000000",
        set_flag="00",
        done="",
        memset="113901000000000000",
    ),
    "5.0.0": Golden(
        hello=_HELLO_24,
        hello_reply="1c00000000000000 05000000" + _CAPS,
        record=LLAMA,
        scale=32,
        graph="0a6402000000000000 00000000 01000000",
        recompute=_RECOMPUTE,
        alloc_size=_ALLOC_SIZE_SOURCES,
        memset="113901000000000000",
        memset_reply=EMPTY,
    ),
    "4.0.0": Golden(
        hello=_HELLO_24,
        hello_reply="1c00000000000000 04000000" + _CAPS,
        record=LLAMA,
        scale=32,
        graph="0a6402000000000000 00000000 01000000",
        recompute=_RECOMPUTE,
        alloc_size=_ALLOC_SIZE_SOURCES,
    ),
    "3.0.0": Golden(
        hello=_HELLO_0,
        hello_reply="0300000000000000 030000",
        record=LLAMA,
        scale=32,
        graph="0a6402000000000000 00000000 01000000",
        recompute="",
        alloc_size="0d2c01000000000000",
        status="0100000000000000 00",
    ),
    "2.0.0": Golden(
        hello=_HELLO_0,
        hello_reply="0300000000000000 020000",
        record=LLAMA,
        scale=31,
        graph="0a6002000000000000 01000000",
        recompute="",
        alloc_size="0d2801000000000000",
        device="",
        count="",
        alignment="010000000000000000",
        max_size="020000000000000000",
        memory="0b0000000000000000",
        alloc="000800000000000000",
        status="0100000000000000 00",
    ),
    "ik-3.5.2": Golden(
        hello=_HELLO_0,
        hello_reply="0300000000000000 030502",
        record=IK_16,
        scale=34,
        graph="0ac402000000000000 00000000 01000000",
        recompute=_RECOMPUTE,
        alloc_size="0d5c01000000000000",
        set="06e001000000000000",
        init="0c5801000000000000",
        hash="076801000000000000",
        get="086801000000000000",
        copy="09b002000000000000",
    ),
    "ik-5.5.5": Golden(
        hello=_HELLO_0,
        hello_reply="0300000000000000 050505",
        record=IK_WIDE,
        scale=34,
        graph="0a0403000000000000 00000000 01000000",
        recompute="100800000000000000 00000000 00000000",  # no CPY node, no offset
        alloc_size="0dfc18000000000000",
        set="060102000000000000",
        set_flag="00",
        done="",
        init="0c7801000000000000",
        hash="078801000000000000",
        get="088801000000000000",
        copy="09f002000000000000",
        memset="118901000000000000",
    ),
}
