"""Commands and the fields of their requests and replies.

Internal command ids are the command bytes of protocol 8.0.0; no known dialect uses other bytes for the same command.

A field list is a tuple of `(name, kind)`. Kinds: `u8`, `u32`, `u64`, `tensor` (one record of the dialect), `srcs` (one
record per source slot), `caps` (24 bytes), `host` (64 bytes) and `bytes` (the rest of the payload). HELLO, SET_TENSOR,
GET_ALLOC_SIZE, GRAPH_COMPUTE and GRAPH_RECOMPUTE differ between dialects: `Dialect.request_fields` builds theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from types import MappingProxyType

FieldList = tuple[tuple[str, str], ...]


class Command(IntEnum):
    """Command bytes."""

    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17
    SET_TENSOR_2D = 18
    GET_TENSOR_2D = 19
    COMM_INIT = 20
    COMM_ALLREDUCE = 21
    COMM_FREE = 22


class ReplyKind(Enum):
    """What follows a request."""

    NONE = "none"
    """Not one byte."""
    EMPTY = "empty"
    """A reply header announcing 0 bytes."""
    FIXED = "fixed"
    """A reply whose size the dialect fixes."""
    SIZED = "sized"
    """A reply as long as the request asks: `size`, or `size * n_copies`."""


_REGION: FieldList = (("offset", "u64"), ("size", "u64"))
_REGION_2D: FieldList = (*_REGION, ("n_copies", "u64"), ("stride", "u64"))

# The device field is dropped for dialects without DEVICE_COUNT.
REQUEST_FIELDS: Mapping[Command, FieldList] = MappingProxyType(
    {
        Command.ALLOC_BUFFER: (("device", "u32"), ("size", "u64")),
        Command.GET_ALIGNMENT: (("device", "u32"),),
        Command.GET_MAX_SIZE: (("device", "u32"),),
        Command.BUFFER_GET_BASE: (("remote_ptr", "u64"),),
        Command.FREE_BUFFER: (("remote_ptr", "u64"),),
        Command.BUFFER_CLEAR: (("remote_ptr", "u64"), ("value", "u8")),
        Command.SET_TENSOR_HASH: (("tensor", "tensor"), ("offset", "u64"), ("hash", "u64")),
        Command.GET_TENSOR: (("tensor", "tensor"), *_REGION),
        Command.COPY_TENSOR: (("src", "tensor"), ("dst", "tensor")),
        Command.GET_DEVICE_MEMORY: (("device", "u32"),),
        Command.INIT_TENSOR: (("tensor", "tensor"),),
        Command.DEVICE_COUNT: (),
        Command.MEMSET_TENSOR: (("tensor", "tensor"), *_REGION, ("value", "u8")),
        Command.SET_TENSOR_2D: (("tensor", "tensor"), *_REGION_2D, ("data", "bytes")),
        Command.GET_TENSOR_2D: (("tensor", "tensor"), *_REGION_2D),
        Command.COMM_INIT: (("device", "u32"), ("rank", "u32"), ("world", "u32"), ("port", "u32"), ("host", "host")),
        Command.COMM_ALLREDUCE: (("device", "u32"), ("tensor", "tensor")),
        Command.COMM_FREE: (("device", "u32"),),
    }
)

REPLY_FIELDS: Mapping[Command, FieldList] = MappingProxyType(
    {
        Command.ALLOC_BUFFER: (("remote_ptr", "u64"), ("remote_size", "u64")),
        Command.GET_ALIGNMENT: (("alignment", "u64"),),
        Command.GET_MAX_SIZE: (("max_size", "u64"),),
        Command.BUFFER_GET_BASE: (("base_ptr", "u64"),),
        Command.SET_TENSOR_HASH: (("result", "u8"),),
        Command.GET_TENSOR: (("data", "bytes"),),
        Command.COPY_TENSOR: (("result", "u8"),),
        Command.GET_DEVICE_MEMORY: (("free_mem", "u64"), ("total_mem", "u64")),
        Command.GET_ALLOC_SIZE: (("alloc_size", "u64"),),
        Command.DEVICE_COUNT: (("device_count", "u32"),),
        Command.GET_TENSOR_2D: (("data", "bytes"),),
        Command.COMM_INIT: (("ok", "u8"),),
    }
)
