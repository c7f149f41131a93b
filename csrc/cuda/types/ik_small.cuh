// ik_llama.cpp's types with small blocks (Q6_0, Q8_KV, IQ1_BN, IQ2_BN) and its trellis types (IQ1_KT .. IQ4_KT), whose
// indices start a generator of the values of 8 (IQ4_KT: 4) elements: a multiplication and a dot product of 32 bits
// each.
#pragma once

#include "cuda/types/ik.cuh"

namespace ggr {
namespace cuda {

// ---- Small blocks ----

// Eight bytes hold the two high bits of elements i, 16 + i, 8 + i, 24 + i.
struct Q6_0 : HalvedBlock<26, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t all[6];  // the high bits, then the nibbles
        words_at(block + 2, all);
        const uint32_t q[4] = {all[2], all[3], all[4], all[5]};
        nibbles(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i)
            p.codes[i] = minus4(p.codes[i] | (all[i % 2] >> (4 * (i / 2) + 2 * part) & 0x03030303u) << 4, 32);
        p.scale = half_at(block);
        p.min = -0.0f;
        return p;
    }
};

// Bytes; the header has the sum of the row behind its scale.
struct Q8_KV : OrderedBlock<32, 32, 4, 1, false> {
    static constexpr int HEADER = 8;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int) {
        Piece p;
        words_at4(block + 16 * unit, p.codes);
        p.scale = 1.0f;
        p.min = -0.0f;
        return p;
    }
};

// -1, 0, 1 as digits to base 3: a byte is a fraction of 256 with five of them. Three bytes hold 15 elements, byte 12
// the sixteenth of each quarter.
struct IQ1_BN : OrderedBlock<64, 13, 1, 4, true> {
    static constexpr int HEADER = 2;
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t q[4];
        words_at(block, q);
        const uint32_t fifteen = static_cast<uint32_t>(
            (static_cast<uint64_t>(part == 3 ? 0 : q[(3 * part + 3) / 4]) << 32 | q[3 * part / 4]) >>
            8 * (3 * part % 4));
        GGR_UNROLL
        for (int w = 0; w < 4; ++w) {
            uint32_t word = 0;
            GGR_UNROLL
            for (int j = 0; j < 4; ++j) {
                const int i = 4 * w + j, power = i < 15 ? i % 5 : part;
                const uint32_t byte = i < 15 ? fifteen >> 8 * (i / 5) : q[3];
                const uint32_t factor = power == 0 ? 81 : power == 1 ? 27 : power == 2 ? 9 : power == 3 ? 3 : 1;
                word |= ((byte * factor & 255) * 3 >> 8) << 8 * j;
            }
            p.codes[w] = minus4(word, 1);
        }
        p.scale = 1.0f;
        p.min = -0.0f;
        return p;
    }
};

struct IQ2_BN : OrderedBlock<64, 16, 4, 4, true> {
    static constexpr int HEADER = 4;
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t q[4];
        words_at4(block, q);
        two_bits(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = minus4(p.codes[i], 1);
        p.scale = 1.0f;
        p.min = -0.0f;
        return p;
    }
};

// ---- Trellis ----

// Four values from state * factor, * factor^2, ...: the low six bits of a state's bytes added up, less the mean.
GGR_DEVICE uint32_t trellis4(uint32_t& state) {
    uint32_t word = 0;
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) {
        state *= 0xcbac1fedu;
        word |= (static_cast<uint32_t>(dot4(state & 0x3f3f3f3fu, 0x01010101u, -126)) & 255) << 8 * i;
    }
    return word;
}
GGR_DEVICE void trellis8(uint32_t index, uint32_t* codes) {
    uint32_t state = index + 4096;
    codes[0] = trellis4(state);
    codes[1] = trellis4(state);
}
// The value of IQ4_NL as a factor.
GGR_DEVICE float grid_scale(uint32_t nibble) { return whole(static_cast<int8_t>(iq4_values(nibble) & 255)); }
// Scale b of eight in the nibbles of four bytes, the low ones first.
GGR_DEVICE uint32_t scale_of_four(const uint8_t* p, int b) { return p[b % 4] >> 4 * (b / 4) & 15; }

struct IQ1_KT : OrderedBlock<256, 56, 4, 2, true> {
    static constexpr int HEADER = 4;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t scale = block[unit], low = half_word(block + 8 + 4 * unit + 2 * part);
        const uint32_t high = half_word(block + 40 + 4 * (unit % 4) + 2 * part) >> 4 * (unit / 4);
        GGR_UNROLL
        for (int i = 0; i < 2; ++i)
            trellis8((low >> 8 * i & 255) | (high >> 8 * i & 15) << 8 | (scale >> (4 + 2 * part + i) & 1) << 12,
                     p.codes + 2 * i);
        p.scale = grid_scale(scale & 15);
        p.min = -0.0f;
        return p;
    }
};

struct IQ2_KT : OrderedBlock<256, 68, 4, 2, true> {
    static constexpr int HEADER = 4;
    static constexpr float PRODUCT = 1.05f;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t two = *reinterpret_cast<const uint32_t*>(block + 4 + 8 * unit + 4 * part);
        trellis8(two & 0xffff, p.codes);
        trellis8(two >> 16, p.codes + 2);
        p.scale = grid_scale(scale_of_four(block, unit));
        p.min = -0.0f;
        return p;
    }
};

// Magnitudes, and signs in 32 bytes that hold one bit of each block of 32.
struct IQ3_KT : OrderedBlock<256, 100, 4, 2, true> {
    static constexpr int HEADER = 4;
    static constexpr float PRODUCT = 1.01f;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t two = *reinterpret_cast<const uint32_t*>(block + 4 + 8 * unit + 4 * part);
        trellis8(two & 0xffff, p.codes);
        trellis8(two >> 16, p.codes + 2);
        uint32_t signs[4];
        words_at4(block + 68 + 16 * part, signs);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint32_t minus = ((signs[i] >> unit ^ p.codes[i] >> 7) & 0x01010101u) * 255u;
            p.codes[i] = subtract4(p.codes[i] ^ minus, minus);
        }
        p.scale = whole(static_cast<int>(scale_of_four(block, unit)));
        p.min = -0.0f;
        return p;
    }
};

struct IQ4_KT : OrderedBlock<256, 128, 4, 2, true> {
    static constexpr int HEADER = 4;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t* words = reinterpret_cast<const uint32_t*>(block);
        const uint32_t word = words[unit], low = words[8 + 2 * unit + part];
        const uint32_t high = words[24 + 2 * (unit % 4) + part] >> 4 * (unit / 4);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            uint32_t state =
                (low >> 8 * i & 255) | (high >> 8 * i & 15) << 8 | (word >> (8 + 3 * (4 * part + i)) & 7) << 12;
            state += 4096 + 32768 * (word & 1);
            p.codes[i] = trellis4(state);
        }
        p.scale = whole(static_cast<int>(word >> 1 & 127) - 64);
        p.min = -0.0f;
        return p;
    }
};

}  // namespace cuda
}  // namespace ggr
