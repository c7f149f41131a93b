"""The CUDA device over the emulated driver: kernels are compiled for the host in place of NVRTC."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.devices.cuda import CudaDevice, CudaGpu, blas_functions, driver_functions, registry

from .build import KERNELS, kernel_library
from .emulator import library

# Instantiations compiled together: few enough that one case is soon run, enough that headers are not all the work.
CHUNK = 6


class _Setup(ctypes.Structure):
    _fields_ = (
        ("devices", ctypes.c_int32),
        ("capability", ctypes.c_int32),
        ("memory_bytes", ctypes.c_uint64),
        ("lazy", ctypes.c_int32),
        ("queries", ctypes.c_int32),
        ("l2_bytes", ctypes.c_int32),
    )


class Counts(ctypes.Structure):
    """`GgrDriverCounts` of driver.h: launches and live objects of the driver."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("launches", "graph_launches", "contexts", "streams", "events")),
        *((name, ctypes.c_uint64) for name in ("modules", "graphs", "allocations", "pinned")),
        ("bytes", ctypes.c_uint64 * 8),
        ("peers", ctypes.c_uint64),
        ("downloaded", ctypes.c_uint64),
    )


@cache
def chunks() -> dict[tuple[str, str], tuple[str, tuple[str, ...]]]:
    """Return, for each kernel of the registry, the file and the expressions that are compiled with it."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for file, expression in registry():
        by_file[file].append(expression)
    out = {}
    for file, expressions in by_file.items():
        for i in range(0, len(expressions), CHUNK):
            chunk = tuple(expressions[i : i + CHUNK])
            out.update({(file, expression): (file, chunk) for expression in chunk})
    return out


def kernel_of(name: tuple[str, str]) -> tuple[str, Path]:
    """Return a kernel's file and the library that has it, compiled if need be."""
    file, expressions = chunks().get(name, (name[0], (name[1],)))
    return file, kernel_library(KERNELS / f"{file}.cu", expressions)


def compile_all(names: Iterable[tuple[str, str]] | None = None) -> None:
    """Compile kernels ahead (all of the registry), as many at a time as there are processors."""
    wanted = dict.fromkeys(
        chunks().get(name, (name[0], (name[1],))) for name in (registry() if names is None else names)
    )
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda chunk: kernel_library(KERNELS / f"{chunk[0]}.cu", chunk[1]), wanted))


class EmulatedDriver:
    """The emulated driver with GPUs as a test wants them; making one forgets the one before.

    Parameters
    ----------
    devices : int
        GPUs.
    memory_bytes : int
        Of each.
    capability : int
        80 for 8.0.
    lazy : bool
        Work is done when somebody waits for it, not before: shows what is read or used again too early.
    queries : int
        How often an event that is not done answers that it is not ready.
    l2_bytes : int
        Of the cache.
    """

    def __init__(
        self,
        devices: int = 1,
        memory_bytes: int = 4 << 30,
        capability: int = 80,
        *,
        lazy: bool = False,
        queries: int = 0,
        l2_bytes: int = 4 << 20,
    ) -> None:
        lib = library()
        for name in ("ggr_driver_misuse", "ggr_driver_ran"):
            getattr(lib, name).restype = ctypes.c_char_p
        lib.ggr_driver_function.restype = ctypes.c_void_p
        lib.ggr_driver_setup(ctypes.byref(_Setup(devices, capability, memory_bytes, lazy, queries, l2_bytes)))
        names = driver_functions()
        self.functions = {name: lib.ggr_driver_function(name.encode()) for name in names}
        self._table = (ctypes.c_void_p * len(names))(*self.functions.values())
        self.table = ctypes.addressof(self._table)
        lib.ggr_blas_function.restype = ctypes.c_void_p
        own = [lib.ggr_blas_function(name.encode()) for name in blas_functions()]
        self._blas = (ctypes.c_void_p * len(own))(*own)
        self._images: list[Any] = []

    def call(self, name: str, *args: Any) -> int:
        """Call a function of the driver; returns its status."""
        return int(ctypes.CFUNCTYPE(ctypes.c_int, *(type(a) for a in args))(self.functions[name])(*args))

    def load(self, names: list[tuple[str, str]]) -> list[int]:
        """Return the functions of kernels in the context that is current: what `CudaGpu` wants of its loader."""
        modules: dict[Path, ctypes.c_void_p] = {}
        out = []
        for name in names:
            file, path = kernel_of(name)
            if path not in modules:
                module = ctypes.c_void_p()
                image = ctypes.c_char_p(b"GGREMU1\0" + str(path).encode() + b"\0" + file.encode())
                self._check("cuModuleLoadData", ctypes.pointer(module), image)
                modules[path] = module
            function = ctypes.c_void_p()
            expression = ctypes.c_char_p(name[1].encode())
            self._check("cuModuleGetFunction", ctypes.pointer(function), modules[path], expression)
            out.append(function.value or 0)
        return out

    def _check(self, name: str, *args: Any) -> None:
        status = self.call(name, *args)
        if status != 0:
            raise RuntimeError(f"{name}: {status}: {self.misuse()}")

    def blas(self) -> int:
        """Return the address of what stands for cuBLASLt: for the option `blas` of `gpu`."""
        return ctypes.addressof(self._blas)

    def gpu(self, ordinal: int = 0, threads: int = 2, **options: Any) -> CudaGpu:
        """Return one GPU; what has no kernel is computed by a CPU device of so many threads."""
        return CudaGpu(self.table, ordinal, self.load, CpuPool(threads).device(), **options)

    def device(self, ordinal: int = 0) -> CudaDevice:
        """Return a device of its own on a GPU, whose memory this process can address."""
        return self.gpu(ordinal).device(f"CUDA{ordinal}", "emulated GPU", host_memory=True)

    def inject(self, function: str, code: int, *, after: int = 0, times: int = 1, sticky: bool = False) -> None:
        """Let calls of a function fail: `times` of them after the next `after`; sticky: then all in the context."""
        library().ggr_driver_inject(function.encode(), after, times, code, sticky)

    def misuse(self) -> str:
        """Return what was used wrongly since the last call, a line each; among it what kernels did wrong."""
        return str(library().ggr_driver_misuse().decode())

    def ran(self) -> set[tuple[str, str]]:
        """Return the kernels that ran for the first time since the last call."""
        lines = library().ggr_driver_ran().decode().splitlines()
        return {(file, expression) for file, _, expression in (line.partition(" ") for line in lines)}

    def counts(self) -> Counts:
        """Return launches and live objects."""
        counts = Counts()
        library().ggr_driver_counts(ctypes.byref(counts))
        return counts
