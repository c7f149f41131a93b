"""Values of ik_llama.cpp's tensor types, in float64: each from the formula of its format, an element at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ggml_rpc.spec.types import TYPE_BY_NAME

T2 = np.array([-31, -13, 1, 17, -26, -8, 6, 22])
T3 = np.array([-63, -40, -23, -10, 1, 13, 28, 47, -59, -36, -19, -6, 5, 17, 32, 51])
T4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
T4 = np.concatenate([T4, T4 + 4])
T5 = np.array([-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6])
T5 = np.concatenate([T5, [-1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121]])
T5 = np.concatenate([T5, T5 + 2])
# Pairs of neighbours: the even element, the odd one.
KL_EVEN = np.array([-63, -63, -40, -40, -40, -40, -23, -23, -23, -23, -23, -10, -10, -10, -10, 1])
KL_EVEN = np.concatenate([KL_EVEN, [1, 1, 1, 1, 13, 13, 13, 13, 13, 28, 28, 28, 28, 28, 47, 47]])
KL_ODD = np.array([-23, 13, -63, -10, 13, 47, -40, -23, 1, 13, 28, -63, 1, 13, 47, -23])
KL_ODD = np.concatenate([KL_ODD, [-10, 1, 13, 28, -40, -23, -10, 1, 13, -63, -23, 1, 28, 47, -23, 13]])
KL = np.array([KL_EVEN, KL_ODD]).T

Block = np.ndarray  # the bytes of one block
Decoder = Callable[[Block], np.ndarray]


def f16(block: Block, at: int) -> float:
    """Read a half."""
    return float(block[at : at + 2].view(np.float16)[0])


def u16(block: Block, at: int) -> int:
    """Read a word."""
    return int(block[at : at + 2].view(np.uint16)[0])


def u32(block: Block, at: int) -> int:
    """Read a double word."""
    return int(block[at : at + 4].view(np.uint32)[0])


def nib(byte: int, high: int) -> int:
    """Read the low or the high nibble."""
    return int(byte) >> 4 * high & 15


def bit(number: int, i: int) -> int:
    """Read bit i."""
    return int(number) >> i & 1


def two_bits(p: Block, qs: int, e: int) -> int:
    """Read a code of 2 bits where 32 bytes hold four blocks of 32."""
    return int(p[qs + 32 * (e // 128) + e % 32]) >> 2 * (e // 32 % 4) & 3


def q6_0(p: Block) -> np.ndarray:
    y = np.empty(32)
    for i in range(16):
        h = int(p[2 + i % 8]) >> 4 * (i // 8)
        y[i] = (nib(p[10 + i], 0) | (h & 3) << 4) - 32
        y[16 + i] = (nib(p[10 + i], 1) | (h >> 2 & 3) << 4) - 32
    return y * f16(p, 0)


def iq2_k(p: Block) -> np.ndarray:
    d, x = f16(p, 0), u16(p, 2)
    return np.array(
        [d * (nib(p[4 + e // 32], e // 16 % 2) - 8) * T2[4 * bit(x, e // 16) + two_bits(p, 12, e)] for e in range(256)]
    )


def iq3_k(p: Block) -> np.ndarray:
    d, x, signs = f16(p, 0), u16(p, 2), u16(p, 4)
    y = np.empty(256)
    for e in range(256):
        s = e // 16
        scale = (2 * nib(p[6 + s // 2], s % 2) + 1) * (-1 if bit(signs, s) else 1)
        q = two_bits(p, 14, e) | bit(p[78 + e % 32], e // 32) << 2
        y[e] = d * scale * T3[8 * bit(x, s) + q]
    return y


def scale_k(p: Block, s: int) -> int:
    """Scale of IQ4_K and IQ5_K."""
    return (nib(p[8 + s // 2], s % 2) | (int(p[4 + s // 4]) >> 2 * (s % 4) & 3) << 4) - 32


def iq4_k(p: Block) -> np.ndarray:
    d, x = f16(p, 0), u16(p, 2)
    return np.array(
        [
            d * scale_k(p, e // 16) * T4[16 * bit(x, e // 16) + nib(p[16 + 16 * (e // 32) + e % 16], e % 32 // 16)]
            for e in range(256)
        ]
    )


def five_bits(p: Block, qs: int, qh: int, e: int) -> int:
    """Read a code of 5 bits."""
    return nib(p[qs + 32 * (e // 64) + e % 32], e // 32 % 2) | bit(p[qh + e % 32], e // 32) << 4


def iq5_k(p: Block) -> np.ndarray:
    d, x = f16(p, 0), u16(p, 2)
    return np.array([d * scale_k(p, e // 16) * T5[32 * bit(x, e // 16) + five_bits(p, 16, 144, e)] for e in range(256)])


def iq6_k(p: Block) -> np.ndarray:
    d, x = f16(p, 0), u16(p, 2)
    y = np.empty(256)
    for e in range(256):
        q = nib(p[20 + 32 * (e // 64) + e % 32], e // 32 % 2) | two_bits(p, 148, e) << 4
        value = -127 + 6.2568 * q - 0.11218 * q**2 + 0.0011972 * q**3 + bit(x, e // 16)
        y[e] = d * int(p[4 + e // 16].view(np.int8)) * value
    return y


def iq4_ks(p: Block) -> np.ndarray:
    y = np.empty(256)
    for e in range(256):
        scale = int(p[e // 32])
        y[e] = ((scale & 254) - 127) * T4[16 * (scale & 1) + nib(p[8 + 16 * (e // 32) + e % 16], e % 32 // 16)]
    return y


def iq5_ks(p: Block) -> np.ndarray:
    y = np.empty(256)
    for e in range(256):
        scale = int(p[e // 32])
        y[e] = ((scale & 254) - 127) * T5[32 * (scale & 1) + five_bits(p, 8, 136, e)]
    return y


def iq2_ks(p: Block) -> np.ndarray:
    x = u16(p, 0)
    y = np.empty(256)
    for e in range(256):
        b = e // 32
        scale = (nib(p[2 + b // 2], b % 2) | bit(x, 8 + b) << 4) - 16
        y[e] = scale * T2[4 * bit(x, b) + two_bits(p, 6, e)]
    return y


def iq3_ks(p: Block) -> np.ndarray:
    x = u16(p, 0)
    y = np.empty(256)
    for e in range(256):
        b = e // 32
        scale = (nib(p[2 + b % 4], b // 4) | bit(x, b) << 4) - 16
        y[e] = scale * T3[8 * bit(x, 8 + b) + (two_bits(p, 6, e) | bit(p[70 + e % 32], b) << 2)]
    return y


def iq4_kss(p: Block) -> np.ndarray:
    y = np.empty(256)
    for b in range(8):
        words = p[16 * b : 16 * b + 16].view(np.uint16).astype(int)
        scale = sum((int(w) & 1) << k for k, w in enumerate(words))
        v = ((words & 0xFFFE) ^ (words & 0xFFFE) >> 1).astype(np.uint16).view(np.uint8).astype(int)
        q = np.concatenate([v & 15, v >> 4])
        y[32 * b : 32 * b + 32] = ((scale & 254) - 127) * T4[16 * (scale & 1) + q]
    return y


def iq2_kl(p: Block) -> np.ndarray:
    y = np.empty(256)
    for e in range(256):
        b, pair = e // 32, e % 32 // 2
        scale = (nib(p[2 + b % 4], b // 4) | (u16(p, 0) >> 2 * b & 3) << 4) - 32
        y[e] = scale * KL[nib(p[6 + 16 * (b // 2) + pair], b % 2) | bit(p[70 + pair], b) << 4, e % 2]
    return y


def trellis(start: int, n: int) -> np.ndarray:
    """Return n values of the generator."""
    y = np.empty(n)
    for i in range(n):
        start = start * 0xCBAC1FED & 0xFFFFFFFF
        y[i] = sum((start & 0x3F3F3F3F).to_bytes(4, "little")) - 126
    return y


def iq1_kt(p: Block) -> np.ndarray:
    y = []
    for g in range(32):
        b, i = g // 4, g % 4
        index = int(p[8 + g]) | nib(p[40 + 4 * (b % 4) + i], b // 4) << 8 | bit(p[b], 4 + i) << 12
        y.append(T4[p[b] & 15] * trellis(index + 4096, 8))
    return np.concatenate(y)


def iq2_kt(p: Block) -> np.ndarray:
    return np.concatenate([T4[nib(p[g // 4 % 4], g // 16)] * trellis(u16(p, 4 + 2 * g) + 4096, 8) for g in range(32)])


def iq3_kt(p: Block) -> np.ndarray:
    y = np.concatenate([nib(p[g // 4 % 4], g // 16) * abs(trellis(u16(p, 4 + 2 * g) + 4096, 8)) for g in range(32)])
    return y * np.array([-1 if bit(p[68 + e % 32], e // 32) else 1 for e in range(256)])


def iq4_kt(p: Block) -> np.ndarray:
    y = []
    for g in range(64):
        w, i = u32(p, 4 * (g // 8)), g % 8
        index = int(p[32 + g]) | nib(p[96 + g % 32], g // 32) << 8 | (w >> 8 + 3 * i & 7) << 12
        y.append((((w & 255) >> 1) - 64) * trellis(index + 4096 + 32768 * (w & 1), 4))
    return np.concatenate(y)


def iq1_bn(p: Block) -> np.ndarray:
    def digit(byte: int, k: int) -> int:
        return (3 * (int(byte) * (81, 27, 9, 3, 1)[k] & 255) >> 8) - 1

    y = []
    for i in range(4):
        y += [digit(p[3 * i + k // 5], k % 5) for k in range(15)] + [digit(p[12], i)]
    return np.array(y, float)


def iq2_bn(p: Block) -> np.ndarray:
    return np.array([(int(p[e % 16]) >> 2 * (e // 16) & 3) - 1.0 for e in range(64)])


def q8_kv(p: Block) -> np.ndarray:
    return p.view(np.int8).astype(float)


ROWS: dict[str, Decoder] = {
    "Q6_0": q6_0,
    "IQ1_BN": iq1_bn,
    "IQ2_BN": iq2_bn,
    "IQ2_K": iq2_k,
    "IQ3_K": iq3_k,
    "IQ4_K": iq4_k,
    "IQ5_K": iq5_k,
    "IQ6_K": iq6_k,
    "IQ4_KS": iq4_ks,
    "IQ2_KS": iq2_ks,
    "IQ4_KSS": iq4_kss,
    "Q8_KV": q8_kv,
    "IQ5_KS": iq5_ks,
    "IQ2_KT": iq2_kt,
    "IQ3_KT": iq3_kt,
    "IQ4_KT": iq4_kt,
    "IQ3_KS": iq3_ks,
    "IQ2_KL": iq2_kl,
    "IQ1_KT": iq1_kt,
}
"""Types with rows of their own."""


def parts(name: str, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a row's only block of a type of `SATURATING` as scale, code and move of each element.

    Codes are what the type gives without the bit that moves its grid, and those of IQ6_K whole numbers.
    """
    spec = TYPE_BY_NAME[name]
    p = row[spec.row_meta :].copy()
    values = ROWS[name](p)
    if name in ("IQ4_K", "IQ5_K", "IQ6_K"):
        size = {"IQ4_K": 4, "IQ5_K": 2, "IQ6_K": 1}[name]
        moved = np.array([bit(u16(p, 2), s) for s in range(16)])
        scale = [int(p[4 + s].view(np.int8)) if name == "IQ6_K" else scale_k(p, s) for s in range(16)]
        scales, moves = np.repeat(f16(p, 0) * np.array(scale), 16), np.repeat(moved * size, 16)
    else:
        if name == "IQ4_KSS":
            words = p.view(np.uint16).reshape(8, 8).astype(int)
            bytes_ = ((words & 1) << np.arange(8)).sum(axis=1)
        else:
            bytes_ = p[:8].astype(int)
        scales, moves = (
            np.repeat((bytes_ & 254) - 127.0, 32),
            np.repeat((bytes_ & 1) * (2 if name == "IQ5_KS" else 4), 32),
        )
    codes = np.rint(np.divide(values, scales, out=np.zeros(256), where=scales != 0)).astype(int) - moves
    header = float(row[:4].copy().view(np.float32)[0]) if spec.row_meta else 1.0
    return scales * header, codes, moves


# Where a block's halves lie, and the size of value that gives products of ordinary size.
HALVES = {
    "Q6_0": {0: 0.03},
    "IQ2_K": {0: 0.01},
    "IQ3_K": {0: 0.002},
    "IQ4_K": {0: 0.001},
    "IQ5_K": {0: 0.001},
    "IQ6_K": {0: 0.0003},
}
# What products multiply the values of a type with.
PRODUCT = {"IQ2_KT": 1.05, "IQ3_KT": 1.01}
# Their products saturate where fewer than this many columns are multiplied, at two neighbours' sum of 32767.
SATURATING = ["IQ4_K", "IQ5_K", "IQ6_K", "IQ4_KS", "IQ5_KS", "IQ4_KSS"]
SATURATED_COLUMNS = 32
HEADER = {
    "IQ1_BN": 1.0,
    "IQ2_BN": 1.0,
    "IQ4_KS": 3e-4,
    "IQ2_KS": 6e-3,
    "IQ4_KSS": 3e-4,
    "Q8_KV": 0.01,
    "IQ5_KS": 3e-4,
    "IQ2_KT": 4e-4,
    "IQ3_KT": 3e-3,
    "IQ4_KT": 8e-4,
    "IQ3_KS": 2e-3,
    "IQ2_KL": 2e-3,
    "IQ1_KT": 4e-4,
}


def random_rows(name: str, rng: np.random.Generator, n_rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random rows of a type of `ROWS` as bytes, (rows, bytes), and their values, (rows, k)."""
    spec = TYPE_BY_NAME[name]
    raw = rng.integers(0, 256, (n_rows, spec.row_bytes(k)), np.uint8)
    values = np.empty((n_rows, k))
    for r in range(n_rows):
        factor = 1.0
        if spec.row_meta:
            kind = np.float16 if spec.row_meta == 2 else np.float32
            scale = np.array([HEADER[name] * rng.uniform(0.5, 1.5)], kind)
            raw[r, : scale.nbytes] = scale.view(np.uint8)
            factor = float(scale[0])
        blocks = raw[r, spec.row_meta :].reshape(-1, spec.bytes)
        for at, size in HALVES.get(name, {}).items():
            halves = (size * rng.uniform(0.5, 1.5, len(blocks))).astype(np.float16)
            blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
        values[r] = factor * np.concatenate([ROWS[name](b) for b in blocks])
    return raw, values
