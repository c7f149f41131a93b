"""One build runs on old processors too: x86-64-v2 is all that it may take for granted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

import ggml_rpc

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")

pytestmark = [
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the levels are those of x86-64"),
    pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 here (Debian: qemu-user)"),
]


# Nehalem (2008) is x86-64-v2 and no more. Haswell (2013) has AVX2, which emulators before QEMU 7.2 leave out.
@pytest.mark.parametrize(
    ("model", "possible"), [("Nehalem", [["baseline"]]), ("Haswell", [["avx2", "baseline"], ["baseline"]])]
)
def test_runs_on(
    model: str,
    possible: list[list[str]],
    run: Callable[..., subprocess.CompletedProcess[str]],
    small_graph: str,
) -> None:
    done = run(str(QEMU), "-cpu", model, sys.executable, small_graph)
    assert done.returncode == 0, done.stderr
    version, *found = done.stdout.split()
    assert version == ggml_rpc.__version__
    assert found in possible
