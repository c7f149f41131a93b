"""What all methods of `Graph` share: packing an op's parameters, making and checking its node."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, TypeAlias

from ggml_rpc.errors import GraphError
from ggml_rpc.spec.enums import GluKind, OpHint, PoolKind, Prec, ScaleMode, SortOrder, TriKind, UnaryKind
from ggml_rpc.spec.ops import OP_BY_NAME, Param
from ggml_rpc.spec.types import TYPE_BY_NAME

from ._tensor import Tensor

Ne: TypeAlias = "tuple[int, int, int, int]"
Sources: TypeAlias = "tuple[Tensor | None, ...]"
Values: TypeAlias = "tuple[float | str, ...]"

F32 = TYPE_BY_NAME["F32"].id
F16 = TYPE_BY_NAME["F16"].id
I32 = TYPE_BY_NAME["I32"].id
I64 = TYPE_BY_NAME["I64"].id

_FORMATS = {"i32": "i", "f32": "f", "i64": "q"}
_RANGES = {"i32": "a whole number of 32 bits", "f32": "a number within F32", "i64": "a whole number of 64 bits"}
_ENUMS: dict[str, type[IntEnum]] = {
    "glu": GluKind,
    "op_hint": OpHint,
    "pool": PoolKind,
    "prec": Prec,
    "scale_mode": ScaleMode,
    "sort_order": SortOrder,
    "tri": TriKind,
    "unary": UnaryKind,
}


class Op:
    """An op as a method of `Graph` uses it.

    Parameters
    ----------
    name : str
        Its name in the spec.
    params : str
        Names of the spec's parameters that the method gives, by rising word; all others stay 0.
    label : str
        What unnamed results are called; the op's name in lower case if left out.
    has_rules : bool
        Whether the native rules know the op. What they do not know is checked by the method alone, and it is the
        peer that decides.
    """

    __slots__ = ("_pack", "_params", "has_rules", "id", "label", "name", "slots")

    def __init__(self, name: str, params: str = "", *, label: str = "", has_rules: bool = True) -> None:
        spec = OP_BY_NAME[name]
        known = {p.name: p for p in spec.params}
        layout, word = "<", 0
        self._params = [known[n] for n in params.split()]
        for p in self._params:
            if p.word < word:
                raise ValueError(f"{name}: parameter {p.name} is out of order")
            layout += f"{4 * (p.word - word)}x{_FORMATS[p.kind]}"
            word = p.word + p.words
        self._pack = struct.Struct(layout).pack
        self.id = spec.id
        self.name = name
        self.label = label or name.lower()
        self.slots = tuple(s.name for s in spec.sources)
        self.has_rules = has_rules

    def pack(self, values: Values) -> bytes:
        """Return the parameter words of `values`, which stand in the order of the parameters' names.

        A value of an enumeration is a member, its internal number, or its name in lower case.

        Raises
        ------
        ValueError
            If one is not of its kind; the text is the rule that it breaks.
        """
        try:
            return self._pack(*values)
        except (struct.error, OverflowError):
            return self._pack(*[self._number(p, v) for p, v in zip(self._params, values, strict=True)])

    def _number(self, p: Param, value: float | str) -> float:
        if p.enum is not None and isinstance(value, str):
            return choose(_ENUMS[p.enum], p.name, value)
        try:
            struct.pack(f"<{_FORMATS[p.kind]}", value)
        except (struct.error, OverflowError):
            raise ValueError(f"{p.name} must be {_RANGES[p.kind]}, not {value!r}") from None
        return value  # type: ignore[return-value]  # what struct takes is no text


def choose(enum: type[IntEnum], what: str, value: int | str) -> int:
    """Return the number of a member of `enum`, given as it is or by its name in lower case.

    Raises
    ------
    ValueError
        If there is none; the text is the rule.
    """
    if not isinstance(value, str):
        return value
    for member in enum:
        if member.name.lower() == value:
            return int(member)
    raise ValueError(f"{what} must be one of {', '.join(m.name.lower() for m in enum)}, not {value!r}")


def type_id(name: str) -> int:
    """Return the internal id of a type; raise GraphError if there is none of this name."""
    found = TYPE_BY_NAME.get(name.upper())
    if found is None:
        raise GraphError(f"unknown tensor type {name!r}; known are {', '.join(TYPE_BY_NAME)}")
    return found.id


def full(ne: Sequence[int]) -> Ne:
    """Return the four sizes of a shape of 1 to 4; missing ones are 1."""
    n = len(ne)
    return ne[0], ne[1] if n > 1 else 1, ne[2] if n > 2 else 1, ne[3] if n > 3 else 1


def describe(t: Tensor) -> str:
    """Return the type and the shape of a tensor for an error message."""
    return f"{t.type} {list(t.ne)}"


class Nodes:
    """The list of nodes that methods append to.

    Attributes
    ----------
    nodes : list of Tensor
        The nodes in order of creation, which is that of execution.
    """

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self._device: Any = None

    def _broken(self, op: Op, rule: object) -> GraphError:
        """Return the error for a rule that the next node would break."""
        return GraphError(f"tensor '{op.label}-{len(self.nodes)}': op {op.name}: {rule}")

    def _require(self, op: Op, *rules: tuple[bool, str]) -> None:
        """Raise GraphError with the first rule that does not hold."""
        for holds, rule in rules:
            if not holds:
                raise self._broken(op, rule)

    def _words(self, op: Op, values: Values) -> bytes:
        try:
            return op.pack(values)
        except ValueError as error:
            raise self._broken(op, error) from None

    def _add(
        self, op: Op, type: int, ne: Sequence[int], src: Sources, values: Values = (), *, dims: int = 0, flags: int = 0
    ) -> Tensor:
        """Append a node whose result has memory of its own; `dims` are the least that its shape shows."""
        t = Tensor(
            type,
            ne,
            op=op.id,
            src=src,
            params=self._words(op, values) if values else None,
            flags=flags,
            name=f"{op.label}-{len(self.nodes)}",
            n_dims=dims,
        )
        return self._checked(op, t)

    def _like(self, op: Op, x: Tensor, src: Sources, values: Values = ()) -> Tensor:
        """Append a node whose result has the type and the shape of `x`."""
        t = Tensor(
            x.type_id,
            x.ne,
            op=op.id,
            src=src,
            params=self._words(op, values) if values else None,
            name=f"{op.label}-{len(self.nodes)}",
            n_dims=x.n_dims,
        )
        return self._checked(op, t)

    def _into(self, op: Op, dst: Tensor, src: Sources, values: Values = ()) -> Tensor:
        """Append a node that writes into `dst`: its result is a view of all of it."""
        t = Tensor(
            dst.type_id,
            dst.ne,
            nb=dst.nb,
            op=op.id,
            src=src,
            params=self._words(op, values) if values else None,
            view_src=dst,
            name=f"{op.label}-{len(self.nodes)}",
            n_dims=dst.n_dims,
        )
        return self._checked(op, t)

    def _look(
        self,
        op: Op,
        x: Tensor,
        ne: Sequence[int],
        nb: Sequence[int] | None,
        values: Values = (),
        *,
        dims: int = 0,
        offset: int = 0,
    ) -> Tensor:
        """Append a view of `x`, which computes nothing."""
        t = Tensor(
            x.type_id,
            ne,
            nb=nb,
            op=op.id,
            src=(x,),
            params=self._words(op, values) if values else None,
            view_src=x,
            view_offs=offset,
            name=f"{op.label}-{len(self.nodes)}",
            n_dims=dims,
        )
        t.device = self._device
        self.nodes.append(t)
        return t

    def _checked(self, op: Op, t: Tensor) -> Tensor:
        if op.has_rules:
            try:
                t.check()
            except GraphError as error:
                given = ", ".join(
                    f"{slot} is {describe(s)}" for slot, s in zip(op.slots, t.src, strict=False) if s is not None
                )
                raise GraphError(f"{error} ({given or 'no sources'}; the result would be {describe(t)})") from None
        t.device = self._device
        self.nodes.append(t)
        return t
