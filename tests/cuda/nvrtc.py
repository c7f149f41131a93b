"""NVIDIA's compiler by its library: what it makes of a kernel file for an architecture, remembered by its sources."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.cuda.host.build import CSRC, KERNELS, ROOT, sources_of

BUILD = ROOT / "build" / "cuda-nvrtc"
OPTIONS = ("--std=c++17", "-default-device", "--fmad=true", "--ptxas-options=-v")


class CompileError(Exception):
    """The compiler refused a file, or warned; the text is its log."""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor."""

    registers: int
    shared_bytes: int  # static
    stack_bytes: int
    spill_bytes: int  # stored and loaded


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiler of the wheel `nvidia-cuda-nvrtc`, or None where that is not installed."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(path for folder in folders for path in Path(folder).glob("**/libnvrtc.so.*"))
    return ctypes.CDLL(str(found[-1])) if found else None


def version() -> str:
    """Return the compiler's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def _library() -> ctypes.CDLL:
    lib = library()
    if lib is None:
        raise CompileError("nvidia-cuda-nvrtc is not installed")
    return lib


def _text(size_of: str, read: str, program: ctypes.c_void_p) -> str:
    lib, size = _library(), ctypes.c_size_t()
    getattr(lib, size_of)(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(lib, read)(program, buffer)
    return buffer.value.decode()


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def _usages(log: str) -> dict[str, Usage]:
    out = {}
    for m in _ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        spilled = int(m["stores"]) + int(m["loads"])
        out[m["name"]] = Usage(int(m["registers"]), int(shared[1]) if shared else 0, int(m["stack"]), spilled)
    return out


def _compile(file: str, expressions: Sequence[str], arch: int) -> dict[str, Usage]:
    lib, program = _library(), ctypes.c_void_p()
    source = f'#include "cuda/kernels/{file}.cu"\n'.encode()
    lib.nvrtcCreateProgram(ctypes.byref(program), source, f"{file}.cu".encode(), 0, None, None)
    try:
        for expression in expressions:
            lib.nvrtcAddNameExpression(program, f"&ggr::cuda::{expression}".encode())
        options = [f"--gpu-architecture=sm_{arch}", f"-I{CSRC}", *OPTIONS]
        status = lib.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        )
        log = _text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
        if status != 0 or "warning" in log:
            raise CompileError(f"{file}.cu for sm_{arch}:\n{log[:8000]}")
        usages = _usages(log)
        out = {}
        for expression in expressions:
            name = ctypes.c_char_p()
            lib.nvrtcGetLoweredName(program, f"&ggr::cuda::{expression}".encode(), ctypes.byref(name))
            out[expression] = usages[(name.value or b"").decode()]
        return out
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def compile_file(file: str, expressions: Sequence[str], arch: int) -> dict[str, Usage]:
    """Compile kernels of a file for an architecture, as 90 for sm_90.

    Returns
    -------
    dict
        What each kernel takes, by its expression.

    Raises
    ------
    CompileError
        If the compiler finds an error, or has a warning.
    """
    names = list(dict.fromkeys(expressions))
    digest = hashlib.sha256("\0".join([version(), str(arch), *OPTIONS, *names]).encode())
    for path in sources_of(KERNELS / f"{file}.cu"):
        digest.update(path.name.encode() + path.read_bytes())
    kept = BUILD / f"{file}-{arch}-{digest.hexdigest()[:20]}.json"
    if kept.exists():
        return {name: Usage(**usage) for name, usage in json.loads(kept.read_text()).items()}
    out = _compile(file, names, arch)
    BUILD.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({name: asdict(usage) for name, usage in out.items()}))
    return out
