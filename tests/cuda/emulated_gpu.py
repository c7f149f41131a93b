"""The CUDA device over the emulated driver: kernels run on the host, everything else is what runs on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.devices.cuda._cuda import CudaDevice, CudaGpu, driver_functions

from .host.build import KERNELS, kernel_library
from .host.emulator import library


class _Setup(ctypes.Structure):
    _fields_ = (
        ("devices", ctypes.c_int32),
        ("capability", ctypes.c_int32),
        ("memory_bytes", ctypes.c_uint64),
        ("lazy", ctypes.c_int32),
        ("queries", ctypes.c_int32),
    )


class EmulatedDriver:
    """The driver of a machine with some GPUs.

    Parameters
    ----------
    devices : int
        GPUs.
    memory_bytes : int
        Of each.
    lazy : bool
        What is put on a stream is done only when somebody waits for it.
    queries : int
        How often an event that is not done says so, before it is done by being asked for.
    """

    def __init__(
        self,
        *,
        devices: int = 1,
        memory_bytes: int = 1 << 30,
        lazy: bool = True,
        queries: int = 2,
        capability: int = 90,
    ) -> None:
        self._library = library()
        self._library.ggr_driver_function.restype = ctypes.c_void_p
        self._library.ggr_driver_misuse.restype = ctypes.c_char_p
        setup = _Setup(devices, capability, memory_bytes, lazy, queries)
        self._library.ggr_driver_setup(ctypes.byref(setup))
        addresses = [self._library.ggr_driver_function(name.encode()) for name in driver_functions()]
        assert all(addresses)
        self.table = (ctypes.c_void_p * len(addresses))(*addresses)

    def function(self, name: str) -> ctypes._CFuncPtr:
        """Return a function of the driver."""
        return ctypes.CFUNCTYPE(ctypes.c_int)(self.table[driver_functions().index(name)])

    def load(self, names: Sequence[tuple[str, str]]) -> list[int]:
        """Make kernels callable in the thread's context: the loader of `CudaGpu`."""
        out = {}
        for file in dict.fromkeys(file for file, _ in names):
            expressions = [expression for name, expression in names if name == file]
            path = kernel_library(KERNELS / f"{file}.cu", expressions)
            image = b"GGREMU1\0" + str(path).encode() + b"\0" + file.encode() + b"\0"
            module = ctypes.c_void_p()
            assert self.function("cuModuleLoadData")(ctypes.byref(module), image) == 0, self.misuse()
            for expression in expressions:
                function = ctypes.c_void_p()
                status = self.function("cuModuleGetFunction")(ctypes.byref(function), module, expression.encode())
                assert status == 0, self.misuse()
                out[file, expression] = function.value or 0
        return [out[name] for name in names]

    def gpu(self, ordinal: int = 0, *, threads: int = 2, graph_timeout: float = 0.0, log=None) -> CudaGpu:
        """Return a GPU; what has no kernel is computed by a CPU device of its own."""
        cpu = CpuPool(threads).device("CPU")
        return CudaGpu(ctypes.addressof(self.table), ordinal, self.load, cpu, graph_timeout=graph_timeout, log=log)

    def device(self, name: str = "CUDA0") -> CudaDevice:
        """Return the first GPU as a device."""
        return self.gpu().device(name, "emulated GPU")

    def inject(self, function: str, code: int, *, after: int = 0, times: int = 1, sticky: bool = False) -> None:
        """Let calls of a function fail; `sticky`: and then all in that context."""
        self._library.ggr_driver_inject(function.encode(), after, times, code, int(sticky))

    def misuse(self) -> str:
        """Return what was used wrongly since the last call."""
        text: bytes = self._library.ggr_driver_misuse()
        return text.decode()
