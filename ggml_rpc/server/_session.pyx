"""The native half of a session: everything between two decisions of the server runs here without the GIL."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from ggml_rpc.devices._device cimport NativeDevice, raise_error
from ggml_rpc.native cimport Device, DialectTable, Error
from ggml_rpc.wire._codec cimport Codec

import os
from enum import IntEnum

from ggml_rpc.spec import limits
from ggml_rpc.spec.commands import Command


cdef extern from "net/stream.h" namespace "ggr" nogil:
    cdef cppclass Transport:
        pass

    Transport tcp_transport(int fd)
    int64_t monotonic_ns()


cdef extern from "server/session.h" namespace "ggr" nogil:
    cdef cppclass NativeEvent "ggr::Event":
        pass

    cdef cppclass SessionConfig:
        vector[Device *] devices
        uint64_t max_buffers
        uint64_t max_stored_graph_bytes
        uint64_t max_graph_bytes
        uint64_t max_compiled_graph_bytes
        int64_t hello_deadline_ns
        cbool cache
        void (*trace)(void *, const char *) noexcept nogil
        void (*note)(void *, const char *) noexcept nogil
        void *context

    cdef cppclass SessionStats:
        uint64_t commands
        uint64_t graphs
        uint64_t recomputes
        uint64_t received
        uint64_t sent

    cdef cppclass NativeSession "ggr::Session":
        NativeSession(Transport, SessionConfig)
        NativeEvent serve(Error *)
        void choose(vector[const DialectTable *], cbool)
        int32_t command()
        const vector[uint8_t] &payload()
        uint32_t device_index()
        uint64_t argument()
        uint64_t region_bytes()
        cbool reply(const void *, uint64_t, Error *)
        cbool done(Error *)
        cbool allocate(uint32_t, uint64_t, uint64_t, uint64_t *, Error *)
        cbool release(uint64_t, Error *)
        cbool load(int, uint64_t, cbool, cbool *, Error *)
        cbool hash_region(uint64_t *, Error *)
        cbool store(int, int *, Error *)
        uint64_t held_bytes()
        SessionStats stats()


class Event(IntEnum):
    """What `Session.serve` came back for; see csrc/server/session.h."""

    FAILED = 0
    HELLO = 1
    ALLOC_BUFFER = 2
    FREE_BUFFER = 3
    DEVICE_MEMORY = 4
    TENSOR_HASH = 5
    STORE_TENSOR = 6
    COMM = 7
    FIRST_COMMAND = 8


cdef void _trace(void *context, const char *line) noexcept nogil:
    with gil:
        (<Session> context).trace(line.decode("utf-8", "replace"))


cdef void _note(void *context, const char *line) noexcept nogil:
    with gil:
        (<Session> context).note(line.decode("utf-8", "replace"))


# Its end needs its devices and whom it reports to: the collector must not take them away before.
@cython.no_gc_clear
cdef class Session:
    """One connection's state.

    Parameters
    ----------
    fd : int
        Connected socket; stays the caller's, who closes it after the session.
    devices : sequence of NativeDevice
        What the client sees as device 0, 1, ...
    hello_seconds : float
        How long the client may take until its HELLO is complete.
    max_graph_bytes : int
        What requests, graphs and plans of all sessions of the process may take together.
    cache : bool
        Report tensors that are to be kept.
    trace : callable, optional
        Called with a line of text for each command.
    note : callable, optional
        Called with a line of text for each thing that was inferred about the client's dialect.
    """

    cdef NativeSession *native
    cdef list codecs
    cdef list devices
    cdef object trace
    cdef object note

    def __cinit__(
        self,
        int fd,
        devices,
        *,
        double hello_seconds,
        uint64_t max_graph_bytes,
        bint cache=False,
        trace=None,
        note=None,
    ):
        cdef SessionConfig config
        cdef NativeDevice device
        self.codecs = []
        self.devices = list(devices)
        self.trace = trace
        self.note = note
        for device in self.devices:
            config.devices.push_back(device.device)
        config.max_buffers = limits.MAX_BUFFERS_PER_SESSION
        config.max_stored_graph_bytes = limits.MAX_STORED_GRAPH_BYTES
        config.max_graph_bytes = max_graph_bytes
        config.max_compiled_graph_bytes = limits.MAX_COMPILED_GRAPH_BYTES
        config.hello_deadline_ns = monotonic_ns() + <int64_t> (hello_seconds * 1e9)
        config.cache = cache
        config.trace = NULL
        config.note = NULL
        if trace is not None:
            config.trace = _trace
        if note is not None:
            config.note = _note
        config.context = <void *> self
        self.native = new NativeSession(tcp_transport(fd), config)

    def __dealloc__(self):
        self.close()

    def close(self):
        """Cancel what runs and free all buffers; the session serves no more."""
        cdef NativeSession *native = self.native
        self.native = NULL
        if native != NULL:
            with nogil:
                del native

    cdef NativeSession *open(self) except NULL:
        if self.native == NULL:
            raise ValueError("the session is closed")
        return self.native

    def serve(self) -> Event:
        """Serve commands until one needs a decision; return which.

        Raises
        ------
        RpcError
            When the session is over; `ConnectionLost` with the text `between messages: ...` if the client left in good
            order.
        """
        cdef NativeSession *native = self.open()
        cdef Error err
        cdef int event
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            event = <int> native.serve(&err)
        if event == 0:
            raise_error(&err)
        return Event(event)

    def choose(self, codecs, *, bint report=False):
        """After HELLO: set the tables that the client may speak; what it sends will narrow them down.

        Parameters
        ----------
        codecs : sequence of Codec
            At least one; all must have the same replies.
        report : bool
            Let `serve` return FIRST_COMMAND when the client sends its first command.

        Raises
        ------
        ValueError
            If there is no table.
        """
        cdef vector[const DialectTable *] tables
        cdef Codec codec
        if not codecs:
            raise ValueError("a session needs at least one table")
        self.codecs = list(codecs)
        for codec in self.codecs:
            tables.push_back(&codec.table)
        self.open().choose(tables, report)

    @property
    def command(self) -> Command:
        """The command of the last event."""
        return Command(self.open().command())

    @property
    def payload(self) -> bytes:
        """The payload of the last event."""
        cdef const vector[uint8_t] *payload = &self.open().payload()
        return payload.data()[:payload.size()]

    @property
    def device(self) -> NativeDevice:
        """The device that the last event names."""
        return self.devices[self.open().device_index()]

    @property
    def argument(self) -> int:
        """Size, handle or hash of the last event."""
        return self.open().argument()

    @property
    def region_bytes(self) -> int:
        """Bytes of the tensor that the last TENSOR_HASH or STORE_TENSOR names."""
        return self.open().region_bytes()

    @property
    def held_bytes(self) -> int:
        """Bytes in the buffers of the session."""
        return self.open().held_bytes()

    def stats(self) -> dict[str, int]:
        """Return counts of commands, graphs, recomputed graphs and bytes."""
        cdef SessionStats s = self.open().stats()
        return {
            "commands": s.commands,
            "graphs": s.graphs,
            "recomputes": s.recomputes,
            "received": s.received,
            "sent": s.sent,
        }

    def reply(self, const uint8_t[::1] data):
        """Send a reply with this payload."""
        cdef Error err
        cdef cbool ok
        cdef NativeSession *native = self.open()
        cdef const uint8_t *start = &data[0] if data.shape[0] else NULL
        cdef uint64_t size = data.shape[0]
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            ok = native.reply(start, size, &err)
        if not ok:
            raise_error(&err)

    def done(self):
        """Answer a command whose reply, if the dialect has one, is empty."""
        cdef Error err
        cdef cbool ok
        cdef NativeSession *native = self.open()
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            ok = native.done(&err)
        if not ok:
            raise_error(&err)

    def allocate(self, uint64_t handle) -> int:
        """Reserve what ALLOC_BUFFER asked for under this handle and return the size granted.

        Raises
        ------
        OutOfMemory
            If the device or the session has no room for it.
        """
        cdef Error err
        cdef uint64_t granted = 0
        cdef cbool ok
        cdef NativeSession *native = self.open()
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            ok = native.allocate(native.device_index(), native.argument(), handle, &granted, &err)
        if not ok:
            raise_error(&err)
        return granted

    def release(self):
        """Free the buffer that FREE_BUFFER names."""
        cdef Error err
        cdef cbool ok
        cdef NativeSession *native = self.open()
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            ok = native.release(native.argument(), &err)
        if not ok:
            raise_error(&err)

    def load(self, int fd, uint64_t size, *, cbool verify=True) -> bool:
        """Fill the tensor of TENSOR_HASH from a file; return whether it was whole and its hash the one asked for.

        Without `verify` the file may be read later, while the client goes on; whatever uses the tensor waits for it. If
        the file turns out to be another one then, that command raises `DeviceError`.
        """
        cdef Error err
        cdef cbool ok, matches = False
        cdef NativeSession *native = self.open()
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            ok = native.load(fd, size, verify, &matches, &err)
        if not ok:
            raise_error(&err)
        return matches

    def hash_region(self) -> int:
        """Return the FNV-1a-64 of the bytes that STORE_TENSOR names."""
        cdef Error err
        cdef cbool ok
        cdef uint64_t hash = 0
        cdef NativeSession *native = self.open()
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            ok = native.hash_region(&hash, &err)
        if not ok:
            raise_error(&err)
        return hash

    def store(self, int fd):
        """Write the bytes that STORE_TENSOR names to an open file.

        Raises
        ------
        OSError
            If the file does not take them.
        """
        cdef Error err
        cdef cbool ok
        cdef int failure = 0
        cdef NativeSession *native = self.open()
        memset(<void *> &err, 0, sizeof(Error))
        with nogil:
            ok = native.store(fd, &failure, &err)
        if not ok:
            raise_error(&err)
        if failure:
            raise OSError(failure, os.strerror(failure))
