"""The device interface as Python sees it: devices, their buffers and plans."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memmove, memset
from libcpp.vector cimport vector

from ggml_rpc.native cimport (
    Buffer, BufferLookup, Device, Error, Graph, Queue, WaitResult, parse_graph,
)
from ggml_rpc.wire._codec cimport Codec

from ggml_rpc.errors import from_code


cdef raise_error(Error *err):
    """Raise the exception that `err` describes."""
    raise from_code(<int> err.code, (<bytes> err.text).decode("utf-8", "replace"))


# What these free needs what they refer to: the collector must not take that away before (no_gc_clear).
@cython.no_gc_clear
cdef class NativeDevice:
    """One compute device of this process.

    Devices are made by their module (`ggml_rpc.devices.cpu`), not by this class.
    """

    def __cinit__(self):
        self.device = NULL
        self.queue = NULL
        self.host_memory = True

    def __dealloc__(self):
        if self.queue != NULL:
            self.device.ops.close_queue(self.device, self.queue)

    cdef Queue *own_queue(self) except NULL:
        cdef Error err
        if self.queue == NULL:
            memset(<void *> &err, 0, sizeof(Error))
            self.queue = self.device.ops.open_queue(self.device, &err)
            if self.queue == NULL:
                raise_error(&err)
        return self.queue

    @property
    def name(self) -> str:
        """Short name, such as `CPU`."""
        return self.device.name.decode()

    @property
    def description(self) -> str:
        """Name of the hardware."""
        return self.device.description.decode()

    @property
    def alignment(self) -> int:
        """Alignment of buffers in bytes."""
        return self.device.alignment

    def memory(self) -> tuple[int, int]:
        """Return free and total memory in bytes."""
        cdef uint64_t free_bytes = 0, total_bytes = 0
        with nogil:
            self.device.ops.memory(self.device, &free_bytes, &total_bytes)
        return free_bytes, total_bytes

    def alloc(self, uint64_t size) -> DeviceBuffer:
        """Reserve a buffer of `size` bytes.

        Raises
        ------
        OutOfMemory
            If the device has less than that free.
        """
        cdef DeviceBuffer out = DeviceBuffer.__new__(DeviceBuffer)
        cdef Error err
        memset(<void *> &err, 0, sizeof(Error))
        cdef bint ok
        with nogil:
            ok = self.device.ops.alloc(self.device, size, &out.buffer, &err)
        if not ok:
            raise_error(&err)
        out.device = self
        # Outside a session a buffer is named by its own address.
        out.buffer.handle = <uint64_t> out.buffer.data
        out.buffer.base = <uint64_t> out.buffer.data
        return out

    def compile(self, Codec codec, const uint8_t[::1] payload, list buffers) -> DevicePlan:
        """Make the graph of a GRAPH_COMPUTE payload runnable.

        Parameters
        ----------
        codec : Codec
            The dialect that the payload is written in.
        payload : bytes-like
            The request without its header.
        buffers : list of DeviceBuffer
            All buffers that the tensors name by their `handle`.

        Raises
        ------
        ProtocolError, SessionError, GraphError
            If the graph is not legal.
        CompileError
            If this device has no kernel for one of its nodes.
        """
        cdef Error err
        cdef BufferLookup lookup
        cdef Device *device = self.device
        cdef DevicePlan out = DevicePlan.__new__(DevicePlan)
        cdef Graph *graph
        cdef vector[Buffer *] known
        cdef DeviceBuffer b
        memset(<void *> &err, 0, sizeof(Error))
        lookup.find = _find_buffer
        for b in buffers:
            known.push_back(&b.buffer)
        lookup.context = <void *> &known
        graph = parse_graph(codec.table, &payload[0], payload.shape[0], lookup, &device, 1, &err)
        if graph == NULL:
            raise_error(&err)
        # A device may have to make kernels first, and asks Python for them.
        with nogil:
            out.plan = device.ops.compile(device, graph, &err)
        if out.plan == NULL:
            raise_error(&err)
        out.device = self
        out.buffers = list(buffers)
        return out


cdef Buffer *_find_buffer(void *context, uint64_t handle) noexcept nogil:
    cdef vector[Buffer *] *known = <vector[Buffer *] *> context
    cdef Buffer *b
    for b in known[0]:
        if b.handle == handle:
            return b
    return NULL


@cython.no_gc_clear
cdef class DeviceBuffer:
    """Memory on a device; the buffer protocol shows it where the host can address it."""

    def __cinit__(self):
        memset(<void *> &self.buffer, 0, sizeof(Buffer))

    def __dealloc__(self):
        if self.buffer.data != NULL:
            self.buffer.device.ops.release(self.buffer.device, &self.buffer)

    @property
    def handle(self) -> int:
        """Name of the buffer in tensor records."""
        return self.buffer.handle

    @property
    def base(self) -> int:
        """Address of the first byte in tensor records."""
        return self.buffer.base

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.buffer.size

    def write(self, uint64_t offset, const uint8_t[::1] data) -> None:
        """Copy bytes into the buffer.

        Parameters
        ----------
        offset : int
            Where the first byte goes.
        data : bytes-like
            They must fit.
        """
        cdef uint64_t size = data.shape[0]
        self._check(offset, size)
        if size > 0:
            self._move(offset, <uint8_t *> &data[0], size, True)

    def read(self, uint64_t offset, uint64_t size) -> bytearray:
        """Return a copy of some bytes."""
        self._check(offset, size)
        out = bytearray(size)
        cdef uint8_t[::1] view
        if size > 0:
            view = out
            self._move(offset, &view[0], size, False)
        return out

    def read_into(self, uint64_t offset, uint8_t[::1] out) -> None:
        """Copy as many bytes as `out` holds."""
        cdef uint64_t size = out.shape[0]
        self._check(offset, size)
        if size > 0:
            self._move(offset, &out[0], size, False)

    def fill(self, int value) -> None:
        """Set all bytes to a value."""
        cdef Error err
        cdef bint ok
        memset(<void *> &err, 0, sizeof(Error))
        cdef Device *device = self.buffer.device
        cdef uint8_t byte = value
        with nogil:
            ok = device.ops.fill(device, &self.buffer, 0, self.buffer.size, byte, &err)
        if not ok:
            raise_error(&err)

    cdef _check(self, uint64_t offset, uint64_t size):
        if offset > self.buffer.size or size > self.buffer.size - offset:
            raise ValueError(f"{size} bytes at {offset} leave the buffer's {self.buffer.size}")

    cdef _move(self, uint64_t offset, uint8_t *host, uint64_t size, bint write):
        cdef Error err
        cdef Device *device = self.buffer.device
        cdef uint64_t at = 0, mapped = 0
        cdef uint8_t *part
        cdef bint ok = True
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            while at < size and ok:
                part = device.ops.map(device, &self.buffer, offset + at, size - at, write, &mapped, &err)
                if part == NULL:
                    ok = False
                    break
                if write:
                    memmove(part, host + at, mapped)
                else:
                    memmove(host + at, part, mapped)
                ok = device.ops.unmap(device, &self.buffer, part, offset + at, mapped, write, &err)
                at += mapped
        if not ok:
            raise_error(&err)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not self.device.host_memory:
            raise BufferError(f"the memory of {self.device.name} is not the host's: use read and write")
        PyBuffer_FillInfo(view, self, self.buffer.data, <Py_ssize_t> self.buffer.size, 0, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass


@cython.no_gc_clear
cdef class DevicePlan:
    """A graph that was compiled for one device."""

    def __cinit__(self):
        self.plan = NULL

    def __dealloc__(self):
        if self.plan != NULL:
            self.device.device.ops.free_plan(self.device.device, self.plan)

    def run(self):
        """Run the graph and wait for its end.

        Raises
        ------
        ComputeError
            If an index in a tensor is out of range.
        """
        cdef Error err
        cdef Device *device = self.device.device
        cdef Queue *queue = self.device.own_queue()
        cdef uint64_t number
        cdef WaitResult result = WaitResult.timeout
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            number = device.ops.submit(device, queue, self.plan, &err)
            if number != 0:
                while result == WaitResult.timeout:
                    result = device.ops.wait(device, queue, number, 1000000000, &err)
        if number == 0 or result == WaitResult.failed:
            # A queue that failed takes no more work: the next run opens a fresh one.
            device.ops.close_queue(device, queue)
            self.device.queue = NULL
            raise_error(&err)
