"""Lifetimes of a graph's intermediate results -> offsets in one compute buffer."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence, Set

from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.spec.ops import OP_BY_NAME

from .device import align_up

FOREVER = 1 << 60

# Each element of the result comes from the same element of each source: any of them may give its memory. Other ops may
# write rows before they have read all of their further sources.
_ELEMENTWISE = frozenset({"ADD", "SUB", "MUL", "DIV"})


class Arena:
    """Hand out ranges of a growing space, the tightest free one first.

    Parameters
    ----------
    alignment : int
        Of every range, in bytes.
    """

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.size = 0
        self._free: list[tuple[int, int]] = []  # offset, bytes; in order of offsets, never touching

    def take(self, size: int) -> int:
        """Return the offset of a range of `size` bytes."""
        size = align_up(max(size, 1), self.alignment)
        fitting = min((r for r in self._free if r[1] >= size), key=lambda r: r[1], default=None)
        if fitting is not None:
            self._free.remove(fitting)
            if fitting[1] > size:
                insort(self._free, (fitting[0] + size, fitting[1] - size))
            return fitting[0]
        # A free tail grows instead of being left behind.
        offset = self.size
        if self._free and sum(self._free[-1]) == self.size:
            offset = self._free.pop()[0]
        self.size = offset + size
        return offset

    def give(self, offset: int, size: int) -> None:
        """Take a range back."""
        size = align_up(max(size, 1), self.alignment)
        before = next((r for r in self._free if sum(r) == offset), None)
        after = next((r for r in self._free if r[0] == offset + size), None)
        if before is not None:
            self._free.remove(before)
            offset, size = before[0], before[1] + size
        if after is not None:
            self._free.remove(after)
            size += after[1]
        insort(self._free, (offset, size))


def root_of(t: Tensor) -> Tensor:
    """Return the tensor in whose memory a view lies, or the tensor itself."""
    return t if t.view_src is None else t.view_src


def assign(
    steps: Sequence[Tensor],
    held: Iterable[Tensor],
    last_use: Mapping[Tensor, int],
    sizes: Mapping[Tensor, int],
    alignment: int,
) -> tuple[dict[Tensor, int], int]:
    """Choose offsets for leaves and results of one device.

    Parameters
    ----------
    steps : sequence of Tensor
        Results and copies in the order in which they are written. Those with a place, and views, are passed over.
    held : iterable of Tensor
        Leaves that must keep their contents from run to run.
    last_use : mapping of Tensor to int
        For each root, the position in `steps` after which nothing reads it; FOREVER for outputs.
    sizes : mapping of Tensor to int
        Bytes that each root needs.
    alignment : int
        Of every tensor.

    Returns
    -------
    offsets : dict
        Root -> bytes from the start of the buffer.
    size : int
        Bytes of the buffer.
    """
    arena = Arena(alignment)
    offsets = {t: arena.take(sizes[t]) for t in held}
    kept = set(offsets)
    ends: dict[int, list[Tensor]] = {}
    for position, t in enumerate(steps):
        if t in sizes and t not in offsets:
            donor = _donor(t, {r for r in ends.get(position, ()) if r not in kept}, sizes)
            if donor is not None:
                offsets[t] = offsets[donor]
                kept.add(donor)  # its range has a new owner: never to be given back on its own account
            else:
                offsets[t] = arena.take(sizes[t])
            ends.setdefault(max(last_use.get(t, position), position), []).append(t)
        for ended in ends.pop(position, ()):
            if ended not in kept:
                arena.give(offsets[ended], sizes[ended])
    return offsets, arena.size


def _donor(t: Tensor, ending: Set[Tensor], sizes: Mapping[Tensor, int]) -> Tensor | None:
    """Return the source whose memory the result may take over: it ends here and the op allows it."""
    if not ending or not OP_BY_NAME[t.op].inplace:
        return None
    elementwise = t.op in _ELEMENTWISE
    for s in t.src if elementwise else t.src[:1]:
        if s is None or root_of(s) not in ending:
            continue
        root = root_of(s)
        # What the op reads of it elsewhere, in another order or again for other rows, it would find overwritten.
        others = (o for o in t.src if o is not None and o is not s and root_of(o) is root)
        if _covers(s, t) and sizes[root] == sizes[t] and all(elementwise and _covers(o, t) for o in others):
            return root
    return None


def _covers(s: Tensor, t: Tensor) -> bool:
    """Tell whether a source takes up all of its root, element by element as the result would."""
    whole = s.view_src is None or (s.view_offs == 0 and s.nbytes == s.view_src.nbytes)
    return whole and s.ne == t.ne and s.nb == t.nb and s.type_id == t.type_id
