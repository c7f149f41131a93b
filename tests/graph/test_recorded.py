"""Graphs of stock clients, as recorded, are legal; the same graphs with random damage never break the parser."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.graph._graph import CheckedGraph, check_graph
from ggml_rpc.spec.ops import OP_BY_ID
from ggml_rpc.wire._codec import Codec
from tests.graph.layout import assert_inside
from tests.graph.recorded import Recorded, all_graphs, graphs, paths
from tests.replay.replayer import load


def check(g: Recorded) -> CheckedGraph:
    return check_graph(Codec(g.dialect), g.payload, g.buffers, g.n_devices)


@pytest.mark.parametrize("path", paths(), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recorded_graphs_are_legal(path: Path) -> None:
    seen = 0
    for g in graphs(load(path)):
        checked = check(g)
        assert_inside(checked, g.buffers)
        assert checked.nodes
        seen += 1
    assert seen


def test_recorded_graphs_show_what_the_parser_must_bear() -> None:
    """The captures hold the shapes of graph that the rules are meant to let through."""
    ops: Counter[str] = Counter()
    inplace = without_memory = views = skipped = uids = 0
    for g in all_graphs():
        checked = check(g)
        uids += checked.uid != 0
        tensors = checked.tensors
        computed = set(checked.nodes)
        for i in computed:
            t = tensors[i]
            ops[OP_BY_ID[t.op].name] += 1
            places = [(s.buffer, s.offset) for s in (tensors[j] for j in t.src if j >= 0)]
            inplace += (t.buffer, t.offset) in places
        for i, t in enumerate(tensors):
            without_memory += t.buffer == 0
            views += OP_BY_ID[t.op].is_noop and OP_BY_ID[t.op].name != "NONE"
            skipped += i not in computed and not OP_BY_ID[t.op].is_noop
    assert inplace
    assert views
    assert uids
    assert {"MUL_MAT", "MUL_MAT_ID", "FLASH_ATTN_EXT", "SOFT_MAX", "SET_ROWS", "ROPE", "GLU", "RMS_NORM"} <= set(ops)
    assert without_memory or skipped


def test_foreign_session_cannot_use_a_recorded_graph() -> None:
    g = next(all_graphs())
    with pytest.raises(RpcError, match="in no buffer of this session"):
        check_graph(Codec(g.dialect), g.payload, [], g.n_devices)
