"""Memory for intermediate results: what a later node reads must still be there when it runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggml_rpc.client.allocator import FOREVER, Arena, assign, root_of
from ggml_rpc.graph._tensor import Tensor

ALIGNMENT = 64


def program(choices: st.DataObject) -> tuple[list[Tensor], list[Tensor], set[Tensor]]:
    """Draw leaves, steps that read earlier tensors or views of them, and the outputs."""
    leaves = [Tensor("F32", (n,)) for n in choices.draw(st.lists(st.sampled_from([1, 16, 40]), min_size=1, max_size=3))]
    known = list(leaves)
    steps: list[Tensor] = []
    for _ in range(choices.draw(st.integers(1, 25))):
        x = choices.draw(st.sampled_from(known))
        kind = choices.draw(st.sampled_from(["ADD", "VIEW", "MUL_MAT", "CPY"]))
        if kind == "VIEW":
            root = root_of(x)
            offset = 4 * choices.draw(st.integers(0, root.ne[0] - 1))
            t = Tensor("F32", (root.ne[0] - offset // 4,), op="VIEW", src=(x,), view_src=root, view_offs=offset)
        elif kind == "CPY":
            # A copy from another device: a leaf that is written at this step.
            t = Tensor("F32", (choices.draw(st.sampled_from([16, 40])),))
            steps.append(t)
        else:
            y = choices.draw(st.sampled_from(known))
            t = Tensor("F32", x.ne, op=kind, src=(x, y))
            steps.append(t)
        known.append(t)
    if not steps:
        steps.append(Tensor("F32", (16,), op="ADD", src=(leaves[0], leaves[0])))
    outputs = set(choices.draw(st.lists(st.sampled_from(steps), max_size=3)))
    return leaves, steps, outputs


@given(st.data())
def test_contents_live_until_their_last_reader(choices: st.DataObject) -> None:
    leaves, steps, outputs = program(choices)
    last: dict[Tensor, int] = {}
    for position, t in enumerate(steps):
        for s in t.src:
            last[root_of(s)] = position
    last |= dict.fromkeys(outputs, FOREVER)
    sizes = {t: -(-t.nbytes // ALIGNMENT) * ALIGNMENT for t in (*leaves, *steps)}
    offsets, size = assign(steps, leaves, last, sizes, ALIGNMENT)
    assert all(offset % ALIGNMENT == 0 and offset + sizes[t] <= size for t, offset in offsets.items())
    # Run it, each tensor writing its own number everywhere.
    for _ in range(2):
        memory = np.zeros(size, np.int64)
        number = {t: i + 1 for i, t in enumerate(sizes)}
        for t in leaves:
            memory[offsets[t] : offsets[t] + sizes[t]] = number[t]
        for t in steps:
            for s in t.src:
                root = root_of(s)
                assert (memory[offsets[root] : offsets[root] + sizes[root]] == number[root]).all()
            memory[offsets[t] : offsets[t] + sizes[t]] = number[t]
        for t in (*outputs, *leaves):
            assert (memory[offsets[t] : offsets[t] + sizes[t]] == number[t]).all()


def test_a_chain_runs_in_place() -> None:
    x = Tensor("F32", (1024,))
    steps = [Tensor("F32", (1024,), op="MUL_MAT", src=(x, x))]
    for _ in range(20):
        steps.append(Tensor("F32", (1024,), op="UNARY", src=(steps[-1],)))
    last = {s: i for i, t in enumerate(steps) for s in t.src}
    offsets, size = assign(steps, [x], last, dict.fromkeys((x, *steps), 4096), ALIGNMENT)
    assert len({offsets[t] for t in steps}) == 1
    assert size == 2 * 4096


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=60))
def test_ranges_never_overlap(requests: list[tuple[bool, int]]) -> None:
    arena = Arena(ALIGNMENT)
    live: dict[int, int] = {}
    for gives, n in requests:
        if gives and live:
            offset = sorted(live)[n % len(live)]
            arena.give(offset, live.pop(offset))
        else:
            offset = arena.take(n)
            assert offset not in live
            live[offset] = n
        ends = sorted((o, o + max(n, 1)) for o, n in live.items())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
        assert all(end <= arena.size for _, end in ends)


def test_what_is_given_back_is_used_again() -> None:
    arena = Arena(ALIGNMENT)
    offsets = [arena.take(100) for _ in range(8)]
    for offset in offsets:
        arena.give(offset, 100)
    assert arena.take(8 * 128) == 0
    assert arena.size == 8 * 128


@pytest.mark.parametrize("size", [1, 64, 65])
def test_the_tightest_range_goes_first(size: int) -> None:
    arena = Arena(ALIGNMENT)
    large, _, small, _ = (arena.take(n) for n in (512, 64, 128, 64))
    arena.give(large, 512)
    arena.give(small, 128)
    assert arena.take(size) == small
