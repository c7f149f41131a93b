"""cuBLASLt from NVIDIA's wheel, where that is installed: products of large F16 and BF16 matrices."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ._cuda import blas_functions

LOG = logging.getLogger(__name__)
# Where wheels of CUDA 13 and of 12 have it, below the package `nvidia`.
PATTERNS = ("cu*/lib/libcublasLt.so.*", "cublas/lib/libcublasLt.so.*")


def find(folders: Iterable[str] | None = None) -> Path | None:
    """Return the newest cuBLASLt of the wheels that are installed.

    Parameters
    ----------
    folders : iterable of str, optional
        Of the package `nvidia`; by default where Python finds it.
    """
    if folders is None:
        spec = importlib.util.find_spec("nvidia")
        folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    found = [path for folder in folders for pattern in PATTERNS for path in Path(folder).glob(pattern)]
    return max(found, key=lambda path: int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0, default=None)


def load(path: Path | None, driver_version: int) -> Any:
    """Return the library's functions in the order of `blas_functions()`, or None; why not goes to the debug log.

    Parameters
    ----------
    path : Path or None
        Of the library.
    driver_version : int
        What the driver supports: 13010 for CUDA 13.1.
    """
    if path is None:
        LOG.debug("cuBLASLt is not installed (pip install nvidia-cublas): our own kernels compute all products")
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.cublasLtGetCudartVersion.restype = ctypes.c_size_t
        version = int(library.cublasLtGetCudartVersion())
        functions = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in blas_functions()]
    except (OSError, AttributeError) as error:
        LOG.debug("cuBLASLt cannot be used: %s", error)
        return None
    if version // 1000 > driver_version // 1000:
        LOG.debug("%s is of CUDA %d, the driver of %d: it is not used", path, version // 1000, driver_version // 1000)
        return None
    return (ctypes.c_void_p * len(functions))(*functions)


@functools.cache
def _table() -> Any:
    from cuda.bindings import driver  # noqa: PLC0415  an optional package, there if a GPU was found

    _, version = driver.cuDriverGetVersion()
    return load(find(), version)


def address() -> int:
    """Return the address of the table, or 0: what `CudaGpu` asks for when a product first could use it."""
    table = _table()
    return 0 if table is None else ctypes.addressof(table)
