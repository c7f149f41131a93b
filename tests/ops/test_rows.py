"""GET_ROWS and SET_ROWS: exact, every index checked."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from ggml_rpc.errors import RpcError
from ggml_rpc.spec.types import TYPE_BY_ID, TYPE_BY_NAME
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16
from tests.support.wiretensor import Tensor

QUANTISED = [
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
    "IQ2_XXS",
    "IQ3_S",
    "IQ1_M",
    "TQ1_0",
    "NVFP4",
]
TARGETS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"]


def get_rows(bench: Bench, source: Tensor, ids: np.ndarray, type_name: str = "F32") -> np.ndarray:
    """Run GET_ROWS with packed indices; return the rows in the indices' shape."""
    shape = (*ids.shape, source.ne[0])
    node = bench.node("GET_ROWS", type_name, shape, [source, bench.put(ids)])
    bench.run(node)
    return bench.read(node).reshape(shape)


def set_rows(bench: Bench, x: Tensor, ids: Tensor, into: Tensor) -> Tensor:
    """Run SET_ROWS into a tensor; return the node."""
    name = TYPE_BY_ID[into.type].name
    node = bench.node("SET_ROWS", name, tuple(reversed(into.ne)), [x, ids, into], out=into)
    node.view_src = into
    bench.run(node)
    return node


@pytest.mark.parametrize("n", [1, 15, 33, 97, 640])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "I32"])
def test_get_plain(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    x = (rng.standard_normal((50, n)) * 100).astype(np.float32)
    if type_name == "I32":
        x = x.astype(np.int32)
    elif type_name == "F16":
        x = x.astype(np.float16)
    elif type_name == "BF16":
        x = bf16_to_f32(f32_to_bf16(x))
    ids = rng.integers(0, 50, 70, dtype=np.int32)
    ids[:2] = 0, 49
    got = get_rows(bench, bench.put(x, type_name), ids, "I32" if type_name == "I32" else "F32")
    np.testing.assert_array_equal(got, x[ids])


@pytest.mark.parametrize("type_name", QUANTISED)
def test_get_quantised(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    spec = TYPE_BY_NAME[type_name]
    raw = rng.integers(0, 256, (12, 512 // spec.block * spec.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        x = quants.dequantize(raw, GGMLQuantizationType[type_name])
    ids = rng.integers(0, 12, 31, dtype=np.int32)
    got = get_rows(bench, bench.put_raw(type_name, (12, 512), raw.tobytes()), ids)
    np.testing.assert_array_equal(got, x[ids])


def test_get_planes(bench: Bench, rng: np.random.Generator) -> None:
    """Each plane has indices of its own; the source is a view with gaps, the indices are strided."""
    x = rng.standard_normal((3, 2, 20, 40)).astype(np.float32)
    source = bench.view(bench.put(x), "F32", (3, 2, 20, 33), (2 * 20 * 160, 20 * 160, 160, 4), 16)
    ids = rng.integers(0, 20, (3, 2, 5), dtype=np.int32)
    table = bench.put(ids.repeat(2, axis=-1))
    every_second = bench.view(table, "I32", (3, 2, 5), (80, 40, 8))
    node = bench.node("GET_ROWS", "F32", (3, 2, 5, 33), [source, every_second])
    bench.run(node)
    expected = np.take_along_axis(x[..., 4:37], ids[..., None], axis=2)
    np.testing.assert_array_equal(bench.read(node), expected)


@pytest.mark.parametrize("bad", [-1, 20, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("type_name", ["F32", "Q4_0"])
def test_get_bad_index(bench: Bench, type_name: str, bad: int) -> None:
    source = bench.place(type_name, (20, 32))
    ids = np.zeros(9, np.int32)
    ids[7] = bad
    with pytest.raises(RpcError, match=rf"index {bad} in 'ids' is out of range \(0 .. 19\)"):
        bench.run(bench.node("GET_ROWS", "F32", (9, 32), [source, bench.put(ids, name="ids")]))


def test_indices_are_read_at_each_run(bench: Bench, rng: np.random.Generator) -> None:
    """One plan, other indices: other rows, and a bad index of a later run is found."""
    x = rng.standard_normal((8, 32)).astype(np.float32)
    ids = bench.put(np.array([1, 2], np.int32))
    node = bench.node("GET_ROWS", "F32", (2, 32), [bench.put(x), ids])
    plan = bench.compile([node])
    for pair in ([1, 2], [7, 0]):
        bench.write(ids, np.array(pair, np.int32).tobytes())
        plan.run()
        np.testing.assert_array_equal(bench.read(node).reshape(2, 32), x[pair])
    bench.write(ids, np.array([0, 8], np.int32).tobytes())
    with pytest.raises(RpcError, match="out of range"):
        plan.run()


@pytest.mark.parametrize("id_type", [np.int32, np.int64])
@pytest.mark.parametrize("source", ["F32", "F16"])
@pytest.mark.parametrize("target", TARGETS)
def test_set(bench: Bench, rng: np.random.Generator, target: str, source: str, id_type: type) -> None:
    """Named rows hold what CPY makes of the values; the others are untouched."""
    n = 1056
    x = rng.standard_normal((13, n)).astype(np.float16).astype(np.float32)
    ids = rng.permutation(40)[:13].astype(id_type)
    into = bench.place(target, (40, n), name="cache")
    before = bench.raw(into)
    set_rows(bench, bench.put(x if source == "F32" else x.astype(np.float16)), bench.put(ids), into)
    copied = bench.node("CPY", target, x.shape, [bench.put(x)])
    copied.src.append(copied)
    bench.run(copied)
    expected = np.frombuffer(before, np.uint8).reshape(40, -1).copy()
    expected[ids] = np.frombuffer(bench.raw(copied), np.uint8).reshape(13, -1)
    assert bench.raw(into) == expected.tobytes()


@pytest.mark.parametrize("n", [1, 17])
@pytest.mark.parametrize("target", ["F32", "F16"])
@pytest.mark.parametrize("id_shape", [(5, 3, 7), (1, 3, 7), (5, 1, 7), (1, 1, 7)])
def test_set_planes(bench: Bench, rng: np.random.Generator, id_shape: tuple[int, ...], target: str, n: int) -> None:
    """Lists of indices repeat over the planes; rows of one element have a kernel of their own."""
    x = rng.standard_normal((5, 3, 7, n)).astype(np.float32)
    ids = (
        np.stack([rng.permutation(11)[:7] for _ in range(id_shape[0] * id_shape[1])]).reshape(id_shape).astype(np.int64)
    )
    into = bench.put(np.zeros((5, 3, 11, n), np.float16 if target == "F16" else np.float32))
    node = set_rows(bench, bench.put(x), bench.put(ids), into)
    expected = np.zeros((5, 3, 11, n), np.float32)
    np.put_along_axis(expected, np.broadcast_to(ids, (5, 3, 7))[..., None], x, axis=2)
    np.testing.assert_array_equal(bench.read(node), expected.astype(np.float16 if target == "F16" else np.float32))


@pytest.mark.parametrize("target", ["F16", "F32"])
def test_set_transposed_cache(bench: Bench, rng: np.random.Generator, target: str) -> None:
    """As clients write a transposed value cache: every element is a row, thousands of indices."""
    dtype = np.float16 if target == "F16" else np.float32
    n_embd, n_kv, n_tokens = 96, 64, 50
    v = rng.standard_normal((n_tokens, n_embd)).astype(np.float32)
    slots = rng.permutation(n_kv)[:n_tokens]
    ids = (np.arange(n_embd)[None] * n_kv + slots[:, None]).astype(np.int64).ravel()
    into = bench.put(np.zeros((n_embd * n_kv, 1), dtype))
    node = set_rows(bench, bench.put(v.reshape(-1, 1)), bench.put(ids), into)
    expected = np.zeros((n_embd, n_kv), dtype)
    expected[:, slots] = v.T.astype(dtype)
    np.testing.assert_array_equal(bench.read(node).reshape(n_embd, n_kv), expected)


@pytest.mark.parametrize("bad", [-1, 16, 2**40, -(2**63)])
@pytest.mark.parametrize("n", [1, 32])
def test_set_bad_index(bench: Bench, n: int, bad: int) -> None:
    ids = np.arange(9, dtype=np.int64)
    ids[3] = bad
    into = bench.put(np.zeros((16, n), np.float32))
    with pytest.raises(RpcError, match=rf"index {bad} in 'ids' is out of range \(0 .. 15\)"):
        set_rows(bench, bench.put(np.ones((9, n), np.float32)), bench.put(ids, name="ids"), into)
