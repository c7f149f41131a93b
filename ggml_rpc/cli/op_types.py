"""The table of ops, types and devices: what the CPU's kernels take, asked of them, and which ops have CUDA kernels."""

from __future__ import annotations

import struct
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.devices.cuda import ops_with_kernels
from ggml_rpc.errors import RpcError
from ggml_rpc.graph._encoder import Encoder
from ggml_rpc.graph._tensor import Place, Tensor
from ggml_rpc.spec import dialects
from ggml_rpc.spec.ops import OP_BY_NAME, OPS, OpSpec
from ggml_rpc.spec.types import TYPE_BY_NAME, TYPES

from .op_probes import PROBES

ROOM = 32 << 20
RESULT = -1
# Between them they number every op and every type.
SPOKEN = (dialects.DEFAULT, dialects.find("ik"))

_QUANTISED = tuple(t.name for t in TYPES if t.is_quantized and t.id < 133 and t.name not in ("Q8_1", "Q8_K"))
GROUPS = {
    "floats": ("F32", "F16", "BF16"),
    "quantised": _QUANTISED,
    "shared": tuple(n for n in _QUANTISED if TYPE_BY_NAME[n].id in SPOKEN[1].type_numbers),
    "ik": tuple(t.name for t in TYPES if t.is_quantized and t.id >= 133 and t.row_group == 1),
    "interleaved": tuple(t.name for t in TYPES if t.row_group > 1),
}


@dataclass(frozen=True)
class Probe:
    """A small node: its op, its result and sources by type and sizes, its parameter words."""

    op: OpSpec
    tensors: dict[int, tuple[str, tuple[int, ...]]]
    params: bytes


@dataclass(frozen=True)
class Row:
    """What devices do with one op.

    Parameters
    ----------
    op : str
        Its name.
    types : dict
        The types of each source, and of the result, that the CPU takes if all others stay or follow.
    cuda : bool
        Whether it has CUDA kernels, for some of its types at least; the CPU computes the rest.
    """

    op: str
    types: dict[str, tuple[str, ...]]
    cuda: bool


def _tensor(text: str) -> tuple[str, tuple[int, ...]]:
    name, sizes = text.split(":")
    return name, tuple(int(n) for n in sizes.split(","))


def probes() -> Iterator[Probe]:
    """Yield the probe of each op."""
    for line in PROBES.strip().splitlines():
        node, _, words = line.partition(" | ")
        name, *sources, _, result = node.split()
        kinds = {p.word: p.kind for p in OP_BY_NAME[name].params}
        params = b"".join(
            struct.pack("<f", float(w)) if kinds.get(i) == "f32" else struct.pack("<i", int(w))
            for i, w in enumerate(words.split())
        )
        tensors = {i: _tensor(s) for i, s in enumerate(sources)}
        yield Probe(OP_BY_NAME[name], {**tensors, RESULT: _tensor(result)}, params)


class Prober:
    """A CPU device that is asked whether it has a plan for a node."""

    def __init__(self) -> None:
        self._device = CpuPool(1).device()
        self._buffer = self._device.alloc(ROOM)
        self._place = Place(self._buffer.handle, self._buffer.base, self._buffer.size)
        self._encoders = [Encoder([d]) for d in SPOKEN]

    def takes(self, probe: Probe, changed: dict[int, str]) -> bool:
        """Return whether the CPU computes the probe's node with other types in some places."""
        tensors = {slot: (changed.get(slot, name), ne) for slot, (name, ne) in probe.tensors.items()}
        if any(ne[0] % TYPE_BY_NAME[name].block for name, ne in tensors.values()):
            return False
        try:
            node, sources = build(probe, tensors)
            node.check()
        except RpcError:
            return False
        at = 0
        for t in [*sources, node]:
            if t.view_src is None:
                t.put(self._place, at)
                at += -(-t.nbytes // 4096) * 4096
        return any(self._compiles(encoder, probe, node, tensors) for encoder in self._encoders)

    def _compiles(
        self, encoder: Encoder, probe: Probe, node: Tensor, tensors: dict[int, tuple[str, tuple[int, ...]]]
    ) -> bool:
        if not encoder.speaks(probe.op.name) or not all(encoder.has_type(name) for name, _ in tensors.values()):
            return False
        try:
            self._device.compile(encoder.codec, encoder.graph([node]), [self._buffer])
        except (RpcError, ValueError):
            return False
        return True


def build(probe: Probe, tensors: dict[int, tuple[str, tuple[int, ...]]]) -> tuple[Tensor, list[Tensor]]:
    """Return a node and its sources, none of which lies anywhere yet."""
    sources = [Tensor(*tensors[slot]) for slot in sorted(tensors) if slot != RESULT]
    view = sources[probe.op.writes_into] if probe.op.writes_into is not None else None
    name, ne = tensors[RESULT]
    node = Tensor(name, ne, op=probe.op.id, src=sources, params=probe.params, view_src=view, name="probe")
    return node, sources


def substitutions(probe: Probe, slot: int, name: str) -> Iterator[dict[int, str]]:
    """Yield the ways to put a type into a slot: alone, in the result too, in all sources that are alike, everywhere."""
    own = probe.tensors[slot][0]
    alike = {s: name for s, (t, _) in probe.tensors.items() if t == own}
    seen: list[dict[int, str]] = []
    for way in (
        {slot: name},
        {slot: name, RESULT: name},
        {s: n for s, n in alike.items() if s != RESULT},
        alike,
    ):
        if slot in way and way not in seen:
            seen.append(way)
            yield way


@cache
def table() -> tuple[Row, ...]:
    """Return a row for each op that is computed, in the order of their numbers."""
    rows: dict[int, Row] = {}
    prober, with_kernels = Prober(), set(ops_with_kernels())
    for probe in probes():
        types = dict(rows[probe.op.id].types) if probe.op.id in rows else {}
        for slot in probe.tensors:
            name = "result" if slot == RESULT else probe.op.sources[slot].name
            known = types.get(name, ())
            types[name] = tuple(
                t.name
                for t in TYPES
                if t.name in known or any(prober.takes(probe, w) for w in substitutions(probe, slot, t.name))
            )
        rows[probe.op.id] = Row(probe.op.name, types, probe.op.name in with_kernels)
    return tuple(rows[i] for i in sorted(rows))


def refusals() -> dict[str, list[str]]:
    """Return why ops are never accepted, and which."""
    out: dict[str, list[str]] = {}
    for op in OPS:
        if op.refused:
            out.setdefault(op.refused, []).append(op.name)
    return out


def brief(names: Sequence[str]) -> str:
    """Return a list of types with the names of the groups that are whole in it."""
    left, words = list(names), []
    for group, members in GROUPS.items():
        if set(members) <= set(left):
            words.append(group)
            left = [n for n in left if n not in members]
    return " ".join([*words, *left])


def lines() -> list[str]:
    """Return the table as text; slots of the same types stand together."""
    rows = table()
    width = max(len(row.op) for row in rows)
    out = [f"{'op':{width}}  CUDA  types on the CPU"]
    for row in rows:
        slots: dict[tuple[str, ...], list[str]] = {}
        for slot, names in row.types.items():
            slots.setdefault(names, []).append(slot)
        text = "; ".join(f"{', '.join(where)}: {brief(names)}" for names, where in slots.items())
        first = f"{row.op:{width}}  {'yes ' if row.cuda else '-   '}  "
        out += textwrap.wrap(text, 118, initial_indent=first, subsequent_indent=" " * len(first))
    out.append("")
    for group, members in GROUPS.items():
        out += textwrap.wrap(f"{group}: {' '.join(members)}", 118, subsequent_indent="  ")
    out.append("")
    for reason, ops in refusals().items():
        out += textwrap.wrap(f"Never accepted ({reason}): {', '.join(ops)}", 118, subsequent_indent="  ")
    return out
