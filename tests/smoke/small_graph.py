"""Compute a small graph at every instruction-set level of this machine and print the levels.

A program of its own, so that it can run under an emulated processor. It needs NumPy, the installed package and the
tests' graph writer, which it loads by its path: the folder that holds the sources must not hide the installed package.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np

import ggml_rpc
from ggml_rpc.devices.cpu import CpuPool, levels

tests = types.ModuleType("tests")
tests.__path__ = [str(Path(__file__).resolve().parents[1])]
sys.modules["tests"] = tests

from tests.support.device import Bench  # noqa: E402


def check(level: str) -> None:
    """Raise AssertionError if (a + b) * a comes out wrong."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((7, 97), dtype=np.float32)
    b = rng.standard_normal((1, 97), dtype=np.float32)
    bench = Bench(CpuPool(2, level).device(), 1 << 16)
    ta, tb = bench.put(a), bench.put(b)
    total = bench.node("ADD", "F32", a.shape, [ta, tb], use_count=1)
    product = bench.node("MUL", "F32", a.shape, [total, ta])
    bench.run(total, product)
    np.testing.assert_allclose(bench.read(product).reshape(a.shape), (a + b) * a, rtol=1e-6)


if __name__ == "__main__":
    for name in levels():
        check(name)
    print(ggml_rpc.__version__, *levels())
