"""NVRTC: kernels for the GPU that is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ggml_rpc.errors import DeviceError

from .programs import Program

NAMESPACE = "ggr::cuda::"


class Compiler:
    """Compile kernel files for one architecture.

    Parameters
    ----------
    capability : int
        90 for 9.0. For one that the compiler does not know yet, the newest that it knows is compiled to PTX, which the
        driver translates.
    sources : Path
        Where includes start from.
    nvrtc : module
        `cuda.bindings.nvrtc`.
    """

    def __init__(self, capability: int, sources: Path, nvrtc: Any) -> None:
        self._nvrtc = nvrtc
        self._sources = sources
        self.version: tuple[int, int] = self._call("nvrtcVersion")
        known = self._call("nvrtcGetSupportedArchs") if hasattr(nvrtc, "nvrtcGetSupportedArchs") else [capability]
        self._exact = capability in known
        older = [number for number in known if number <= capability]
        if not older:
            raise DeviceError(
                f"NVRTC {self.version[0]}.{self.version[1]} compiles no kernels for compute capability "
                f"{capability / 10}: install an older cuda-python"
            )
        self.architecture = f"sm_{capability}" if self._exact else f"compute_{max(older)}"
        self._options = (f"--gpu-architecture={self.architecture}", "--std=c++17", "-default-device")

    @property
    def identity(self) -> str:
        """Return what its results depend on beside the sources."""
        return " ".join((*self._options, "nvrtc", *map(str, self.version)))

    def compile(self, file: str, expressions: Sequence[str]) -> Program:
        """Compile kernels of one file together.

        Raises
        ------
        DeviceError
            With the compiler's log.
        """
        n = self._nvrtc
        name = f"{file}.cu"
        program = self._call(
            "nvrtcCreateProgram", f'#include "cuda/kernels/{name}"\n'.encode(), name.encode(), 0, [], []
        )
        try:
            for expression in expressions:
                self._call("nvrtcAddNameExpression", program, (NAMESPACE + expression).encode())
            options = [option.encode() for option in (*self._options, f"-I{self._sources}")]
            (status,) = n.nvrtcCompileProgram(program, len(options), options)
            if int(status) != 0:
                raise DeviceError(f"NVRTC cannot compile {name} for {self.architecture}: {self._log(program)}")
            symbols = {
                expression: self._call("nvrtcGetLoweredName", program, (NAMESPACE + expression).encode()).decode()
                for expression in expressions
            }
            kind = "CUBIN" if self._exact else "PTX"
            code = b" " * self._call(f"nvrtcGet{kind}Size", program)
            self._call(f"nvrtcGet{kind}", program, code)
            return Program(symbols, code)
        finally:
            n.nvrtcDestroyProgram(program)

    def _log(self, program: Any) -> str:
        # At least two bytes: Python has one object for all bytes of length one, which the compiler would write to.
        log = b" " * (1 + self._call("nvrtcGetProgramLogSize", program))
        self._call("nvrtcGetProgramLog", program, log)
        return str(log.rstrip(b"\0 \n"), "utf-8", "replace")

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._nvrtc, name)(*arguments)
        if int(status) != 0:
            raise DeviceError(f"{name} failed: {status!r}")
        if not values:
            return None
        return values[0] if len(values) == 1 else tuple(values)
