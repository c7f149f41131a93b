"""One valid graph an op, and the graphs that differ from it in one field and must be refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.spec.enums import GluKind, TensorFlag, UnaryKind
from ggml_rpc.spec.ops import OP_BY_NAME
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.support.wiretensor import Tensor, default_strides, enum_values, graph_payload, tensor
from tests.wire.session import BUFFER_BYTES, Attacker

DEAD_TYPE = 4
# Element-wise ops of ik_llama.cpp whose result has half a row.
HALVED = (UnaryKind.SWIGLU, UnaryKind.SWIGLU_OAI)
RESULT = -1

Shape = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Valid:
    """A graph of one node that a client might send; all data are zero bytes.

    Parameters
    ----------
    op : str
        The op.
    result : tuple
        Type and dimensions of the node, which is called `victim`.
    sources : tuple
        Type and dimensions of each source, called `s0`, `s1`, ...
    params : bytes
        Parameter words.
    free : frozenset of (int, int)
        (source, dimension) pairs that may grow by one without breaking a rule; source -1 is the result.
    label : str
        Distinguishes several graphs of one op.
    """

    op: str
    result: Shape
    sources: tuple[Shape, ...]
    params: bytes = b""
    free: frozenset[tuple[int, int]] = frozenset()
    label: str = ""

    @property
    def name(self) -> str:
        """Return the name of the test."""
        return f"{self.op} {self.label}".strip()


def _i(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def _f(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _all(source: int) -> frozenset[tuple[int, int]]:
    return frozenset((source, d) for d in range(4))


# Dimensions are chosen so that one more never divides and never broadcasts.
S: tuple[int, ...] = (8, 6, 4, 2)
X: Shape = ("F32", S)
_ROPE = _i(0, 8, 0, 0, 64) + _f(10000.0, 1.0, 0.0, 1.0, 32.0, 1.0)
_NEOX = _i(0, 8, 2, 0, 64) + _f(10000.0, 1.0, 0.0, 1.0, 32.0, 1.0)


def _same(op: str, n: int = 1, params: bytes = b"", label: str = "") -> Valid:
    return Valid(op, X, (X,) * n, params, label=label)


VALID: tuple[Valid, ...] = (
    *(_same(op, 2) for op in ("ADD", "SUB", "MUL", "DIV")),
    *(_same(op) for op in ("DUP", "CONT", "SQR", "SQRT", "LOG", "SIN", "COS")),
    *(_same(op, params=_f(1e-5)) for op in ("NORM", "RMS_NORM", "L2_NORM")),
    *(_same("UNARY", params=_i(kind), label=kind.name) for kind in UnaryKind if kind not in HALVED),
    *(Valid("UNARY", X, (("F32", (16, 6, 4, 2)),), _i(kind), label=f"{kind.name} halves") for kind in HALVED),
    *(_same("GLU", 2, _i(kind, 0) + _f(1.7, 7.0), label=f"{kind.name} split") for kind in GluKind),
    *(
        Valid("GLU", X, (("F32", (16, 6, 4, 2)),), _i(kind, 0) + _f(1.7, 7.0), label=f"{kind.name} halves")
        for kind in GluKind
    ),
    _same("SCALE", params=_f(2.0, 1.0)),
    _same("CLAMP", params=_f(-1.0, 1.0)),
    Valid("ADD1", X, (X, ("F32", (1,)))),
    Valid(
        "ADD_ID",
        ("F32", (8, 2, 3)),
        (("F32", (8, 2, 3)), ("F32", (8, 4)), ("I32", (2, 3))),
        free=frozenset({(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)}),
    ),
    Valid("GROUP_NORM", X, (X,), _i(2) + _f(1e-5)),
    Valid("SUM_ROWS", ("F32", (1, 6, 4, 2)), (X,), free=frozenset({(0, 0)})),
    Valid("MEAN", ("F32", (1, 6, 4, 2)), (X,), free=frozenset({(0, 0)})),
    Valid("SUM", ("F32", (1,)), (X,), free=_all(0)),
    Valid("ARGMAX", ("I32", (6,)), (("F32", (8, 6)),), free=frozenset({(0, 0)})),
    Valid("REPEAT", ("F32", (8, 6, 4, 4)), (("F32", (4, 3, 2, 2)),)),
    Valid("CONCAT", X, (("F32", (8, 3, 4, 2)), ("F32", (8, 3, 4, 2))), _i(1)),
    Valid("MUL_MAT", ("F32", (6, 5, 4, 2)), (("F32", (8, 6, 2, 2)), ("F32", (8, 5, 4, 2)))),
    *(
        Valid("MUL_MAT", ("F32", (6, 5, 4, 2)), ((t, (k, 6, 2, 2)), ("F32", (k, 5, 4, 2))), label=t)
        for t, k in (("F16", 8), ("BF16", 8), ("Q4_0", 32), ("Q8_0", 32), ("MXFP4", 32), ("Q4_K", 256), ("Q6_K", 256))
    ),
    Valid(
        "MUL_MAT_ID",
        ("F32", (6, 2, 3)),
        (("F32", (8, 6, 4)), ("F32", (8, 1, 3)), ("I32", (2, 3))),
        free=frozenset({(0, 2), (1, 1)}),
    ),
    Valid("CPY", ("F16", S), (X, ("F16", S))),
    Valid("GET_ROWS", ("F32", (8, 3, 4, 2)), (X, ("I32", (3, 4, 2))), free=frozenset({(0, 1)})),
    Valid("SET_ROWS", ("F16", S), (("F32", (8, 3, 4, 2)), ("I64", (3, 4, 2)), ("F16", S))),
    _same("DIAG_MASK_INF", params=_i(0)),
    Valid("SOFT_MAX", X, (X,), _f(1.0, 0.0)),
    Valid(
        "SOFT_MAX",
        X,
        (X, ("F16", (8, 6, 2, 2)), ("F32", (4,))),
        _f(1.0, 0.0),
        free=frozenset({(1, 1), (2, 1), (2, 2), (2, 3)}),
        label="with mask and sinks",
    ),
    Valid("ROPE", ("F32", (8, 2, 3, 2)), (("F32", (8, 2, 3, 2)), ("I32", (3,))), _ROPE),
    Valid(
        "ROPE",
        ("F32", (8, 2, 3, 2)),
        (("F32", (8, 2, 3, 2)), ("I32", (3,)), ("F32", (4,))),
        _NEOX,
        free=_all(2),
        label="with factors",
    ),
    Valid("ARGSORT", ("I32", S), (X,), _i(0)),
    Valid("TOP_K", ("I32", S), (X,), free=frozenset({(0, 0)})),
    Valid(
        "FLASH_ATTN_EXT",
        ("F32", (32, 4, 3, 2)),
        (
            ("F32", (32, 3, 4, 2)),
            ("F16", (32, 16, 2, 2)),
            ("F16", (32, 16, 2, 2)),
            ("F16", (16, 3, 2, 2)),
            ("F32", (4,)),
        ),
        _f(1.0, 0.0, 0.0),
        free=frozenset({(3, 0), (3, 1), (4, 1), (4, 2), (4, 3)}),
    ),
)


def known(dialect: Dialect) -> list[Valid]:
    """Return the graphs that a client of this dialect can send."""

    def has(v: Valid) -> bool:
        spec = OP_BY_NAME[v.op]
        words = struct.unpack("<16i", v.params.ljust(64, b"\0"))
        kinds = (words[p.word] in enum_values(dialect, p.enum).values() for p in spec.params if p.enum is not None)
        types = (TYPE_BY_NAME[t].id for t, _ in (v.result, *v.sources))
        return spec.id in dialect.ops and all(kinds) and all(t in dialect.type_numbers for t in types)

    return [v for v in VALID if has(v)]


def build(a: Attacker, valid: Valid) -> Tensor:
    """Return the node of a valid graph, everything placed in the client's buffer with room to grow."""

    def place(t: Tensor) -> Tensor:
        a.arena.place(t)
        grown = [n + 1 for n in t.ne]
        grown[0] = t.ne[0] + (1 if _block(t) == 1 else 0)
        spare = default_strides(t.type, grown)[3] * grown[3] - t.nbytes()
        a.arena.used = min(a.arena.used + spare, BUFFER_BYTES)
        return t

    sources = [place(tensor(t, ne, name=f"s{i}")) for i, (t, ne) in enumerate(valid.sources)]
    spec = OP_BY_NAME[valid.op]
    node = tensor(
        valid.result[0],
        valid.result[1],
        op=spec.id,
        src=list(sources),
        params=valid.params,
        flags=int(TensorFlag.COMPUTE),
        name="victim",
    )
    if spec.writes_into is None:
        return place(node)
    target = sources[spec.writes_into]
    node.view_src, node.buffer, node.data = target, target.buffer, target.data
    return node


Spoil = Callable[[Attacker, Tensor], None]
"""Change one field of a valid graph, given its node."""


def _which(node: Tensor, which: int) -> Tensor:
    found = node if which == RESULT else node.src[which]
    assert found is not None
    return found


def _grow(which: int, dim: int) -> Spoil:
    def spoil(_: Attacker, node: Tensor) -> None:
        t = _which(node, which)
        t.ne[dim] += 1
        # Rows of whole blocks only: a quantised row is then refused for its length.
        if t.ne[0] % _block(t) == 0:
            t.nb = default_strides(t.type, t.ne)

    return spoil


def _block(t: Tensor) -> int:
    return next(s.block for s in TYPE_BY_NAME.values() if s.id == t.type)


def _retype(which: int, type_id: int) -> Spoil:
    def spoil(_: Attacker, node: Tensor) -> None:
        t = _which(node, which)
        t.type = type_id
        if type_id != DEAD_TYPE:
            t.nb = default_strides(type_id, t.ne)

    return spoil


def _drop(slot: int) -> Spoil:
    def spoil(_: Attacker, node: Tensor) -> None:
        node.src[slot] = None

    return spoil


def _extra(slot: int) -> Spoil:
    def spoil(a: Attacker, node: Tensor) -> None:
        node.src += [None] * (slot - len(node.src))
        node.src.append(a.arena.leaf("F32", (1,), "extra"))

    return spoil


def _homeless(which: int) -> Spoil:
    def spoil(_: Attacker, node: Tensor) -> None:
        t = _which(node, which)
        t.buffer = t.data = 0

    return spoil


def _outside(which: int) -> Spoil:
    def spoil(a: Attacker, node: Tensor) -> None:
        _which(node, which).data = a.buffer.base + a.buffer.size

    return spoil


def spoils(valid: Valid, dialect: Dialect) -> Iterator[tuple[str, Spoil]]:
    """Yield every way to spoil a graph by one field, with a name."""
    spec = OP_BY_NAME[valid.op]
    for slot, source in enumerate(spec.sources):
        may_lack = source.optional or (slot == spec.writes_into and dialect.set_rows_by_view)
        if not may_lack and slot < len(valid.sources):
            yield f"without source {source.name}", _drop(slot)
    if len(spec.sources) < 10:
        yield "with a source too many", _extra(len(spec.sources))
    for which in (RESULT, *range(len(valid.sources))):
        what = "result" if which == RESULT else f"source {spec.sources[which].name}"
        for dim in range(4):
            if (which, dim) not in valid.free:
                yield f"{what} with one more in dimension {dim}", _grow(which, dim)
        was = (valid.result if which == RESULT else valid.sources[which])[0]
        other = "F32" if was.startswith("I") else "I64"
        yield f"{what} of type {other}", _retype(which, TYPE_BY_NAME[other].id)
        yield f"{what} of a dead type", _retype(which, DEAD_TYPE)
        yield f"{what} in no buffer", _homeless(which)
        yield f"{what} outside the buffer", _outside(which)


def payload(a: Attacker, node: Tensor) -> bytes:
    """Return the GRAPH_COMPUTE payload of a graph of one node."""
    return graph_payload(a.dialect, [node])
