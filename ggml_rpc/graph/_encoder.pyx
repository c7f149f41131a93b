"""Tensors and graphs of a program as a peer of some dialect reads them."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from libcpp.vector cimport vector

from ggml_rpc.graph._tensor cimport CTensor, Tensor
from ggml_rpc.native cimport MAX_ENUM_VALUE, DialectTable, Error
from ggml_rpc.wire._codec cimport Codec

from ggml_rpc.errors import from_code
from ggml_rpc.spec.ops import OP_BY_NAME
from ggml_rpc.spec.types import TYPE_BY_NAME
from ggml_rpc.wire._codec import ENUMS


cdef extern from "graph/encode.h" namespace "ggr" nogil:
    const int32_t NOT_SPOKEN
    const int32_t AMBIGUOUS

    cdef cppclass EncodeTable:
        const DialectTable *dialect
        int32_t[256] op_to
        int32_t[512] type_to
        int32_t[8][64] enum_to

    bint encode_tensor(const EncodeTable &, const CTensor &, uint8_t *, Error *)
    bint encode_node(const EncodeTable &, const CTensor &, uint8_t *, Error *)
    bint encode_graph(
        const EncodeTable &, const CTensor **, uint32_t, uint32_t, uint64_t, vector[uint8_t] *, Error *)


def _inverse(table):
    return {internal: wire for wire, internal in reversed(list(enumerate(table))) if internal >= 0}


def _enum(dialect, name):
    if name in ("unary", "glu"):
        return _inverse(getattr(dialect, name))
    return {internal: wire for wire, internal in sorted(dialect.enums[name].items(), reverse=True)}


def _merged(tables):
    # What all tables number alike; None for what they do not.
    out = dict(tables[0])
    for table in tables[1:]:
        for key in {*out, *table}:
            if out.get(key) != table.get(key):
                out[key] = None
    return out


# What csrc/graph/ik.cpp tells apart when it reads them: by a parameter or by a source.
_IK_FORMS = (("SUM_DIM", "SUM_ROWS"), ("GATHER", "GET_ROWS"), ("FLASH_ATTN_ROWS", "FLASH_ATTN_EXT"))


cdef _raise(Error *err):
    raise from_code(<int> err.code, (<bytes> err.text).decode("utf-8", "replace"))


cdef class Encoder:
    """Write tensor records and graphs in a dialect.

    Parameters
    ----------
    candidates : sequence of Dialect
        The tables that the peer may have, one record layout. The first gives the layout; an op, a type or a parameter
        value that they number differently is refused, and `speaks` is false for it.
    """

    cdef readonly Codec codec
    cdef readonly object dialect
    cdef EncodeTable table

    def __init__(self, candidates):
        cdef int i
        self.dialect = candidates[0]
        self.codec = Codec(self.dialect)
        self.table.dialect = &self.codec.table
        for i in range(256):
            self.table.op_to[i] = NOT_SPOKEN
        for i in range(512):
            self.table.type_to[i] = NOT_SPOKEN
        for internal, wire in _merged([_inverse(d.ops) for d in candidates]).items():
            self.table.op_to[<int> internal] = AMBIGUOUS if wire is None else wire
        if self.dialect.ik_meaning:
            for form, name in _IK_FORMS:
                self.table.op_to[<int> OP_BY_NAME[form].id] = self.table.op_to[<int> OP_BY_NAME[name].id]
        for internal, wire in _merged([_inverse(d.types) for d in candidates]).items():
            self.table.type_to[<int> internal] = AMBIGUOUS if wire is None else wire
        for i, name in enumerate(ENUMS):
            for value in range(MAX_ENUM_VALUE + 1):
                self.table.enum_to[i][<int> value] = NOT_SPOKEN
            for internal, wire in _merged([_enum(d, name) for d in candidates]).items():
                if internal <= MAX_ENUM_VALUE and wire is not None:
                    self.table.enum_to[i][<int> internal] = wire

    def speaks(self, op: str, kind: str | None = None, int value=0) -> bool:
        """Tell whether the peer has an op, and where `kind` names an enumeration (`"unary"`, `"glu"`) its value too."""
        if self.table.op_to[<int> OP_BY_NAME[op].id] < 0:
            return False
        return kind is None or self.table.enum_to[<int> ENUMS.index(kind)][value] >= 0

    def has_type(self, name: str) -> bool:
        """Tell whether the peer has a type."""
        return self.table.type_to[<int> TYPE_BY_NAME[name].id] >= 0

    def tensor(self, Tensor t not None) -> bytes:
        """Return the record of a tensor as commands about its contents carry it.

        Raises
        ------
        CompileError
            If the dialect lacks its type, or cannot hold its shape.
        """
        return self._record(t, False)

    def node(self, Tensor t not None) -> bytes:
        """Return the record with op and sources, as GET_ALLOC_SIZE carries it; raises like `tensor`."""
        return self._record(t, True)

    cdef bytes _record(self, Tensor t, bint whole):
        cdef Error err
        cdef bytes out = PyBytes_FromStringAndSize(NULL, self.codec.table.tensor.bytes)
        cdef uint8_t *to = <uint8_t *> PyBytes_AS_STRING(out)
        memset(<void *> &err, 0, sizeof(Error))
        if not (encode_node(self.table, t.t, to, &err) if whole else encode_tensor(self.table, t.t, to, &err)):
            _raise(&err)
        return out

    def graph(self, nodes, uint32_t device=0, uint64_t uid=0) -> bytes:
        """Return the payload of a GRAPH_COMPUTE that runs `nodes` in this order.

        A tensor that a node reads and that is neither a node nor a view counts as a leaf.

        Parameters
        ----------
        nodes : sequence of Tensor
            Each behind the nodes that it reads.
        device : int
            Number of the device on the server.
        uid : int
            Name for GRAPH_RECOMPUTE where the dialect has one, 0 for none.

        Raises
        ------
        GraphError
            If the order is wrong or there are too many nodes.
        CompileError
            If the dialect lacks an op, a type or a parameter value.
        """
        cdef Error err
        cdef vector[const CTensor *] list_
        cdef vector[uint8_t] out
        cdef Tensor t
        cdef bint done
        list_.reserve(len(nodes))
        for t in nodes:
            if t is None:
                raise TypeError("a node is None")
            list_.push_back(&t.t)
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            done = encode_graph(self.table, list_.data(), <uint32_t> list_.size(), device, uid, &out, &err)
        if not done:
            _raise(&err)
        return PyBytes_FromStringAndSize(<const char *> out.data(), <Py_ssize_t> out.size())
