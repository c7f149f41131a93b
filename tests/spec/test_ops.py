"""Consistency of the op and type tables."""

from __future__ import annotations

import pytest

from ggml_rpc.spec import enums, limits
from ggml_rpc.spec.dialects import DIALECTS
from ggml_rpc.spec.ops import FIRST_IK_OP, OP_BY_ID, OP_BY_NAME, OPS, OpSpec
from ggml_rpc.spec.types import TYPE_BY_ID, TYPE_BY_NAME, TYPES

NOOPS = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"}
POINTERS = {"MAP_CUSTOM1", "MAP_CUSTOM2", "MAP_CUSTOM3", "CUSTOM"}
POINTERS |= {"MAP_UNARY", "MAP_BINARY", "MAP_CUSTOM1_F32", "MAP_CUSTOM2_F32", "MAP_CUSTOM3_F32"}  # ik_llama.cpp
# Ops that allocators of stock clients may compute in place (their own list), all of which must be allowed here.
CLIENT_INPLACE = {
    *("FILL", "SCALE", "DIAG_MASK_ZERO", "DIAG_MASK_INF", "ADD", "ADD_ID", "ADD1", "SUB", "MUL", "DIV", "SQR"),
    *("SQRT", "LOG", "UNARY", "ROPE", "ROPE_BACK", "SILU_BACK", "RMS_NORM", "RMS_NORM_BACK", "CLAMP", "SOFT_MAX"),
    "SOFT_MAX_BACK",
}
ENUMS = {
    "unary": enums.UnaryKind,
    "glu": enums.GluKind,
    "prec": enums.Prec,
    "pool": enums.PoolKind,
    "sort_order": enums.SortOrder,
    "scale_mode": enums.ScaleMode,
    "tri": enums.TriKind,
    "op_hint": enums.OpHint,
}


def test_ids_are_dense_and_unique() -> None:
    common = [o.id for o in OPS if o.id < FIRST_IK_OP]
    assert common == list(range(101))
    assert len(OP_BY_ID) == len(OP_BY_NAME) == len(OPS)


def test_noops_and_pointer_ops() -> None:
    assert {o.name for o in OPS if o.is_noop} == NOOPS
    assert {o.name for o in OPS if o.pointer_params} == POINTERS


def test_inplace_covers_what_clients_do() -> None:
    assert {o.name for o in OPS if o.inplace} >= CLIENT_INPLACE


@pytest.mark.parametrize("op", OPS, ids=lambda o: o.name)
def test_row_is_well_formed(op: OpSpec) -> None:
    assert len(op.sources) <= limits.MAX_SRC
    names = [s.name for s in op.sources] + [p.name for p in op.params]
    assert all(n.isidentifier() for n in names)
    assert len({s.name for s in op.sources}) == len(op.sources)
    used: set[int] = set()
    for p in op.params:
        words = set(range(p.word, p.word + p.words))
        assert not words & used, f"{p.name} overlaps another parameter"
        assert max(words) < limits.OP_PARAMS_WORDS
        used |= words
        assert p.enum is None or p.enum in ENUMS
    assert op.required_mask & ~op.allowed_mask == 0
    assert op.min_src == max((i + 1 for i, s in enumerate(op.sources) if not s.optional), default=0)
    assert op.writes_into is None or (op.writes_into < len(op.sources) and not op.inplace)


@pytest.mark.parametrize(
    ("name", "sources", "required"),
    [
        ("MUL_MAT_ID", "as b ids", 0b111),
        ("SOFT_MAX", "x mask sinks", 0b001),
        ("FLASH_ATTN_EXT", "q k v mask sinks", 0b00111),
        ("ROPE", "x pos freq_factors", 0b011),
        ("SET_ROWS", "values ids dst", 0b111),
        ("CPY", "x dst", 0b11),
        ("GLU", "a b", 0b01),
        ("SSM_SCAN", "state x dt a b c ids", 0b1111111),
        ("ARANGE", "", 0),
    ],
)
def test_sources_of_some_ops(name: str, sources: str, required: int) -> None:
    op = OP_BY_NAME[name]
    assert [s.name for s in op.sources] == sources.split()
    assert op.required_mask == required


def test_dialects_translate_every_enum_to_known_values() -> None:
    for d in DIALECTS:
        used = {p.enum for i in d.ops for p in OP_BY_ID[i].params if p.enum} - {"unary", "glu"}
        assert used <= set(d.enums), d.name
        for name, table in d.enums.items():
            assert set(table.values()) <= {int(v) for v in ENUMS[name]}, (d.name, name)


def test_types() -> None:
    assert len(TYPE_BY_ID) == len(TYPE_BY_NAME) == len(TYPES)
    assert TYPE_BY_NAME["Q4_0"].row_bytes(64) == 36
    assert TYPE_BY_NAME["F32"].row_bytes(0) == 0
    with pytest.raises(ValueError, match="whole number of blocks"):
        TYPE_BY_NAME["Q4_K"].row_bytes(255)
    for t in TYPES:
        assert t.is_quantized == (t.block > 1)
