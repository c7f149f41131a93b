"""Graphs that differ from a legal one in a single field: refused, unless a model of the rules says that they are legal.

The model is independent of the native rules: it knows for each example which types and sizes a slot may take and what
its strides must be (`examples.py`), and works out bounds and overlaps by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from ggml_rpc.errors import GraphError, ProtocolError, SessionError
from ggml_rpc.graph._graph import check_graph
from ggml_rpc.spec.dialects import DEFAULT as LLAMA_8_0
from ggml_rpc.spec.ops import OP_BY_NAME, OPS, OpSpec
from ggml_rpc.spec.types import TYPE_BY_ID, TYPES
from ggml_rpc.wire._codec import Codec
from tests.graph.examples import EXAMPLES, IK_3_5, ONLY, RESULT, Example, arena
from tests.support.wiretensor import Arena, Tensor, default_strides, graph_payload

codec_of = cache(Codec)
REFUSALS = (GraphError, ProtocolError, SessionError)
INT_MAX = 2**31 - 1
U32_MAX = 2**32 - 1

# What parameters or sources make of an op of another name.
UNNAMED = {"SUM_DIM", "GATHER", "FLASH_ATTN_ROWS"}

# Sources whose contents steer the op: the result must not lie on them.
STEERING = {
    "GET_ROWS": 1,
    "GET_ROWS_BACK": 1,
    "SET_ROWS": 1,
    "ADD_ID": 2,
    "MUL_MAT_ID": 2,
    "MOE_FUSED_UP_GATE": 3,
    "MUL_MULTI_ADD": 3,
    "IK_SSM_CONV": 3,
    "SSM_SCAN": 6,
    "IK_SSM_SCAN": 6,
    "ARGSORT": 0,
    "ARGSORT_THRESH": 0,
    "TOP_K": 0,
    "BLEND": 1,
    "MASK_TOPK": 1,
    "DS4_COMP": 2,
    "LATENT_ATTN": 5,
    "FLASH_ATTN_EXT": 5,  # the list of rows, where there is one
}


@dataclass
class Case:
    """An example built anew: its arena, its subject, and the tensor of each slot."""

    example: Example
    arena: Arena
    subject: Tensor
    slots: dict[int, Tensor]

    def check(self, **options: object) -> None:
        """Hand the graph to the parser."""
        payload = graph_payload(self.example.dialect, [self.subject], **options)  # type: ignore[arg-type]
        check_graph(codec_of(self.example.dialect), payload, [(self.arena.handle, self.arena.base, self.arena.size)])


@dataclass(frozen=True)
class Mutant:
    """One change: what it is called, the slot it touches, and whether the graph stays legal."""

    label: str
    case: Case
    slot: int
    legal: bool


def build(example: Example) -> Case:
    a = arena()
    subject = example.build(a)
    slots = {i: s for i, s in enumerate(subject.src) if s is not None and s is not subject}
    return Case(example, a, subject, {RESULT: subject, **slots})


# ---- The model ------------------------------------------------------------------------------------------------------


def walked_strides(t: Tensor) -> list[int] | None:
    """Return the strides with those of dimensions of size 1 made contiguous; None if a stride is illegal by itself."""
    kind = TYPE_BY_ID[t.type]
    if t.ne[0] % kind.block:
        return None
    out, contiguous = [], kind.bytes
    for d in range(4):
        steps = t.ne[d] // kind.block if d == 0 else t.ne[d]
        stride = t.nb[d] if steps > 1 else contiguous
        if (kind.block == 1 and stride % kind.bytes) or (kind.block > 1 and d == 0 and stride != kind.bytes):
            return None
        out.append(stride)
        contiguous = stride * max(steps, 1) + (kind.row_meta if d == 0 else 0)
    return out


def strides_are(kind: str, t: Tensor, nb: list[int]) -> bool:
    rows = nb[0] == TYPE_BY_ID[t.type].bytes
    packed = nb[0] * (t.ne[0] // TYPE_BY_ID[t.type].block) + TYPE_BY_ID[t.type].row_meta
    if kind == "any":
        return True
    if kind == "rows":
        return rows
    if kind == "close":
        return rows and nb[1] == packed
    if kind == "whole":
        return rows and nb[1] == packed and nb[2] == nb[1] * t.ne[1] and nb[3] == nb[2] * t.ne[2]
    assert kind == "even"
    walked = [(n, b) for n, b in zip(t.ne[1:], nb[1:], strict=True) if n != 1]
    return rows and all(b1 == n0 * b0 for (n0, b0), (_, b1) in pairwise(walked))


def distinct(t: Tensor, nb: list[int]) -> bool:
    """Tell by laying out every element (or row, if quantised) whether two share a byte."""
    kind = TYPE_BY_ID[t.type]
    dims = range(4) if kind.block == 1 else range(1, 4)
    size = kind.bytes if kind.block == 1 else kind.row_bytes(t.ne[0])
    at = np.zeros(1, np.int64)
    for d in dims:
        at = (at[:, None] + np.arange(t.ne[d], dtype=np.int64) * nb[d]).ravel()
    at.sort()
    return bool((np.diff(at) >= size).all())


def nested(t: Tensor, nb: list[int]) -> bool:
    """Tell whether each stride passes over all that smaller strides reach: what the rules take for distinct."""
    kind = TYPE_BY_ID[t.type]
    dims = range(4) if kind.block == 1 else range(1, 4)
    reach = kind.bytes if kind.block == 1 else kind.row_bytes(t.ne[0])
    for stride, n in sorted((nb[d], t.ne[d]) for d in dims if t.ne[d] > 1):
        if stride < reach:
            return False
        reach += (n - 1) * stride
    assert distinct(t, nb), "the rules' notion of distinct elements is wrong"
    return True


def is_legal(case: Case, slot: int, sizes_fit: bool, types_fit: bool) -> bool:
    """Tell whether the graph is legal after a change of one slot's type, sizes, strides or place."""
    example, t = case.example, case.slots[slot]
    kind = TYPE_BY_ID.get(t.type)
    if not sizes_fit or not types_fit or kind is None or t.type not in example.dialect.type_numbers:
        return False
    nb = walked_strides(t)
    if nb is None or (kind.row_group > 1 and (t.ne[1] % kind.row_group or nb[1] != kind.row_bytes(t.ne[0]))):
        return False
    t = Tensor(t.type, t.ne, nb, data=t.data)
    offset = t.data - case.arena.base
    if offset < 0 or offset + t.nbytes() > case.arena.size or (kind.block == 1 and offset % kind.bytes):
        return False
    if 0 in t.ne:
        # Nothing to compute is legal, something out of nothing is not.
        return slot == RESULT
    if not strides_are(example.strides.get(slot, "rows"), t, nb):
        return False
    if slot == RESULT and not nested(t, nb):
        return False
    if slot in example.tied:
        others = [case.slots[s] for s in example.tied if s != slot]
        if any(o.data != t.data or o.type != t.type or o.ne != t.ne or walked_strides(o) != nb for o in others):
            return False
    steering = STEERING.get(example.op)
    if steering in case.slots and slot in (RESULT, steering):
        a, b = case.subject, case.slots[steering]
        if a.data < b.data + b.nbytes() and b.data < a.data + a.nbytes():
            return False
    return True


# ---- The mutants ----------------------------------------------------------------------------------------------------


def slots_of(example: Example) -> list[int]:
    return list(build(example).slots)


def mutate_types(example: Example) -> Iterator[Mutant]:
    for slot in slots_of(example):
        for kind in TYPES:
            for fitting in (False, True):
                case = build(example)
                t = case.slots[slot]
                own = TYPE_BY_ID[t.type].name
                if kind.name == own or (fitting and t.ne[0] % kind.block):
                    continue
                t.type = kind.id
                if fitting:
                    t.nb = default_strides(kind.id, t.ne)
                allowed = kind.name in example.types.get(slot, ONLY)
                label = f"type {kind.name}{' with its strides' if fitting else ''}"
                yield Mutant(label, case, slot, is_legal(case, slot, True, allowed))
        for number in (4, 5, 31, 36, 43, 400, 511, 512, U32_MAX):
            case = build(example)
            case.slots[slot].type = number
            yield Mutant(f"type number {number}", case, slot, False)


def mutate_sizes(example: Example) -> Iterator[Mutant]:
    for slot in slots_of(example):
        for d in range(4):
            old = build(example).slots[slot].ne[d]
            for new in {old - 1, old + 1, 2 * old, 0, 2**31 - 1, 2**31, U32_MAX} - {old}:
                case = build(example)
                t = case.slots[slot]
                t.ne[d] = new
                free = example.sizes.get((slot, d))
                fits = free is not None and free(new)
                yield Mutant(f"ne[{d}] = {new}", case, slot, is_legal(case, slot, fits, True))


def mutate_strides(example: Example) -> Iterator[Mutant]:
    for slot in slots_of(example):
        first = build(example).slots[slot]
        item = TYPE_BY_ID[first.type].bytes
        for d in range(4):
            old = first.nb[d]
            for new in {old - 1, old + 1, old + item, old - item, 2 * old, 0, 2**31, U32_MAX} - {old}:
                if new < 0:
                    continue
                case = build(example)
                case.slots[slot].nb[d] = new
                yield Mutant(f"nb[{d}] = {new} (was {old})", case, slot, is_legal(case, slot, True, True))


def mutate_places(example: Example) -> Iterator[Mutant]:
    for slot in slots_of(example):
        first = build(example)
        size = first.slots[slot].nbytes()
        low, high = first.arena.base, first.arena.base + first.arena.size
        for data in (0, 1, low - 1, low - 64, low, high - size, high - size + 1, high - size + 64, high, 2**64 - 64):
            case = build(example)
            case.slots[slot].data = data
            yield Mutant(f"data {data:#x}", case, slot, is_legal(case, slot, True, True))
        for data in (first.slots[slot].data + 1, first.slots[slot].data - 1):
            case = build(example)
            case.slots[slot].data = data
            yield Mutant(f"data {data:#x}", case, slot, is_legal(case, slot, True, True))
        for handle in (0, 1, first.arena.handle + 1, 2**64 - 1):
            case = build(example)
            case.slots[slot].buffer = handle
            yield Mutant(f"buffer {handle:#x}", case, slot, False)
    steering = STEERING.get(example.op)
    if steering in first.slots:
        case = build(example)
        case.subject.data = case.slots[steering].data
        yield Mutant("result on the steering source", case, RESULT, False)


def mutate_sources(example: Example) -> Iterator[Mutant]:
    spec = OP_BY_NAME[example.op]
    for i, source in enumerate(build(example).subject.src):
        if source is None:
            continue
        case = build(example)
        case.subject.src[i] = None
        yield Mutant(f"without source {i}", case, RESULT, i in example.optional)
    for i in range(example.dialect.record.max_src):
        case = build(example)
        src = case.subject.src + [None] * (example.dialect.record.max_src - len(case.subject.src))
        if src[i] is not None or i < len(spec.sources):
            continue
        src[i] = case.arena.leaf("F32", (64,), "surplus")
        case.subject.src = src
        yield Mutant(f"surplus source {i}", case, RESULT, False)


def mutate_params(example: Example) -> Iterator[Mutant]:
    for word, values in example.bad.items():
        for value in values:
            case = build(example)
            params = bytearray(case.subject.params.ljust(64, b"\0"))
            struct.pack_into("<f" if isinstance(value, float) else "<i", params, 4 * word, value)
            case.subject.params = bytes(params)
            yield Mutant(f"param {word} = {value}", case, RESULT, False)


def mutate_ops(example: Example) -> Iterator[Mutant]:
    known = {*example.dialect.op_numbers, *example.dialect.op_numbers.values()}
    for number in {101, 127, 128, 255, 256, INT_MAX, U32_MAX} - known:
        case = build(example)
        case.subject.op = number
        yield Mutant(f"op number {number}", case, RESULT, False)
    for op in OPS:
        if op.refused and (op.id in example.dialect.op_numbers or op.id not in known):
            case = build(example)
            case.subject.op = op.id
            yield Mutant(f"op {op.name}", case, RESULT, False)


FAMILIES = (
    mutate_types,
    mutate_sizes,
    mutate_strides,
    mutate_places,
    mutate_sources,
    mutate_params,
    mutate_ops,
)


def outcome(mutant: Mutant) -> str:
    """Return what is wrong with the parser's answer to a mutant, or nothing."""
    where = "the result" if mutant.slot == RESULT else f"source {mutant.slot}"
    what = f"{mutant.case.example.id}: {mutant.label} of {where}"
    try:
        mutant.case.check()
    except REFUSALS as error:
        text = str(error)
        names = (mutant.case.slots[mutant.slot].name, mutant.case.subject.name)
        if mutant.legal:
            return f"{what}: refused: {text}"
        if "GRAPH_COMPUTE" not in text or not any(f"'{n}'" in text for n in names):
            return f"{what}: the refusal names no tensor: {text}"
        return ""
    return "" if mutant.legal else f"{what}: accepted"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.id)
def test_example_is_legal(example: Example) -> None:
    build(example).check()


def test_every_op_has_an_example_or_is_refused() -> None:
    computed = {o.name for o in OPS if not o.is_noop and not o.refused}
    assert {e.op for e in EXAMPLES} == computed - UNNAMED


@pytest.mark.parametrize("op", [o for o in OPS if o.refused], ids=lambda o: o.name)
def test_refused_ops_say_why(op: OpSpec) -> None:
    a = arena()
    src = [a.leaf("F32", (4,), f"source {i}") for i, _ in zip(range(2), op.sources, strict=False)]
    node = a.node(op.name, "F32", (4,), src, name="subject")
    dialects = [d for d in (LLAMA_8_0, IK_3_5) if op.id in d.op_numbers]
    assert dialects
    for dialect in dialects:
        with pytest.raises(GraphError, match=rf"'subject'.*{op.name} is never accepted: it {op.refused}"):
            check_graph(codec_of(dialect), graph_payload(dialect, [node]), [(a.handle, a.base, a.size)])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.id)
def test_near_misses(example: Example, record_property: Callable[[str, object], None]) -> None:
    wrong, n = [], 0
    for family in FAMILIES:
        for mutant in family(example):
            n += 1
            if problem := outcome(mutant):
                wrong.append(problem)
    record_property("mutants", n)
    assert n > 100
    assert not wrong, f"{len(wrong)} of {n}:\n" + "\n".join(wrong[:40])
