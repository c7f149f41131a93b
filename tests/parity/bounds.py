"""How far our result of one node may lie from stock's, both computed from the same inputs: the one table.

The error is that of the worst row: sum of squared differences over sum of squares. Where a bound is wider than the
rounding of f32, stock computes in less, and the reason says in what.
"""

from __future__ import annotations

EXACT = 0.0
ROUNDING = 5e-12
"""Sums in another order, other polynomials for exp and its kin: a few units in the last place of f32."""

# Every single element must be the same: copies, comparisons, and one rounding of one operation.
_EXACT_OPS = """
ABS ACC ADD ADD1 ADD_ID ADD_REL_POS ARANGE ARGMAX ARGSORT CEIL CLAMP COL2IM_1D CONCAT CONT COUNT_EQUAL CPY DIAG
DIAG_MASK_INF DIAG_MASK_ZERO DIV DUP FILL FLOOR GET_REL_POS GET_ROWS GET_ROWS_BACK IM2COL IM2COL_3D IM2COL_BACK
LEAKY_RELU MUL NEG PAD PAD_REFLECT_1D POOL_1D POOL_2D POOL_2D_BACK REGLU RELU REPEAT REPEAT_BACK ROLL ROUND SCALE SET
SET_ROWS SGN SQR SQRT STEP SUB SUM_ROWS TOP_K TRI TRUNC WIN_PART WIN_UNPART
ARGSORT_THRESH GROUPED_TOPK
"""
EXACT_OPS = frozenset(_EXACT_OPS.split())

# Results in half precision: one element of a row may fall on the other side of a rounding.
HALF = {"F16": 1e-8, "BF16": 1e-6}

# op, or op and first types -> (bound, why it is wider than ROUNDING)
WIDER: dict[str, tuple[float, str]] = {
    "GELU F32": (2e-6, "stock rounds x and gelu(x) to f16: a table of 65536 entries"),
    "GELU_QUICK F32": (2e-6, "as GELU"),
    "GEGLU F32": (2e-6, "as GELU"),
    "GEGLU_QUICK F32": (2e-6, "as GELU"),
    "ROPE F32": (1e-10, "stock multiplies angles up in f32, ours are f64"),
    "ROPE_BACK F32": (1e-10, "as ROPE"),
    "ROPE_CACHE I32": (1e-10, "as ROPE"),
    "FLASH_ATTN_EXT F32 F16": (2e-7, "below 64 queries both round every partial sum over V to f16: ties"),
    "FLASH_ATTN_EXT F32 BF16": (1e-4, "stock rounds q to bf16"),
    "FLASH_ATTN_EXT F32 Q4_0": (5e-4, "stock quantises q to q8_0"),
    "FLASH_ATTN_EXT F32 Q8_0": (5e-4, "stock quantises q to q8_0"),
}


def bound(op: str, types: str) -> float:
    """Return the bound for a node of an op (UNARY and GLU by their kind) with these types, sources first."""
    for key, (limit, _reason) in WIDER.items():
        if f"{op} {types} ".startswith(f"{key} "):
            return limit
    if op in EXACT_OPS:
        return EXACT
    return HALF.get(types.rsplit(maxsplit=1)[-1], ROUNDING)
