"""Finding GPUs: the NVIDIA driver through cuda-python, and why there is none in one plain line."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass, field
from typing import Any

from ._cuda import driver_functions

INSTALL = "pip install 'ggml-rpc[cuda]'"
OLDEST_DRIVER = 12000  # graphs are updated by a call that came with CUDA 12.0
OLDEST_CAPABILITY = 75
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
INSUFFICIENT_DRIVER = 35  # CUDA_ERROR_INSUFFICIENT_DRIVER
# The version of the driver's interface at which a function has the arguments of csrc/cuda/driver.h.
INTERFACE = 12000
OLDER_INTERFACE = {"cuCtxCreate": 3020}
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class FoundGpu:
    """Describe one GPU.

    Parameters
    ----------
    ordinal : int
        The driver's number of it: the N of CUDAN.
    name : str
        As the driver says it.
    capability : int
        90 for 9.0.
    """

    ordinal: int
    name: str
    capability: int


@dataclass(frozen=True)
class Found:
    """Say what was found.

    Parameters
    ----------
    gpus : tuple of FoundGpu
        Those that can be used.
    reason : str
        Why there is none, in one line; empty where there are some.
    table : ctypes array or None
        The driver's functions, in the order of `driver_functions()`.
    """

    gpus: tuple[FoundGpu, ...]
    reason: str
    table: Any = field(default=None, compare=False)


def version(number: int) -> str:
    """Return 12.4 for 12040."""
    return f"{number // 1000}.{number % 1000 // 10}"


@functools.cache
def found() -> Found:
    """Look for GPUs, once a process."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: PLC0415  an optional package
    except ImportError:
        return none(f"the package cuda-python is not installed ({INSTALL})")
    return look(driver, nvrtc)


def none(reason: str) -> Found:
    """Return what is found where there is nothing."""
    return Found((), f"no CUDA devices: {reason}")


def look(driver: Any, nvrtc: Any) -> Found:
    """Ask the driver for GPUs.

    Parameters
    ----------
    driver, nvrtc : module
        `cuda.bindings.driver` and `cuda.bindings.nvrtc`, or what stands for them.
    """
    try:
        (status,) = driver.cuInit(0)
    except (RuntimeError, OSError, ImportError):  # as cuda-python says that libcuda is missing, by version
        return none("no NVIDIA driver is installed (libcuda.so.1 cannot be loaded)")
    if int(status) == INSUFFICIENT_DRIVER:
        return none("the NVIDIA driver is too old for this GPU or this cuda-python")
    if int(status) == NO_DEVICE:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return none(
            "the NVIDIA driver finds no GPU" + (f" (CUDA_VISIBLE_DEVICES={hidden})" if hidden is not None else "")
        )
    if int(status) != 0:
        return none(f"the NVIDIA driver does not start: {_name(driver, status)}")
    status, has = driver.cuDriverGetVersion()
    if int(status) != 0 or has < OLDEST_DRIVER:
        return none(f"the NVIDIA driver is too old: it is of CUDA {version(has)}, {version(OLDEST_DRIVER)} is needed")
    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except (RuntimeError, OSError, ImportError):
        return none(f"the kernels' compiler NVRTC is not installed ({INSTALL})")
    if int(status) != 0:
        return none("the kernels' compiler NVRTC does not start")
    if major > has // 1000:
        return none(
            f"the NVIDIA driver is too old: it is of CUDA {version(has)}, the installed compiler NVRTC of "
            f"{major}.{minor} (update the driver, or pip install 'cuda-python=={has // 1000}.*' nvidia-cuda-nvrtc-cu12)"
        )
    return _gpus(driver)


def _gpus(driver: Any) -> Found:
    status, count = driver.cuDeviceGetCount()
    if int(status) != 0 or count == 0:
        return none("the NVIDIA driver finds no GPU")
    gpus = []
    for ordinal in range(count):
        _, name = driver.cuDeviceGetName(256, ordinal)
        text = name.split(b"\0", 1)[0].decode("utf-8", "replace")
        _, major = driver.cuDeviceGetAttribute(_attribute(driver, CAPABILITY_MAJOR), ordinal)
        _, minor = driver.cuDeviceGetAttribute(_attribute(driver, CAPABILITY_MINOR), ordinal)
        gpus.append(FoundGpu(ordinal, text, 10 * major + minor))
    usable = tuple(gpu for gpu in gpus if gpu.capability >= OLDEST_CAPABILITY)
    if not usable:
        return none(f"{gpus[0].name} is too old: compute capability {gpus[0].capability / 10}, 7.5 is needed")
    addresses = []
    for name in driver_functions():
        interface = OLDER_INTERFACE.get(name, INTERFACE)
        status, address, _ = driver.cuGetProcAddress(name.encode(), interface, 0)
        if int(status) != 0 or not int(address):
            return none(f"the NVIDIA driver is too old: it has no {name}")
        addresses.append(int(address))
    return Found(usable, "", (ctypes.c_void_p * len(addresses))(*addresses))


def _attribute(driver: Any, number: int) -> Any:
    return driver.CUdevice_attribute(number)


def _name(driver: Any, status: Any) -> str:
    failed, name = driver.cuGetErrorName(status)
    return name.decode() if int(failed) == 0 and name else f"error {int(status)}"
