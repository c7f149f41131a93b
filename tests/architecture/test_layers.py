"""Imports and includes go only where the two tables of ARCHITECTURE.md allow."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ggml_rpc"
CSRC = ROOT / "csrc"

CIMPORT = re.compile(r"^\s*(?:from\s+(\S+)\s+c?import|c?import\s+(\S+))", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
EXTERN = re.compile(r'^\s*cdef extern from "([^"]+)"', re.MULTILINE)


def table(heading: str) -> dict[str, set[str]]:
    """Return row -> what it may refer to, from the first table below a heading of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    out = {}
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        out[cells[0].strip("`/")] = {name.rstrip("/") for name in re.findall(r"`([^`]+)`", cells[-1])}
    return out


LAYERS = table("Layers of the package")
FOLDERS = table("Folders of csrc")


def layer_of(module: str) -> str | None:
    """Return the layer of `ggml_rpc.a.b`: the folder or module `a`; None for the package itself and foreign names."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ggml_rpc" and len(parts) > 1 else None


def imported(path: Path) -> Iterator[str]:
    """Yield the absolute names that a Python or Cython file imports."""
    package = ["ggml_rpc", *path.relative_to(PACKAGE).parent.parts]
    text = path.read_text(encoding="utf-8")

    def absolute(name: str, level: int) -> str:
        return ".".join(package[: len(package) - level + 1] + ([name] if name else [])) if level else name

    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = absolute(node.module or "", node.level)
                # `from ggml_rpc import x` may name a layer.
                yield from (f"{base}.{alias.name}" for alias in node.names) if base == "ggml_rpc" else (base,)
        return
    for match in CIMPORT.finditer(text):
        name = match[1] or match[2].rstrip(",")
        bare = name.lstrip(".")
        yield absolute(bare, len(name) - len(bare))


SOURCES = sorted(p for kind in ("py", "pyx", "pxd") for p in PACKAGE.rglob(f"*.{kind}"))
NATIVE = sorted(p for kind in ("h", "cpp", "in") for p in CSRC.rglob(f"*.{kind}"))


def test_every_layer_and_folder_has_its_row() -> None:
    layers = {p.relative_to(PACKAGE).parts[0].split(".")[0] for p in SOURCES} - {"__init__", "_version"}
    assert layers <= set(LAYERS), "ARCHITECTURE.md lacks layers"
    folders = {p.relative_to(CSRC).parts[0] for p in NATIVE}
    assert folders <= set(FOLDERS), "ARCHITECTURE.md lacks folders of csrc"
    assert set().union(*LAYERS.values()) <= set(LAYERS)
    assert set().union(*FOLDERS.values()) <= set(FOLDERS)


def test_tables_have_no_cycle() -> None:
    for rows in (LAYERS, FOLDERS):
        settled: set[str] = set()
        while len(settled) < len(rows):
            ready = {name for name, uses in rows.items() if uses <= settled} - settled
            assert ready, f"a cycle among {sorted(set(rows) - settled)}"
            settled |= ready


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].split(".")[0]
    if own in ("__init__", "_version"):
        own = ""  # the package's face, which imports these only when they are asked for
    allowed = LAYERS.get(own, {"errors", "graph", "client", "llm", "server"}) | {own, "_version", "__version__"}
    for name in imported(path):
        layer = layer_of(name)
        assert layer is None or layer in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: str(p.relative_to(CSRC)))
def test_includes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    own = path.relative_to(CSRC).parts[0]
    assert "Python.h" not in text
    if path.suffix == ".h":
        assert "#pragma once" in text
    for name in INCLUDE.findall(text):
        if name == "levels_config.h":  # made by CMake
            continue
        assert (CSRC / name).exists(), f"{name}: includes are written from csrc/"
        assert name.split("/")[0] in FOLDERS[own] | {own}, f"{path.relative_to(ROOT)} includes {name}"


def test_cython_declares_headers_that_exist() -> None:
    for path in SOURCES:
        if path.suffix == ".py":
            continue
        for name in EXTERN.findall(path.read_text(encoding="utf-8")):
            first = name.split("/")[0]
            assert "/" not in name or first not in FOLDERS or (CSRC / name).exists(), f"{path.name}: {name}"


def test_the_rule_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: imports in all their spellings are seen."""
    package = tmp_path / "ggml_rpc"
    (package / "spec").mkdir(parents=True)
    monkeypatch.setattr(f"{__name__}.PACKAGE", package)
    python = package / "spec" / "x.py"
    python.write_text(
        "def f():\n    from ..server import y\n    import ggml_rpc.cli.main\n    from ggml_rpc import wire\n"
    )
    assert [layer_of(name) for name in imported(python)] == ["server", "cli", "wire"]
    cython = package / "spec" / "x.pyx"
    cython.write_text("from ggml_rpc.server.x cimport y\ncimport ggml_rpc.cli\nfrom ..wire._codec import z\n")
    assert [layer_of(name) for name in imported(cython)] == ["server", "cli", "wire"]
