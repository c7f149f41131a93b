"""CUDA devices: kernels of our own, compiled for the GPU that is there."""

from __future__ import annotations

from ._cuda import CudaDevice, CudaGpu, driver_functions, ops_with_kernels, plan_counts, registry

__all__ = ["CudaDevice", "CudaGpu", "driver_functions", "ops_with_kernels", "plan_counts", "registry"]
