"""The CPU device: our own kernels, one set for each instruction-set level."""

from __future__ import annotations

import os

from ._cpu import CpuDevice, CpuPool, levels

ISA_VARIABLE = "GGML_RPC_ISA"


def forced_level() -> str | None:
    """Return the instruction-set level that the environment variable GGML_RPC_ISA forces, if any."""
    return os.environ.get(ISA_VARIABLE) or None


__all__ = ["ISA_VARIABLE", "CpuDevice", "CpuPool", "forced_level", "levels"]
