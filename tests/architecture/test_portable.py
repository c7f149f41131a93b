"""The native sources compile for arm64 too: x86 intrinsics stand behind their macros."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
SOURCES = sorted(CSRC.rglob("*.cpp"))


@pytest.mark.skipif(COMPILER is None, reason="no compiler for arm64 here (Debian: g++-aarch64-linux-gnu)")
@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_compiles_for_arm64(path: Path, tmp_path: Path) -> None:
    config = ["GGR_LEVELS(X) X(baseline, nothing)", "GGR_EMULATED_LEVELS(X)", "GGR_COMPLETE_LEVELS(X) X(baseline)"]
    (tmp_path / "levels_config.h").write_text("".join(f"#define {macro}\n" for macro in config))
    command = [str(COMPILER), "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", "-DGGR_LEVEL=baseline"]
    run = subprocess.run(
        [*command, f"-I{CSRC}", f"-I{tmp_path}", str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
