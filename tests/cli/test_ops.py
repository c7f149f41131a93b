"""``ggml-rpc devices --ops``: no op of any table is missing, the CPU computes all, and the documentation says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggml_rpc.cli import main as commands
from ggml_rpc.cli.op_types import Prober, Row, build, lines, probes, refusals, table
from ggml_rpc.spec.dialects import DIALECTS, Dialect
from ggml_rpc.spec.ops import OP_BY_ID, OP_BY_NAME, OPS
from ggml_rpc.spec.types import TYPES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "ops.md"
# Types of no file: products quantise activations to them.
WITHIN = {"Q8_1", "Q8_K"}


def row(op: str) -> Row:
    return next(r for r in table() if r.op == op)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_no_dialect_has_an_op_that_is_not_computed(dialect: Dialect) -> None:
    """Every op that a client of any version can name has a plan, moves no data, or is refused with a reason."""
    computed = {r.op for r in table() if all(r.types.values())}
    forms = {OP_BY_ID[i] for i in dialect.ops}
    if dialect.ik_meaning:  # what parameters and sources make of them
        forms |= {op for op in OPS if op.name in ("SUM_DIM", "GATHER", "FLASH_ATTN_ROWS")}
    assert {op.name for op in forms if not (op.is_noop or op.refused)} <= computed


def test_every_op_is_in_a_dialect_and_in_the_table_once() -> None:
    named = {OP_BY_ID[i].name for d in DIALECTS for i in d.ops} | {"SUM_DIM", "GATHER", "FLASH_ATTN_ROWS"}
    assert named == {op.name for op in OPS}
    assert [r.op for r in table()] == [op.name for op in OPS if not (op.is_noop or op.refused)]


def test_nodes_of_probes_are_computed_as_they_are() -> None:
    prober = Prober()
    assert [p.op.name for p in probes() if not prober.takes(p, {})] == []
    assert all(build(p, p.tensors)[0].op == p.op.name for p in probes())


@pytest.mark.parametrize(("op", "slot"), [("MUL_MAT", "a"), ("MUL_MAT_ID", "as"), ("FUSED_UP_GATE", "up")])
def test_products_take_every_type_of_files(op: str, slot: str) -> None:
    """Those that clients which name the op have."""
    named = {i for d in DIALECTS if OP_BY_NAME[op].id in d.ops for i in d.types}
    assert {t.name for t in TYPES if t.is_quantized and t.id in named} - WITHIN <= set(row(op).types[slot])


def test_a_device_is_asked_not_a_list() -> None:
    """A probe that no kernel takes is not in the table."""
    probe = next(p for p in probes() if p.op.name == "SINKHORN")
    prober = Prober()
    assert prober.takes(probe, {})
    assert not prober.takes(probe, {0: "F16"})
    assert row("SINKHORN").types == {"x": ("F32",), "result": ("F32",)}


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["devices", "--ops", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["ops"]["MASK_TOPK"]["cpu"] == {"mask": ["F32", "F16"], "ids": ["I32"], "result": ["F32", "F16"]}
    assert out["refused"] == refusals()
    assert "REDUCE" in {op for ops in out["refused"].values() for op in ops}


def test_the_documentation_holds_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["devices", "--ops"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines() == lines()
    assert f"```text\n{text}```\n" in DOCS.read_text(encoding="utf-8"), "run `ggml-rpc devices --ops` and paste it"
