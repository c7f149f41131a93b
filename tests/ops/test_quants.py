"""Rows of quantised types to and from f32, bit for bit against the format's reference."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from ggml_rpc.errors import RpcError
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.support.device import Bench, bf16_to_f32, f32_to_bf16
from tests.support.quants import decode

DEQUANT = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
DEQUANT += ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"]
DEQUANT += ["TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "NVFP4"]
# Types whose reference quantiser the gguf package has and whose CPU quantiser is the reference.
BY_REFERENCE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "TQ1_0", "TQ2_0"]
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def sizes(type_name: str) -> tuple[int, int]:
    """Return elements and bytes of a block."""
    return TYPE_BY_NAME[type_name].block, TYPE_BY_NAME[type_name].bytes


def rows_of(kind: str, rng: np.random.Generator, n_rows: int, n: int) -> np.ndarray:
    """Return f32 rows with the corner cases of quantisers."""
    x = rng.standard_normal((n_rows, n)).astype(np.float32)
    match kind:
        case "scaled":
            x *= (10.0 ** rng.integers(-6, 4, (n_rows, n // 32))).repeat(32, axis=1).astype(np.float32)
        case "ties":
            x = np.round(x * 2)
        case "zeros":
            x[::3] = 0
            x[1::3, : n // 2] = 0
        case "positive":
            x = np.abs(x)
        case "negative":
            x = -np.abs(x)
        case "symmetric":
            x[:, 1::2] = -x[:, ::2]
        case "constant":
            x[:] = x[:, :1]
    return np.ascontiguousarray(x + 0.0)  # no -0: whether it counts as least is left to the order of comparison


KINDS = ["normal", "scaled", "ties", "zeros", "positive", "negative", "symmetric", "constant"]


def run_quantize(bench: Bench, x: np.ndarray, type_name: str) -> np.ndarray:
    """Return the blocks that CPY makes of f32 rows, (rows, blocks, bytes)."""
    block, n_bytes = sizes(type_name)
    node = bench.node("CPY", type_name, x.shape, [bench.put(x)])
    node.src.append(node)
    bench.run(node)
    return np.frombuffer(bench.raw(node), np.uint8).reshape(len(x), x.shape[1] // block, n_bytes)


@pytest.mark.parametrize("type_name", DEQUANT)
def test_dequantize_bit_exact(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """Random bytes are valid blocks: every code, every scale, infinities and NaN too."""
    block, n_bytes = sizes(type_name)
    raw = rng.integers(0, 256, (7, 3 * 256 // block * n_bytes), dtype=np.uint8)
    source = bench.put_raw(type_name, (7, 768), raw.tobytes())
    node = bench.node("CPY", "F32", (7, 768), [source])
    node.src.append(node)
    bench.run(node)
    got = bench.read(node).reshape(7, 768)
    with np.errstate(all="ignore"):
        expected = decode(raw, type_name)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(got.view(np.uint32)[number], expected.view(np.uint32)[number])
    assert number.mean() > 0.7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_name", BY_REFERENCE)
def test_quantize_byte_exact(bench: Bench, rng: np.random.Generator, type_name: str, kind: str) -> None:
    x = rows_of(kind, rng, 9, 512)
    got = run_quantize(bench, x, type_name)
    expected = quants.quantize(x, GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)


@pytest.mark.parametrize(("type_name", "end"), [("Q4_0", -8), ("Q5_0", -16), ("Q4_1", 15), ("Q5_1", 31)])
def test_quantize_near_ties(bench: Bench, rng: np.random.Generator, type_name: str, end: int) -> None:
    """Values within two units of the last place of a tie: a product that is fused with the addition would show."""
    step = rng.uniform(0.5, 2, (400, 1)).astype(np.float32)
    code = rng.integers(0, abs(end), (400, 32)) + 0.5
    x = (step * (code if end > 0 else code * rng.choice([-1, 1], code.shape))).astype(np.float32)
    x = (x.view(np.int32) + rng.integers(-2, 3, x.shape, dtype=np.int32)).view(np.float32)
    x[:, 0] = end * step[:, 0]
    if end > 0:
        x[:, 1] = 0
    x = x.reshape(8, -1)
    got = run_quantize(bench, x, type_name)
    expected = quants.quantize(x, GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)


def stock_q8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return d (f32, before rounding) and codes of blocks of 32 by the stock CPU's rule: x * (127 / max) to even."""
    blocks = x.reshape(len(x), -1, 32)
    peak = np.abs(blocks).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        scale = np.where(peak > 0, np.float32(127) / peak, np.float32(0)).astype(np.float32)
    return (peak / np.float32(127))[..., 0], np.rint(blocks * scale).astype(np.int8)


@pytest.mark.parametrize("kind", KINDS)
def test_q8_0_as_stock_cpu(bench: Bench, rng: np.random.Generator, kind: str) -> None:
    x = rows_of(kind, rng, 9, 512)
    got = run_quantize(bench, x, "Q8_0")
    d, codes = stock_q8(x)
    np.testing.assert_array_equal(got[..., :2].copy().view("<f2")[..., 0], d.astype(np.float16))
    np.testing.assert_array_equal(got[..., 2:].copy().view(np.int8), codes)


@pytest.mark.parametrize("kind", KINDS)
def test_q8_1_as_stock_cpu(bench: Bench, rng: np.random.Generator, kind: str) -> None:
    """As Q8_0, and the sum of the codes times d, as half."""
    x = rows_of(kind, rng, 9, 512)
    got = run_quantize(bench, x, "Q8_1")
    d, codes = stock_q8(x)
    heads = got[..., :4].copy().view("<f2")
    np.testing.assert_array_equal(heads[..., 0], d.astype(np.float16))
    sums = codes.astype(np.int32).sum(axis=-1).astype(np.float32)
    np.testing.assert_array_equal(heads[..., 1], (d * sums).astype(np.float16))
    np.testing.assert_array_equal(got[..., 4:].copy().view(np.int8), codes)


@pytest.mark.parametrize("kind", KINDS)
def test_q8_k_as_stock_cpu(bench: Bench, rng: np.random.Generator, kind: str) -> None:
    """The first element of largest magnitude becomes -127; sums of 16 codes follow."""
    x = rows_of(kind, rng, 5, 768)
    got = run_quantize(bench, x, "Q8_K")
    blocks = x.reshape(5, 3, 256)
    first = np.abs(blocks).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(blocks, first, axis=-1)
    with np.errstate(divide="ignore"):
        scale = np.where(extreme != 0, np.float32(-127) / extreme, np.float32(0)).astype(np.float32)
        d = np.where(extreme != 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    codes = np.rint(blocks * scale).clip(-128, 127).astype(np.int8)
    np.testing.assert_array_equal(got[..., :4].copy().view("<f4"), d)
    np.testing.assert_array_equal(got[..., 4:260].copy().view(np.int8), codes)
    sums = codes.reshape(5, 3, 16, 16).astype(np.int16).sum(axis=-1)
    np.testing.assert_array_equal(got[..., 260:].copy().view("<i2"), sums)


@pytest.mark.parametrize("kind", KINDS)
def test_iq4_nl_as_stock_cpu(bench: Bench, rng: np.random.Generator, kind: str) -> None:
    """Codes by the extreme, then the scale of least squares with weights x^2, summed in order in f32."""
    x = rows_of(kind, rng, 9, 512)
    got = run_quantize(bench, x, "IQ4_NL").reshape(-1, 18)
    for block, result in zip(x.reshape(-1, 32), got, strict=True):
        extreme = block[np.abs(block).argmax()]
        if abs(extreme) < 1e-15:
            assert not result.any()
            continue
        scaled = block * (np.float32(1) / (extreme / IQ4_VALUES[0]))
        codes = np.searchsorted((IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2, scaled, side="right")
        value = IQ4_VALUES[codes]
        weighted = block * block * value
        sum_qx = sum_qq = np.float32(0)
        for a, b in zip(weighted * block, weighted * value, strict=True):
            sum_qx, sum_qq = sum_qx + a, sum_qq + b
        assert result[:2].view("<f2")[0] == np.float16(sum_qx / sum_qq)
        np.testing.assert_array_equal(result[2:] & 15, codes[:16])
        np.testing.assert_array_equal(result[2:] >> 4, codes[16:])


@pytest.mark.parametrize("kind", KINDS)
def test_q1_0_as_stock_cpu(bench: Bench, rng: np.random.Generator, kind: str) -> None:
    """The mean magnitude, summed in order in f32, and the signs."""
    x = rows_of(kind, rng, 9, 512)
    got = run_quantize(bench, x, "Q1_0")
    blocks = x.reshape(9, 4, 128)
    d = np.add.accumulate(np.abs(blocks), axis=-1, dtype=np.float32)[..., -1] / np.float32(128)
    np.testing.assert_array_equal(got[..., :2].copy().view("<f2")[..., 0], d.astype(np.float16))
    np.testing.assert_array_equal(got[..., 2:], np.packbits(blocks >= 0, axis=-1, bitorder="little"))


@pytest.mark.parametrize("kind", KINDS)
def test_q2_0_as_stock_cpu(bench: Bench, rng: np.random.Generator, kind: str) -> None:
    """The largest magnitude; elements of at least half of it are 1 or -1, never 2."""
    x = rows_of(kind, rng, 9, 512)
    got = run_quantize(bench, x, "Q2_0")
    blocks = x.reshape(9, 8, 64)
    d = np.abs(blocks).max(axis=-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(d > 0, np.float32(1) / d, np.float32(0)).astype(np.float32)
    scaled = (blocks * inverse[..., None]).astype(np.float64)
    codes = (1 + np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.uint8).reshape(9, 8, 16, 4)
    np.testing.assert_array_equal(got[..., :2].copy().view("<f2")[..., 0], d.astype(np.float16))
    np.testing.assert_array_equal(got[..., 2:], (codes << np.array([0, 2, 4, 6], np.uint8)).sum(axis=-1))


FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def stock_nvfp4(x: np.ndarray) -> np.ndarray:
    """Return blocks by the format's reference: the scale as unsigned 4+3-bit float, codes by the error in f32."""
    groups = x.reshape(-1, 16)
    d = quants.NVFP4.fp32_to_ue4m3(np.abs(groups).max(axis=1) / np.float32(6))
    scale = quants.NVFP4.ue4m3_to_fp32(d).astype(np.float32)
    with np.errstate(invalid="ignore"):
        error = np.abs(FP4_VALUES * scale[:, None, None] - groups[:, :, None])
    codes = error.argmin(axis=2).astype(np.uint8)
    return np.concatenate([d.reshape(-1, 4), (codes[:, :8] | codes[:, 8:] << 4).reshape(-1, 32)], axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_nvfp4_as_stock_cpu(bench: Bench, rng: np.random.Generator, kind: str) -> None:
    x = rows_of(kind, rng, 9, 512)
    got = run_quantize(bench, x, "NVFP4")
    np.testing.assert_array_equal(got.reshape(-1, 36), stock_nvfp4(x))


def test_nvfp4_scales_of_all_sizes(bench: Bench, rng: np.random.Generator) -> None:
    """Largest magnitudes from below the smallest scale to far beyond the largest, and near the ties between scales."""
    size = 2.0 ** rng.uniform(-16, 45, (64, 32)).astype(np.float32)
    step = np.arange(2**10, dtype=np.float32).reshape(32, 32) / 64 * 6
    x = np.concatenate([size, step]).repeat(16, axis=1).astype(np.float32)
    x *= rng.uniform(-1, 1, x.shape).astype(np.float32)
    x[:, ::16] = np.concatenate(
        [size, (step.view(np.int32) + rng.integers(-1, 2, step.shape, np.int32)).view(np.float32)]
    )
    x = np.nan_to_num(x, nan=0.0) + np.float32(0)
    got = run_quantize(bench, x, "NVFP4")
    np.testing.assert_array_equal(got.reshape(-1, 36), stock_nvfp4(x))


@pytest.mark.parametrize("type_name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"])
def test_no_quantiser_in_stock_either(bench: Bench, type_name: str) -> None:
    """These need tables and weights that only a tool that converts models has."""
    with pytest.raises(RpcError, match=type_name):
        run_quantize(bench, np.ones((1, 256), np.float32), type_name)


# type -> group, largest code, bias of signed codes (None: with a minimum)
K_GRIDS = {
    "Q2_K": (16, 3, None),
    "Q3_K": (16, 7, 4),
    "Q4_K": (32, 15, None),
    "Q5_K": (32, 31, None),
    "Q6_K": (16, 63, 32),
    "IQ4_XS": (32, 15, 8),
}


def nearest_grid(x: np.ndarray, type_name: str) -> np.ndarray:
    """Return x rounded to its group's plain grid from least to largest, scales unrounded: no search, no packing."""
    group, top, bias = K_GRIDS[type_name]
    g = x.astype(np.float64).reshape(-1, group)
    if bias is None:
        low = np.minimum(g.min(axis=1, keepdims=True), 0)
        step = (g.max(axis=1, keepdims=True) - low) / top
    else:
        low = 0.0
        step = np.take_along_axis(g, np.abs(g).argmax(axis=1)[:, None], axis=1) / -bias
    step = np.where(step == 0, 1, step)
    codes = np.rint((g - low) / step)
    codes = codes.clip(0, top) if bias is None else codes.clip(-bias, top - bias)
    return (codes * step + low).reshape(x.shape)


@pytest.mark.parametrize("kind", ["normal", "positive", "symmetric", "zeros"])
@pytest.mark.parametrize("type_name", list(K_GRIDS))
def test_k_quantise_is_as_good_as_its_grid(bench: Bench, rng: np.random.Generator, type_name: str, kind: str) -> None:
    """The search makes up for what rounding the scales costs, in every super-block."""
    x = rows_of(kind, rng, 12, 512)
    blocks = run_quantize(bench, x, type_name)
    decoded = quants.dequantize(blocks.reshape(12, -1), GGMLQuantizationType[type_name])
    error = np.square(decoded.astype(np.float64) - x).reshape(-1, 256).sum(axis=1)
    plain = np.square(nearest_grid(x, type_name) - x).reshape(-1, 256).sum(axis=1)
    assert error.sum() <= 1.15 * plain.sum()
    assert (error <= 2 * plain + 1e-12).all()


@pytest.mark.parametrize("type_name", list(K_GRIDS))
def test_k_quantise_keeps_its_own_grid(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """Values that lie on one grid come back to the precision of the half-precision scales, both ends included."""
    _, top, bias = K_GRIDS[type_name]
    if type_name == "IQ4_XS":
        codes = IQ4_VALUES[rng.integers(0, 16, (6, 16, 32))]
        codes[..., 0] = -127  # each group uses the end of the grid, so that its scale is known
        codes[..., 1] = 113
    else:
        low = 0 if bias is None else -bias
        codes = rng.integers(low, low + top + 1, (6, 32, 16)).astype(np.float32)
        codes[..., 0], codes[..., 1] = low, low + top
        if bias is None:
            codes -= top // 2
    x = (codes * np.float32(0.25)).reshape(6, 512)
    decoded = quants.dequantize(run_quantize(bench, x, type_name).reshape(6, -1), GGMLQuantizationType[type_name])
    np.testing.assert_allclose(decoded, x, rtol=2**-9, atol=2**-10 * np.abs(x).max())


@pytest.mark.parametrize("type_name", ["Q4_0", "Q5_1", "Q8_0", "IQ4_NL"])
@pytest.mark.parametrize("source", ["F16", "BF16"])
def test_quantize_from_half(bench: Bench, rng: np.random.Generator, type_name: str, source: str) -> None:
    """A 16-bit source gives what its values as f32 give."""
    x = rng.standard_normal((5, 1536)).astype(np.float32)
    x = x.astype(np.float16).astype(np.float32) if source == "F16" else bf16_to_f32(f32_to_bf16(x))
    expected = run_quantize(bench, x, type_name)
    node = bench.node("CPY", type_name, x.shape, [bench.put(x.astype(np.float16) if source == "F16" else x, source)])
    node.src.append(node)
    bench.run(node)
    assert bench.raw(node) == expected.tobytes()


@pytest.mark.parametrize(
    "type_name",
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_K", "IQ4_NL", "MXFP4", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "NVFP4"],
)
def test_not_a_number_is_harmless(bench: Bench, type_name: str) -> None:
    """NaN and infinities in one block leave the next block as it is."""
    x = np.linspace(-1, 1, 1024, dtype=np.float32).reshape(2, 512)
    clean = run_quantize(bench, x, type_name)
    x[0, 3], x[0, 17], x[0, 40] = np.nan, np.inf, -np.inf
    got = run_quantize(bench, x, type_name)
    np.testing.assert_array_equal(got[1], clean[1])


def test_block_sizes() -> None:
    """The reference package and this one mean the same layouts."""
    for name in set(DEQUANT) - {"Q2_0"}:  # which the package does not know yet
        assert sizes(name) == GGML_QUANT_SIZES[GGMLQuantizationType[name]]
