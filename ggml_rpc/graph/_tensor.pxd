from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from ggml_rpc.native cimport Buffer


cdef extern from "core/tensor.h" namespace "ggr" nogil:
    cdef cppclass CTensor "ggr::Tensor":
        uint8_t *data
        int64_t[4] ne
        int64_t[4] nb
        int32_t type
        int32_t op
        int32_t flags
        int32_t use_count
        int32_t n_src
        bint compute
        const CTensor **src
        const CTensor *view_src
        uint64_t view_offs
        Buffer *buffer
        int32_t[16] params
        char[64] name
        uint64_t id


cdef class Place:
    cdef Buffer wire


cdef class Tensor:
    cdef CTensor t
    cdef readonly int n_dims
    cdef readonly tuple src
    cdef readonly Tensor view_src
    cdef readonly Place place
    cdef public object device
    cdef void follow_root(self) noexcept
