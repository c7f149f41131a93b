"""The benchmark of attention: what it counts, and that it measures whole layers."""

from __future__ import annotations

import numpy as np
import pytest

from bench.attention import Layers, causal, multiply_adds
from ggml_rpc.devices.cpu import CpuPool, levels


@pytest.mark.parametrize(("n_q", "n_kv"), [(1, 1), (1, 40), (16, 16), (16, 40)])
def test_multiply_adds_are_those_of_what_queries_see(n_q: int, n_kv: int) -> None:
    assert multiply_adds((32, 4, 2), n_q, n_kv) == 2 * 32 * 4 * int((causal(n_q, n_kv) == 0).sum())


@pytest.mark.parametrize("flash", [True, False])
def test_layers_are_computed(flash: bool) -> None:
    layers = Layers(CpuPool(1, levels()[0]), (32, 4, 2), "F16", 3, 64, total=40000, flash=flash)
    assert layers.count == 40000 // (2 * 64 * 2 * 32 * 2)
    layers.plan.run()
    assert np.isfinite(layers.bench.read(layers.out)).all()
