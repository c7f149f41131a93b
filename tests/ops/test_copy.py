"""DUP, CONT and CPY: exact, in logical order, whatever the layouts."""

from __future__ import annotations

import numpy as np
import pytest

from ggml_rpc.spec.types import TYPE_BY_ID, TYPE_BY_NAME
from tests.support.device import NUMPY_TYPES, Bench, bf16_to_f32, f32_to_bf16
from tests.support.wiretensor import Tensor

PLAIN = ["F32", "F16", "BF16", "I8", "I16", "I32", "I64"]
FLOATS = ["F32", "F16", "BF16"]
SHAPES = [(1,), (17,), (3, 33), (2, 3, 5, 7), (5, 1, 97), (40, 30), (2, 33, 65), (300, 130)]


def values(rng: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array that the type holds exactly; BF16 as f32."""
    if type_name in FLOATS:
        x = (rng.standard_normal(shape) * 100).astype(np.float32)
        return as_type(x, type_name)
    info = np.iinfo(NUMPY_TYPES[type_name])
    return rng.integers(info.min, info.max, shape, dtype=NUMPY_TYPES[type_name])


def as_type(x: np.ndarray, type_name: str) -> np.ndarray:
    """Convert to a type, to nearest even; BF16 stays in f32."""
    if type_name == "BF16":
        return bf16_to_f32(f32_to_bf16(x.astype(np.float32)))
    return x.astype(NUMPY_TYPES[type_name])


def copy(bench: Bench, source: Tensor, into: Tensor) -> Tensor:
    """Run CPY of a tensor into another one and return the node."""
    name = TYPE_BY_ID[into.type].name
    node = bench.node("CPY", name, tuple(reversed(into.ne)), [source, into], out=into)
    node.nb = list(into.nb)
    bench.run(node)
    return node


def padded(bench: Bench, type_name: str, shape: tuple[int, ...], gap: int = 3) -> Tensor:
    """Place a tensor whose rows are `gap` elements apart."""
    size = TYPE_BY_NAME[type_name].bytes
    strides = [size]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * n + gap * size)
    return bench.place(type_name, shape, list(reversed(strides)), name="padded")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("type_name", PLAIN)
@pytest.mark.parametrize("op", ["DUP", "CONT"])
def test_same_type(bench: Bench, rng: np.random.Generator, op: str, type_name: str, shape: tuple[int, ...]) -> None:
    x = values(rng, type_name, shape)
    node = bench.node(op, type_name, shape, [bench.put(x, type_name)])
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node).reshape(shape), x)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 33, 47, 1), (1, 20, 50, 64), (1, 2, 70, 150)])
@pytest.mark.parametrize("axes", [(1, 0, 2, 3), (0, 2, 1, 3), (2, 1, 0, 3), (3, 2, 1, 0), (1, 2, 0, 3), (2, 0, 1, 3)])
@pytest.mark.parametrize("type_name", ["F32", "F16", "I8", "I64"])
def test_permuted_source(
    bench: Bench, rng: np.random.Generator, type_name: str, axes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    x = values(rng, type_name, shape)
    source = bench.permute(bench.put(x, type_name), axes)
    expected = x.transpose([3 - axes[3 - i] for i in range(4)])
    node = bench.node("CONT", type_name, expected.shape, [source])
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node), expected)


@pytest.mark.parametrize("axes", [(1, 0, 2, 3), (0, 2, 1, 3), (2, 1, 0, 3)])
@pytest.mark.parametrize(
    ("source", "target"), [("F32", "F16"), ("F16", "F32"), ("F32", "BF16"), ("BF16", "F16"), ("F32", "F32")]
)
def test_permuted_destination(
    bench: Bench, rng: np.random.Generator, source: str, target: str, axes: tuple[int, ...]
) -> None:
    """As caches are written: a packed source into a permuted view."""
    base_shape = (2, 21, 35, 18)
    base = bench.place(target, base_shape)
    view = bench.permute(base, axes)
    shape = tuple(reversed(view.ne))
    x = values(rng, source, shape)
    node = copy(bench, bench.put(x, source), view)
    np.testing.assert_array_equal(bench.read(node), as_type(x, target))


@pytest.mark.parametrize("shape", [(1,), (15,), (7, 33), (2, 3, 4, 17), (64, 300)])
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_float_conversions(
    bench: Bench, rng: np.random.Generator, source: str, target: str, shape: tuple[int, ...]
) -> None:
    x = values(rng, source, shape)
    node = bench.node("CPY", target, shape, [bench.put(x, source)])
    node.src.append(node)  # as clients build casts
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node).reshape(shape), as_type(x, target))


@pytest.mark.parametrize("target", ["F16", "BF16"])
def test_special_values(bench: Bench, target: str) -> None:
    """Infinities, NaN, overflow, halfway cases and subnormals, in vectors and in the tail."""
    special = [
        np.inf,
        -np.inf,
        np.nan,
        0.0,
        -0.0,
        65504,
        65519.996,
        65520,
        1e30,
        6e-8,
        2.98e-8,
        2.981e-8,
        6.1e-5,
        1e-40,
    ]
    x = np.array(special * 5 + [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, -1e-7], np.float32)
    node = copy(bench, bench.put(x), bench.place(target, x.shape))
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16) if target == "F16" else bf16_to_f32(f32_to_bf16(np.nan_to_num(x, nan=0.0)))
    got = bench.read(node).reshape(x.shape)
    nan = np.isnan(x)
    assert np.isnan(got[nan]).all()
    np.testing.assert_array_equal(got[~nan], expected[~nan])
    np.testing.assert_array_equal(np.signbit(got[~nan]), np.signbit(expected[~nan]))


def test_integers_and_floats(bench: Bench, rng: np.random.Generator) -> None:
    """F32 to I32 cuts towards zero; I32 to F32 rounds to nearest."""
    x = (rng.standard_normal((5, 67)) * 1000).astype(np.float32)
    node = copy(bench, bench.put(x), bench.place("I32", x.shape))
    np.testing.assert_array_equal(bench.read(node).reshape(x.shape), np.trunc(x).astype(np.int32))
    k = rng.integers(-(2**31), 2**31, (5, 67), dtype=np.int32)
    node = copy(bench, bench.put(k), bench.place("F32", k.shape))
    np.testing.assert_array_equal(bench.read(node).reshape(k.shape), k.astype(np.float32))


@pytest.mark.parametrize(
    "shapes",
    [
        ((24,), (2, 3, 4)),
        ((2, 3, 4), (24,)),
        ((6, 35), (3, 7, 10)),
        ((4, 5, 6, 7), (7, 6, 5, 4)),
        ((100, 96), (2, 60, 80)),
    ],
)
@pytest.mark.parametrize("layouts", ["packed", "padded source", "padded destination", "both padded", "permuted source"])
@pytest.mark.parametrize("types", [("F32", "F32"), ("F32", "F16"), ("I16", "I16")])
def test_other_shape(
    bench: Bench,
    rng: np.random.Generator,
    types: tuple[str, str],
    layouts: str,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    """Equal numbers of elements are enough: logical order decides."""
    from_shape, to_shape = shapes
    x = values(rng, types[0], from_shape)
    logical = x
    if layouts in ("padded source", "both padded"):
        source = padded(bench, types[0], from_shape)
        fill(bench, source, x)
    elif layouts == "permuted source":
        source = bench.permute(bench.put(x, types[0]), (1, 0, 2, 3))
        while logical.ndim < 2:
            logical = logical[None]
        logical = np.swapaxes(logical, -1, -2)
    else:
        source = bench.put(x, types[0])
    into = (
        padded(bench, types[1], to_shape)
        if "destination" in layouts or "both" in layouts
        else bench.place(types[1], to_shape)
    )
    before = bench.raw(into)
    node = copy(bench, source, into)
    np.testing.assert_array_equal(bench.read(node).reshape(to_shape), as_type(logical.reshape(to_shape), types[1]))
    untouched = gaps(into)
    np.testing.assert_array_equal(
        np.frombuffer(bench.raw(node), np.uint8)[untouched], np.frombuffer(before, np.uint8)[untouched]
    )


def fill(bench: Bench, t: Tensor, x: np.ndarray) -> None:
    """Write an array of a NumPy type to a strided tensor."""
    at = t.data - bench.buffer.base
    np.ndarray(tuple(reversed(t.ne)), x.dtype, bench.memory.data, at, tuple(reversed(t.nb)))[...] = x.reshape(
        tuple(reversed(t.ne))
    )


def gaps(t: Tensor) -> np.ndarray:
    """Return which bytes of a tensor's extent belong to no element."""
    size = TYPE_BY_ID[t.type].bytes
    touched = np.zeros(t.nbytes(), bool)
    grids = np.meshgrid(*[np.arange(n) * b for n, b in zip(t.ne, t.nb, strict=True)], indexing="ij")
    offsets = sum(grids).ravel()
    for k in range(size):
        touched[offsets + k] = True
    return ~touched


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "MXFP4"])
def test_quantised_blocks_move(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """Same quantised type: permuted rows, and packed into another shape."""
    spec = TYPE_BY_NAME[type_name]
    shape = (3, 4, 5, 2 * spec.block)
    blocks = rng.integers(0, 256, (3, 4, 5, 2 * spec.bytes), dtype=np.uint8)
    base = bench.put_raw(type_name, shape, blocks.tobytes())
    node = bench.node("CONT", type_name, (3, 5, 4, 2 * spec.block), [bench.permute(base, (0, 2, 1, 3))])
    bench.run(node)
    assert bench.raw(node) == blocks.transpose(0, 2, 1, 3).tobytes()
    node = copy(bench, bench.permute(base, (0, 2, 1, 3)), bench.place(type_name, (10, 3, 4 * spec.block)))
    assert bench.raw(node) == blocks.transpose(0, 2, 1, 3).tobytes()


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "IQ4_NL"])
def test_quantise_strided(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """A permuted source and a destination with gaps give the blocks of the packed case; back again likewise."""
    spec = TYPE_BY_NAME[type_name]
    x = rng.standard_normal((6, 7, 1088)).astype(np.float32)
    packed = copy(bench, bench.put(x.transpose(1, 0, 2)), bench.place(type_name, (7, 6, 1088)))
    row = 1088 // spec.block * spec.bytes
    into = bench.place(type_name, (7, 6, 1088), [6 * (row + 4 * spec.bytes), row + 4 * spec.bytes, spec.bytes])
    node = copy(bench, bench.permute(bench.put(x), (0, 2, 1, 3)), into)
    got = np.ndarray((42, row), np.uint8, bench.memory.data, node.data - bench.buffer.base, (row + 4 * spec.bytes, 1))
    assert got.tobytes() == bench.raw(packed)
    plain = copy(bench, packed, bench.place("F32", (7, 6, 1088)))
    strided = copy(bench, node, padded(bench, "F32", (7, 6, 1088), gap=5))
    np.testing.assert_array_equal(bench.read(strided), bench.read(plain))
    assert np.abs(bench.read(plain).reshape(7, 6, 1088) - x.transpose(1, 0, 2)).max() < 0.5


def test_in_place(bench: Bench, rng: np.random.Generator) -> None:
    x = values(rng, "F32", (33, 130))
    t = bench.put(x)
    node = bench.node("DUP", "F32", x.shape, [t], out=t)
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node).reshape(x.shape), x)


def test_later_nodes_see_the_copy(bench: Bench, rng: np.random.Generator) -> None:
    """Write a part of a cache, then read all of it, in one graph."""
    cache = bench.put(np.zeros((8, 256), np.float32))
    x = values(rng, "F32", (3, 256))
    part = bench.view(cache, "F32", (3, 256), (1024, 4), 2 * 1024)
    write = bench.node("CPY", "F32", (3, 256), [bench.put(x), part], out=part)
    write.view_src, write.view_offs = cache, 2 * 1024
    read = bench.node("CONT", "F32", (8, 256), [cache])
    bench.run(write, read)
    expected = np.zeros((8, 256), np.float32)
    expected[2:5] = x
    np.testing.assert_array_equal(bench.read(read).reshape(8, 256), expected)
