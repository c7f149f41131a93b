"""The cases of tests/ops/test_matmul.py on a CUDA device, against what its products do with activations and weights.

Few columns: activations in blocks of 32 with a scale in f32 and 8-bit integers; plain weights meet them in f32. Many:
both in half (an activation's row with a power of two as scale), BF16 weights meet bf16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.ops import test_matmul as cases
from tests.ops.test_matmul import *
from tests.support.device import bf16_to_f32, f32_to_bf16

FEW_COLUMNS, FEW_PAIRS = 8, 64


@dataclass
class Rounded:
    """Activations, to be rounded once it is known how many columns the product has."""

    x: np.ndarray
    type_name: str

    def of(self, few: bool) -> np.ndarray:
        """Return what the kernels see."""
        x = np.asarray(self.x, np.float32)
        exact = few and self.type_name in cases.PLAIN
        if self.type_name == "BF16" and x.shape[-1] % 8:  # rows that 16-byte loads do not fit meet f32
            exact = True
        if self.type_name == "F32" or exact:
            return x.astype(np.float64)
        if not few:
            brain = self.type_name == "BF16"
            return (bf16_to_f32(f32_to_bf16(x)) if brain else x.astype(np.float16)).astype(np.float64)
        b = x.reshape(*x.shape[:-1], -1, 32)
        largest = np.abs(b).max(-1, keepdims=True)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest != 0)
        return np.asarray(np.rint(b * inverse).astype(np.float64) * (largest / np.float32(127))).reshape(x.shape)

    def weights(self, values: np.ndarray, few: bool) -> np.ndarray:
        """Return the weights as the kernels see them."""
        return values if few or self.type_name in cases.PLAIN else values.astype(np.float16).astype(np.float64)


def rounded_product(w: np.ndarray, x: Any, product: Any = cases.product) -> np.ndarray:
    """Return the product as the device computes it; of plain arrays the exact one."""
    if not isinstance(x, Rounded):
        return np.asarray(product(w, x))
    few = x.x.size // x.x.shape[-1] // (w.size // w.shape[-1] // w.shape[-2]) <= FEW_COLUMNS
    return np.asarray(product(x.weights(w, few), x.of(few)))


def rounded_expert_product(w: np.ndarray, x: Any, ids: np.ndarray, product: Any = cases.expert_product) -> np.ndarray:
    """Return the product by ids as the device computes it."""
    few = ids.size <= FEW_PAIRS
    return np.asarray(product(x.weights(w, few), x.of(few), ids))


@pytest.fixture(autouse=True)
def own_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cases expect this device's rounding in place of the CPU's."""
    monkeypatch.setattr(cases, "on_grid", lambda x, type_name, bf16_scales=False: Rounded(np.asarray(x), type_name))
    monkeypatch.setattr(cases, "product", rounded_product)
    monkeypatch.setattr(cases, "expert_product", rounded_expert_product)
    monkeypatch.setattr(cases, "minimum_correction", lambda data, x, type_name: 0.0)
