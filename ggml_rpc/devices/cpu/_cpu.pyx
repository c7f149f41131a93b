"""The CPU devices of this process."""

cimport cython
from libc.stdint cimport int64_t
from libc.string cimport memset
from libcpp.vector cimport vector

from ggml_rpc.devices._device cimport NativeDevice, raise_error
from ggml_rpc.native cimport Device, Error


cdef extern from "cpu/cpu.h" namespace "ggr" nogil:
    cdef cppclass CpuShared:
        pass

    cdef cppclass Placement:
        vector[int] nodes
        vector[vector[int]] cpus

    int cpu_levels(const char **names, int capacity, bint emulated)
    CpuShared *cpu_open(int n_threads, const char *level, int64_t graph_timeout_ns, const Placement&, Error *)
    const char *cpu_level(const CpuShared *)
    void cpu_close(CpuShared *)
    Device *cpu_device(CpuShared *, const char *name)
    void cpu_free_device(Device *)


def levels(*, bint emulated=False) -> list[str]:
    """Return the instruction-set levels that this build holds and this machine can run, best first.

    Parameters
    ----------
    emulated : bool
        Instead those for tests, in which software stands for instructions that few machines have. A build has them only
        if it was asked to.
    """
    cdef const char *names[16]
    cdef int n = cpu_levels(names, 16, emulated)
    return [names[i].decode() for i in range(n)]


cdef class CpuPool:
    """Threads that one or more CPU devices share.

    Parameters
    ----------
    threads : int
        Number of threads, whatever the number of devices and sessions.
    level : str, optional
        One of `levels()`; the best by default.
    graph_timeout : float
        Seconds after which a run is cancelled; 0 means never.
    placement : numa.Placement, optional
        Where memory and threads go; by default as the system likes.

    Raises
    ------
    DeviceError
        If the level or the number of threads cannot be had.
    """

    cdef CpuShared *shared

    def __cinit__(self, int threads, level=None, double graph_timeout=0.0, placement=None):
        cdef Error err
        memset(<void *> &err, 0, sizeof(Error))
        cdef const char *wanted = NULL
        if level is not None:
            encoded = level.encode()
            wanted = encoded
        cdef Placement where
        if placement is not None:
            where.nodes = placement.nodes
            where.cpus = placement.cpus
        self.shared = cpu_open(threads, wanted, <int64_t> (graph_timeout * 1e9), where, &err)
        if self.shared == NULL:
            raise_error(&err)

    def __dealloc__(self):
        if self.shared != NULL:
            with nogil:
                cpu_close(self.shared)

    @property
    def level(self) -> str:
        """The instruction-set level in use."""
        return cpu_level(self.shared).decode()

    def device(self, name="CPU") -> CpuDevice:
        """Return a device that computes on this pool."""
        cdef CpuDevice out = CpuDevice.__new__(CpuDevice)
        encoded = name.encode()
        out.owner = self
        out.device = cpu_device(self.shared, encoded)
        return out


@cython.no_gc_clear
cdef class CpuDevice(NativeDevice):
    """The CPU as a device."""

    def __dealloc__(self):
        if self.queue != NULL:
            self.device.ops.close_queue(self.device, self.queue)
            self.queue = NULL
        if self.device != NULL:
            cpu_free_device(self.device)
            self.device = NULL
