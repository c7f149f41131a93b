"""Code of one instruction-set level stays in that level.

A weak symbol (a template, an inline function) that two levels emit is kept once by the linker: perhaps the copy with
AVX-512 instructions, which then runs on a machine without them. The objects must therefore define nothing that is weak
and export nothing outside their level's namespace, and in the linked extension only functions of a level may use its
registers.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ggml_rpc.devices.cpu import _cpu
from ggml_rpc.wire import _hash

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cpu" / "kernels"
EXTENSIONS = [Path(_cpu.__file__), Path(_hash.__file__)]
each_extension = pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda path: path.name.split(".")[0])
# Those that hold the kernels of products only, in tests also with software for their instructions.
PARTIAL = ("amx", "avxvnni", "amx_emulated", "avxvnni_emulated")
PRODUCTS = {"all", "gated", "matmul", "matmul_grid", "matmul_ik", "matmul_plain", "matmul_small", "matmul_super"}

# Registers that functions of some levels may use and no other function.
WIDE = {
    "amx": re.compile(r"%tmm"),
    "avx512": re.compile(r"%zmm|%[xy]mm(?:1[6-9]|2\d|3[01])\b|%k[1-7]\b"),
    "avx2": re.compile(r"%ymm"),
}
USERS = {"amx": ("amx",), "avx512": ("avx512", "amx", "amx_emulated")}
USERS["avx2"] = (*USERS["avx512"], "avx2", "avxvnni", "avxvnni_emulated")
# What a level is there for.
INSTRUCTIONS = {
    "amx": ["tdpbssd", "tdpbf16ps", "tileloadd", "tilestored", "ldtilecfg", "tilerelease"],
    "avxvnni": ["{vex} vpdpbusd"],
    "avxvnni_emulated": ["vpdpbusd"],
}

NM = shutil.which("nm")
OBJDUMP = shutil.which("objdump")
needs_nm = pytest.mark.skipif(NM is None, reason="no nm (binutils) here")


def built_objects() -> list[tuple[str, Path]]:
    """Return (level, object) for every kernel and hash object of the build trees whose source is still there."""
    trees = [Path(p) for p in os.environ.get("GGML_RPC_BUILD", "").split(os.pathsep) if p]
    trees += [p.parent for p in ROOT.glob("build/*/CMakeCache.txt")]
    found = []
    for tree in trees:
        folders = [f for kind in ("kernels", "hash") for f in tree.glob(f"CMakeFiles/ggr_{kind}_*.dir")]
        for folder in sorted(folders):
            level = folder.name.removesuffix(".dir").split("_", 2)[2]
            objects = sorted(folder.rglob("*.cpp.o"))
            found += [
                (level, o)
                for o in objects
                if (KERNELS.parent.parent.parent / o.relative_to(folder)).with_suffix("").exists()
            ]
    return found


def nm(path: Path, *options: str) -> list[tuple[str, str]]:
    """Return (kind, name) of every symbol that a file defines."""
    run = subprocess.run(
        [str(NM), "-C", "--defined-only", *options, str(path)], capture_output=True, text=True, check=True
    )
    rows = (line.split(maxsplit=2) for line in run.stdout.splitlines())
    return [(row[1], row[2]) for row in rows if len(row) == 3]


def leaks(level: str, symbols: list[tuple[str, str]]) -> list[str]:
    """Return the symbols of a kernel object that another level's objects could be bound to."""
    own = f"ggr::{level}::"
    return [
        f"{kind} {name}" for kind, name in symbols if kind in "WVuCi" or (kind.isupper() and not name.startswith(own))
    ]


@needs_nm
def test_objects_share_nothing_between_levels() -> None:
    objects = built_objects()
    if not objects:
        pytest.skip("an installed wheel has no objects: test_extension_exports_only_its_module looks at it")
    bad = {f"{level}/{path.name}": leaks(level, nm(path)) for level, path in objects}
    assert not {name: found for name, found in bad.items() if found}
    # Every family is there at every level, or every family of products.
    names = {level: {path.name for where, path in objects if where == level} for level, _ in objects}
    full = {frozenset(found) for level, found in names.items() if level not in PARTIAL}
    assert len(full) == 1
    products = {f"{name}.cpp.o" for name in PRODUCTS}
    assert all(found == products for level, found in names.items() if level in PARTIAL)
    assert all(products < found for found in full)


@pytest.mark.skipif(OBJDUMP is None, reason="no objdump (binutils) here")
def test_partial_levels_have_their_instructions() -> None:
    objects = [(level, path) for level, path in built_objects() if level in INSTRUCTIONS]
    if not objects:
        pytest.skip("an installed wheel has no objects, other processors than x86-64 no such levels")
    for level in {level for level, _ in objects}:
        code = ""
        for _, path in (found for found in objects if found[0] == level):
            command = [str(OBJDUMP), "-d", "--no-show-raw-insn", str(path)]
            code += subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert [name for name in INSTRUCTIONS[level] if f"\t{name} " not in code and f"\t{name}\n" not in code] == []


@needs_nm
@each_extension
def test_extension_exports_only_its_module(extension: Path) -> None:
    exported = [name for kind, name in nm(extension, "-D") if kind not in "Aa"]
    ours = [name for name in exported if "ggr::" in name or name.startswith("PyInit_")]
    assert ours == [f"PyInit_{extension.name.split('.')[0]}"]


@functools.cache
def functions_by_registers(extension: Path) -> dict[str, set[str]]:
    """Return level -> functions (mangled) of an extension that touch registers only this level has."""
    out: dict[str, set[str]] = {level: set() for level in WIDE}
    command = [str(OBJDUMP), "-d", "--no-show-raw-insn", str(extension)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        function = ""
        for line in process.stdout:
            if line.endswith(">:\n"):
                function = line[line.index("<") + 1 : -3]
            elif "%" in line:
                for level, registers in WIDE.items():
                    if registers.search(line):
                        out[level].add(function)
    assert process.returncode == 0
    return out


def of_level(function: str, *levels: str) -> bool:
    """Tell whether a mangled name is that of a function (or of a lambda in one) in ggr::<level>."""
    return any(re.match(rf"_ZZ?NK?3ggr{len(level)}{level}", function) for level in levels)


@pytest.mark.skipif(OBJDUMP is None, reason="no objdump (binutils) here")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="levels are those of x86-64")
@each_extension
def test_wide_registers_only_in_their_level(extension: Path) -> None:
    if not any("ggr::" in name for _, name in nm(extension)):
        pytest.skip("the extension is stripped (an installed wheel): its functions have no names")
    used = functions_by_registers(extension)
    for registers, users in USERS.items():
        assert {f for f in used[registers] if not of_level(f, *users)} == set()
    # Control: the levels do use their registers.
    assert used["avx512"]
    assert used["avx2"]


def test_leaks_would_be_noticed() -> None:
    symbols = [
        ("T", "ggr::avx2::register_binary(ggr::OpTable&)"),
        ("T", "ggr::avx512::register_binary(ggr::OpTable&)"),
        ("t", "ggr::avx2::(anonymous namespace)::add()"),
        ("W", "std::vector<int>::size() const"),
        ("u", "ggr::avx2::table"),
        ("D", "ggr::counter"),
    ]
    assert [name[0] for name in leaks("avx2", symbols)] == ["T", "W", "u", "D"]
    assert "avx512" in leaks("avx2", symbols)[0]
