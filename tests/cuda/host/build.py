"""Compile the emulator and kernel files for the host, once for each state of their sources."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HOST = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
KERNELS = CSRC / "cuda" / "kernels"
BUILD = ROOT / "build" / "cuda-host"

CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-fPIC", "-g1", "-pthread", f"-I{CSRC}", f"-I{HOST}"]
# Each access to memory becomes a call of the emulator; the library has no run time of a sanitizer.
CHECKED = [
    "-fsanitize=kernel-address,bounds,alignment,shift,integer-divide-by-zero",
    "--param=asan-instrumentation-with-call-threshold=0",
    "--param=asan-globals=0",
    "--param=asan-stack=0",
]
# What NVRTC would not compile must not compile here either; what only the instrumentation provokes is no matter.
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-function",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-Wno-unknown-pragmas",
    "-Wno-array-bounds",
    "-Wno-unused-but-set-parameter",
]

# A kernel's template parameters, if it has some, its bound of threads a block, and its name.
_KERNEL = re.compile(
    r"(?:template\s*<(?P<parameters>[^;{}()]*)>\s*)?GGR_KERNEL\s+GGR_BOUNDS\((?P<threads>[^,]*),[^)]*\)\s*(?P<name>\w+)\("
)
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


class BuildError(Exception):
    """A kernel file does not compile for the host; the text is the compiler's."""


def sources_of(file: Path) -> list[Path]:
    """Return a file and all it includes, of ours."""
    found: dict[Path, None] = {}
    left = [file]
    while left:
        path = left.pop()
        if path in found:
            continue
        found[path] = None
        for name in _INCLUDE.findall(path.read_text()):
            for folder in (path.parent, CSRC, HOST):
                if (folder / name).exists():
                    left.append((folder / name).resolve())
                    break
    return sorted(found)


@cache
def _compiler() -> str:
    return subprocess.run([CXX, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


def _key(files: Sequence[Path], *more: str) -> str:
    digest = hashlib.sha256("\0".join([_compiler(), *FLAGS, *more]).encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:20]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(done.stderr[-20000:])


def _compile(target: Path, source: Path, flags: Sequence[str], objects: Sequence[Path] = ()) -> Path:
    """Compile and link into a name that appears only when it is complete."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}.part")
    ccache = [shutil.which("ccache")] if shutil.which("ccache") and not objects else []
    _run([*ccache, CXX, *flags, str(source), *map(str, objects), "-o", str(part)])
    part.replace(target)
    return target


def emulator_library() -> Path:
    """Return the library with fibres, memory and the emulated driver."""
    units = sorted(HOST.glob("*.cpp"))
    headers = sorted({header for unit in units for header in sources_of(unit)})
    objects = []
    for unit in units:
        key = _key(sources_of(unit))
        flags = [*FLAGS, "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-c"]
        objects.append(_compile(BUILD / f"{unit.stem}-{key}.o", unit, flags))
    target = BUILD / f"libggr_emulator-{_key(headers)}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}.part")
        _run([CXX, "-shared", "-pthread", *map(str, objects), "-ldl", "-o", str(part)])
        part.replace(target)
    return target


def kernel_library(file: Path, expressions: Sequence[str]) -> Path:
    """Return a library with these instantiations of a kernel file.

    Parameters
    ----------
    file : Path
        A `.cu`.
    expressions : sequence of str
        Names of functions of namespace `ggr::cuda` in it, as in `rms_norm<256>`.
    """
    names = list(dict.fromkeys(expressions))
    sources = sources_of(file)
    # A launch with more threads than the kernel's bound fails on a GPU.
    bounds = {m["name"]: m for path in sources for m in _KERNEL.finditer(path.read_text())}
    bound_types = "".join(
        (f"template <{m['parameters']}>\n" if m["parameters"] else "")
        + f"struct bound_of_{name} {{\n    static constexpr int value = {m['threads']};\n}};\n"
        for name, m in bounds.items()
    )
    entries = "".join(
        f'    GGR_ENTRY("{name}", {f"(bound_of_{name}::value)" if name.split("<")[0] in bounds else 1024}, {name}),\n'
        for name in names
    )
    text = (
        f'#include "{file}"\n'
        'extern "C" {\n'
        'extern const uint8_t __bss_start[] __attribute__((visibility("hidden")));\n'
        'extern const uint8_t _end[] __attribute__((visibility("hidden")));\n'
        "}\n"
        "namespace ggr {\nnamespace cuda {\n"
        f"{bound_types}"
        f"static const GgrKernel entries[] = {{\n{entries}}};\n"
        'extern "C" __attribute__((visibility("default"))) const GgrKernels ggr_kernels;\n'
        f"const GgrKernels ggr_kernels = {{entries, {len(names)}, __bss_start, _end}};\n"
        "}  // namespace cuda\n}  // namespace ggr\n"
    )
    key = _key(sources, text, *CHECKED, *WARNINGS)
    source = BUILD / f"{file.stem}-{key}.cpp"
    target = source.with_suffix(".so")
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        source.write_text(text)
        flags = [*FLAGS, *CHECKED, *WARNINGS, "-O1", "-DGGR_CUDA_HOST", "-fvisibility=hidden", "-shared", "-x", "c++"]
        # Without the library of the sanitizer: the emulator has the functions.
        _compile(target.with_suffix(".o"), source, [*(f for f in flags if f != "-shared"), "-c"])
        part = target.with_suffix(f".{os.getpid()}.part")
        _run([CXX, "-shared", str(target.with_suffix(".o")), "-o", str(part)])
        part.replace(target)
    return target
