"""What must hold for every graph that the parser lets through, whatever was sent."""

from __future__ import annotations

from ggml_rpc.graph._graph import CheckedGraph
from ggml_rpc.spec.ops import OP_BY_ID
from ggml_rpc.spec.types import TYPE_BY_ID
from tests.graph.recorded import Buffers


def reach(ne: tuple[int, ...], nb: tuple[int, ...], type_id: int) -> int:
    """Return the bytes from the first to the last element, in Python's unbounded integers."""
    if 0 in ne:
        return 0
    kind = TYPE_BY_ID[type_id]
    blocks = ne[0] // kind.block
    row = kind.row_meta + kind.bytes + (blocks - 1) * nb[0]
    return row + sum((n - 1) * b for n, b in zip(ne[1:], nb[1:], strict=True))


# A cast names itself as the place to copy to; SET_ROWS of old clients has its target as view_src only.
SELF = {("CPY", 1), ("SET_ROWS", 2)}


def assert_inside(checked: CheckedGraph, buffers: Buffers) -> None:
    """Assert that all that kernels would touch lies in its buffer, on the graph's device, and in a sensible order."""
    sizes = {handle: (size, device) for handle, _, size, device in buffers}
    tensors = checked.tensors
    for i, t in enumerate(tensors):
        kind = TYPE_BY_ID[t.type]
        assert t.op in OP_BY_ID
        assert not OP_BY_ID[t.op].pointer_params
        assert t.ne[0] % kind.block == 0
        assert all(n >= 0 for n in t.ne)
        assert all(b >= 0 for b in t.nb)
        assert reach(t.ne, t.nb, t.type) == t.extent
        assert all(j < i or (j == i and (OP_BY_ID[t.op].name, slot) in SELF) for slot, j in enumerate(t.src))
        if t.buffer:
            size, _ = sizes[t.buffer]
            assert t.offset >= 0
            assert t.offset + t.extent <= size
            if kind.block == 1:
                assert t.offset % kind.bytes == 0
    assert list(checked.nodes) == sorted(set(checked.nodes))
    for i in checked.nodes:
        node = tensors[i]
        assert node.compute
        assert not OP_BY_ID[node.op].is_noop
        spec = OP_BY_ID[node.op]
        present = {slot for slot, j in enumerate(node.src) if j >= 0}
        assert (
            {slot for slot, s in enumerate(spec.sources) if not s.optional} <= present <= set(range(len(spec.sources)))
        )
        for t in (node, *(tensors[j] for j in node.src if j >= 0)):
            if t.extent:
                assert t.buffer
                assert sizes[t.buffer][1] == checked.device
