from ggml_rpc.native cimport Buffer, Device, Error, Plan, Queue


cdef raise_error(Error *err)


cdef class NativeDevice:
    cdef Device *device
    cdef object owner
    cdef Queue *queue
    cdef Queue *own_queue(self) except NULL


cdef class DeviceBuffer:
    cdef Buffer buffer
    cdef readonly NativeDevice device


cdef class DevicePlan:
    cdef Plan *plan
    cdef readonly NativeDevice device
    cdef list buffers
