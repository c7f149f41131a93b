// ik_llama.cpp's super-blocks of 256 with uneven grids: IQ2_K .. IQ6_K, and with a scale in the row's header IQ2_KS ..
// IQ5_KS, IQ4_KSS, IQ2_KL. Each grid has a second form with all values moved up by a constant; a bit of the block
// chooses. Codes are looked up in registers: two to eight instructions for four elements.
#pragma once

#include "cuda/types/k.cuh"

namespace ggr {
namespace cuda {

// ---- Grids ----

// The low three bits of four bytes as permute4 takes them.
GGR_DEVICE uint32_t selector_of(uint32_t indices) {
    const uint32_t low = indices & 0x07070707u;
    return (low & 7) | (low >> 4 & 0x70) | (low >> 8 & 0x700) | (low >> 12 & 0x7000);
}

// -31, -13, 1, 17, or 5 more.
GGR_DEVICE uint32_t ik2_values(uint32_t indices, bool moved) {
    const uint32_t table = moved ? 0x1606f8e6u : 0x1101f3e1u;
    return permute4(table, table, selector_of(indices));
}
// -63, -40, -23, -10, 1, 13, 28, 47, or 4 more.
GGR_DEVICE uint32_t ik3_values(uint32_t indices, bool moved) {
    return permute4(moved ? 0xfaeddcc5u : 0xf6e9d8c1u, moved ? 0x33201105u : 0x2f1c0d01u, selector_of(indices));
}
// The values of IQ4_NL, or 4 more.
GGR_DEVICE uint32_t ik4_values(uint32_t indices, bool moved) {
    const uint32_t table[4] = {moved ? 0xc3b19c85u : 0xbfad9881u, moved ? 0xfaeee1d3u : 0xf6eaddcfu,
                               moved ? 0x2a1d1105u : 0x26190d01u, moved ? 0x755d4939u : 0x71594535u};
    return lookup4(table, indices);
}
// Bytes of a where the bit `bit` of index's bytes is set, else of b.
GGR_DEVICE uint32_t choose4(uint32_t index, int bit, uint32_t a, uint32_t b) {
    const uint32_t mask = (index >> bit & 0x01010101u) * 255u;
    return (a & mask) | (b & ~mask);
}
// A table of 32 bytes.
GGR_DEVICE uint32_t lookup4_of_32(const uint32_t (&lower)[4], const uint32_t (&upper)[4], uint32_t index) {
    return choose4(index, 4, lookup4(upper, index & 0x0f0f0f0fu), lookup4(lower, index & 0x0f0f0f0fu));
}
// From -126 to 121 in 32 steps, or 2 more.
GGR_DEVICE uint32_t ik5_values(uint32_t indices, bool moved) {
    const uint32_t lower[4] = {moved ? 0xa69b9084u : 0xa4998e82u, moved ? 0xc9c1b8afu : 0xc7bfb6adu,
                               moved ? 0xe4ded7d0u : 0xe2dcd5ceu, moved ? 0xfcf6f0eau : 0xfaf4eee8u};
    const uint32_t upper[4] = {moved ? 0x130d0701u : 0x110b05ffu, moved ? 0x2d261f19u : 0x2b241d17u,
                               moved ? 0x4f463d35u : 0x4d443b33u, moved ? 0x7b6f6359u : 0x796d6157u};
    return lookup4_of_32(lower, upper, indices);
}
// A cubic in 6 bits, rounded to integers as products take it.
GGR_DEVICE uint32_t ik6_values(uint32_t indices, bool moved) {
    const uint32_t t0[4] = {0x938d8781u, 0xa8a39e98u, 0xbab6b1acu, 0xcac6c2beu};
    const uint32_t t1[4] = {0xd8d4d1cdu, 0xe4e1dedbu, 0xf0edeae7u, 0xfbf8f5f3u};
    const uint32_t t2[4] = {0x060300feu, 0x110e0c09u, 0x1e1b1714u, 0x2c282421u};
    const uint32_t t3[4] = {0x3b37332fu, 0x4d48443fu, 0x625c5752u, 0x79736d67u};
    const uint32_t v = choose4(indices, 5, lookup4_of_32(t2, t3, indices), lookup4_of_32(t0, t1, indices));
    return subtract4(v, moved ? 0xffffffffu : 0);
}

GGR_DEVICE uint32_t half_word(const uint8_t* p) { return *reinterpret_cast<const uint16_t*>(p); }
GGR_DEVICE bool has_bit(uint32_t bits, int i) { return (bits >> i & 1) != 0; }
GGR_DEVICE float whole(int v) { return static_cast<float>(v); }
// Nibble i of bytes, the low one of a byte first.
GGR_DEVICE uint32_t nibble_at(const uint8_t* p, int i) { return p[i / 2] >> i % 2 * 4 & 15; }

// ---- A scale for 16 elements ----

// Piece 8 half + 2 part + side of types in two bits and more: bits 2 part of 16 bytes at `qs`, unit 2 half + side.
GGR_DEVICE void two_bits(const uint32_t (&q)[4], int part, uint32_t (&codes)[4]) {
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = q[i] >> 2 * part & 0x03030303u;
}

struct IQ2_K : ShiftedBlock<76, 4, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4];
        words_at4(block + 12 + 16 * unit, q);
        two_bits(q, part, p.codes);
        const int s = piece(unit, part);
        const bool moved = has_bit(half_word(block + 2), s);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik2_values(p.codes[i], moved);
        p.scale = half_at(block) * whole(static_cast<int>(nibble_at(block + 4, s)) - 8);
        p.min = -0.0f;
        return p;
    }
};

// The third bits of such a piece: bit 4 half + part of 16 bytes at `qh`.
GGR_DEVICE void three_bits(const uint8_t* qs, const uint8_t* qh, int unit, int part, uint32_t (&codes)[4]) {
    uint32_t q[4], high[4];
    words_at(qs + 16 * unit, q);
    words_at(qh + 16 * (unit % 2), high);
    two_bits(q, part, codes);
    const int bit = 4 * (unit / 2) + part;
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] |= (high[i] >> bit & 0x01010101u) << 2;
}

struct IQ3_K : ShiftedBlock<110, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        three_bits(block + 14, block + 78, unit, part, p.codes);
        const int s = piece(unit, part);
        const bool moved = has_bit(half_word(block + 2), s);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik3_values(p.codes[i], moved);
        const float odd = whole(2 * static_cast<int>(nibble_at(block + 6, s)) + 1);
        p.scale = half_at(block) * (has_bit(half_word(block + 4), s) ? -odd : odd);
        p.min = -0.0f;
        return p;
    }
};

// Scales of 6 bits, raised by 32: nibbles at byte 8, two bits more at byte 4. The first 16 bytes of a block in one
// load.
GGR_DEVICE float six_bit_scale(const uint32_t (&head)[4], int s) {
    const uint32_t low = (s < 8 ? head[2] : head[3]) >> 4 * (s % 8) & 15, high = head[1] >> 2 * s & 3;
    return half_to_float(static_cast<uint16_t>(head[0])) * whole(static_cast<int>(low | high << 4) - 32);
}

struct IQ4_K : OrderedBlock<256, 144, 16, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t head[4], q[4];
        words_at16(block, head);
        words_at16(block + 16 + 16 * unit, q);
        nibbles(q, part, p.codes);
        const int s = 2 * unit + part;
        const bool moved = has_bit(head[0], 16 + s);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik4_values(p.codes[i], moved);
        p.scale = six_bit_scale(head, s);
        p.min = -0.0f;
        return p;
    }
};

struct IQ5_K : OrderedBlock<256, 176, 16, 4, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t head[4], q[4], high[4];
        words_at16(block, head);
        words_at16(block + 16 + 32 * unit + 16 * (part % 2), q);
        words_at16(block + 144 + 16 * (part % 2), high);
        nibbles(q, part / 2, p.codes);
        const int s = 4 * unit + part;
        const bool moved = has_bit(head[0], 16 + s);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik5_values(p.codes[i] | (high[i] >> s / 2 & 0x01010101u) << 4, moved);
        p.scale = six_bit_scale(head, s);
        p.min = -0.0f;
        return p;
    }
};

struct IQ6_K : OrderedBlock<256, 212, 4, 4, false> {
    static constexpr bool ROUNDED = true;
    GGR_DEVICE void indices(const uint8_t* block, int unit, int part, uint32_t (&codes)[4]) {
        uint32_t q[4], high[4];
        words_at4(block + 20 + 32 * unit + 16 * (part % 2), q);
        words_at4(block + 148 + 32 * (unit / 2) + 16 * (part % 2), high);
        nibbles(q, part / 2, codes);
        const int shift = 2 * (2 * (unit % 2) + part / 2);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) codes[i] |= (high[i] >> shift & 0x03030303u) << 4;
    }
    GGR_DEVICE float scale(const uint8_t* block, int s) {
        return half_at(block) * whole(static_cast<int8_t>(block[4 + s]));
    }
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        indices(block, unit, part, p.codes);
        const int s = 4 * unit + part;
        const bool moved = has_bit(half_word(block + 2), s);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik6_values(p.codes[i], moved);
        p.scale = scale(block, s);
        p.min = -0.0f;
        return p;
    }
    // The cubic as it is.
    GGR_DEVICE void values(const uint8_t* block, int unit, int part, float (&v)[16]) {
        uint32_t codes[4];
        indices(block, unit, part, codes);
        const int s = 4 * unit + part;
        const float d = scale(block, s), least = d * (has_bit(half_word(block + 2), s) ? -126.0f : -127.0f);
        GGR_UNROLL
        for (int i = 0; i < 16; ++i) {
            const float x = whole(static_cast<int>(codes[i / 4] >> 8 * (i % 4) & 255));
            v[i] = ((x * 0.0011972f - 0.11218f) * x + 6.2568f) * x * d + least;
        }
    }
};

// ---- A scale for 32 elements, and one of the row ----

// Seven bits in the upper ones of a byte; the lowest chooses the grid.
GGR_DEVICE float seven_bit_scale(uint32_t byte) { return whole(static_cast<int>(byte & 254) - 127); }

struct IQ4_KS : OrderedBlock<256, 136, 4, 2, true> {
    static constexpr int HEADER = 4;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4];
        words_at4(block + 8 + 16 * unit, q);
        nibbles(q, part, p.codes);
        const uint32_t scale = block[unit];
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik4_values(p.codes[i], has_bit(scale, 0));
        p.scale = seven_bit_scale(scale);
        p.min = -0.0f;
        return p;
    }
};

struct IQ5_KS : OrderedBlock<256, 168, 4, 4, true> {
    static constexpr int HEADER = 4;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4], high[4];
        words_at4(block + 8 + 32 * unit + 16 * (part % 2), q);
        words_at4(block + 136 + 16 * (part % 2), high);
        nibbles(q, part / 2, p.codes);
        const int b = 2 * unit + part / 2;
        const uint32_t scale = block[b];
        GGR_UNROLL
        for (int i = 0; i < 4; ++i)
            p.codes[i] = ik5_values(p.codes[i] | (high[i] >> b & 0x01010101u) << 4, has_bit(scale, 0));
        p.scale = seven_bit_scale(scale);
        p.min = -0.0f;
        return p;
    }
};

struct IQ2_KS : ShiftedBlock<70, 2, false> {
    static constexpr int HEADER = 2;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4];
        words_at(block + 6 + 16 * unit, q);
        two_bits(q, part, p.codes);
        const int b = 4 * (unit / 2) + part;
        const uint32_t bits = half_word(block);  // which grids, then the top bits of the scales
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik2_values(p.codes[i], has_bit(bits, b));
        p.scale = whole(static_cast<int>(nibble_at(block + 2, b) | (bits >> (8 + b) & 1) << 4) - 16);
        p.min = -0.0f;
        return p;
    }
};

struct IQ3_KS : ShiftedBlock<102, 2, false> {
    static constexpr int HEADER = 2;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        three_bits(block + 6, block + 70, unit, part, p.codes);
        const int b = 4 * (unit / 2) + part;
        const uint32_t bits = half_word(block);  // the top bits of the scales, then which grids
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik3_values(p.codes[i], has_bit(bits, 8 + b));
        const uint32_t low = block[2 + b % 4] >> 4 * (b / 4) & 15;
        p.scale = whole(static_cast<int>(low | (bits >> b & 1) << 4) - 16);
        p.min = -0.0f;
        return p;
    }
};

// Eight words of 16 bits a block of 32: their lowest bits are a byte like the scales of IQ4_KS, the others the nibbles,
// as a Gray code.
struct IQ4_KSS : OrderedBlock<256, 128, 4, 2, true> {
    static constexpr int HEADER = 4;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4], scale = 0;
        words_at4(block + 16 * unit, q);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            scale |= ((q[i] & 1) | (q[i] >> 15 & 2)) << 2 * i;
            q[i] &= 0xfffefffeu;
            q[i] ^= q[i] >> 1;
        }
        nibbles(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = ik4_values(p.codes[i], has_bit(scale, 0));
        p.scale = seven_bit_scale(scale);
        p.min = -0.0f;
        return p;
    }
};

// Pairs of neighbours index a list of 32 pairs: four bits in the nibbles of 16 bytes for two blocks of 32, the fifth in
// the last 16 bytes.
struct IQ2_KL : OrderedBlock<256, 86, 2, 4, true> {
    static constexpr int HEADER = 2;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        const uint32_t even0[4] = {0xd8d8c1c1u, 0xe9e9d8d8u, 0xf6e9e9e9u, 0x01f6f6f6u};
        const uint32_t even1[4] = {0x01010101u, 0x0d0d0d0du, 0x1c1c1c0du, 0x2f2f1c1cu};
        const uint32_t odd0[4] = {0xf6c10de9u, 0xe9d82f0du, 0xc11c0d01u, 0xe92f0d01u};
        const uint32_t odd1[4] = {0x1c0d01f6u, 0x01f6e9d8u, 0x01e9c10du, 0x0de92f1cu};
        Piece p;
        uint32_t q[2], high[2];
        words_at(block + 6 + 16 * unit + 8 * (part % 2), q);
        words_at(block + 70 + 8 * (part % 2), high);
        const int b = 2 * unit + part / 2;
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const uint32_t index = (q[i] >> 4 * (part / 2) & 0x0f0f0f0fu) | (high[i] >> b & 0x01010101u) << 4;
            const uint32_t even = lookup4_of_32(even0, even1, index), odd = lookup4_of_32(odd0, odd1, index);
            p.codes[2 * i] = permute4(even, odd, 0x5140);
            p.codes[2 * i + 1] = permute4(even, odd, 0x7362);
        }
        const uint32_t low = block[2 + b % 4] >> 4 * (b / 4) & 15, top = half_word(block) >> 2 * b & 3;
        p.scale = whole(static_cast<int>(low | top << 4) - 32);
        p.min = -0.0f;
        return p;
    }
};

}  // namespace cuda
}  // namespace ggr
