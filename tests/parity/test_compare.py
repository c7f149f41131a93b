"""The comparison notices what it should, without any stock peer."""

from __future__ import annotations

import numpy as np
import pytest

from ggml_rpc.spec.enums import UnaryKind
from ggml_rpc.spec.ops import OP_BY_NAME
from tests.graph.examples import words
from tests.parity.bounds import EXACT, ROUNDING, bound
from tests.support.parity import compare, label, signature, values
from tests.support.wiretensor import tensor


def test_one_element_shows_in_its_row() -> None:
    t = tensor("F32", (4, 2), op=OP_BY_NAME["ADD"].id, src=[tensor("F32", (4, 2)), tensor("F16", (4,))])
    stock = np.array([[1, 1, 1, 1], [0.5, 0, 0, 0]], "<f4")
    ours = stock.copy()
    ours[1, 0] = 0.25
    d = compare(t, ours.tobytes(), stock.tobytes(), "here")
    assert (d.op, d.types, d.worst, d.changed) == ("ADD", "F32 F16 -> F32", 0.25, 1 / 8)
    assert d.mean == pytest.approx(0.0625 / 4.25)
    ours[0, 0] = np.nan
    assert compare(t, ours.tobytes(), stock.tobytes(), "here").worst == np.inf


def test_gaps_between_rows_do_not_count() -> None:
    t = tensor("F16", (2, 2))
    t.nb = [2, 8, 16, 16]
    data = np.array([1, 2, 7, 7, 3, 4], "<f2").tobytes()
    assert t.nbytes() == len(data)
    assert values(t, data).tolist() == [[1, 2], [3, 4]]


def test_blocks_are_decoded() -> None:
    block = np.float16(0.5).tobytes() + np.arange(32, dtype=np.int8).tobytes()
    assert values(tensor("Q8_0", (32,)), block).tolist() == [[0.5 * i for i in range(32)]]


def test_names_and_bounds() -> None:
    gelu = tensor("F32", (4,), op=OP_BY_NAME["UNARY"].id, params=words(int(UnaryKind.GELU)), src=[tensor("F32", (4,))])
    assert (label(gelu), signature(gelu)) == ("GELU", "F32 -> F32")
    assert bound("GELU", "F32 -> F32") > bound("GELU", "F16 -> F16") > bound("SILU", "F32 -> F32") == ROUNDING
    assert bound("GET_ROWS", "Q4_K I32 -> F32") == EXACT
    assert bound("FLASH_ATTN_EXT", "F32 F32 F32 F16 -> F32") == ROUNDING
