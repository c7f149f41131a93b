"""CUDA devices: kernels of our own, compiled for the GPU that is there."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence

from ggml_rpc.devices._device import NativeDevice

from . import blas
from ._cuda import CudaDevice, CudaGpu, blas_functions, driver_functions, ops_with_kernels, plan_counts, registry
from .driver import Found, FoundGpu, found
from .loading import Kernels

PREFIX = "CUDA"
LOG = logging.getLogger(__name__)


def names() -> list[str]:
    """Return the names of the devices that can be used here."""
    return [f"{PREFIX}{gpu.ordinal}" for gpu in found().gpus]


def kernels_of(gpu: FoundGpu) -> Kernels:
    """Return the kernels for a GPU."""
    from cuda.bindings import driver, nvrtc  # noqa: PLC0415  an optional package, there if a GPU was found

    return Kernels(gpu.capability, driver, nvrtc)


def open_gpus(wanted: Sequence[str], cpu: NativeDevice, graph_timeout: float = 0.0) -> list[CudaDevice]:
    """Open devices by name; a name that stands twice gives two logical devices on one GPU.

    Parameters
    ----------
    wanted : sequence of str
        Some of `names()`.
    cpu : NativeDevice
        Computes what has no kernel.
    graph_timeout : float
        Seconds after which a run fails; 0 means never.
    """
    here = found()
    by_name = {f"{PREFIX}{gpu.ordinal}": gpu for gpu in here.gpus}
    opened: dict[str, CudaGpu] = {}
    out = []
    for name in wanted:
        if name not in opened:
            gpu = by_name[name]
            loader = kernels_of(gpu).load
            table = ctypes.addressof(here.table)
            opened[name] = CudaGpu(
                table, gpu.ordinal, loader, cpu, graph_timeout=graph_timeout, log=LOG.warning, blas=blas.address
            )
        out.append(opened[name].device(name, by_name[name].name))
    return out


def warm_up(wanted: Sequence[str], progress: Callable[[str, int, int], None]) -> None:
    """Compile all kernels for some devices.

    Parameters
    ----------
    wanted : sequence of str
        Some of `names()`.
    progress : callable
        Takes an architecture, how many kernels are there for it, and how many there are to be.
    """
    by_name = {f"{PREFIX}{gpu.ordinal}": gpu for gpu in found().gpus}
    all_names = registry()
    for gpu in {by_name[name].capability: by_name[name] for name in wanted if name in by_name}.values():
        kernels = kernels_of(gpu)
        kernels.warm_up(all_names, lambda done, total, k=kernels: progress(k.architecture, done, total))  # type: ignore[misc]


__all__ = [
    "PREFIX",
    "CudaDevice",
    "CudaGpu",
    "Found",
    "FoundGpu",
    "Kernels",
    "blas_functions",
    "driver_functions",
    "found",
    "names",
    "open_gpus",
    "ops_with_kernels",
    "plan_counts",
    "registry",
    "warm_up",
]
