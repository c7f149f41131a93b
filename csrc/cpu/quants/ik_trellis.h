// ik_llama.cpp's trellis types: an index of 13 to 16 bits starts a generator that gives the values of 8 (IQ4_KT: 4)
// elements. The structures have the form of ik_k.h. Floor: three multiplications of 32 bits an element, which take two
// thirds of the time of a decoder.
#pragma once

#include "cpu/quants/ik_k.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr uint32_t TRELLIS_FACTOR = 0xcbac1fed, TRELLIS_OFFSET = 4096;

// FACTOR to the powers 1 .. 8, or 1 .. 4, again and again.
template <int PERIOD>
static inline u32x16 trellis_powers() {
    u32x16 v = {};
    uint32_t power = 1;
    for (int i = 0; i < 16; ++i) {
        power = (i % PERIOD == 0 ? 1 : power) * TRELLIS_FACTOR;
        v[i] = power;
    }
    return v;
}
// Each state's four low six-bit bytes added up, less the mean.
static inline i8x16 trellis_values(u32x16 state) {
    const u32x16 sums = ((state & 0x3f3f3f3f) * 0x01010101) >> 24;
    return (i8x16) __builtin_convertvector(sums, u8x16) - 126;
}
static inline i8x16 trellis_16(uint32_t a, uint32_t b) {
    return trellis_values(u32x16{a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b} * trellis_powers<8>());
}

// Scales by the grid of IQ4_NL: 4 bits of each block.
static inline void grid_scales(u8x16 nibbles, float* s) { scale_16(ik4_value(nibbles), vset(1.0f), s); }

struct RowIQ1_KT {
    static constexpr int BYTES = 56, HEADER = 4, SUB = 32;
    static inline uint32_t start(const uint8_t* p, int g) {
        const int b = g / 4, i = g % 4;
        const uint32_t high = p[40 + 4 * (b % 4) + i] >> (b / 4 * 4) & 15, top = p[b] >> (4 + i) & 1;
        return (p[8 + g] | high << 8 | top << 12) + TRELLIS_OFFSET;
    }
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        for (int s = 0; s < 16; ++s) v[s] = trellis_16(start(p, 2 * s), start(p, 2 * s + 1));
    }
    static inline void scales(const uint8_t* p, float* s) { grid_scales(from_u64(read_as<uint64_t>(p)) & 15, s); }
};

// Of IQ2_KT and IQ3_KT: a word for 8 elements.
static inline i8x16 trellis_of_words(const uint8_t* p, int s) {
    const uint32_t both = read_as<uint32_t>(p + 4 + 4 * s);
    return trellis_16((both & 0xffff) + TRELLIS_OFFSET, (both >> 16) + TRELLIS_OFFSET);
}

struct RowIQ2_KT {
    static constexpr int BYTES = 68, HEADER = 4, SUB = 32;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        for (int s = 0; s < 16; ++s) v[s] = trellis_of_words(p, s);
    }
    static inline void scales(const uint8_t* p, float* s) { grid_scales(nibbles_of_4(p), s); }
};

struct RowIQ3_KT {
    static constexpr int BYTES = 100, HEADER = 4, SUB = 32;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) {
            const i8x16 x = trellis_of_words(p, s), below = x < 0;
            const i8x16 minus = (i8x16)one_bit(p + 68, s) ^ below;  // of the magnitude of x
            v[s] = (x ^ minus) - minus;
        }
    }
    static inline void scales(const uint8_t* p, float* s) { scale_16((i8x16)nibbles_of_4(p), vset(1.0f), s); }
};

struct RowIQ4_KT {
    static constexpr int BYTES = 128, HEADER = 4, SUB = 32;
    static inline uint32_t start(const uint8_t* p, int g) {
        const int b = g / 8, i = g % 8;
        const uint32_t w = read_as<uint32_t>(p + 4 * b), high = p[96 + g % 32] >> (g / 32 * 4) & 15;
        return (p[32 + g] | high << 8 | (w >> (8 + 3 * i) & 7) << 12) + TRELLIS_OFFSET + 32768 * (w & 1);
    }
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        for (int s = 0; s < 16; ++s) {
            const uint32_t a = start(p, 4 * s), b = start(p, 4 * s + 1), c = start(p, 4 * s + 2),
                           d = start(p, 4 * s + 3);
            v[s] = trellis_values(u32x16{a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d} * trellis_powers<4>());
        }
    }
    static inline void scales(const uint8_t* p, float* s) {
        for (int b = 0; b < 8; ++b) s[b] = (float)((p[4 * b] >> 1) - 64);
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
