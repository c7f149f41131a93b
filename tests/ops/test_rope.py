"""ROPE and ROPE_BACK in all modes against float64."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from tests.ops.tolerances import check
from tests.support.device import Bench

NORMAL, NEOX, MROPE, VISION, IMROPE = 0, 2, 8, 24, 40
MODES = [NORMAL, NEOX, MROPE, VISION, IMROPE]


@dataclass
class Rope:
    """Parameters of the op."""

    n_dims: int
    mode: int = NORMAL
    n_ctx_orig: int = 4096
    freq_base: float = 10000.0
    freq_scale: float = 1.0
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    sections: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    offset: int = 0

    def pack(self) -> bytes:
        """Return the parameter words."""
        floats = (self.freq_base, self.freq_scale, self.ext_factor, self.attn_factor, self.beta_fast, self.beta_slow)
        head = struct.pack("<5i6f", 0, self.n_dims, self.mode, 0, self.n_ctx_orig, *floats)
        return head + struct.pack("<5i", *self.sections, self.offset)


def f32(x: float) -> float:
    return float(np.float32(x))


def streams(p: Rope, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which row of positions each pair follows and the exponent of its frequency."""
    stream, exponent = np.zeros(pairs, int), np.arange(pairs)
    if not p.mode & MROPE:
        return stream, exponent
    cycle = sum(p.sections)
    starts = np.cumsum([0, *p.sections[:3]])
    for i in range(pairs):
        sector = i % cycle
        if p.mode == IMROPE:
            s = sector % 3
            stream[i] = s if sector < 3 * p.sections[s] else 3
        else:
            stream[i] = max(s for s in range(4) if sector >= starts[s] and (s == 3 or p.sections[s] > 0))
            if stream[i] == 3 and sector < sum(p.sections[:3]):
                stream[i] = max(s for s in range(3) if sector >= starts[s] and p.sections[s] > 0)
        if p.mode == VISION:
            exponent[i] = sector - starts[stream[i]]
    return stream, exponent


def oracle(
    x: np.ndarray, positions: np.ndarray, p: Rope, factors: np.ndarray | None = None, back: bool = False
) -> np.ndarray:
    """Turn x (batch, token, head, channel)."""
    out = x.astype(np.float64)
    tokens = x.shape[1]
    pairs = p.n_dims if p.mode == VISION else p.n_dims // 2
    stream, exponent = streams(p, pairs)
    pos = positions.reshape(-1, tokens).astype(np.float64)
    theta = pos[stream].T * f32(p.freq_base) ** (-2.0 / p.n_dims * exponent)
    if factors is not None:
        theta = theta / factors[:pairs].astype(np.float64)
    magnitude = f32(p.attn_factor)
    if p.ext_factor:

        def dim(n_rot: float) -> float:
            return p.n_dims * math.log(p.n_ctx_orig / (n_rot * 2 * math.pi)) / (2 * math.log(p.freq_base))

        low = max(0, math.floor(dim(p.beta_fast)))
        high = min(p.n_dims - 1, math.ceil(dim(p.beta_slow)))
        ramp = (1 - np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)) * f32(p.ext_factor)
        theta = theta * f32(p.freq_scale) * (1 - ramp) + theta * ramp
        magnitude *= 1 + 0.1 * math.log(1 / f32(p.freq_scale))
    else:
        theta = theta * f32(p.freq_scale)
    c, s = np.cos(theta) * magnitude, np.sin(theta) * magnitude * (-1 if back else 1)
    c, s = c[None, :, None, :], s[None, :, None, :]
    if p.mode == NORMAL:
        first = p.offset + 2 * np.arange(pairs)
        second = first + 1
    else:
        first = p.offset + np.arange(pairs)
        second = first + (p.n_dims if p.mode == VISION else p.n_dims // 2)
    a, b = x[..., first].astype(np.float64), x[..., second].astype(np.float64)
    out[..., first] = a * c - b * s
    out[..., second] = a * s + b * c
    return out


def case(mode: int, d: int) -> Rope:
    """Return parameters that turn whole rows of d channels."""
    p = Rope(d // 2 if mode == VISION else d, mode)
    if mode & MROPE:
        part = d // 8
        p.sections = [d // 2 - 3 * part, part, part, part] if mode != VISION else [d // 4, d // 4, 0, 0]
    return p


def positions_for(rng: np.random.Generator, p: Rope, tokens: int, limit: int = 5000) -> np.ndarray:
    return rng.integers(0, limit, tokens * (4 if p.mode & MROPE else 1)).astype(np.int32)


@pytest.mark.parametrize("type_name", ["F32", "F16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("d", [8, 64, 80, 104])
def test_modes(bench: Bench, rng: np.random.Generator, type_name: str, mode: int, d: int) -> None:
    x = rng.standard_normal((2, 7, 3, d)).astype(np.float16 if type_name == "F16" else np.float32)
    p = case(mode, d)
    positions = positions_for(rng, p, 7)
    node = bench.node("ROPE", type_name, x.shape, [bench.put(x), bench.put(positions)], p.pack())
    bench.run(node)
    check(bench.read(node), oracle(x, positions, p), "f16" if type_name == "F16" else "f32")


@pytest.mark.parametrize("mode", MODES)
def test_back_undoes(bench: Bench, rng: np.random.Generator, mode: int) -> None:
    x = rng.standard_normal((1, 5, 2, 48)).astype(np.float32)
    p = case(mode, 48)
    positions = positions_for(rng, p, 5)
    tp = bench.put(positions)
    back = bench.node("ROPE_BACK", "F32", x.shape, [bench.put(x), tp], p.pack())
    forth = bench.node("ROPE", "F32", x.shape, [back, tp], p.pack())
    bench.run(back, forth)
    check(bench.read(back), oracle(x, positions, p, back=True), "f32")
    check(bench.read(forth), x.astype(np.float64), "f32")


@pytest.mark.parametrize("offset", [0, 6, 38])
@pytest.mark.parametrize("mode", [NORMAL, NEOX, MROPE])
def test_part_of_the_row(bench: Bench, rng: np.random.Generator, mode: int, offset: int) -> None:
    """Channels beside the turned ones are copied."""
    x = rng.standard_normal((1, 4, 3, 97)).astype(np.float32)
    p = case(mode, 58)
    p.offset = offset
    positions = positions_for(rng, p, 4)
    node = bench.node("ROPE", "F32", x.shape, [bench.put(x), bench.put(positions)], p.pack())
    bench.run(node)
    got = bench.read(node)
    check(got, oracle(x, positions, p), "f32")
    np.testing.assert_array_equal(got[..., :offset], x[..., :offset])
    np.testing.assert_array_equal(got[..., offset + 58 :], x[..., offset + 58 :])


@pytest.mark.parametrize("sections", [[16, 24, 24, 0], [0, 8, 8, 8], [4, 0, 4, 4], [8, 8, 0, 4], [1, 1, 1, 1]])
@pytest.mark.parametrize("mode", [MROPE, VISION, IMROPE])
def test_sections(bench: Bench, rng: np.random.Generator, mode: int, sections: list[int]) -> None:
    """Sections of any lengths, empty ones too; pairs beyond their sum start the cycle again."""
    if mode == VISION and 0 in sections[:3]:
        sections = [sections[0] + 2, sections[1] + 2, 5, sections[3]]
    x = rng.standard_normal((1, 6, 2, 128)).astype(np.float32)
    p = case(mode, 128)
    p.sections = sections
    positions = positions_for(rng, p, 6)
    node = bench.node("ROPE", "F32", x.shape, [bench.put(x), bench.put(positions)], p.pack())
    bench.run(node)
    check(bench.read(node), oracle(x, positions, p), "f32")


@pytest.mark.parametrize("ext_factor", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("n_ctx_orig", [512, 32768])
@pytest.mark.parametrize("mode", MODES)
def test_yarn(bench: Bench, rng: np.random.Generator, mode: int, n_ctx_orig: int, ext_factor: float) -> None:
    x = rng.standard_normal((1, 5, 2, 64)).astype(np.float32)
    p = case(mode, 64)
    p.n_ctx_orig, p.ext_factor, p.freq_scale, p.attn_factor, p.freq_base = n_ctx_orig, ext_factor, 0.25, 1.3, 500000.0
    positions = positions_for(rng, p, 5)
    node = bench.node("ROPE", "F32", x.shape, [bench.put(x), bench.put(positions)], p.pack())
    bench.run(node)
    check(bench.read(node), oracle(x, positions, p), "f32")


@pytest.mark.parametrize("mode", MODES)
def test_freq_factors(bench: Bench, rng: np.random.Generator, mode: int) -> None:
    x = rng.standard_normal((1, 5, 2, 64)).astype(np.float32)
    p = case(mode, 64)
    factors = rng.uniform(1, 8, 40).astype(np.float32)
    positions = positions_for(rng, p, 5)
    node = bench.node("ROPE", "F32", x.shape, [bench.put(x), bench.put(positions), bench.put(factors)], p.pack())
    bench.run(node)
    check(bench.read(node), oracle(x, positions, p, factors), "f32")


def test_large_positions_stay_exact(bench: Bench, rng: np.random.Generator) -> None:
    """Angles are held in f64: f32 powers would be off by 0.01 radians and more here."""
    positions = np.array([10**5, 10**6, 10**7, 2**29, -(10**6)], np.int32)
    x = rng.standard_normal((1, len(positions), 2, 128)).astype(np.float32)
    p = Rope(128, NEOX)
    node = bench.node("ROPE", "F32", x.shape, [bench.put(x), bench.put(positions)], p.pack())
    bench.run(node)
    check(bench.read(node), oracle(x, positions, p), "f32")


@pytest.mark.parametrize("freq_scale", [1.0, 1e30])
def test_extreme_positions_do_no_harm(bench: Bench, freq_scale: float) -> None:
    positions = np.array([-(2**31), 2**31 - 1, -1, 0], np.int32)
    x = np.ones((1, 4, 1, 32), np.float32)
    p = Rope(32, NORMAL, freq_scale=freq_scale)
    node = bench.node("ROPE", "F32", x.shape, [bench.put(x), bench.put(positions)], p.pack())
    bench.run(node)
    got = bench.read(node)
    assert (np.abs(got) < 1.5).all()
    np.testing.assert_array_equal(got[:, 3], x[:, 3])


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_senseless_factors_give_nan(bench: Bench, factor: float) -> None:
    """Factors are a tensor's contents, so they cannot be refused; only the pairs concerned suffer."""
    positions = np.array([0, 1, -5], np.int32)
    x = np.ones((1, 3, 2, 32), np.float32)
    factors = np.ones(16, np.float32)
    factors[3] = factor
    sources = [bench.put(x), bench.put(positions), bench.put(factors)]
    node = bench.node("ROPE", "F32", x.shape, sources, Rope(32, NORMAL).pack())
    bench.run(node)
    wrong = np.isnan(bench.read(node))
    assert wrong[..., 6:8].all()
    assert wrong.sum() == 3 * 2 * 2


@pytest.mark.parametrize("mode", [NORMAL, NEOX])
def test_permuted_view(bench: Bench, rng: np.random.Generator, mode: int) -> None:
    """A view whose heads lie outside its tokens, cut from wider rows."""
    base = rng.standard_normal((3, 6, 96)).astype(np.float32)  # head, token, channel
    t = bench.put(base)
    view = bench.view(t, "F32", (1, 6, 3, 64), (1, 96 * 4, 6 * 96 * 4, 4), offset=16 * 4)
    view.nb[3] = 3 * 6 * 96 * 4
    p = Rope(64, mode)
    positions = positions_for(rng, p, 6)
    node = bench.node("ROPE", "F32", (1, 6, 3, 64), [view, bench.put(positions)], p.pack())
    bench.run(node)
    check(bench.read(node), oracle(base[:, :, 16:80].transpose(1, 0, 2)[None], positions, p), "f32")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("type_name", ["F32", "F16"])
def test_in_place(bench: Bench, rng: np.random.Generator, mode: int, type_name: str) -> None:
    x = rng.standard_normal((1, 65, 4, 64)).astype(np.float16 if type_name == "F16" else np.float32)
    p = case(mode, 64)
    positions = positions_for(rng, p, 65)
    tx = bench.put(x)
    node = bench.node("ROPE", type_name, x.shape, [tx, bench.put(positions)], p.pack(), out=tx)
    bench.run(node)
    check(bench.read(node), oracle(x, positions, p), "f16" if type_name == "F16" else "f32")


@pytest.mark.parametrize(
    "bad",
    [
        Rope(64, 1),
        Rope(66),
        Rope(0),
        Rope(-2),
        Rope(31),
        Rope(32, offset=34),
        Rope(32, offset=-2),
        Rope(32, VISION, offset=2, sections=[8, 8, 8, 8]),
        Rope(64, VISION, sections=[8, 8, 8, 8]),
        Rope(64, MROPE),
        Rope(64, MROPE, sections=[-1, 8, 8, 8]),
        Rope(64, MROPE, sections=[2**31 - 1, 2**31 - 1, 8, 8]),
    ],
)
def test_refuses(bench: Bench, bad: Rope) -> None:
    """Parameters that would lead outside the row are refused before anything runs."""
    x = np.ones((1, 2, 1, 64), np.float32)
    positions = np.zeros(8 if bad.mode & MROPE else 2, np.int32)
    node = bench.node("ROPE", "F32", x.shape, [bench.put(x), bench.put(positions)], bad.pack())
    with pytest.raises(RpcError):
        bench.compile([node])
