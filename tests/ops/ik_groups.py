"""Values of ik_llama.cpp's interleaved types, in float64.

A decoder takes the bytes of one block of all rows of a group, without headers, and gives (rows, elements).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import quants

from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.ops.ik_types import T2, T3, T4, T5, Block, Decoder, bit, nib, u16, u32

FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]) / 2


def codes_of_four(p: Block, qs: int, i: int) -> np.ndarray:
    """Return the nibbles of block i of 32 in groups of four rows, (4, 32)."""
    q = np.empty((4, 32), int)
    for k in range(4):
        for part, first in enumerate((0, 16, 4, 20)):
            for j in range(4):
                byte = p[qs + 64 * i + 16 * part + 4 * k + j]
                q[k, first + j], q[k, first + j + 8] = nib(byte, 0), nib(byte, 1)
    return q


def pairs_of_four(p: Block, qs: int, i: int) -> np.ndarray:
    """Return the codes of 2 bits of block i of 32 in groups of four rows, (4, 32)."""
    q = np.empty((4, 32), int)
    for k in range(4):
        for e in range(32):
            q[k, e] = int(p[qs + 32 * i + 16 * (e // 16) + 4 * k + e % 4]) >> 2 * (e % 16 // 4) & 3
    return q


def high_of_four(p: Block, qh: int, i: int, order: tuple[int, ...]) -> np.ndarray:
    """Return one more bit each; `order[n]` is the bit of elements 4 n to 4 n + 3, (4, 32)."""
    return np.array([[bit(p[qh + 16 * i + 4 * k + e % 4], order[e // 4]) for e in range(32)] for k in range(4)])


STRAIGHT = tuple(range(8))
BY_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)


def six(p: Block, low: int, high: int, at: int) -> int:
    """Return a scale of 6 bits: 32 bytes of nibbles, 16 bytes of pairs."""
    return nib(p[low + at % 32], at // 32) | (int(p[high + at % 16]) >> 2 * (at // 16) & 3) << 4


def halves(p: Block, at: int, n: int) -> np.ndarray:
    """Return n halves as a column."""
    return p[at : at + 2 * n].view(np.float16).astype(float).reshape(n, 1)


def per_16(first: list[int], second: list[int]) -> np.ndarray:
    """Return (4, 32) of one number for the first 16 elements and one for the others."""
    return np.repeat(np.array([first, second]).T, 16, axis=1)


def by_blocks(block: Callable[[Block, int], np.ndarray]) -> Decoder:
    """Join eight blocks of 32."""
    return lambda p: np.concatenate([block(p, i) for i in range(8)], axis=1)


def iq4_nl_r4(p: Block) -> np.ndarray:
    return halves(p, 0, 4) * T4[codes_of_four(p, 8, 0)]


def q5_0_r4(p: Block) -> np.ndarray:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return halves(p, 0, 4) * ((codes_of_four(p, 24, 0) | high_of_four(p, 8, 0, order) << 4) - 16)


def q6_0_r4(p: Block) -> np.ndarray:
    q = codes_of_four(p, 40, 0)
    for k in range(4):
        for e in range(32):
            q[k, e] |= (int(p[8 + 16 * (e // 16) + 4 * k + e % 4]) >> 2 * (e % 16 // 4) & 3) << 4
    return halves(p, 0, 4) * (q - 32)


def q2_k_r4(p: Block, i: int) -> np.ndarray:
    s = [[int(p[16 + 8 * i + 4 * h + k]) for k in range(4)] for h in range(2)]
    scales, minima = (per_16(*[[x >> shift & 15 for x in half] for half in s]) for shift in (0, 4))
    return halves(p, 0, 4) * scales * pairs_of_four(p, 80, i) - halves(p, 8, 4) * minima


def q3_k_r4(p: Block, i: int) -> np.ndarray:
    scales = per_16(*[[six(p, 24, 8, 8 * i + 4 * h + k) - 32 for k in range(4)] for h in range(2)])
    return halves(p, 0, 4) * scales * ((pairs_of_four(p, 184, i) | high_of_four(p, 56, i, STRAIGHT) << 2) - 4)


def scale_and_minimum(p: Block, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and minima of a block of Q4_K_R4 or Q5_K_R4, a column each."""
    s, m = np.empty((4, 1)), np.empty((4, 1))
    for k in range(4):
        at = 4 * i + k
        low, high = int(p[32 + at]), int(p[16 + at % 16]) >> 4 * (at // 16)
        s[k], m[k] = low & 15 | (high & 3) << 4, low >> 4 | (high & 12) << 2
    return halves(p, 0, 4) * s, halves(p, 8, 4) * m


def q4_k_r4(p: Block, i: int) -> np.ndarray:
    d, m = scale_and_minimum(p, i)
    return d * codes_of_four(p, 64, i) - m


def q5_k_r4(p: Block, i: int) -> np.ndarray:
    d, m = scale_and_minimum(p, i)
    return d * (codes_of_four(p, 192, i) | high_of_four(p, 64, i, (0, 2, 1, 3, 4, 6, 5, 7)) << 4) - m


def q6_k_r4(p: Block, i: int) -> np.ndarray:
    q = codes_of_four(p, 328, i)
    for k in range(4):
        for e in range(32):
            shift = (0, 4, 2, 6)[e % 16 // 4]
            q[k, e] |= (int(p[72 + 32 * i + 16 * (e // 16) + 4 * k + e % 4]) >> shift & 3) << 4
    s = p[8:72].view(np.int8)[8 * i : 8 * i + 8].astype(int)
    return halves(p, 0, 4) * per_16(list(s[:4]), list(s[4:])) * (q - 32)


def extra(p: Block, i: int) -> np.ndarray:
    """Return which elements are on the moved grid, (4, 32) of 0 and 1."""
    return per_16(*[[bit(p[8 + 4 * h + k], i) for k in range(4)] for h in range(2)])


def iq2_k_r4(p: Block, i: int) -> np.ndarray:
    at = [[8 * i + 4 * h + k for k in range(4)] for h in range(2)]
    scales = per_16(*[[nib(p[16 + a % 32], a // 32) - 8 for a in half] for half in at])
    return halves(p, 0, 4) * scales * T2[4 * extra(p, i) + pairs_of_four(p, 48, i)]


def iq3_k_r4(p: Block, i: int) -> np.ndarray:
    at = [[8 * i + 4 * h + k for k in range(4)] for h in range(2)]
    scales = [
        [(2 * nib(p[24 + a % 32], a // 32) + 1) * (-1 if bit(p[16 + a % 8], a // 8) else 1) for a in half]
        for half in at
    ]
    q = pairs_of_four(p, 56, i) | high_of_four(p, 312, i, STRAIGHT) << 2
    return halves(p, 0, 4) * per_16(*scales) * T3[8 * extra(p, i) + q]


def iq4_k_r4(p: Block, i: int) -> np.ndarray:
    scales = per_16(*[[six(p, 32, 16, 8 * i + 4 * h + k) - 32 for k in range(4)] for h in range(2)])
    return halves(p, 0, 4) * scales * T4[16 * extra(p, i) + codes_of_four(p, 64, i)]


def iq5_k_r4(p: Block, i: int) -> np.ndarray:
    scales = per_16(*[[six(p, 32, 16, 8 * i + 4 * h + k) - 32 for k in range(4)] for h in range(2)])
    q = codes_of_four(p, 64, i) | high_of_four(p, 576, i, BY_NIBBLE) << 4
    return halves(p, 0, 4) * scales * T5[32 * extra(p, i) + q]


def iq4_ks_r4(p: Block, i: int) -> np.ndarray:
    s = p[4 * i : 4 * i + 4].astype(int).reshape(4, 1)
    return ((s & 254) - 127) * T4[16 * (s & 1) + codes_of_four(p, 32, i)]


def iq5_ks_r4(p: Block, i: int) -> np.ndarray:
    s = p[4 * i : 4 * i + 4].astype(int).reshape(4, 1)
    q = codes_of_four(p, 32, i) | high_of_four(p, 544, i, BY_NIBBLE) << 4
    return ((s & 254) - 127) * T5[32 * (s & 1) + q]


def iq2_bn_r4(p: Block) -> np.ndarray:
    return np.array(
        [[(int(p[4 * k + e % 4 + 16 * (e // 16)]) >> 2 * (e % 16 // 4) & 3) - 1.0 for e in range(64)] for k in range(4)]
    )


def fours(p: Block, n_rows: int) -> np.ndarray:
    """Return bytes that n rows hold four by four, (rows, bytes)."""
    return np.ascontiguousarray(p.reshape(-1, n_rows, 4).transpose(1, 0, 2)).reshape(n_rows, -1)


def nibbles_of_eight(p: Block) -> np.ndarray:
    q = fours(p, 8).astype(int)
    return np.concatenate([q & 15, q >> 4], axis=1)


def q4_0_r8(p: Block) -> np.ndarray:
    return halves(p, 0, 8) * (nibbles_of_eight(p[16:]) - 8)


def mxfp4_r8(p: Block) -> np.ndarray:
    return 2.0 ** (p[:8].astype(float).reshape(8, 1) - 127) * FP4[nibbles_of_eight(p[8:])]


def q8_0_r8(p: Block) -> np.ndarray:
    return halves(p, 0, 8) * fours(p[16:], 8).view(np.int8)


def iq4_xs_r8(p: Block, i: int) -> np.ndarray:
    scales = np.array([six(p, 32, 16, 8 * i + k) - 32 for k in range(8)]).reshape(8, 1)
    packed = fours(p[64 + 128 * i : 192 + 128 * i], 8).astype(int).reshape(8, 4, 4)
    return halves(p, 0, 8) * scales * T4[np.stack([packed & 15, packed >> 4], axis=2).reshape(8, 32)]


def q8_kv_r8(p: Block) -> np.ndarray:
    return fours(p, 8).view(np.int8).astype(float)


def q8_k_r8(p: Block) -> np.ndarray:
    return halves(p, 0, 8) * fours(p[16:], 8).view(np.int8)


def q8_k_r16(p: Block) -> np.ndarray:
    return halves(p, 0, 16) * (fours(p[32:], 16).astype(int) - 128)


# ---- Code books, interleaved ----


def book(
    kind: type[quants.IQ2_XXS | quants.IQ2_XS | quants.IQ2_S | quants.IQ3_XXS | quants.IQ3_S | quants.IQ1_S],
) -> np.ndarray:
    """Return the entries of a code book, one a row."""
    kind.init_grid()
    assert kind.grid is not None
    entries: np.ndarray = kind.grid.reshape(kind.grid_shape).astype(float)
    return entries


BOOK2_XXS, BOOK2_XS, BOOK2_S = book(quants.IQ2_XXS), book(quants.IQ2_XS), book(quants.IQ2_S)
BOOK3_XXS, BOOK3_S, BOOK1 = book(quants.IQ3_XXS), book(quants.IQ3_S), book(quants.IQ1_S)


def signs(mask: int, n: int) -> np.ndarray:
    """Return -1 where one of n bits is set, else 1."""
    return np.array([-1 if bit(mask, i) else 1 for i in range(n)])


def xxs(word: int) -> tuple[int, list[int]]:
    """Return the scale and the four bytes of signs of a word."""
    data = word.to_bytes(4, "little")
    scale = sum((b & 1) << i for i, b in enumerate(data))
    return 2 * scale + 1, [(b & 254) ^ (b & 254) >> 1 for b in data]


def iq2_xxs_r4(p: Block, i: int) -> np.ndarray:
    rows = []
    for k in range(4):
        scale, masks = xxs(u32(p, 8 + 4 * (4 * i + k)))
        codes = p[136 + 16 * i + 4 * k :][:4]
        row = [BOOK2_XXS[q] * signs(m, 8) for q, m in zip(codes, masks, strict=True)]
        rows.append(0.125 * scale * np.concatenate(row))
    return halves(p, 0, 4) * np.array(rows)


def iq3_xxs_r4(p: Block, i: int) -> np.ndarray:
    rows = []
    for k in range(4):
        scale, masks = xxs(u32(p, 8 + 4 * (4 * i + k)))
        codes = p[136 + 32 * i + 8 * k :][:8]
        row = np.concatenate([BOOK3_XXS[q] for q in codes]) * np.concatenate([signs(m, 8) for m in masks])
        rows.append(0.25 * scale * row)
    return halves(p, 0, 4) * np.array(rows)


def odd_nibbles(byte: int) -> np.ndarray:
    """Return two scales, for 16 elements each."""
    return np.repeat([2 * nib(byte, 0) + 1, 2 * nib(byte, 1) + 1], 16)


def iq2_xs_r4(p: Block, i: int) -> np.ndarray:
    rows = []
    for k in range(4):
        words = [u16(p, 8 + 2 * (16 * i + 4 * k + j)) for j in range(4)]
        row = [BOOK2_XS[q & 511] * signs((q >> 9) ^ (q >> 9) << 1, 8) for q in words]
        rows.append(0.125 * odd_nibbles(p[264 + 4 * i + k]) * np.concatenate(row))
    return halves(p, 0, 4) * np.array(rows)


def iq2_s_r4(p: Block, i: int) -> np.ndarray:
    rows = []
    for k in range(4):
        at, high = 16 * i + 4 * k, int(p[136 + 4 * i + k])
        row = [BOOK2_S[int(p[8 + at + j]) | (high >> 2 * j & 3) << 8] * signs(p[168 + at + j], 8) for j in range(4)]
        rows.append(0.125 * odd_nibbles(p[296 + 4 * i + k]) * np.concatenate(row))
    return halves(p, 0, 4) * np.array(rows)


def iq3_s_r4(p: Block, i: int) -> np.ndarray:
    y = np.empty((4, 32))
    for k in range(4):
        at = 4 * i + k
        for g in range(8):
            # Groups 0 to 3 at every second place, then 4 to 7 between them.
            q = int(p[8 + 32 * i + k + 8 * (g % 4) + 4 * (g // 4)]) | bit(p[264 + at], g) << 8
            mask = [bit(p[296 + 16 * i + 4 * k + j], g) for j in range(4)]
            y[k, 4 * g : 4 * g + 4] = BOOK3_S[q] * np.where(mask, -1, 1)
        y[k] *= 2 * nib(p[424 + at % 16], at // 16) + 1
    return halves(p, 0, 4) * y


def iq1_s_r4(p: Block) -> np.ndarray:
    rows = []
    for k in range(4):
        high = u16(p, 16 + 2 * k)
        shift = -0.125 if high & 0x8000 else 0.125
        row = [BOOK1[int(p[4 * j + k]) | (high >> 3 * j & 7) << 8] + shift for j in range(4)]
        rows.append((2 * (high >> 12 & 7) + 1) * np.concatenate(row))
    return np.array(rows)


def iq1_m_r4(p: Block) -> np.ndarray:
    rows = []
    for k in range(4):
        row = []
        for j in range(4):
            high = nib(p[16 + 4 * (j // 2) + k], j % 2)
            shift = -0.125 if high & 8 else 0.125
            row.append(nib(p[24 + k], j // 2) * (BOOK1[int(p[4 * j + k]) | (high & 7) << 8] + shift))
        rows.append(np.concatenate(row))
    return np.array(rows)


GROUPS: dict[str, Decoder] = {
    "Q4_0_R8": q4_0_r8,
    "Q5_0_R4": q5_0_r4,
    "Q8_0_R8": q8_0_r8,
    "Q2_K_R4": by_blocks(q2_k_r4),
    "Q3_K_R4": by_blocks(q3_k_r4),
    "Q4_K_R4": by_blocks(q4_k_r4),
    "Q5_K_R4": by_blocks(q5_k_r4),
    "Q6_K_R4": by_blocks(q6_k_r4),
    "IQ4_NL_R4": iq4_nl_r4,
    "IQ4_XS_R8": by_blocks(iq4_xs_r8),
    "Q6_0_R4": q6_0_r4,
    "IQ2_BN_R4": iq2_bn_r4,
    "IQ2_K_R4": by_blocks(iq2_k_r4),
    "IQ3_K_R4": by_blocks(iq3_k_r4),
    "IQ4_K_R4": by_blocks(iq4_k_r4),
    "IQ5_K_R4": by_blocks(iq5_k_r4),
    "IQ4_KS_R4": by_blocks(iq4_ks_r4),
    "IQ5_KS_R4": by_blocks(iq5_ks_r4),
    "MXFP4_R8": mxfp4_r8,
    "Q8_K_R16": q8_k_r16,
    "Q8_KV_R8": q8_kv_r8,
    "Q8_K_R8": q8_k_r8,
    "IQ2_XXS_R4": by_blocks(iq2_xxs_r4),
    "IQ2_XS_R4": by_blocks(iq2_xs_r4),
    "IQ2_S_R4": by_blocks(iq2_s_r4),
    "IQ3_XXS_R4": by_blocks(iq3_xxs_r4),
    "IQ3_S_R4": by_blocks(iq3_s_r4),
    "IQ1_S_R4": iq1_s_r4,
    "IQ1_M_R4": iq1_m_r4,
}
"""Interleaved types but BF16_R16, whose blocks are pairs of elements."""

# Size of the halves at a block's start; the second group of them (minima) where there is one.
GROUP_HALVES = {
    "Q4_0_R8": (0.1,),
    "Q5_0_R4": (0.05,),
    "Q8_0_R8": (0.01,),
    "Q2_K_R4": (0.05, 0.05),
    "Q3_K_R4": (0.01,),
    "Q4_K_R4": (0.005, 0.04),
    "Q5_K_R4": (0.0025, 0.04),
    "Q6_K_R4": (0.0005,),
    "IQ4_NL_R4": (0.01,),
    "IQ4_XS_R8": (0.0005,),
    "Q6_0_R4": (0.03,),
    "IQ2_K_R4": (0.01,),
    "IQ3_K_R4": (0.002,),
    "IQ4_K_R4": (0.001,),
    "IQ5_K_R4": (0.001,),
    "Q8_K_R16": (0.01,),
    "Q8_K_R8": (0.01,),
    "IQ2_XXS_R4": (0.02,),
    "IQ2_XS_R4": (0.02,),
    "IQ2_S_R4": (0.02,),
    "IQ3_XXS_R4": (0.01,),
    "IQ3_S_R4": (0.01,),
}
GROUP_HEADER = {
    "IQ2_BN_R4": 1.0,
    "IQ4_KS_R4": 3e-4,
    "IQ5_KS_R4": 3e-4,
    "Q8_KV_R8": 0.01,
    "IQ1_S_R4": 0.1,
    "IQ1_M_R4": 0.1,
}


def random_groups(name: str, rng: np.random.Generator, n_rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random rows of an interleaved type as bytes, and their values, (rows, k)."""
    spec = TYPE_BY_NAME[name]
    group = spec.row_group
    if name == "BF16_R16":
        bits = ((rng.standard_normal((n_rows, k)).astype(np.float32)).view(np.uint32) >> 16).astype(np.uint16)
        values = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        pairs = bits.reshape(-1, group, k // 2, 2).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(pairs).view(np.uint8).reshape(-1), values
    raw = rng.integers(0, 256, (n_rows // group, group * spec.row_bytes(k)), np.uint8)
    parts = []
    for data in raw:
        factor = np.ones((group, 1))
        if spec.row_meta:
            kind = np.float16 if spec.row_meta == 2 else np.float32
            header = (GROUP_HEADER[name] * rng.uniform(0.5, 1.5, group)).astype(kind)
            data[: header.nbytes] = header.view(np.uint8)
            factor = header.astype(float).reshape(group, 1)
        blocks = data[group * spec.row_meta :].reshape(-1, group * spec.bytes)
        for i, size in enumerate(GROUP_HALVES.get(name, ())):
            scales = (size * rng.uniform(0.5, 1.5, (len(blocks), group))).astype(np.float16)
            blocks[:, 2 * group * i : 2 * group * (i + 1)] = scales.view(np.uint8)
        if name == "MXFP4_R8":
            blocks[:, :8] = rng.integers(120, 126, (len(blocks), 8))
        parts.append(factor * np.concatenate([GROUPS[name](np.ascontiguousarray(b)) for b in blocks], axis=1))
    return raw.reshape(-1), np.concatenate(parts)
