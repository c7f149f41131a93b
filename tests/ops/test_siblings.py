"""Products of the same activations that run together although other nodes stand between them, and when they must not.

Whatever the order of the steps, the bits are those of the nodes one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest

from tests.ops.conftest import device
from tests.ops.test_matmul import mul_mat, weights
from tests.support.device import Bench
from tests.support.wiretensor import Tensor

K, M = 256, 96


def case(
    bench: Bench, rng: np.random.Generator, columns: int, types: Sequence[str] = ("Q4_0", "Q8_0", "Q4_K", "F16")
) -> tuple[Tensor, list[Tensor]]:
    """Return activations and the weights of some products of them."""
    x = bench.put(rng.standard_normal((columns, K)).astype(np.float32))
    return x, [bench.put_raw(t, (M, K), weights(rng, t, (M, K))[0]) for t in types]


def check_order(bench: Bench, nodes: Sequence[Tensor]) -> None:
    """Run the nodes as one graph and one by one, from the same memory; all memory must be the same afterwards."""
    before = bench.memory.copy()
    bench.run(*nodes)
    together = bench.memory.copy()
    bench.memory[:] = before
    for i, node in enumerate(nodes):
        # What ran before is data now: its sources would be nodes of this graph otherwise.
        kept = [(n, n.op, n.src, n.flags) for n in nodes[:i]]
        for n in nodes[:i]:
            n.op, n.src, n.flags = 0, [], 0
        bench.run(node)
        for n, op, src, flags in kept:
            n.op, n.src, n.flags = op, src, flags
    assert np.array_equal(bench.memory, together)
    assert not np.array_equal(before, together)


@pytest.mark.parametrize("columns", [1, 3, 40])
def test_nodes_between(bench: Bench, rng: np.random.Generator, columns: int) -> None:
    x, ws = case(bench, rng, columns)
    nodes = []
    for w in ws:
        product = mul_mat(bench, w, x)
        nodes += [product, bench.node("SCALE", "F32", (columns, M), [product], struct.pack("<2f", 0.5, 1))]
    check_order(bench, nodes)


@pytest.mark.parametrize("columns", [1, 40])
def test_result_where_a_node_between_reads(bench: Bench, rng: np.random.Generator, columns: int) -> None:
    x, ws = case(bench, rng, columns)
    first = mul_mat(bench, ws[0], x)
    scaled = bench.node("SCALE", "F32", (columns, M), [first], struct.pack("<2f", 2, 0))
    second = mul_mat(bench, ws[1], x)
    second.data = first.data  # free again once it was scaled
    check_order(bench, [first, scaled, second])


@pytest.mark.parametrize("columns", [1, 40])
def test_result_where_a_node_between_writes(bench: Bench, rng: np.random.Generator, columns: int) -> None:
    x, ws = case(bench, rng, columns)
    first = mul_mat(bench, ws[0], x)
    scaled = bench.node("SCALE", "F32", (columns, M), [first], struct.pack("<2f", 2, 0))
    second = mul_mat(bench, ws[1], x)
    second.data = scaled.data
    check_order(bench, [first, scaled, second])


@pytest.mark.parametrize("columns", [1, 40])
def test_activations_that_change(bench: Bench, rng: np.random.Generator, columns: int) -> None:
    """The later product names the tensor itself, not the node that wrote to its memory."""
    x, ws = case(bench, rng, columns)
    doubled = bench.node("ADD", "F32", (columns, K), [x, x], out=x)
    check_order(bench, [mul_mat(bench, ws[0], x), doubled, mul_mat(bench, ws[1], x)])


@pytest.mark.parametrize("columns", [1, 40])
def test_weights_that_change(bench: Bench, rng: np.random.Generator, columns: int) -> None:
    """As those that lie in a cache do."""
    x, ws = case(bench, rng, columns, ["F16"])
    w = bench.put(rng.standard_normal((M, K)).astype(np.float32))
    doubled = bench.node("ADD", "F32", (M, K), [w, w], out=w)
    check_order(bench, [mul_mat(bench, ws[0], x), doubled, mul_mat(bench, w, x)])


def test_part_of_the_weights_that_changes(bench: Bench, rng: np.random.Generator) -> None:
    x, ws = case(bench, rng, 1, ["F16"])
    w = bench.put(rng.standard_normal((M, K)).astype(np.float32))
    last = bench.view(w, "F32", (1, K), (K * 4, 4), offset=(M - 1) * K * 4)
    doubled = bench.node("ADD", "F32", (1, K), [last, last], out=last)
    check_order(bench, [mul_mat(bench, ws[0], x), doubled, mul_mat(bench, w, x)])


@pytest.mark.parametrize("which", [2, 3])
def test_weights_that_a_step_of_an_optimiser_writes(bench: Bench, rng: np.random.Generator, which: int) -> None:
    """AdamW changes its moments, which are sources."""
    x, ws = case(bench, rng, 1, ["F16"])
    places = [bench.put(np.abs(rng.standard_normal((M, K)).astype(np.float32))) for _ in range(4)]
    params = bench.put(np.array([0.1, 0.9, 0.99, 1e-3, 0.05, 1.2, 1.5], np.float32))
    step = bench.node("OPT_STEP_ADAMW", "F32", (M, K), [*places, params], out=places[0])
    check_order(bench, [mul_mat(bench, ws[0], x), step, mul_mat(bench, places[which], x)])


def test_weights_that_a_node_between_makes(bench: Bench, rng: np.random.Generator) -> None:
    x, ws = case(bench, rng, 1, ["Q8_0"])
    keys = bench.put(rng.standard_normal((5, K)).astype(np.float32))
    doubled = bench.node("ADD", "F32", (5, K), [keys, keys])
    check_order(bench, [mul_mat(bench, ws[0], x), doubled, mul_mat(bench, doubled, x)])


@pytest.mark.parametrize("columns", [1, 7])
def test_more_than_are_taken_together(bench: Bench, rng: np.random.Generator, columns: int) -> None:
    x, ws = case(bench, rng, columns, ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "F16", "BF16", "Q5_0"])
    check_order(bench, [mul_mat(bench, w, x) for w in ws])


@pytest.mark.parametrize("threads", [2, 7])
@pytest.mark.parametrize("rows", [1, 15, 17, 1000, 4001])
@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0", "Q4_0"])
def test_parts_of_a_stream(level: str, rng: np.random.Generator, type_name: str, rows: int, threads: int) -> None:
    """Rows are handed out in parts of different lengths: each row is there, with the bits that one worker gives it."""
    data, values = weights(rng, type_name, (3 * rows, 64))
    x = rng.standard_normal((6, 2, 64)).astype(np.float32)
    results = []
    for count in (1, threads):
        bench = Bench(device(level, count))
        node = mul_mat(bench, bench.put_raw(type_name, (3, rows, 64), data), bench.put(x))
        plan = bench.compile([node])
        for _ in range(3):
            bench.write(node, b"\xcb" * node.nbytes())
            plan.run()
            results.append(bench.raw(node))
    assert set(results) == {results[0]}
    got = np.frombuffer(results[0], np.float32).reshape(3, 2, 2, rows)
    expected = np.einsum("hmk,hrnk->hrnm", values.reshape(3, rows, 64), x.reshape(3, 2, 2, 64))
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
