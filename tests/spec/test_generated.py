"""The C++ constants are what the generator writes today, and they compile to the values of the spec."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_generated_files_are_current() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gen_spec.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr + "run tools/gen_spec.py"


def test_spec_imports_nothing_else() -> None:
    """The spec must stay importable with nothing but the standard library and itself."""
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('ggml_rpc'); package.__path__ = [{str(ROOT / 'ggml_rpc')!r}]\n"
        "sys.modules['ggml_rpc'] = package\n"
        "import ggml_rpc.spec.dialects, ggml_rpc.spec.ops, ggml_rpc.spec.limits\n"
        "outside = [m for m in sys.modules if m.startswith('ggml_rpc.') and not m.startswith('ggml_rpc.spec')]\n"
        "assert not outside, outside\n"
        "assert 'numpy' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
