"""Random contents for the sources of single nodes, such that every op is defined on them."""

from __future__ import annotations

import math

import numpy as np

from ggml_rpc.spec.ops import OP_BY_ID
from ggml_rpc.spec.types import TYPE_BY_ID
from tests.ops.test_matmul import weights
from tests.support.device import f32_to_bf16
from tests.support.wiretensor import Tensor

MASKS = {("SOFT_MAX", 1), ("SOFT_CAP_MAX", 1), ("FLASH_ATTN_EXT", 3), ("LIGHTNING_INDEXER", 3)}
POSITIVE = {
    ("LOG", 0),
    ("SQRT", 0),
    ("DIV", 1),
    ("ROPE", 2),
    ("ROPE_CACHE", 1),
    ("OPT_STEP_ADAMW", 3),
    ("DSV4_HC_COMB", 0),
}
UNIT = {("OPT_STEP_ADAMW", 4), ("OPT_STEP_SGD", 2)}
# The state is multiplied by 1 + a b^T at each token: larger ones would make it and its rounding grow without bound.
SMALL = {("RWKV_WKV7", 4), ("RWKV_WKV7", 5)}


def indices(node: Tensor, slot: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return integers that are legal in a slot; shape in NumPy's order."""
    op = OP_BY_ID[node.op].name
    first, second = (*node.src, None)[:2]
    assert first is not None
    if (op, slot) == ("GET_ROWS", 1):
        return rng.integers(0, first.ne[1], shape)
    if (op, slot) == ("GET_ROWS_BACK", 1):
        return rng.integers(0, node.ne[1], shape)
    if (op, slot) == ("SSM_SCAN", 6):
        return rng.integers(0, first.ne[3], shape)
    if (op, slot) == ("ADD_ID", 2):
        assert second is not None
        return rng.integers(0, second.ne[1], shape)
    if (op, slot) in (("MUL_MAT_ID", 2), ("SET_ROWS", 1)):  # distinct along a row: experts of a token, rows written
        n = first.ne[2] if op == "MUL_MAT_ID" else node.ne[1]
        rows = math.prod(shape[:-1])
        return np.stack([rng.permutation(n)[: shape[-1]] for _ in range(rows)]).reshape(shape)
    return rng.integers(0, 100, shape)


def contents(node: Tensor, slot: int, rng: np.random.Generator) -> bytes:
    """Return bytes for a contiguous source of a node."""
    t = node.src[slot]
    assert t is not None
    name, key = TYPE_BY_ID[t.type].name, (OP_BY_ID[node.op].name, slot)
    shape = tuple(reversed(t.ne))
    if name in ("I32", "I64"):
        return indices(node, slot, shape, rng).astype("<i4" if name == "I32" else "<i8").tobytes()
    if TYPE_BY_ID[t.type].block > 1:
        return weights(rng, name, shape)[0]
    x = rng.standard_normal(shape)
    if key in POSITIVE:
        x = rng.uniform(0.5, 2.0, shape)
    if key in UNIT:
        x = rng.uniform(0.1, 0.9, shape)
    if key in SMALL:
        x /= math.sqrt(shape[-1])
    if key in MASKS:
        x = np.where(rng.random(shape) < 0.3, -np.inf, x)
        x[..., 0] = 0.0
    return encode(name, x)


def encode(name: str, x: np.ndarray) -> bytes:
    """Return the bytes of floats in a plain type."""
    if name == "BF16":
        return f32_to_bf16(x).tobytes()
    return x.astype({"F32": "<f4", "F16": "<f2"}[name]).tobytes()
