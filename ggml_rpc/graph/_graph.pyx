"""Validation of a graph without a device: the parser alone, over buffers that need not have memory behind them."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from libcpp.vector cimport vector

from ggml_rpc.native cimport Buffer, BufferLookup, Device, Error, Graph, free_graph, parse_graph
from ggml_rpc.wire._codec cimport Codec

from typing import NamedTuple

from ggml_rpc.errors import from_code


cdef extern from "core/tensor.h" namespace "ggr" nogil:
    cdef cppclass Tensor:
        uint8_t *data
        int64_t[4] ne
        int64_t[4] nb
        int32_t type
        int32_t op
        int32_t flags
        int32_t use_count
        int32_t n_src
        bint compute
        const Tensor **src
        const Tensor *view_src
        uint64_t view_offs
        Buffer *buffer
        char[64] name
        uint64_t id
    int64_t extent_bytes(const Tensor &)


cdef extern from "graph/graph.h" namespace "ggr" nogil:
    cdef cppclass FullGraph "ggr::Graph":
        Tensor *tensors
        const Tensor **nodes
        uint32_t n_tensors
        uint32_t n_nodes
        uint64_t uid
        uint32_t device
        size_t bytes


class CheckedTensor(NamedTuple):
    """One tensor of a graph that was found legal, in internal numbers.

    Parameters
    ----------
    id : int
        The client's name of it.
    name : str
        For people.
    type, op, flags, use_count : int
        As the record had them, in internal numbers.
    ne, nb : tuple of int
        Elements and byte strides; the stride of a dimension of size 1 is its contiguous value.
    buffer : int
        Handle of the buffer that holds it, 0 for none.
    offset : int
        Byte in that buffer where it begins.
    extent : int
        Bytes from its first to its last, with its strides.
    src : tuple of int
        Positions of its sources in the list, -1 for none.
    compute : bool
        The graph runs it as a node.
    """

    id: int
    name: str
    type: int
    op: int
    flags: int
    use_count: int
    ne: tuple[int, ...]
    nb: tuple[int, ...]
    buffer: int
    offset: int
    extent: int
    src: tuple[int, ...]
    compute: bool


cdef class CheckedGraph:
    """A graph that was found legal."""

    cdef FullGraph *graph
    cdef vector[Buffer] buffers  # the tensors point to them

    def __cinit__(self):
        self.graph = NULL

    def __dealloc__(self):
        if self.graph != NULL:
            free_graph(<Graph *> self.graph)

    @property
    def uid(self) -> int:
        """Name under which the client may ask for the graph again, 0 for none."""
        return self.graph.uid

    @property
    def device(self) -> int:
        """Number of the device that is to run it."""
        return self.graph.device

    @property
    def bytes(self) -> int:
        """Memory that the parsed graph takes."""
        return self.graph.bytes

    @property
    def nodes(self) -> list[int]:
        """Positions of the tensors that are to be computed, in order."""
        return [self.graph.nodes[i] - self.graph.tensors for i in range(self.graph.n_nodes)]

    @property
    def tensors(self) -> list[CheckedTensor]:
        """All tensors in the client's order."""
        return [self._tensor(&self.graph.tensors[i]) for i in range(self.graph.n_tensors)]

    cdef _tensor(self, const Tensor *t):
        # Without memory, the address of a buffer's first byte is the base that the caller gave.
        return CheckedTensor(
            t.id, (<bytes> t.name).decode(), t.type, t.op, t.flags, t.use_count,
            tuple([t.ne[i] for i in range(4)]), tuple([t.nb[i] for i in range(4)]),
            t.buffer.handle if t.buffer != NULL else 0,
            <uint64_t> t.data - t.buffer.base if t.buffer != NULL else 0,
            extent_bytes(t[0]),
            tuple([t.src[i] - self.graph.tensors if t.src[i] != NULL else -1 for i in range(t.n_src)]),
            t.compute,
        )


cdef Buffer *_find(void *context, uint64_t handle) noexcept nogil:
    cdef vector[Buffer] *known = <vector[Buffer] *> context
    cdef size_t i
    for i in range(known.size()):
        if known[0][i].handle == handle:
            return &known[0][i]
    return NULL


def check_graph(Codec codec, const uint8_t[::1] payload, buffers, int n_devices=1) -> CheckedGraph:
    """Check the payload of a GRAPH_COMPUTE as a server would, without running anything.

    Parameters
    ----------
    codec : Codec
        The dialect that the payload is written in.
    payload : bytes-like
        The request without its header.
    buffers : iterable of tuple
        The session's buffers: handle, base address, size in bytes, and the device's number (0 if left out).
    n_devices : int
        How many devices the session has.

    Raises
    ------
    ProtocolError, SessionError, GraphError
        If the graph is not legal; the message names the command, the tensor and the rule.
    CompileError
        If a node's op has no rules yet.
    ValueError
        If the buffers do not lie in the lower half of the address space, or name a device that is not there.
    """
    cdef Error err
    cdef BufferLookup lookup
    cdef vector[Device] devices
    cdef vector[Device *] by_number
    cdef Buffer b
    cdef Device device
    cdef Graph *graph
    cdef CheckedGraph out = CheckedGraph.__new__(CheckedGraph)
    cdef uint64_t length = payload.shape[0]
    cdef const uint8_t *data = &payload[0] if length > 0 else NULL
    memset(<void *> &err, 0, sizeof(Error))
    memset(<void *> &device, 0, sizeof(Device))
    device.name = b"without memory"
    for _ in range(n_devices):
        devices.push_back(device)
    for i in range(n_devices):
        by_number.push_back(&devices[i])
    for handle, base, size, *rest in buffers:
        number = rest[0] if rest else 0
        if not 0 <= number < n_devices or not 0 < base or base + size > 1 << 62:
            raise ValueError(f"no such buffer: {size} bytes at {base:#x} on device {number}")
        memset(<void *> &b, 0, sizeof(Buffer))
        b.handle, b.base, b.size = handle, base, size
        b.data = <uint8_t *> b.base
        b.device = by_number[<int> number]
        out.buffers.push_back(b)
    lookup.find = _find
    lookup.context = <void *> &out.buffers
    with nogil:
        graph = parse_graph(codec.table, data, length, lookup, by_number.data(), <uint32_t> n_devices, &err)
    if graph == NULL:
        raise from_code(<int> err.code, (<bytes> err.text).decode("utf-8", "replace"))
    out.graph = <FullGraph *> graph
    return out
