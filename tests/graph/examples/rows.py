"""Rows by index."""

from __future__ import annotations

from collections.abc import Callable

from tests.graph.examples.case import ANY, FLOATS, HALF, QUANTIZED, RESULT, add, into, simple
from tests.support.wiretensor import Arena, Tensor

simple(
    "GET_ROWS",
    ("F32", (64, 5, 3, 2)),
    ("Q4_0", (64, 9, 3, 2)),
    ("I32", (5, 3, 2)),
    types={0: FLOATS | QUANTIZED},
    sizes={(0, 1): ANY},
    strides={1: "any"},
)
simple("GET_ROWS", ("I32", (8, 5)), ("I32", (8, 9)), ("I32", (5,)), name="i32", sizes={(0, 1): ANY}, strides={1: "any"})
simple(
    "GET_ROWS_BACK",
    ("F32", (8, 9)),
    ("F32", (8, 5)),
    ("I32", (5,)),
    types={0: HALF},
    sizes={(RESULT, 1): ANY},
    strides={RESULT: "whole"},
)


def _set_rows(kind: str, index: str) -> Callable[[Arena], Tensor]:
    def build(a: Arena) -> Tensor:
        values = a.leaf("F32", (64, 5, 4, 2), "source 0")
        ids = a.leaf(index, (5, 2, 1), "source 1")
        cache = a.leaf(kind, (64, 32, 4, 2), "source 2")
        node = a.node("SET_ROWS", kind, (64, 32, 4, 2), [values, ids, cache], name="subject")
        node.data, node.view_src = cache.data, cache
        return node

    return build


for _kind, _index in (("F16", "I64"), ("Q8_0", "I32"), ("F32", "I64")):
    add(
        "SET_ROWS",
        _kind,
        _set_rows(_kind, _index),
        types={0: HALF, 1: frozenset({"I32", "I64"})},
        sizes={(1, 1): into(4), (1, 2): into(2)},
        strides={1: "any"},
        tied=(RESULT, 2),
    )
