"""Every op that is computed has cases in this folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ggml_rpc.spec.ops import OPS

# What parameters and sources make of ops of ik_llama.cpp: cases give those.
BY_OTHER_NAMES = {"SUM_DIM": "SUM_ROWS", "GATHER": "GET_ROWS", "FLASH_ATTN_ROWS": "FLASH_ATTN_EXT"}
NAMED = {
    node.value
    for path in Path(__file__).parent.glob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}


@pytest.mark.parametrize("op", [o.name for o in OPS if not (o.is_noop or o.refused)])
def test_op_has_cases(op: str) -> None:
    assert BY_OTHER_NAMES.get(op, op) in NAMED
