"""CUDA devices behind a table of driver functions."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset, strncpy
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from ggml_rpc.devices._device cimport DevicePlan, NativeDevice, raise_error
from ggml_rpc.native cimport Code, Device, Error, Plan

from ggml_rpc.spec.ops import OP_BY_NAME, OPS


cdef extern from "cuda/driver.h" namespace "ggr::cuda" nogil:
    ctypedef void *CUfunction

    cdef cppclass Driver:
        pass


cdef extern from "cuda/blas.h" namespace "ggr::cuda" nogil:
    cdef cppclass Blas:
        pass


cdef extern from "cuda/plan.h" namespace "ggr::cuda" nogil:
    cdef cppclass KernelName:
        const char *file
        const char *expression

    ctypedef void (*KernelSink)(void *, KernelName) noexcept

    cdef cppclass Hardware:
        int capability
        int multiprocessors
        int shared_bytes
        uint64_t l2_bytes


cdef extern from "cuda/cuda.h" namespace "ggr" nogil:
    cdef cppclass NativeGpu "ggr::CudaGpu":
        pass

    cdef cppclass CudaOwner:
        cbool (*load)(void *, const KernelName *, uint32_t, CUfunction *, Error *) noexcept
        void (*log)(void *, const char *) noexcept
        const Blas *(*blas)(void *) noexcept
        void *context

    cdef cppclass CudaCounts:
        uint64_t launches
        uint64_t graph_launches
        uint64_t graph_updates
        uint64_t cpu_nodes
        uint64_t products
        uint64_t contexts
        uint64_t kept_bytes

    int cuda_driver_functions(const char **names, int capacity)
    int cuda_blas_functions(const char **names, int capacity)
    NativeGpu *cuda_open(const Driver *, int, const CudaOwner &, Device *, int64_t, Error *)
    void cuda_close(NativeGpu *)
    void cuda_leave(NativeGpu *, int32_t)
    void cuda_keep(NativeGpu *, uint64_t)
    Device *cuda_device(NativeGpu *, const char *, const char *)
    void cuda_free_device(Device *)
    const Hardware *cuda_hardware(const NativeGpu *)
    CudaCounts cuda_counts(const NativeGpu *)
    void cuda_plan_counts(const Plan *, uint32_t *, uint32_t *)
    bint cuda_fallback(NativeGpu *, uint32_t, char *, uint64_t, uint64_t *)
    bint cuda_asked(const NativeGpu *, uint32_t, KernelName *)
    bint cuda_load(NativeGpu *, const KernelName *, uint32_t, Error *)
    void cuda_registry(void *, KernelSink)
    bint cuda_has_op(int32_t)


def driver_functions() -> list[str]:
    """Return the names of the driver's functions in the order of the table that `CudaGpu` takes."""
    cdef const char *names[128]
    cdef int n = cuda_driver_functions(names, 128)
    return [names[i].decode() for i in range(n)]


def blas_functions() -> list[str]:
    """Return the names of cuBLASLt's functions in the order of the table that `CudaGpu` may ask for."""
    cdef const char *names[64]
    cdef int n = cuda_blas_functions(names, 64)
    return [names[i].decode() for i in range(n)]


cdef void _collect(void *context, KernelName name) noexcept with gil:
    (<list> context).append((name.file.decode(), name.expression.decode()))


def registry() -> list[tuple[str, str]]:
    """Return every kernel that a plan may ask for: file (without suffix) and expression."""
    out = []
    cuda_registry(<void *> out, _collect)
    return list(dict.fromkeys(out))


def ops_with_kernels() -> list[str]:
    """Return the names of the ops that have kernels, for some of their types and shapes at least."""
    return [op.name for op in OPS if cuda_has_op(op.id)]


cdef cbool _load(
    void *context, const KernelName *names, uint32_t n, CUfunction *functions, Error *err
) noexcept with gil:
    cdef uint32_t i
    try:
        wanted = [(names[i].file.decode(), names[i].expression.decode()) for i in range(n)]
        found = (<CudaGpu> context).loader(wanted)
        if len(found) != n:
            raise ValueError(f"{len(found)} functions for {n} kernels")
        for i in range(n):
            functions[i] = <CUfunction> <uintptr_t> found[i]
        return True
    except BaseException as error:  # nothing may be thrown through native code
        text = f"CUDA kernels cannot be made: {error}".encode()
        err.code = Code.device
        strncpy(err.text, text, sizeof(err.text) - 1)
        err.text[sizeof(err.text) - 1] = 0
        return False


cdef void _log(void *context, const char *line) noexcept with gil:
    try:
        log = (<CudaGpu> context).log
        if log is not None:
            log(line.decode("utf-8", "replace"))
    except BaseException:  # noqa: S110  a log that fails must not stop a graph
        pass


cdef const Blas *_blas(void *context) noexcept with gil:
    try:
        wanted = (<CudaGpu> context).blas
        return <const Blas *> <uintptr_t> (wanted() if wanted is not None else 0)
    except BaseException:  # without it there are kernels of our own
        return NULL


@cython.no_gc_clear
cdef class CudaGpu:
    """One GPU.

    Parameters
    ----------
    table : int
        Address of the driver's functions in the order of `driver_functions()`; it is copied.
    ordinal : int
        The driver's number of the GPU.
    loader : callable
        Takes a list of (file, expression) and returns their CUfunctions as numbers, in the context that is current.
    cpu : NativeDevice
        Computes what has no kernel.
    graph_timeout : float
        Seconds after which a run fails; 0 means never.
    log : callable, optional
        Takes a line for each kind of node that is left to the CPU, once.
    blas : callable, optional
        Returns the address of cuBLASLt's functions in the order of `blas_functions()`, or 0; called at most once, when
        a product first could use them. They are copied.
    without : sequence of str
        Names of ops that are left to the CPU even if they have kernels.
    keep : int, optional
        Bytes of copies of weights that may stay on the host for nodes that run on the CPU; by default a quarter of the
        machine's memory.

    Raises
    ------
    DeviceError
        If the GPU cannot be used.
    """

    cdef NativeGpu *gpu
    cdef object loader
    cdef object log
    cdef object blas
    cdef NativeDevice cpu

    def __cinit__(self, uintptr_t table, int ordinal, loader, NativeDevice cpu, *, double graph_timeout=0.0, log=None,
                  blas=None, without=(), keep=None):
        cdef Error err
        cdef CudaOwner owner
        cdef int64_t timeout_ns = <int64_t> (graph_timeout * 1e9)
        cdef Device *cpu_device = cpu.device
        memset(<void *> &err, 0, sizeof(Error))
        self.loader = loader
        self.log = log
        self.blas = blas
        self.cpu = cpu
        owner.load = _load
        owner.log = _log
        owner.blas = _blas
        owner.context = <void *> self
        with nogil:
            self.gpu = cuda_open(<const Driver *> table, ordinal, owner, cpu_device, timeout_ns, &err)
        if self.gpu == NULL:
            raise_error(&err)
        if keep is not None:
            cuda_keep(self.gpu, keep)
        for name in without:
            cuda_leave(self.gpu, OP_BY_NAME[name].id)

    def __dealloc__(self):
        if self.gpu != NULL:
            cuda_close(self.gpu)

    def device(self, str name, str description, *, bint host_memory=False) -> CudaDevice:
        """Return a logical device on this GPU.

        Parameters
        ----------
        name, description : str
            As clients and users see it.
        host_memory : bool
            Its memory can be addressed by the host: only so where the driver is emulated.
        """
        cdef CudaDevice out = CudaDevice.__new__(CudaDevice)
        encoded_name = name.encode()
        encoded_description = description.encode()
        out.owner = self
        out.device = cuda_device(self.gpu, encoded_name, encoded_description)
        out.host_memory = host_memory
        return out

    @property
    def capability(self) -> int:
        """The compute capability: 90 for 9.0."""
        return cuda_hardware(self.gpu).capability

    def counts(self) -> dict[str, int]:
        """Return how often what happened since the GPU was opened.

        `launches` of kernels (those in graphs included), `graph_launches`, `graph_updates`, `cpu_nodes` that ran on the
        CPU, `products` that cuBLASLt computed, `contexts` made (more than one after an error that lost one), and
        `kept_bytes` of copies of weights that are on the host now.
        """
        cdef CudaCounts counts = cuda_counts(self.gpu)
        return {
            "launches": counts.launches,
            "graph_launches": counts.graph_launches,
            "graph_updates": counts.graph_updates,
            "cpu_nodes": counts.cpu_nodes,
            "products": counts.products,
            "contexts": counts.contexts,
            "kept_bytes": counts.kept_bytes,
        }

    def fallbacks(self) -> dict[str, int]:
        """Return what plans left to the CPU: op and types, and in how many nodes."""
        cdef char text[512]
        cdef uint64_t nodes = 0
        cdef uint32_t i = 0
        out = {}
        while cuda_fallback(self.gpu, i, text, sizeof(text), &nodes):
            out[text.decode()] = nodes
            i += 1
        return out

    def asked(self) -> list[tuple[str, str]]:
        """Return the kernels that plans asked for so far: file and expression."""
        cdef KernelName name
        cdef uint32_t i = 0
        out = []
        while cuda_asked(self.gpu, i, &name):
            out.append((name.file.decode(), name.expression.decode()))
            i += 1
        return out

    def load(self, names) -> None:
        """Make kernels ready ahead of need.

        Parameters
        ----------
        names : sequence of (str, str)
            File and expression of each.
        """
        cdef Error err
        cdef bint ok
        cdef vector[KernelName] wanted
        cdef KernelName one
        memset(<void *> &err, 0, sizeof(Error))
        held = [(file.encode(), expression.encode()) for file, expression in names]
        for file, expression in held:
            one.file = <const char *> file
            one.expression = <const char *> expression
            wanted.push_back(one)
        with nogil:
            ok = cuda_load(self.gpu, wanted.data(), <uint32_t> wanted.size(), &err)
        if not ok:
            raise_error(&err)


@cython.no_gc_clear
cdef class CudaDevice(NativeDevice):
    """A GPU as a device."""

    @property
    def gpu(self) -> CudaGpu:
        """The GPU that it is on."""
        return self.owner

    def __dealloc__(self):
        if self.queue != NULL:
            self.device.ops.close_queue(self.device, self.queue)
            self.queue = NULL
        if self.device != NULL:
            cuda_free_device(self.device)
            self.device = NULL


def plan_counts(DevicePlan plan) -> tuple[int, int]:
    """Return how many kernels a plan of a CUDA device launches, and how many nodes it leaves to the CPU."""
    cdef uint32_t launches = 0, cpu_nodes = 0
    if not isinstance(plan.device, CudaDevice):
        raise TypeError("the plan is not that of a CUDA device")
    cuda_plan_counts(plan.plan, &launches, &cpu_nodes)
    return launches, cpu_nodes
