"""NumPy arrays to a type's bytes and back."""

from __future__ import annotations

import builtins
import importlib
from typing import Any

import gguf
import numpy as np
import pytest

from ggml_rpc.errors import GraphError, RpcError
from ggml_rpc.graph.quantise import DECODED, ENCODED, dequantise, quantise
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.support.quants import decode

# What a block's largest number may be off by, as a part of it: half a step between codes.
STEP = {
    "F32": 0,
    "F64": 0,
    "F16": 2**-11,
    "BF16": 2**-8,
    "Q4_0": 1 / 8,  # the code of the largest number of the other sign is one short
    "Q4_1": 1 / 14,
    "Q5_0": 1 / 16,
    "Q5_1": 1 / 30,
    "Q8_0": 1 / 254,
    "TQ1_0": 1 / 2,
    "TQ2_0": 1 / 2,
    "MXFP4": 1 / 3,  # above the largest code: 8 becomes 6
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("shape", [(256,), (3, 512), (2, 3, 256)])
def test_there_and_back(name: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = rng.uniform(-1, 1, shape).astype(np.float32)
    rows = quantise(array, name)
    spec = TYPE_BY_NAME[name]
    assert rows.dtype == np.uint8
    assert rows.flags.c_contiguous
    assert rows.shape == (*shape[:-1], spec.row_bytes(shape[-1]))
    values = dequantise(rows, name, shape)
    assert values.dtype == np.float32
    assert values.shape == shape
    blocks, got = (x.reshape(-1, max(spec.block, 1)).astype(float) for x in (array, values))
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    scale_off = 2**-11 if spec.is_quantized else 0  # the scale is a half itself
    assert (np.abs(got - blocks) <= (1.001 * STEP[name] + scale_off) * largest).all()
    if name not in ("F32", "F64"):
        assert (values != array).any()


@pytest.mark.parametrize("name", ENCODED)
def test_the_package_makes_the_same(name: str) -> None:
    array = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    expected = array.astype("<f8") if name == "F64" else gguf.quants.quantize(array, gguf.GGMLQuantizationType[name])
    assert quantise(array, name).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", DECODED)
def test_every_type_is_read(name: str) -> None:
    spec = TYPE_BY_NAME[name]
    raw = np.random.default_rng(2).integers(0, 256, (5, 2 * spec.bytes), np.uint8)
    values = dequantise(raw, name, (5, 2 * spec.block))
    with np.errstate(all="ignore"):
        expected = raw.view("<f8").astype(np.float32) if name == "F64" else decode(raw, name)
    np.testing.assert_array_equal(values, expected)
    for same in (raw.tobytes(), bytearray(raw.tobytes()), memoryview(raw), np.repeat(raw, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(dequantise(same, name, (5, 2 * spec.block)), values)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-38, 1e-7, 60000.0])
def test_extreme_blocks_stay_finite(name: str, value: float) -> None:
    rows = quantise(np.full((1, 256), value, np.float32), name)
    values = dequantise(rows, name, (1, 256))
    assert np.isfinite(values).all()
    if value == 0:
        assert (values == 0).all()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "F64"])
def test_plain_types_keep_what_is_no_number(name: str) -> None:
    array = np.array([np.nan, -np.nan, np.inf, -np.inf, 1], np.float32)
    array.view(np.uint32)[1] = 0xFFFFFFFF
    np.testing.assert_array_equal(dequantise(quantise(array, name), name, (5,)), array)


def test_bf16_rounds_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32)
    assert quantise(bits.view(np.float32), "BF16").view("<u2").tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80]


@pytest.mark.parametrize("dtype", ["i4", "u1", "?", "f2", "f8", ">f4"])
def test_other_numbers_and_orders(dtype: str) -> None:
    array = np.eye(32).astype(dtype)
    expected = quantise(np.eye(32, dtype=np.float32), "Q8_0")
    np.testing.assert_array_equal(quantise(array, "Q8_0"), expected)
    np.testing.assert_array_equal(quantise(np.repeat(array, 2, axis=1)[:, ::2], "Q8_0"), expected)


def test_an_empty_array() -> None:
    assert quantise(np.empty((0, 32), np.float32), "Q8_0").shape == (0, 34)
    assert dequantise(b"", "Q8_0", (0, 32)).shape == (0, 32)


@pytest.mark.parametrize(
    ("array", "name", "words"),
    [
        (np.ones(256), "Q4_K", "'Q4_K' cannot be made here; types that can: F32, F16, .* MXFP4"),
        (np.ones(256), "q8_0", "'q8_0' cannot be made"),
        (np.ones((2, 33)), "Q8_0", "rows of 33 are no whole number of Q8_0 blocks of 32"),
        (np.float32(1), "F32", "shape \\(\\)"),
        (np.array(["a"]), "F32", "real numbers"),
        (np.ones(32, complex), "F32", "complex128"),
        (np.full(32, np.nan), "Q8_0", "NaN"),
        (np.full(32, -np.inf), "Q4_0", "NaN or infinities"),
        (np.full(4, 65536.0), "F16", "range of float16"),
        (np.array([np.inf, 1e300]), "F32", "range of float32"),
        (np.full(4, 3.4e38), "BF16", "range of bfloat16"),
        (np.full(32, 1e300), "Q8_0", "range of float32"),
    ],
)
def test_what_cannot_be_made(array: Any, name: str, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        quantise(array, name)


@pytest.mark.parametrize(
    ("data", "name", "shape", "words"),
    [
        (bytes(34), "Q8_1", (32,), "'Q8_1' cannot be read here; types that can: .*IQ3_S"),
        (bytes(34), "Q8_0", (2, 32), "has 68 bytes, not 34"),
        (bytes(34), "Q8_0", (34,), "whole number"),
        (bytes(34), "Q8_0", (), "no shape"),
        (bytes(34), "Q8_0", (-1, -32), "no shape"),
    ],
)
def test_what_cannot_be_read(data: bytes, name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(GraphError, match=words):
        dequantise(data, name, shape)


@pytest.fixture
def no_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def refuse(name: str, package: str | None = None) -> Any:
        if name == "gguf":
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)


@pytest.mark.usefixtures("no_gguf")
def test_without_the_package() -> None:
    assert quantise(np.ones(4), "BF16").view("<u2").tolist() == [0x3F80] * 4
    for act in (lambda: quantise(np.ones(32), "Q8_0"), lambda: dequantise(bytes(34), "Q8_0", (32,))):
        with pytest.raises(RpcError, match=r"needs the package gguf: pip install 'ggml-rpc\[llm\]'"):
            act()


def test_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "GGMLQuantizationType", builtins.type("Old", (), {"__members__": {}}))
    with pytest.raises(RpcError, match="does not know MXFP4"):
        quantise(np.ones(32), "MXFP4")
