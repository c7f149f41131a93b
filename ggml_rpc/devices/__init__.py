"""The compute devices of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ggml_rpc.errors import DeviceError

from . import cuda
from ._device import DeviceBuffer, DevicePlan, NativeDevice
from .cpu import CpuPool, forced_level
from .cpu.numa import place

CPU = "CPU"


def available() -> list[str]:
    """Return the names of the devices that this machine offers, accelerators first."""
    return [*cuda.names(), CPU]


def why_no_accelerator() -> str:
    """Return one line that says why there is no accelerator; empty if there is one."""
    return cuda.found().reason


def default_names(*, with_cpu: bool = False) -> list[str]:
    """Return the devices served when none are named: the accelerators if there are any, else the CPU.

    Parameters
    ----------
    with_cpu : bool
        Add the CPU behind the accelerators.
    """
    accelerators = [name for name in available() if name != CPU]
    return [*accelerators, CPU] if with_cpu or not accelerators else accelerators


def default_threads() -> int:
    """Return half the cores that this process may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def split_names(names: str) -> list[str]:
    """Split a list of device names at `,` or `/`."""
    return [name for name in re.split(r"[,/]", names) if name]


def open_devices(
    names: Sequence[str],
    *,
    threads: int | None = None,
    graph_timeout: float = 0.0,
    level: str | None = None,
    numa: str | None = None,
) -> list[NativeDevice]:
    """Open devices by name; a name that stands twice gives two devices that share the hardware.

    Parameters
    ----------
    names : sequence of str
        Some of `available()`.
    threads : int, optional
        Threads of the CPU device; by default half the cores.
    graph_timeout : float
        Seconds after which a graph's run is cancelled; 0 means never.
    level : str, optional
        Instruction-set level of the CPU device; by default the one that GGML_RPC_ISA names, else the best.
    numa : str, optional
        How the CPU device uses a machine with several memory nodes, of `ggml_rpc.devices.cpu.numa.MODES`; by default it
        leaves that to the system.

    Raises
    ------
    DeviceError
        If a name is not known; the message lists those that are. If `numa` cannot be had here.
    """
    known = available()
    for name in names:
        if name not in known:
            why = why_no_accelerator() if name.startswith(cuda.PREFIX) else ""
            raise DeviceError(
                f"unknown device {name!r}; available devices: {', '.join(known)}" + (f" ({why})" if why else "")
            )
    if not names:
        raise DeviceError("no device named")
    pool = CpuPool(threads or default_threads(), level or forced_level(), graph_timeout, place(numa) if numa else None)
    accelerators = [name for name in names if name != CPU]
    opened = iter(cuda.open_gpus(accelerators, pool.device(CPU), graph_timeout) if accelerators else ())
    return [pool.device(name) if name == CPU else next(opened) for name in names]


__all__ = [
    "CPU",
    "DeviceBuffer",
    "DevicePlan",
    "NativeDevice",
    "available",
    "default_names",
    "default_threads",
    "open_devices",
    "split_names",
    "why_no_accelerator",
]
