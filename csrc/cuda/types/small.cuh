// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4: blocks of 32. In those of 4 and 5 bits element i lies in the low nibble
// of byte i, element i + 16 in the high one.
#pragma once

#include "cuda/types/piece.cuh"

namespace ggr {
namespace cuda {

GGR_DEVICE void nibbles(const uint32_t (&words)[4], int part, uint32_t (&codes)[4]) {
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = words[i] >> 4 * part & 0x0f0f0f0fu;
}

struct Q4_0 : HalvedBlock<18, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t q[4];
        words_at(block + 2, q);
        nibbles(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = minus4(p.codes[i], 8);
        p.scale = half_at(block);
        p.min = -0.0f;
        return p;
    }
};

struct Q4_1 : HalvedBlock<20, 4, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t q[4];
        words_at4(block + 4, q);
        nibbles(q, part, p.codes);
        p.scale = half_at(block);
        p.min = half_at(block + 2);
        return p;
    }
};

struct Q5_0 : HalvedBlock<22, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t all[5];  // the fifth bits, then the nibbles
        words_at(block + 2, all);
        const uint32_t q[4] = {all[1], all[2], all[3], all[4]};
        nibbles(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i)
            p.codes[i] = minus4(p.codes[i] | spread4(all[0] >> (16 * part + 4 * i) & 15) << 4, 16);
        p.scale = half_at(block);
        p.min = -0.0f;
        return p;
    }
};

struct Q5_1 : HalvedBlock<24, 4, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t all[5];
        words_at4(block + 4, all);
        const uint32_t q[4] = {all[1], all[2], all[3], all[4]};
        nibbles(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] |= spread4(all[0] >> (16 * part + 4 * i) & 15) << 4;
        p.scale = half_at(block);
        p.min = half_at(block + 2);
        return p;
    }
};

// Units of 16 elements: lanes that are 16 bytes apart touch fewer lines a load than lanes 34 bytes apart.
struct Q8_0 : OrderedBlock<32, 34, 2, 1, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int) {
        Piece p;
        words_at(block + 2 + 16 * unit, p.codes);
        p.scale = half_at(block);
        p.min = -0.0f;
        return p;
    }
};

// -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113: uneven, finer near zero.
GGR_DEVICE uint32_t iq4_values(uint32_t indices) {
    const uint32_t table[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
    return lookup4(table, indices);
}
// Twice the values of the float of 4 bits with 2 of exponent and 1 of mantissa: 0, 1, 2, 3, 4, 6, 8, 12 and negative.
GGR_DEVICE uint32_t fp4_values(uint32_t indices) {
    const uint32_t table[4] = {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu};
    return lookup4(table, indices);
}

struct IQ4_NL : HalvedBlock<18, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t q[4];
        words_at(block + 2, q);
        nibbles(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = iq4_values(p.codes[i]);
        p.scale = half_at(block);
        p.min = -0.0f;
        return p;
    }
};

// Half of 2^(e - 127), subnormal for the least two.
GGR_DEVICE float half_power(uint32_t e) { return bits_to_float(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

struct MXFP4 : HalvedBlock<17, 1, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int, int part) {
        Piece p;
        uint32_t q[4];
        words_at(block + 1, q);
        nibbles(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = fp4_values(p.codes[i]);
        p.scale = half_power(block[0]);
        p.min = -0.0f;
        return p;
    }
};

}  // namespace cuda
}  // namespace ggr
