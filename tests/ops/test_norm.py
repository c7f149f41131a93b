"""NORM, RMS_NORM, L2_NORM, GROUP_NORM, and the fused chains, against float64."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest

from ggml_rpc.spec.enums import TensorFlag
from ggml_rpc.wire._codec import Codec
from tests.ops.tolerances import check
from tests.support.device import LLAMA_8_0, POISON, Bench
from tests.support.wiretensor import Tensor, graph_payload

EPS = 1e-5
SHAPES = [(1,), (15,), (3, 17), (2, 3, 4, 97), (64, 640), (1, 8192)]


def oracle(op: str, x: np.ndarray, eps: float = EPS) -> np.ndarray:
    x = x.astype(np.float64)
    if op == "NORM":
        x = x - x.mean(-1, keepdims=True)
    if op == "L2_NORM":
        return x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), eps)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def params(eps: float = EPS) -> bytes:
    return struct.pack("<f", eps)


@pytest.mark.parametrize("op", ["NORM", "RMS_NORM", "L2_NORM"])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(bench: Bench, rng: np.random.Generator, op: str, shape: tuple[int, ...]) -> None:
    x = (rng.standard_normal(shape) * 3 + 1).astype(np.float32)
    node = bench.node(op, "F32", shape, [bench.put(x)], params())
    bench.run(node)
    if op == "NORM" and shape == (1,):  # a row of one element is its own mean
        assert bench.read(node).item() == 0
        return
    check(bench.read(node).reshape(shape), oracle(op, x), "f32")


@pytest.mark.parametrize("op", ["NORM", "RMS_NORM", "L2_NORM"])
@pytest.mark.parametrize("scale", [1e-12, 1e15, 1e30])
def test_magnitudes(bench: Bench, rng: np.random.Generator, op: str, scale: float) -> None:
    """Squares neither overflow nor vanish, and eps decides for small rows."""
    x = (rng.standard_normal((3, 500)) * scale).astype(np.float32)
    node = bench.node(op, "F32", x.shape, [bench.put(x)], params())
    bench.run(node)
    check(bench.read(node)[0, 0], oracle(op, x), "f32")


def test_small_spread_beside_a_large_mean(bench: Bench, rng: np.random.Generator) -> None:
    x = (rng.integers(-8, 8, (3, 1000)) + 4096).astype(np.float32)
    node = bench.node("NORM", "F32", x.shape, [bench.put(x)], params())
    bench.run(node)
    # The mean is rounded to f32: 2^-13 of a spread of 4.6 at most.
    assert np.abs(bench.read(node)[0, 0] - oracle("NORM", x)).max() < 1e-4


@pytest.mark.parametrize("op", ["NORM", "L2_NORM"])
def test_strided_elements(bench: Bench, rng: np.random.Generator, op: str) -> None:
    x = rng.standard_normal((4, 70, 9)).astype(np.float32)
    turned = bench.permute(bench.put(x), (1, 0, 2, 3))
    node = bench.node(op, "F32", (4, 9, 70), [turned], params())
    bench.run(node)
    check(bench.read(node)[0], oracle(op, x.transpose(0, 2, 1)), "f32")


@pytest.mark.parametrize("op", ["NORM", "RMS_NORM", "L2_NORM"])
def test_strided_rows(bench: Bench, rng: np.random.Generator, op: str) -> None:
    x = rng.standard_normal((4, 70, 9)).astype(np.float32)
    base = bench.put(x)
    turned = bench.permute(base, (0, 2, 1, 3))
    a = bench.node(op, "F32", (70, 4, 9), [turned], params())
    part = bench.view(base, "F32", (4, 70, 5), (70 * 9 * 4, 36, 4), offset=8)
    b = bench.node(op, "F32", (4, 70, 5), [part], params())
    bench.run(a, b)
    check(bench.read(a)[0], oracle(op, x.transpose(1, 0, 2)), "f32")
    check(bench.read(b)[0], oracle(op, x[:, :, 2:7]), "f32")


@pytest.mark.parametrize("op", ["NORM", "RMS_NORM", "L2_NORM"])
def test_in_place(bench: Bench, rng: np.random.Generator, op: str) -> None:
    x = rng.standard_normal((33, 515)).astype(np.float32)
    t = bench.put(x)
    node = bench.node(op, "F32", x.shape, [t], params(), out=t)
    bench.run(node)
    check(bench.read(node)[0, 0], oracle(op, x), "f32")


@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (8, 1), (7, 3), (6, 6)])
def test_group_norm(bench: Bench, rng: np.random.Generator, channels: int, groups: int) -> None:
    x = (rng.standard_normal((2, channels, 5, 33)) + 2).astype(np.float32)
    node = bench.node("GROUP_NORM", "F32", x.shape, [bench.put(x)], struct.pack("<if", groups, EPS))
    bench.run(node)
    size = -(-channels // groups)
    expected = np.empty(x.shape)
    for i in range(2):
        for first in range(0, channels, size):
            block = x[i, first : first + size]
            expected[i, first : first + size] = oracle("NORM", block.reshape(1, -1)).reshape(block.shape)
    check(bench.read(node), expected, "f32")


# ---- Chains. An elided intermediate is seen by its poisoned memory. ----


@dataclass
class Chain:
    """Nodes of norm -> MUL (-> ADD) and the arrays they start from."""

    nodes: list[Tensor]
    x: np.ndarray
    weight: np.ndarray
    addend: np.ndarray | None
    op: str

    def expected(self) -> np.ndarray:
        y = oracle(self.op, self.x) * self.weight
        return y if self.addend is None else y + self.addend


def chain(
    bench: Bench,
    rng: np.random.Generator,
    op: str = "RMS_NORM",
    *,
    shape: tuple[int, ...] = (5, 130),
    weight_shape: tuple[int, ...] = (130,),
    addend_shape: tuple[int, ...] | None = None,
    uses: tuple[int, int] = (1, 1),
    norm_first: bool = True,
    norm_flags: int = 0,
) -> Chain:
    x = rng.standard_normal(shape).astype(np.float32)
    weight = rng.standard_normal(weight_shape).astype(np.float32)
    norm = bench.node(op, "F32", shape, [bench.put(x)], params(), use_count=uses[0], flags=norm_flags)
    tw = bench.put(weight)
    mul = bench.node("MUL", "F32", shape, [norm, tw] if norm_first else [tw, norm], use_count=uses[1])
    nodes, addend = [norm, mul], None
    if addend_shape is not None:
        addend = rng.standard_normal(addend_shape).astype(np.float32)
        nodes.append(bench.node("ADD", "F32", shape, [mul, bench.put(addend)]))
    return Chain(nodes, x, weight, addend, op)


def untouched(bench: Bench, t: Tensor) -> bool:
    return set(bench.raw(t)) == {POISON}


def run_as_counted(bench: Bench, nodes: list[Tensor]) -> None:
    """Run nodes with the `use_count` that they carry: the client's, which may be more than this graph shows."""
    bench.device.compile(Codec(LLAMA_8_0), graph_payload(LLAMA_8_0, nodes, count_uses=False), [bench.buffer]).run()


def verify(bench: Bench, c: Chain, stored: list[bool]) -> None:
    """Run a chain; check its result and which intermediates were stored."""
    run_as_counted(bench, c.nodes)
    check(bench.read(c.nodes[-1]).reshape(c.x.shape), c.expected(), "f32")
    assert [not untouched(bench, t) for t in c.nodes] == stored


@pytest.mark.parametrize("op", ["NORM", "RMS_NORM"])
@pytest.mark.parametrize("shape", [(1, 97), (1, 4096), (3, 5, 33), (40, 640)])
def test_fused_with_weight(bench: Bench, rng: np.random.Generator, op: str, shape: tuple[int, ...]) -> None:
    verify(bench, chain(bench, rng, op, shape=shape, weight_shape=shape[-1:]), [False, True])


@pytest.mark.parametrize("op", ["NORM", "RMS_NORM"])
@pytest.mark.parametrize("addend_shape", [(130,), (5, 130)])
def test_fused_with_weight_and_addend(
    bench: Bench, rng: np.random.Generator, op: str, addend_shape: tuple[int, ...]
) -> None:
    verify(bench, chain(bench, rng, op, addend_shape=addend_shape), [False, False, True])


def test_fused_with_a_weight_a_row(bench: Bench, rng: np.random.Generator) -> None:
    verify(bench, chain(bench, rng, shape=(4, 3, 130), weight_shape=(3, 130)), [False, True])


def test_fused_when_the_norm_is_the_second_source(bench: Bench, rng: np.random.Generator) -> None:
    verify(bench, chain(bench, rng, weight_shape=(5, 130), norm_first=False), [False, True])


def test_stored_when_it_has_other_uses(bench: Bench, rng: np.random.Generator) -> None:
    verify(bench, chain(bench, rng, uses=(2, 1)), [True, True])
    verify(bench, chain(bench, rng, uses=(1, 2), addend_shape=(130,)), [False, True, True])


def test_stored_when_it_is_an_output(bench: Bench, rng: np.random.Generator) -> None:
    verify(bench, chain(bench, rng, norm_flags=TensorFlag.OUTPUT), [True, True])


def test_stored_when_it_is_viewed(bench: Bench, rng: np.random.Generator) -> None:
    c = chain(bench, rng)
    view = bench.view(c.nodes[0], "F32", (130,), (4,))
    last = bench.node("SCALE", "F32", (130,), [view], struct.pack("<2f", 2, 0))
    run_as_counted(bench, [*c.nodes, last])
    check(bench.read(c.nodes[1]).reshape(c.x.shape), c.expected(), "f32")
    check(bench.read(last).ravel()[None], oracle(c.op, c.x)[:1] * 2, "f32")


def test_weight_of_one_element_a_row(bench: Bench, rng: np.random.Generator) -> None:
    """Not a row to multiply by: the nodes run one by one."""
    verify(bench, chain(bench, rng, weight_shape=(5, 1)), [True, True])


def test_squared_norm(bench: Bench, rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 130)).astype(np.float32)
    norm = bench.node("RMS_NORM", "F32", x.shape, [bench.put(x)], params(), use_count=2)
    mul = bench.node("MUL", "F32", x.shape, [norm, norm])
    bench.run(norm, mul)
    check(bench.read(mul)[0, 0], oracle("RMS_NORM", x) ** 2, "f32")


@pytest.mark.parametrize("place", ["source", "weight", "addend"])
def test_result_lies_exactly_on_an_operand(bench: Bench, rng: np.random.Generator, place: str) -> None:
    c = chain(bench, rng, weight_shape=(5, 130), addend_shape=(5, 130))
    operand = {"source": c.nodes[0].src[0], "weight": c.nodes[1].src[1], "addend": c.nodes[2].src[1]}[place]
    c.nodes[2].data = operand.data
    verify(bench, c, [False, False, True])


def test_result_lies_across_its_source(bench: Bench, rng: np.random.Generator) -> None:
    """One row further: the nodes one by one are right, a fused row would overwrite the next row's source."""
    base = bench.place("F32", (6, 130))
    c = chain(bench, rng)
    c.nodes[0].src[0].data = base.data
    bench.write(c.nodes[0].src[0], c.x.tobytes())
    c.nodes[1].data = base.data + 130 * 4
    verify(bench, c, [True, True])


def test_result_lies_across_a_repeated_weight(bench: Bench, rng: np.random.Generator) -> None:
    """The weight is read for every row: ADD must not overwrite it before MUL is through."""
    base = bench.place("F32", (5, 130))
    c = chain(bench, rng, addend_shape=(130,))
    c.nodes[1].src[1].data = base.data
    bench.write(c.nodes[1].src[1], c.weight.tobytes())
    c.nodes[2].data = base.data
    verify(bench, c, [False, True, True])


def test_skipped_results_would_overwrite_the_addend(bench: Bench, rng: np.random.Generator) -> None:
    """What MUL stores is what ADD must read as its second source."""
    c = chain(bench, rng, addend_shape=(130,))
    c.nodes[2].src[1].data = c.nodes[1].data + 130 * 4
    product = oracle(c.op, c.x) * c.weight
    c.addend = product[1]
    verify(bench, c, [False, True, True])


def test_norm_overwrites_its_weight(bench: Bench, rng: np.random.Generator) -> None:
    """What the norm stores is what MUL must read as its weight."""
    x = rng.standard_normal((5, 130)).astype(np.float32)
    norm = bench.node("RMS_NORM", "F32", x.shape, [bench.put(x)], params(), use_count=1)
    weight = bench.place("F32", (130,))
    weight.data = norm.data + 2 * 130 * 4
    mul = bench.node("MUL", "F32", x.shape, [norm, weight])
    run_as_counted(bench, [norm, mul])
    expected = oracle("RMS_NORM", x)
    check(bench.read(mul)[0, 0], expected * expected[2], "f32")
