"""A program's tensors: type, shape, op and sources, and the place where they lie."""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from ggml_rpc.native cimport Buffer, Error

import itertools

from ggml_rpc.errors import GraphError, from_code
from ggml_rpc.spec.enums import TensorFlag
from ggml_rpc.spec.limits import MAX_NAME, MAX_SRC, OP_PARAMS_WORDS
from ggml_rpc.spec.ops import OP_BY_ID, OP_BY_NAME
from ggml_rpc.spec.types import TYPE_BY_ID, TYPE_BY_NAME


cdef extern from "core/tensor.h" namespace "ggr" nogil:
    int64_t extent_bytes(const CTensor &)
    int64_t n_elements(const CTensor &)
    bint is_contiguous(const CTensor &)


cdef extern from "graph/graph.h" namespace "ggr" nogil:
    bint check_node(const CTensor &, Error *)


# Ids on the wire: the program's alone, never 0, never used twice.
_ids = itertools.count(1)

cdef int64_t _LIMIT = (<int64_t> 1) << 62
cdef int _CPY = OP_BY_NAME["CPY"].id


def _type_id(kind):
    if isinstance(kind, str):
        found = TYPE_BY_NAME.get(kind.upper())
        if found is None:
            raise GraphError(f"unknown tensor type {kind!r}; known are {', '.join(TYPE_BY_NAME)}")
        return found.id
    if kind not in TYPE_BY_ID:
        raise GraphError(f"unknown tensor type {kind!r}")
    return kind


cdef class Place:
    """Memory that tensors lie in: a handle and the address of its first byte, as tensor records name them.

    Parameters
    ----------
    handle : int
        Name of the buffer on its connection or device.
    base : int
        Address of the first byte.
    size : int
        Bytes.
    """

    def __init__(self, uint64_t handle, uint64_t base, uint64_t size):
        memset(<void *> &self.wire, 0, sizeof(Buffer))
        self.wire.handle = handle
        self.wire.base = base
        self.wire.size = size

    @property
    def handle(self) -> int:
        """Name of the buffer in tensor records."""
        return self.wire.handle

    @property
    def base(self) -> int:
        """Address of the first byte in tensor records."""
        return self.wire.base

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.wire.size


cdef class Tensor:
    """One tensor: a leaf that holds data, or the result of an op.

    Parameters
    ----------
    type : str or int
        Name of the type (`"F32"`, `"Q4_K"`) or its internal id.
    ne : sequence of int
        Elements per dimension in ggml's order, dimension 0 fastest; at most 4.
    nb : sequence of int, optional
        Byte strides; without gaps if left out. Those of dimensions of one element are set to what they would be
        without a gap.
    op : str or int
        The op that makes it; `"NONE"` for a leaf.
    src : sequence of Tensor or None
        Sources by slot. A CPY of one source is a cast: it names itself as the second, which `src` does not show.
    params : sequence of int or bytes, optional
        The parameter words (as bytes: little-endian), values of enumerations by their internal ids; missing words
        are 0.
    view_src : Tensor, optional
        The tensor whose memory this one shares. A view of a view refers to the root.
    view_offs : int
        Where in `view_src` it begins, in bytes.
    flags : int
        Bits of `TensorFlag`.
    name : str
        For people, at most 63 bytes of UTF-8; longer ones are cut.
    n_dims : int, optional
        Dimensions that `shape` shows: as many as `ne` has entries if left out, never fewer than have more than one
        element.

    Raises
    ------
    GraphError
        If the type or the op is not known, a row is no whole number of blocks, strides cut elements or blocks, or a
        view leaves its root.
    """

    def __init__(
        self, type, ne, *, nb=None, op="NONE", src=(), params=None, view_src=None, uint64_t view_offs=0, int flags=0,
        name="", int n_dims=0,
    ):
        cdef int i
        cdef int64_t n, stride
        cdef Tensor s, root
        memset(<void *> &self.t, 0, sizeof(CTensor))
        type_id = _type_id(type)
        spec = TYPE_BY_ID[type_id]
        self.t.type = type_id
        self.t.use_count = -1
        self.t.id = next(_ids)
        self.t.flags = flags
        self.n_dims = len(ne)
        if not 1 <= self.n_dims <= 4:
            raise GraphError(f"tensor {name!r}: {self.n_dims} dimensions; 1 to 4 are possible")
        extent = spec.bytes
        for i in range(4):
            n = ne[i] if i < self.n_dims else 1
            if n < 0:
                raise GraphError(f"tensor {name!r}: dimension {i} is negative ({n})")
            self.t.ne[i] = n
            extent *= max(n, 1)
        if n_dims > 0:
            while self.n_dims > n_dims and self.t.ne[self.n_dims - 1] == 1:
                self.n_dims -= 1
        if extent >= _LIMIT:
            raise GraphError(f"tensor {name!r}: {list(ne)} elements of {spec.name} are more than 2^62 bytes")
        if self.t.ne[0] % spec.block:
            raise GraphError(
                f"tensor {name!r}: rows of {self.t.ne[0]} elements are no whole number of blocks of {spec.name} "
                f"({spec.block})"
            )
        if nb is None:
            self.t.nb[0] = spec.bytes
            stride = spec.row_bytes(self.t.ne[0])
            for i in range(1, 4):
                self.t.nb[i] = stride
                stride *= self.t.ne[i]
        else:
            if len(nb) != 4 or min(nb) < 0 or max(nb) >= _LIMIT:
                raise GraphError(f"tensor {name!r}: strides {list(nb)}: four numbers of bytes are needed")
            stride = spec.bytes
            for i in range(4):
                self.t.nb[i] = nb[i]
                n = self.t.ne[i] // (spec.block if i == 0 else 1)
                if n <= 1:
                    # Never stepped along; peers that test for gaps pass over it or expect this value.
                    self.t.nb[i] = stride
                elif (self.t.nb[i] % spec.bytes if spec.block == 1 else i == 0 and self.t.nb[0] != spec.bytes):
                    raise GraphError(
                        f"tensor {name!r}: stride {i} is {self.t.nb[i]} bytes; "
                        + (f"elements of {spec.name} take {spec.bytes}" if spec.block == 1 else
                           f"blocks of {spec.name} ({spec.bytes} bytes) must stay adjacent")
                    )
                stride = self.t.nb[i] * max(n, 1) + (spec.row_meta if i == 0 else 0)
                if stride >= _LIMIT:
                    raise GraphError(f"tensor {name!r}: strides {list(nb)} reach further than 2^62 bytes")
        op_spec = OP_BY_NAME.get(op) if isinstance(op, str) else OP_BY_ID.get(op)
        if op_spec is None:
            raise GraphError(f"tensor {name!r}: unknown op {op!r}")
        self.t.op = op_spec.id
        if len(src) > MAX_SRC:
            raise GraphError(f"tensor {name!r}: {len(src)} sources; at most {MAX_SRC} are possible")
        self.src = tuple(src)
        for i, s in enumerate(self.src):
            if s is not None:
                self.t.src[i] = &s.t
                self.t.n_src = i + 1
        if self.t.op == _CPY and self.t.n_src == 1:
            self.t.src[1] = &self.t
            self.t.n_src = 2
        if isinstance(params, bytes):
            if len(params) > sizeof(self.t.params):
                raise GraphError(f"tensor {name!r}: {len(params)} bytes of parameters; {sizeof(self.t.params)} fit")
            memcpy(<void *> self.t.params, <const char *> (<bytes> params), len(params))
        elif params is not None:
            if len(params) > OP_PARAMS_WORDS:
                raise GraphError(f"tensor {name!r}: {len(params)} parameter words; there are {OP_PARAMS_WORDS}")
            for i, word in enumerate(params):
                self.t.params[i] = <int32_t> (<uint64_t> (word & 0xFFFFFFFF))
        self._rename(name)
        if view_src is not None:
            root = view_src
            if root.view_src is not None:
                view_offs += root.t.view_offs
                root = root.view_src
            self.view_src = root
            self.t.view_src = &root.t
            self.t.view_offs = view_offs
            size, room = self.nbytes, root.nbytes
            if view_offs % spec.bytes and spec.row_meta == 0:
                raise GraphError(
                    f"tensor {name!r}: offset {view_offs} is no multiple of the {spec.bytes} bytes of {spec.name}"
                )
            if view_offs > room or size > room - view_offs:
                raise GraphError(
                    f"tensor {name!r}: a view of {size} bytes at offset {view_offs} leaves {root.name!r} ({room} bytes)"
                )
            self.follow_root()

    def _rename(self, name):
        cdef bytes raw = name.encode()[: MAX_NAME - 1]
        memset(<void *> self.t.name, 0, sizeof(self.t.name))
        memcpy(<void *> self.t.name, <const char *> raw, len(raw))

    cdef void follow_root(self) noexcept:
        # The place of a view is that of its root, which may have been given later.
        if self.view_src is not None and self.view_src.place is not None:
            self.t.buffer = self.view_src.t.buffer
            self.t.data = self.view_src.t.data + self.t.view_offs

    def put(self, Place place not None, uint64_t offset) -> Tensor:
        """Let the tensor lie in `place`, `offset` bytes from its start, and return it.

        Raises
        ------
        GraphError
            If it does not fit there, or is a view (which lies where its root does).
        """
        if self.view_src is not None:
            raise GraphError(f"tensor {self.name!r} is a view: it lies where {self.view_src.name!r} does")
        size = self.nbytes
        if offset > place.wire.size or size > place.wire.size - offset:
            raise GraphError(
                f"tensor {self.name!r}: {size} bytes at {offset} leave a buffer of {place.wire.size} bytes"
            )
        self.place = place
        self.t.buffer = &place.wire
        self.t.data = <uint8_t *> (place.wire.base + offset)
        return self

    def check(self) -> None:
        """Check the node against the rules of its op: sources, types, shapes, strides, parameters.

        Raises
        ------
        GraphError
            The message names the tensor, the op and the rule.
        """
        cdef Error err
        cdef Tensor s
        cdef int i
        spec = OP_BY_ID[self.t.op]
        for i, source in enumerate(spec.sources):
            if not source.optional and self.t.src[i] == NULL:
                raise GraphError(f"tensor {self.name!r}: op {spec.name} lacks source {i} ({source.name})")
        if self.t.n_src > len(spec.sources):
            raise GraphError(f"tensor {self.name!r}: op {spec.name} takes {len(spec.sources)} sources")
        if spec.is_noop:
            return
        self.follow_root()
        for s in self.src:
            if s is not None:
                s.follow_root()
        memset(<void *> &err, 0, sizeof(Error))
        if not check_node(self.t, &err):
            text = (<bytes> err.text).decode("utf-8", "replace")
            raise from_code(<int> err.code, text.removeprefix("GRAPH_COMPUTE: "))

    @property
    def type(self) -> str:
        """Name of the type."""
        return TYPE_BY_ID[self.t.type].name

    @property
    def type_id(self) -> int:
        """Internal id of the type."""
        return self.t.type

    @property
    def ne(self) -> tuple[int, int, int, int]:
        """Elements per dimension, dimension 0 fastest."""
        return self.t.ne[0], self.t.ne[1], self.t.ne[2], self.t.ne[3]

    @property
    def nb(self) -> tuple[int, int, int, int]:
        """Byte strides per dimension."""
        return self.t.nb[0], self.t.nb[1], self.t.nb[2], self.t.nb[3]

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per dimension in NumPy's order, last fastest; as many dimensions as the tensor was made with."""
        return tuple([self.t.ne[i] for i in reversed(range(self.n_dims))])

    @property
    def op(self) -> str:
        """Name of the op that makes it."""
        return OP_BY_ID[self.t.op].name

    @property
    def params(self) -> tuple[int, ...]:
        """The parameter words."""
        return tuple([self.t.params[i] for i in range(OP_PARAMS_WORDS)])

    @property
    def view_offs(self) -> int:
        """Where in `view_src` it begins, in bytes."""
        return self.t.view_offs

    @property
    def id(self) -> int:
        """Name of the tensor on the wire."""
        return self.t.id

    @property
    def name(self) -> str:
        """Name for people."""
        return (<bytes> self.t.name).decode("utf-8", "replace")

    @name.setter
    def name(self, value):
        self._rename(value)

    @property
    def flags(self) -> int:
        """Bits of `TensorFlag`."""
        return self.t.flags

    @flags.setter
    def flags(self, int value):
        self.t.flags = value

    @property
    def is_output(self) -> bool:
        """Whether the contents are wanted after the graph."""
        return bool(self.t.flags & TensorFlag.OUTPUT)

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last element, with the strides."""
        return extent_bytes(self.t)

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return n_elements(self.t)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements follow each other without gaps, dimension 0 fastest."""
        return is_contiguous(self.t)

    @property
    def buffer(self) -> Place | None:
        """Where it lies, None for nowhere yet; a view lies where its root does."""
        return self.place if self.view_src is None else self.view_src.place

    @property
    def offset(self) -> int:
        """Bytes from the start of `buffer`; 0 without one."""
        self.follow_root()
        return <uint64_t> self.t.data - self.t.buffer.base if self.t.buffer != NULL else 0

    def __repr__(self):
        shape = ", ".join(str(n) for n in self.shape)
        made = "" if self.t.op == 0 else f", {self.op}"
        return f"Tensor({self.name!r}, {self.type} [{shape}]{made})"
