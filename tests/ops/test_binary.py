"""ADD, SUB, MUL, DIV, ADD1 and ADD_ID against float64."""

from __future__ import annotations

import numpy as np
import pytest

from ggml_rpc.errors import DeviceError
from tests.ops.tolerances import check
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16

ORACLE = {"ADD": np.add, "SUB": np.subtract, "MUL": np.multiply, "DIV": np.divide}
SHAPES = [
    ((1,), (1,)),
    ((17,), (17,)),
    ((3, 33), (33,)),
    ((3, 33), (3, 1)),
    ((2, 3, 4, 97), (4, 97)),
    ((2, 3, 4, 97), (1, 3, 1, 97)),
    ((2, 4, 6, 64), (2, 2, 3, 32)),
    ((64, 1000), (1000,)),
    ((20_001,), (20_001,)),
    ((2, 20_001), (1, 20_001)),
    ((3, 30_000), (3, 10_000)),
]


def tiled(b: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat b to fill a shape, as ggml broadcasts."""
    b = b.reshape((1,) * (len(shape) - b.ndim) + b.shape)
    return np.tile(b, [n // m for n, m in zip(shape, b.shape, strict=True)])


@pytest.mark.parametrize("op", list(ORACLE))
@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
def test_broadcast(
    bench: Bench, rng: np.random.Generator, op: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    a = rng.standard_normal(a_shape).astype(np.float32)
    b = (rng.standard_normal(b_shape) + 3).astype(np.float32)
    node = bench.node(op, "F32", a_shape, [bench.put(a), bench.put(b)])
    bench.run(node)
    expected = ORACLE[op](a.astype(np.float64), tiled(b.astype(np.float64), a_shape))
    check(bench.read(node).reshape(a_shape), expected, "f32")


@pytest.mark.parametrize(
    "types", [("F16", "F16", "F16"), ("F16", "F32", "F16"), ("F32", "F16", "F32"), ("BF16", "F32", "BF16")]
)
@pytest.mark.parametrize("op", list(ORACLE))
def test_types(bench: Bench, rng: np.random.Generator, op: str, types: tuple[str, str, str]) -> None:
    def rounded(x: np.ndarray, type_name: str) -> np.ndarray:
        if type_name == "BF16":
            return bf16_to_f32(f32_to_bf16(x))
        return x.astype(np.float16) if type_name == "F16" else x

    a = rounded(rng.standard_normal((5, 67)).astype(np.float32), types[0])
    b = rounded((rng.standard_normal((5, 67)) + 3).astype(np.float32), types[1])
    node = bench.node(op, types[2], a.shape, [bench.put(a, types[0]), bench.put(b, types[1])])
    bench.run(node)
    expected = ORACLE[op](a.astype(np.float64), b.astype(np.float64))
    check(bench.read(node).reshape(a.shape), expected, "bf16" if "BF16" in types else "f16")


def test_permuted_source(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.standard_normal((3, 5, 7)).astype(np.float32)
    b = rng.standard_normal((7, 5, 3)).astype(np.float32)
    tb = bench.put(b)
    view = bench.permute(tb, (2, 1, 0, 3))
    node = bench.node("ADD", "F32", a.shape, [bench.put(a), view])
    bench.run(node)
    check(bench.read(node).reshape(a.shape), a.astype(np.float64) + b.transpose(2, 1, 0), "f32")


def test_in_place(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.standard_normal((9, 130)).astype(np.float32)
    b = rng.standard_normal((9, 130)).astype(np.float32)
    ta = bench.put(a)
    node = bench.node("MUL", "F32", a.shape, [ta, bench.put(b)], out=ta)
    bench.run(node)
    check(bench.read(node).reshape(a.shape), a.astype(np.float64) * b, "f32")


def test_chain_sees_earlier_results(bench: Bench, rng: np.random.Generator) -> None:
    """A chain of many small and large nodes: each must wait for what it reads."""
    a = rng.standard_normal((32, 1024)).astype(np.float32)
    t = bench.put(a)
    b = bench.put(np.full((1024,), 1.0, np.float32))
    nodes = []
    for _ in range(40):
        t = bench.node("ADD", "F32", a.shape, [t, b])
        nodes.append(t)
    bench.run(*nodes)
    check(bench.read(t).reshape(a.shape), a.astype(np.float64) + 40, "f32")


@pytest.mark.parametrize("types", [("F32", "F32"), ("F16", "F16"), ("F16", "F32"), ("BF16", "F32")])
def test_add1(bench: Bench, rng: np.random.Generator, types: tuple[str, str]) -> None:
    a = (rng.integers(-64, 64, (3, 4, 600)) / 8).astype(np.float32)  # exact in every type
    b = np.array([1.5], np.float32)
    ta = bench.put(a.astype(np.float16) if types[0] == "F16" else a, types[0])
    tb = bench.put(b.astype(np.float16) if types[1] == "F16" else b, types[1])
    node = bench.node("ADD1", types[0], a.shape, [ta, tb])
    bench.run(node)
    check(bench.read(node)[0], a.astype(np.float64) + 1.5, "exact")


def test_in_place_on_the_second_source(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.standard_normal((3, 9000)).astype(np.float32)
    b = rng.standard_normal((3, 9000)).astype(np.float32)
    tb = bench.put(b)
    node = bench.node("SUB", "F32", a.shape, [bench.put(a), tb], out=tb)
    bench.run(node)
    check(bench.read(node)[0, 0], a.astype(np.float64) - b, "f32")


def test_nothing_is_written_past_the_end(bench: Bench, rng: np.random.Generator) -> None:
    for n in (1, 15, 17, 33, 97):
        a = rng.standard_normal(n).astype(np.float32)
        node = bench.node("ADD", "F32", (n,), [bench.put(a), bench.put(a)])
        bench.run(node)
        end = node.data - bench.buffer.base + n * 4
        assert set(bench.memory[end : end + 32]) == {0xCB}


N, N_USED, N_TOK, N_EXPERT = 97, 3, 5, 8


@pytest.mark.parametrize("n", [1, 33, 97, 9001])
def test_add_id(bench: Bench, rng: np.random.Generator, n: int) -> None:
    a = rng.standard_normal((N_TOK, N_USED, n)).astype(np.float32)
    b = rng.standard_normal((N_EXPERT, n)).astype(np.float32)
    # ids are a view of longer rows, as the first columns of an argsort
    ids = rng.integers(0, N_EXPERT, (N_TOK, N_EXPERT)).astype(np.int32)
    view = bench.view(bench.put(ids), "I32", (N_TOK, N_USED), (N_EXPERT * 4, 4))
    node = bench.node("ADD_ID", "F32", a.shape, [bench.put(a), bench.put(b), view])
    bench.run(node)
    check(bench.read(node)[0], a.astype(np.float64) + b[ids[:, :N_USED]], "f32")


@pytest.mark.parametrize("bad", [-1, N_EXPERT, 2**31 - 1, -(2**31)])
def test_add_id_refuses_an_index_out_of_range(bench: Bench, bad: int) -> None:
    ids = np.zeros((N_TOK, N_USED), np.int32)
    ids[3, 1] = bad
    a = np.zeros((N_TOK, N_USED, N), np.float32)
    b = np.zeros((N_EXPERT, N), np.float32)
    node = bench.node("ADD_ID", "F32", a.shape, [bench.put(a), bench.put(b), bench.put(ids, name="ids")])
    plan = bench.compile([node])
    with pytest.raises(DeviceError, match=rf"index {bad} in 'ids' is out of range \(0 \.\. 7\)"):
        plan.run()
