// TQ1_0, TQ2_0 (super-blocks with one scale), Q1_0, Q2_0, NVFP4 (blocks of 128, 64, 64): codes of two bits or less, and
// floats of four with a scale for every 16.
#pragma once

#include "cuda/types/small.cuh"

namespace ggr {
namespace cuda {

// Digits to base 3 of fractions in 256ths: three times each byte, cut to a byte, is the fraction of what follows the
// first digit.
GGR_DEVICE uint32_t thrice4(uint32_t q) {
    const uint32_t even = (q & 0x00ff00ffu) * 3, odd = (q >> 8 & 0x00ff00ffu) * 3;
    return (even & 0x00ff00ffu) | (odd & 0x00ff00ffu) << 8;
}
// The first digit of each: the byte that three times it carries.
GGR_DEVICE uint32_t trits4(uint32_t q) {
    const uint32_t even = (q & 0x00ff00ffu) * 3, odd = (q >> 8 & 0x00ff00ffu) * 3;
    return (even >> 8 & 0x00ff00ffu) | (odd & 0xff00ff00u);
}

// Pieces 0 .. 9: digit i / 2 of bytes 16 (i % 2); pieces 10 .. 14: digit i - 10 of bytes 32 .. 47; piece 15: four
// digits of bytes 48 .. 51.
struct TQ1_0 : OrderedBlock<256, 54, 2, 1, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int) {
        Piece p;
        if (unit == 15) {
            uint32_t q = word_at(block + 48);
            GGR_UNROLL
            for (int i = 0; i < 4; ++i, q = thrice4(q)) p.codes[i] = trits4(q);
        } else {
            words_at(block + (unit < 10 ? 16 * (unit % 2) : 32), p.codes);
            const int digit = unit < 10 ? unit / 2 : unit - 10;
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) {
                for (int d = 0; d < digit; ++d) p.codes[i] = thrice4(p.codes[i]);
                p.codes[i] = trits4(p.codes[i]);
            }
        }
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = minus4(p.codes[i], 1);
        p.scale = half_at(block + 52);
        p.min = -0.0f;
        return p;
    }
};

// Unit `half * 2 + side`: 16 bytes, part i their bits 2 i.
struct TQ2_0 : Alone {
    static constexpr int ELEMENTS = 256, BYTES = 66, ALIGN = 2, UNITS = 4, PARTS = 4;
    static constexpr bool JOINED = false, MINIMA = false;
    GGR_DEVICE int piece(int unit, int part) { return 8 * (unit / 2) + 2 * part + unit % 2; }
    GGR_DEVICE int unit_of(int piece) { return piece / 8 * 2 + piece % 2; }
    GGR_DEVICE int part_of(int piece) { return piece / 2 % 4; }
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4];
        words_at(block + 16 * unit, q);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = minus4(q[i] >> 2 * part & 0x03030303u, 1);
        p.scale = half_at(block + 64);
        p.min = -0.0f;
        return p;
    }
};

struct Q1_0 : OrderedBlock<128, 18, 2, 2, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t bits = word_at(block + 2 + 4 * unit) >> 16 * part;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = minus4(spread4(bits >> 4 * i & 15) << 1, 1);
        p.scale = half_at(block);
        p.min = -0.0f;
        return p;
    }
};

struct Q2_0 : OrderedBlock<64, 18, 2, 2, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t bits = word_at(block + 2 + 8 * unit + 4 * part);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint32_t q = bits >> 8 * i & 255;
            p.codes[i] = minus4((q | q << 6 | q << 12 | q << 18) & 0x03030303u, 1);
        }
        p.scale = half_at(block);
        p.min = -0.0f;
        return p;
    }
};

// Piece i: 8 bytes, element j in the low nibble of byte j, j + 8 in the high one.
struct NVFP4 : OrderedBlock<64, 36, 4, 1, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int) {
        Piece p;
        uint32_t q[2];
        words_at4(block + 4 + 8 * unit, q);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = fp4_values(q[i % 2] >> 4 * (i / 2) & 0x0f0f0f0fu);
        // Unsigned float of 4 bits of exponent (bias 7) and 3 of mantissa, halved because the codes are doubled values.
        // Bit 7 is without meaning, but only 0x7f, not 0xff, is 0 in place of NaN. 2^119 corrects the exponent, of
        // subnormals too.
        const uint32_t e = block[unit];
        p.scale = e == 0x7f ? 0.0f : bits_to_float((e & 0x7f) << 20) * bits_to_float((119u + 127u) << 23);
        p.min = -0.0f;
        return p;
    }
};

}  // namespace cuda
}  // namespace ggr
