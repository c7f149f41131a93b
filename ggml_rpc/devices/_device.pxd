from libc.stdint cimport uint8_t, uint64_t

from ggml_rpc.native cimport Buffer, Device, Error, Plan, Queue


cdef raise_error(Error *err)


cdef class NativeDevice:
    cdef Device *device
    cdef object owner
    cdef bint host_memory
    cdef Queue *queue
    cdef Queue *own_queue(self) except NULL


cdef class DeviceBuffer:
    cdef Buffer buffer
    cdef readonly NativeDevice device
    cdef _check(self, uint64_t offset, uint64_t size)
    cdef _move(self, uint64_t offset, uint8_t *host, uint64_t size, bint write)


cdef class DevicePlan:
    cdef Plan *plan
    cdef readonly NativeDevice device
    cdef list buffers
