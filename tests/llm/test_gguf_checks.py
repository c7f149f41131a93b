"""The search for NaN and infinities agrees with decoding, wherever in a block they are put."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggml_rpc.errors import ModelError
from ggml_rpc.llm import gguf_checks
from ggml_rpc.llm.gguf_checks import checked_types, has_nonfinite, nonfinite_in
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.spec.types import TYPE_BY_NAME, TYPES
from tests.ops import ik_groups, ik_types
from tests.support.quants import decode

PLAIN = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
SMALL_FLOATS = {"MXFP4", "MXFP4_R8", "NVFP4"}
# Types that stand for activations only have no decoder to compare with.
COMPARED = sorted({t.name for t in TYPES if t.is_quantized} - SMALL_FLOATS - {"Q8_1", "Q8_K"})


def finite(name: str, raw: np.ndarray) -> bool:
    """Tell whether a row, or a group of rows, of one block decodes to numbers."""
    spec = TYPE_BY_NAME[name]
    if not (name in ik_types.ROWS or name in ik_groups.GROUPS):
        return bool(np.isfinite(decode(raw, name)).all())
    n = spec.row_group * spec.row_meta
    scale = np.ones(1)
    if n:
        scale = raw[: 2 * spec.row_group if spec.row_meta == 2 else 4 * spec.row_group].view(
            np.float16 if spec.row_meta == 2 else np.float32
        )
    values = (ik_groups.GROUPS if spec.row_group > 1 else ik_types.ROWS)[name](raw[n:].copy())
    return bool(np.isfinite(scale.astype(float)).all() and np.isfinite(values).all())


def test_every_type_can_be_judged() -> None:
    assert checked_types() == {t.name for t in TYPES}
    assert not any(TYPE_BY_NAME[name].row_meta for name in gguf_checks._FIELDS)


@pytest.mark.parametrize("name", COMPARED)
def test_agrees_with_decoding(name: str) -> None:
    spec = TYPE_BY_NAME[name]
    size = spec.row_bytes(spec.block) * spec.row_group
    found = set()
    for at in range(0, min(size - 1, 300), 2):
        raw = np.zeros(size, np.uint8)
        raw[at : at + 2] = (0x80, 0x7F)  # NaN as a half, the upper half of an infinity as a float
        with np.errstate(invalid="ignore"):
            expected = not finite(name, raw)
        assert nonfinite_in(raw, spec, spec.block) == expected, at
        found.add(expected)
    # The half of IQ1_M is spread over four words.
    assert found == ({False} if name == "IQ1_M" else {False, True})


def test_iq1_m() -> None:
    spec = TYPE_BY_NAME["IQ1_M"]
    found = set()
    for number in range(65536):
        nibbles = [number >> 4 * i & 15 for i in range(4)]
        if sum(n in (0, 15) for n in nibbles[:2]) < 2:  # the mantissa's low bits: both ends suffice
            continue
        raw = np.zeros(spec.bytes, np.uint8)
        raw[49:56:2] = [n << 4 for n in nibbles]
        with np.errstate(invalid="ignore", over="ignore"):
            expected = not finite("IQ1_M", raw)
        assert nonfinite_in(raw, spec, 256) == expected
        found.add(expected)
    assert found == {False, True}


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_activations(name: str) -> None:
    spec = TYPE_BY_NAME[name]
    raw = np.full(3 * spec.bytes, 0x7F, np.uint8).reshape(3, -1)
    raw[:, :4] = 0
    assert not nonfinite_in(raw.reshape(-1), spec, spec.block)
    raw[2, 2:4] = (0x80, 0x7F)
    assert nonfinite_in(raw.reshape(-1), spec, spec.block)


@pytest.mark.parametrize("name", ["MXFP4", "MXFP4_R8"])
def test_power_of_two(name: str) -> None:
    spec = TYPE_BY_NAME[name]
    group = spec.row_group
    raw = np.full(group * spec.bytes, 255, np.uint8)
    raw[:group] = 254
    assert not nonfinite_in(raw, spec, 32)
    raw[group - 1] = 255
    assert nonfinite_in(raw, spec, 32)


def test_nvfp4_has_no_nan() -> None:
    spec = TYPE_BY_NAME["NVFP4"]
    raw = np.repeat(np.arange(256, dtype=np.uint8), spec.bytes)
    assert not nonfinite_in(raw, spec, 64)
    assert np.isfinite(decode(raw.reshape(-1, spec.bytes), "NVFP4")).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [*PLAIN, "BF16", "BF16_R16"])
def test_plain(name: str, value: float) -> None:
    spec = TYPE_BY_NAME[name]
    n = 1 << 20  # several chunks
    dtype = PLAIN.get(name, np.float32)
    for at in (0, 1, n // 2 + 1, n - 1):
        numbers = np.full(n, np.finfo(dtype).max / 2, dtype)
        results = []
        for _ in range(2):
            raw = numbers.view(np.uint8)
            if name not in PLAIN:
                raw = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
            results.append(nonfinite_in(raw, spec, 1024))
            numbers[at] = value
        assert results == [False, True]


@pytest.mark.parametrize("name", ["Q4_K", "IQ4_KS", "IQ4_KS_R4", "Q8_0_R8"])
def test_any_row_and_chunk(name: str) -> None:
    spec = TYPE_BY_NAME[name]
    ne0 = 8 * spec.block
    n = 1600 * spec.row_group
    raw = np.zeros((n // spec.row_group, spec.row_group * spec.row_bytes(ne0)), np.uint8)
    for group in (0, 801, len(raw) - 1):
        assert not nonfinite_in(raw.reshape(-1), spec, ne0)
        raw[group, :4] = (0, 0, 0x80, 0x7F)
        assert nonfinite_in(raw.reshape(-1), spec, ne0)
        raw[group, :4] = 0


def test_a_tensor_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    good = np.ones((4, 32), np.float32)
    bad = good.copy()
    bad[3, 31] = np.nan
    for name, weight in (("good", good), ("bad", bad), ("whole", np.arange(8, dtype=np.int32))):
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile.open(path) as model:
        assert [name for name, t in model.tensors.items() if has_nonfinite(t)] == ["bad"]
    with pytest.raises(ModelError, match="closed"):
        has_nonfinite(model.tensors["good"])
