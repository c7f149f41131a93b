"""Products of the same activations in one launch, though they stand apart in the graph."""

from __future__ import annotations

import numpy as np
import pytest

from ggml_rpc.devices.cuda import plan_counts
from tests.cuda.test_ops_matmul import Rounded
from tests.ops.test_matmul import expert_product, mul_mat, mul_mat_id, product, weights
from tests.ops.tolerances import nmse
from tests.support.device import Bench
from tests.support.wiretensor import Tensor

ROWS, K = (150, 40, 7), 256  # of queries, keys and values


def put_products(
    bench: Bench, rng: np.random.Generator, types: list[str], source: Tensor
) -> tuple[list[Tensor], list[np.ndarray]]:
    nodes, values = [], []
    for type_name, m in zip(types, ROWS, strict=True):
        data, v = weights(rng, type_name, (m, K))
        nodes.append(mul_mat(bench, bench.put_raw(type_name, (m, K), data), source))
        values.append(v)
    return nodes, values


def put_chain(bench: Bench, nodes: list[Tensor], n: int) -> list[Tensor]:
    """Return the products with something done to the queries and keys in between, as rope is."""
    q, k, v = nodes
    q2 = bench.node("ADD", "F32", (n, ROWS[0]), [q, q])
    k2 = bench.node("ADD", "F32", (n, ROWS[1]), [k, k])
    return [q, q2, v, k, k2]


def launches_of(bench: Bench, nodes: list[Tensor]) -> int:
    plan = bench.compile(nodes)
    return plan_counts(getattr(plan, "_plan", plan))[0]


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_one_launch(
    bench: Bench, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, type_name: str, n: int
) -> None:
    monkeypatch.setattr("tests.cuda.conftest.BUDGET", 30_000_000)
    x = rng.standard_normal((n, K)).astype(np.float32)
    nodes, values = put_products(bench, rng, [type_name] * 3, bench.put(x))
    chain = put_chain(bench, nodes, n)
    converted = not (type_name == "F32" or (type_name in ("F16", "BF16") and n <= 8))
    assert launches_of(bench, chain) == 3 + converted
    bench.run(*chain)
    for node, v in zip(nodes, values, strict=True):
        rounded = Rounded(x, type_name)
        assert nmse(bench.read(node), product(rounded.weights(v, n <= 8), rounded.of(n <= 8))) < 1e-10
    np.testing.assert_array_equal(bench.read(chain[1]), 2 * bench.read(nodes[0]))
    np.testing.assert_array_equal(bench.read(chain[4]), 2 * bench.read(nodes[1]))


def test_types_apart(bench: Bench, rng: np.random.Generator) -> None:
    """Weights of another type have a launch of their own, but not activations."""
    x = rng.standard_normal((1, K)).astype(np.float32)
    nodes, values = put_products(bench, rng, ["Q4_K", "Q4_K", "Q6_K"], bench.put(x))
    chain = put_chain(bench, nodes, 1)
    assert launches_of(bench, chain) == 1 + 2 + 2
    bench.run(*chain)
    for node, v in zip(nodes, values, strict=True):
        assert nmse(bench.read(node), product(v, Rounded(x, "Q4_K").of(True))) < 1e-10


@pytest.mark.parametrize("reused", ["read", "written", "source"])
def test_memory_that_is_used_between(bench: Bench, rng: np.random.Generator, reused: str) -> None:
    """A product stays where it is if its result's memory, or its source, is used by what comes before."""
    x = rng.standard_normal((1, K)).astype(np.float32)
    source = bench.put(x)
    (q, k, _), values = put_products(bench, rng, ["Q4_0"] * 3, source)
    old = rng.standard_normal((1, ROWS[1])).astype(np.float32)
    if reused == "read":  # the keys' result lies where this node still reads
        place = bench.put(old)
        between = bench.node("ADD", "F32", (1, ROWS[1]), [place, place])
        k.data = place.data
    elif reused == "written":  # ... or writes
        place = bench.put(old)
        between = bench.node("ADD", "F32", (1, ROWS[1]), [place, place])
        last = bench.node("ADD", "F32", (1, ROWS[1]), [between, between])
        k.data = between.data
    else:  # the activations change
        between = bench.node("ADD", "F32", (1, K), [source, source], out=source)
    middle = [between, last] if reused == "written" else [between]
    nodes = [q, *middle, k]
    assert launches_of(bench, nodes) == 1 + 2 + len(middle) + (reused == "source")
    bench.run(*nodes)
    grid = Rounded(x, "Q4_0").of(True)
    assert nmse(bench.read(q), product(values[0], grid)) < 1e-10
    assert nmse(bench.read(k), product(values[1], Rounded(2 * x, "Q4_0").of(True) if reused == "source" else grid)) < (
        1e-10
    )
    if reused == "read":
        np.testing.assert_array_equal(bench.read(between)[0, 0], 2 * old)
    if reused == "written":
        np.testing.assert_array_equal(bench.read(last)[0, 0], 4 * old)


def test_gate_and_up_stay_together(bench: Bench, rng: np.random.Generator) -> None:
    """A product that a GLU takes is not drawn to an earlier one."""
    x = rng.standard_normal((1, K)).astype(np.float32)
    source = bench.put(x)
    made = [weights(rng, "Q4_0", (24, K)) for _ in range(3)]
    first, gate, up = (mul_mat(bench, bench.put_raw("Q4_0", (24, K), data), source) for data, _ in made)
    glu = bench.node("GLU", "F32", (1, 1, 1, 24), [gate, up], bytes(8))
    nodes = [first, gate, up, glu]
    assert launches_of(bench, nodes) == 1 + 2
    bench.run(*nodes)
    seen = Rounded(x, "Q4_0").of(True)
    relu = np.maximum(product(made[1][1], seen), 0) * product(made[2][1], seen)
    assert nmse(bench.read(glu), relu) < 1e-10


def test_pairs_are_sorted_once(bench: Bench, rng: np.random.Generator) -> None:
    """Products by the same ids share the order of their pairs, until the ids are others."""
    experts, m, tokens = 5, 9, 40
    x = rng.standard_normal((tokens, 1, K)).astype(np.float32)
    chosen = rng.permuted(np.tile(np.arange(experts, dtype=np.int32), (tokens, 1)), axis=1)[:, :2].copy()
    later = rng.permuted(chosen, axis=0)
    source, ids, changed = bench.put(x), bench.put(chosen), bench.put(later)
    made = [weights(rng, "Q4_K", (experts, m, K)) for _ in range(3)]
    first, second, third = (
        mul_mat_id(bench, bench.put_raw("Q4_K", (experts, m, K), data), source, ids) for data, _ in made
    )
    copy = bench.node("CPY", "I32", (tokens, 2), [changed, ids], out=ids)
    nodes = [first, second, copy, third]
    assert launches_of(bench, nodes) == 1 + 1 + 2 + 1 + 1 + 1
    bench.run(*nodes)
    rounded = Rounded(x, "Q4_K")
    for node, (_, values), order in zip((first, second, third), made, (chosen, chosen, later), strict=True):
        wanted = expert_product(rounded.weights(values, False), rounded.of(False), order)
        assert nmse(bench.read(node)[0], wanted) < 1e-10
