"""Run kernels of csrc/cuda on NumPy arrays, without a GPU and without a device."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .build import KERNELS, emulator_library, kernel_library

FORWARD, REVERSE, RANDOM = 0, 1, 2


class EmulatorError(Exception):
    """What a kernel did wrong: where, and which thread."""


class View(ctypes.Structure):
    """`struct View` of csrc/cuda/args.h."""

    _fields_ = (("data", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_int64 * 4))


def args_struct(name: str, *fields: tuple[str, Any]) -> type[ctypes.Structure]:
    """Return a ctypes structure with these fields, laid out as the compiler does."""
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class _Kernel(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("enter", ctypes.c_void_p),
        ("args_bytes", ctypes.c_size_t),
        ("max_threads", ctypes.c_int),
    )


class _Kernels(ctypes.Structure):
    _fields_ = (
        ("kernels", ctypes.POINTER(_Kernel)),
        ("count", ctypes.c_size_t),
        ("shared_begin", ctypes.c_void_p),
        ("shared_end", ctypes.c_void_p),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("library", ctypes.POINTER(_Kernels)),
        ("kernel", ctypes.POINTER(_Kernel)),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("args", ctypes.c_void_p),
        ("owner", ctypes.c_int),
    )


@cache
def library() -> ctypes.CDLL:
    """Return the emulator, built if need be; kernel libraries find its functions."""
    lib = ctypes.CDLL(str(emulator_library()), mode=ctypes.RTLD_GLOBAL)
    lib.ggr_alloc.restype = ctypes.c_void_p
    lib.ggr_alloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int)
    lib.ggr_free.argtypes = (ctypes.c_void_p,)
    lib.ggr_launch.argtypes = (ctypes.POINTER(_Launch),)
    lib.ggr_failure.restype = ctypes.c_char_p
    lib.ggr_set_order.argtypes = (ctypes.c_int, ctypes.c_uint64)
    return lib


@cache
def _kernels(path: str) -> Any:
    return _Kernels.in_dll(ctypes.CDLL(path), "ggr_kernels")


class DeviceArray:
    """Memory that kernels may use, as a NumPy array; freed with this object."""

    def __init__(self, shape: Sequence[int], dtype: Any, slack: int = 0) -> None:
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.address: int = library().ggr_alloc(self.nbytes, slack, 0, 0)
        raw = (ctypes.c_uint8 * (self.nbytes + slack)).from_address(self.address)
        raw_bytes = np.frombuffer(raw, np.uint8)
        raw_bytes[:] = 0xCB
        self.array = raw_bytes[: self.nbytes].view(self.dtype).reshape(self.shape)

    def __del__(self) -> None:
        library().ggr_free(self.address)

    def read(self) -> np.ndarray:
        """Return a copy."""
        return self.array.copy()

    def view(self, ne: Sequence[int] | None = None, nb: Sequence[int] | None = None) -> View:
        """Return the kernel's View: of the whole array, or with these elements and bytes (dimension 0 fastest)."""
        ne = [*reversed(self.shape)] if ne is None else list(ne)
        nb = [*reversed(self.array.strides)] if nb is None else list(nb)
        while len(ne) < 4:
            nb.append(nb[-1] * ne[-1] if nb else self.dtype.itemsize)
            ne.append(1)
        return View(self.address, (ctypes.c_int64 * 4)(*ne), (ctypes.c_int64 * 4)(*nb))


class Emulator:
    """Compile kernel files on demand and launch kernels.

    Parameters
    ----------
    order : int
        FORWARD, REVERSE or RANDOM: whose turn it is. A right kernel gives the same in every order.
    seed : int
        For RANDOM.
    """

    def __init__(self, order: int = FORWARD, seed: int = 1) -> None:
        library().ggr_set_order(order, seed)

    def array(self, array: np.ndarray, slack: int = 0) -> DeviceArray:
        """Copy an array to device memory; `slack` bytes behind it may be read, but not written."""
        out = DeviceArray(array.shape, array.dtype, slack)
        out.array[...] = array
        return out

    def empty(self, shape: Sequence[int], dtype: Any, slack: int = 0) -> DeviceArray:
        """Return poisoned device memory."""
        return DeviceArray(shape, dtype, slack)

    def launch(  # noqa: PLR0917  as the driver's call has them
        self,
        file: str | Path,
        expression: str,
        grid: Sequence[int],
        threads: int,
        args: ctypes.Structure,
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel to its end.

        Parameters
        ----------
        file : str or Path
            A file of csrc/cuda/kernels without its suffix, or a path.
        expression : str
            A function of namespace `ggr::cuda` in it, as in `rms_norm<256>`.
        grid : sequence of int
            One to three numbers of blocks.
        args : ctypes.Structure
            The kernel's struct; its size must be right.

        Raises
        ------
        EmulatorError
            If the kernel touches memory that it may not, races, or waits for ever.
        """
        path = KERNELS / f"{file}.cu" if isinstance(file, str) else file
        library()
        kernels = _kernels(str(kernel_library(path, [expression])))
        kernel = kernels.kernels[0]
        if kernel.args_bytes != ctypes.sizeof(args):
            raise TypeError(f"{expression} takes {kernel.args_bytes} bytes, not {ctypes.sizeof(args)}")
        launch = _Launch(
            ctypes.pointer(kernels),
            ctypes.pointer(kernel),
            (ctypes.c_uint32 * 3)(*grid, *[1] * (3 - len(grid))),
            threads,
            shared_bytes,
            ctypes.addressof(args),
        )
        if library().ggr_launch(ctypes.byref(launch)) != 0:
            raise EmulatorError(library().ggr_failure().decode())
