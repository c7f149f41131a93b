"""Kernels of csrc/cuda run on the host: see README.md of tests/cuda."""

from .build import kernel_library
from .emulator import DeviceArray, Emulator, EmulatorError, View, args_struct

__all__ = ["DeviceArray", "Emulator", "EmulatorError", "View", "args_struct", "kernel_library"]
