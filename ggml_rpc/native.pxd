"""What the headers under csrc declare."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "core/status.h" namespace "ggr" nogil:
    cdef enum class Code(int32_t):
        ok
        closed
        protocol
        session
        graph
        unsupported
        device
        compute
        cancelled
        timeout
        io
        memory

    cdef cppclass Error:
        Code code
        char[512] text
        void clear()


cdef extern from "core/device.h" namespace "ggr" nogil:
    cdef cppclass Graph:
        pass

    cdef cppclass Plan:
        pass

    cdef cppclass Queue:
        pass

    cdef cppclass Buffer:
        uint64_t handle
        uint64_t base
        uint64_t size
        uint8_t *data
        Device *device
        uint64_t last_use
        void *state

    cdef enum class WaitResult(int32_t):
        done
        timeout
        failed

    cdef cppclass DeviceOps:
        bint alloc(Device *, uint64_t, Buffer *, Error *)
        void release(Device *, Buffer *)
        uint8_t *map(Device *, Buffer *, uint64_t, uint64_t, bint, uint64_t *, Error *)
        bint unmap(Device *, Buffer *, uint8_t *, uint64_t, uint64_t, bint, Error *)
        bint fill(Device *, Buffer *, uint64_t, uint64_t, uint8_t, Error *)
        Plan *compile(Device *, Graph *, Error *)
        void free_plan(Device *, Plan *)
        uint64_t plan_bytes(const Plan *)
        Queue *open_queue(Device *, Error *)
        void close_queue(Device *, Queue *)
        uint64_t submit(Device *, Queue *, Plan *, Error *)
        WaitResult wait(Device *, Queue *, uint64_t, int64_t, Error *)
        void cancel(Device *, Queue *)
        void memory(Device *, uint64_t *, uint64_t *)

    cdef cppclass Device:
        const DeviceOps *ops
        const char *name
        const char *description
        uint64_t alignment
        uint64_t max_size


cdef extern from "wire/dialect.h" namespace "ggr" nogil:
    cdef cppclass TensorLayout:
        int32_t bytes
        int32_t id, type, buffer, ne, nb, op, params, flags, src, view_src, view_offs, data, name, use_count
        int32_t dim_bytes
        int32_t n_src
        int32_t n_name

    const int MAX_ENUM_VALUE
    const int MAX_ENUM_PARAMS

    cdef cppclass EnumParam:
        int32_t op, word
        uint32_t mask
        int32_t table

    cdef cppclass DialectTable:
        char[48] name
        TensorLayout tensor
        int32_t[256] command_of
        int64_t[23] request_bytes
        uint8_t[23] reply
        int32_t[256] op_of
        int32_t[512] type_of
        int32_t[8][64] enum_of
        EnumParam[32] enum_params
        int32_t n_enum_params
        int32_t set_tensor_flag
        int32_t set_tensor_offset
        int32_t set_tensor_header
        int32_t graph_device
        int32_t graph_uid
        int32_t graph_n_nodes
        int32_t recompute_device
        int32_t recompute_uid
        int32_t recompute_offsets
        int32_t graph_cache_max
        bint device_field
        bint alloc_size_has_srcs
        bint compute_flag
        bint cache_by_flag
        bint graph_status
        bint kv_bound
        bint set_rows_by_view
        bint ik_meaning


cdef extern from "graph/graph.h" namespace "ggr" nogil:
    cdef cppclass BufferLookup:
        Buffer *(*find)(void *, uint64_t)
        void *context

    Graph *parse_graph(
        const DialectTable &, const uint8_t *, uint64_t, const BufferLookup &, Device *const *, uint32_t, Error *)
    void free_graph(Graph *)
