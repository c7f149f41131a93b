"""REPEAT, CONCAT, PAD, ARANGE, FILL, DIAG_MASK_*, ACC, SET against NumPy."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from tests.ops.tolerances import check
from tests.support.device import NUMPY_TYPES, Bench, bf16_to_f32, f32_to_bf16

CONCAT_TYPES = ["F32", "F16", "BF16", "I8", "I16", "I32", "I64"]


def values(rng: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array that the type holds exactly; BF16 as f32."""
    x = rng.standard_normal(shape) * 50
    if type_name == "BF16":
        return bf16_to_f32(f32_to_bf16(x))
    return x.astype(NUMPY_TYPES[type_name])


def words(*numbers: int) -> bytes:
    """Pack i32 parameters."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


@pytest.mark.parametrize(
    ("shape", "times"),
    [
        ((1,), (40,)),
        ((17,), (3,)),
        ((3, 33), (2, 1)),
        ((3, 33), (1, 3)),
        ((2, 1, 3, 4), (1, 5, 2, 3)),
        ((1, 97), (130, 1)),
    ],
)
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "I16", "I32"])
def test_repeat(
    bench: Bench, rng: np.random.Generator, type_name: str, shape: tuple[int, ...], times: tuple[int, ...]
) -> None:
    x = values(rng, type_name, shape)
    expected = np.tile(x, times)
    node = bench.node("REPEAT", type_name, expected.shape, [bench.put(x, type_name)])
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node).reshape(expected.shape), expected)


def test_repeat_view(bench: Bench, rng: np.random.Generator) -> None:
    """A source whose rows lie apart."""
    x = rng.standard_normal((4, 50)).astype(np.float32)
    source = bench.view(bench.put(x), "F32", (4, 33), (200, 4), 8)
    node = bench.node("REPEAT", "F32", (12, 66), [source])
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node).reshape(12, 66), np.tile(x[:, 2:35], (3, 2)))


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
@pytest.mark.parametrize("type_name", CONCAT_TYPES)
def test_concat(bench: Bench, rng: np.random.Generator, type_name: str, dim: int) -> None:
    shape = [3, 4, 5, 33]
    a = values(rng, type_name, tuple(shape))
    shape[3 - dim] = 2
    b = values(rng, type_name, tuple(shape))
    expected = np.concatenate([a, b], axis=3 - dim)
    node = bench.node(
        "CONCAT", type_name, expected.shape, [bench.put(a, type_name), bench.put(b, type_name)], words(dim)
    )
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node), expected)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
@pytest.mark.parametrize("type_name", ["F32", "F16"])
def test_concat_permuted(bench: Bench, rng: np.random.Generator, type_name: str, dim: int) -> None:
    """Permuted sources: elements, not rows, are packed."""
    a = values(rng, type_name, (3, 4, 17, 5))
    b = values(rng, type_name, (3, 4, 17, 5))
    expected = np.concatenate([a.swapaxes(2, 3), b.swapaxes(2, 3)], axis=3 - dim)
    sources = [bench.permute(bench.put(x, type_name), (1, 0, 2, 3)) for x in (a, b)]
    node = bench.node("CONCAT", type_name, expected.shape, sources, words(dim))
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node), expected)


def test_concat_large(bench: Bench, rng: np.random.Generator) -> None:
    """Enough rows to share between workers."""
    a, b = values(rng, "F32", (300, 200)), values(rng, "F32", (300, 33))
    node = bench.node("CONCAT", "F32", (300, 233), [bench.put(a), bench.put(b)], words(0))
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node).reshape(300, 233), np.concatenate([a, b], axis=1))


@pytest.mark.parametrize("pads", [(0, 3, 0, 2, 0, 0, 0, 0), (1, 2, 3, 4, 1, 1, 2, 1), (5, 0, 0, 0, 0, 0, 0, 0)])
@pytest.mark.parametrize("circular", [0, 1])
def test_pad(bench: Bench, rng: np.random.Generator, circular: int, pads: tuple[int, ...]) -> None:
    x = rng.standard_normal((2, 3, 5, 17)).astype(np.float32)
    widths = [(pads[2 * i], pads[2 * i + 1]) for i in (3, 2, 1, 0)]
    expected = np.pad(x, widths, mode="wrap" if circular else "constant")
    node = bench.node("PAD", "F32", expected.shape, [bench.put(x)], words(*pads, circular))
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node), expected)


@pytest.mark.parametrize(("start", "stop", "step"), [(0.0, 10.0, 1.0), (-3.5, 4.0, 0.25), (1.0, 97.5, 0.7)])
def test_arange(bench: Bench, start: float, stop: float, step: float) -> None:
    expected = start + step * np.arange(np.ceil(np.float32(stop - start) / np.float32(step)))
    node = bench.node("ARANGE", "F32", expected.shape, [], struct.pack("<3f", start, stop, step))
    bench.run(node)
    check(bench.read(node).reshape(expected.shape), expected, "f32")


@pytest.mark.parametrize("type_name", ["F32", "F16"])
def test_fill(bench: Bench, type_name: str) -> None:
    source = bench.place(type_name, (9, 33))
    node = bench.node("FILL", type_name, (9, 33), [source], struct.pack("<f", -2.5))
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node), np.full((1, 1, 9, 33), -2.5))


@pytest.mark.parametrize("op", ["DIAG_MASK_INF", "DIAG_MASK_ZERO"])
@pytest.mark.parametrize("n_past", [0, 3, 40])
@pytest.mark.parametrize("in_place", [False, True])
def test_diag_mask(bench: Bench, rng: np.random.Generator, in_place: bool, n_past: int, op: str) -> None:
    x = rng.standard_normal((2, 3, 17, 33)).astype(np.float32)
    t = bench.put(x)
    node = bench.node(op, "F32", x.shape, [t], words(n_past), out=t if in_place else None)
    if in_place:
        node.view_src = t
    bench.run(node)
    right = np.arange(33)[None] > n_past + np.arange(17)[:, None]
    np.testing.assert_array_equal(bench.read(node), np.where(right, -np.inf if op == "DIAG_MASK_INF" else 0, x))


@pytest.mark.parametrize("op", ["ACC", "SET"])
@pytest.mark.parametrize("in_place", [False, True])
def test_region(bench: Bench, rng: np.random.Generator, in_place: bool, op: str) -> None:
    a = rng.standard_normal((3, 20, 33)).astype(np.float32)
    b = rng.standard_normal((2, 5, 7)).astype(np.float32)
    ta = bench.put(a)
    params = words(33 * 4 * 2, 20 * 33 * 4, 3 * 20 * 33 * 4, (20 * 33 + 4 * 33 + 9) * 4, int(in_place))
    node = bench.node(op, "F32", a.shape, [ta, bench.put(b)], params, out=ta if in_place else None)
    if in_place:
        node.view_src = ta
    bench.run(node)
    expected = a.copy()
    region = expected[1:3, 4:14:2, 9:16]
    region[...] = region + b if op == "ACC" else b
    check(bench.read(node).reshape(a.shape), expected.astype(np.float64), "f32")


def test_set_i32(bench: Bench) -> None:
    a = np.arange(40, dtype=np.int32).reshape(4, 10)
    b = -np.arange(6, dtype=np.int32).reshape(2, 3)
    node = bench.node("SET", "I32", a.shape, [bench.put(a), bench.put(b)], words(40, 160, 160, 48, 0))
    bench.run(node)
    expected = a.copy()
    expected[1:3, 2:5] = b
    np.testing.assert_array_equal(bench.read(node).reshape(4, 10), expected)


@pytest.mark.parametrize(
    "params",
    [
        (40, 160, 160, 160, 0),  # starts at the end
        (40, 160, 160, 112, 0),  # the second row ends past it
        (2**31 - 4, 160, 160, 0, 0),
        (-40, 160, 160, 80, 0),
        (40, 160, 160, -4, 0),
        (40, 160, 160, 2, 0),
    ],
)
@pytest.mark.parametrize("op", ["ACC", "SET"])
def test_region_outside(bench: Bench, op: str, params: tuple[int, ...]) -> None:
    a, b = np.zeros((4, 10), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(RpcError, match="region"):
        bench.run(bench.node(op, "F32", a.shape, [bench.put(a), bench.put(b)], words(*params)))
