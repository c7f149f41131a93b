// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M: entries of code books (grid_tables.h), eight or four elements
// each. IQ2 and IQ3 store magnitudes and signs apart, IQ1 shifts -1, 0, 1 by an eighth up or down; here that is 8 v + 1
// or 8 v - 1.
#pragma once

#include "cpu/quants/codes.h"
#include "cpu/quants/grid_tables.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint64_t u64x4 __attribute__((vector_size(32)));

// zero + magnitude, or zero - magnitude where the bit is set.
static inline u8x32 with_signs(u8x32 magnitudes, uint32_t bits, int zero) {
    const u8x32 mask = mask_of_32_bits(bits);
    return (magnitudes ^ mask) - mask + (uint8_t)zero;
}
// Signs of eight elements in seven bits: the eighth makes their number even. Each byte has such seven bits.
template <class V>
static inline V even_signs(V sevens) {
    V parity = sevens ^ sevens >> 4;  // of each byte in its lowest bit
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return sevens | (parity & 0x01010101) << 7;
}
// The same for eight words that hold four times seven bits in a row.
static inline void even_signs_of_28(u32x8 x, uint32_t signs[8]) {
    x = even_signs((x & 0x7f) | (x << 1 & 0x7f00) | (x << 2 & 0x7f0000) | (x << 3 & 0x7f000000));
    std::memcpy(signs, &x, sizeof x);
}
// Scales 2 s + 1 from eight nibbles.
static inline uint64_t odd_scales(uint32_t nibbles) {
    uint64_t x = nibbles;
    x = (x | x << 16) & 0x0000ffff0000ffff;
    x = (x | x << 8) & 0x00ff00ff00ff00ff;
    x = (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
    return 2 * x + 0x0101010101010101;
}
// From the upper four bits of eight words.
static inline uint64_t odd_scales_of_words(const uint8_t* words, int pitch) {
    uint32_t nibbles = 0;
    for (int i = 0; i < 8; ++i) nibbles |= read_as<uint32_t>(words + i * pitch) >> 28 << 4 * i;
    return odd_scales(nibbles);
}
// Four fields of so many bits as words of 16.
static inline uint64_t fields_to_words(uint32_t x, int bits) {
    const uint64_t mask = (1u << bits) - 1;
#if defined(__BMI2__)
    return _pdep_u64(x, mask * 0x0001000100010001);
#else
    uint64_t words = 0;
    for (int i = 0; i < 4; ++i) words |= (x >> bits * i & mask) << 16 * i;
    return words;
#endif
}
// Four entries, whose numbers are words of 16 bits.
static inline u64x4 four_entries(const uint64_t* grid, uint64_t words) {
    return u64x4{grid[words & 0xffff], grid[words >> 16 & 0xffff], grid[words >> 32 & 0xffff], grid[words >> 48]};
}

struct CodesIQ2_XXS {
    using Block = BlockIQ2_XXS;
    static constexpr int SUB = 32, ZERO = 64;
    static inline float d(const Block& x) { return 0.125f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        s[0] = odd_scales_of_words(reinterpret_cast<const uint8_t*>(x.groups) + 4, 8);
    }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        const uint64_t* grid = IQ2_XXS_GRID.entries;
        const u32x8 first = read_as<u32x8>(x.groups), second = read_as<u32x8>(x.groups + 4);
        uint32_t signs[8];
        even_signs_of_28(__builtin_shuffle(first, second, u32x8{1, 3, 5, 7, 9, 11, 13, 15}), signs);
        for (int i = 0; i < 8; ++i) {
            const uint8_t* q = x.groups[i].qs;
            codes[i] = with_signs((u8x32)u64x4{grid[q[0]], grid[q[1]], grid[q[2]], grid[q[3]]}, signs[i], ZERO);
        }
    }
};

struct CodesIQ2_XS {
    using Block = BlockIQ2_XS;
    static constexpr int SUB = 16, ZERO = 64;
    static inline float d(const Block& x) { return 0.125f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        for (int h = 0; h < 2; ++h) s[h] = odd_scales(read_as<uint32_t>(x.scales + 4 * h));
    }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        uint32_t signs[8];
        for (int h = 0; h < 2; ++h) {
            typedef uint32_t u32x4 __attribute__((vector_size(16)));
            const u8x16 sevens = __builtin_convertvector(read_as<u16x16>(x.qs + 16 * h) >> 9, u8x16);
            const u32x4 four = even_signs((u32x4)sevens);
            std::memcpy(signs + 4 * h, &four, sizeof four);
        }
        for (int i = 0; i < 8; ++i) {
            const uint64_t words = read_as<uint64_t>(x.qs + 4 * i) & 0x01ff01ff01ff01ff;
            codes[i] = with_signs((u8x32)four_entries(IQ2_XS_GRID.entries, words), signs[i], ZERO);
        }
    }
};

struct CodesIQ2_S {
    using Block = BlockIQ2_S;
    static constexpr int SUB = 16, ZERO = 64;
    static inline float d(const Block& x) { return 0.125f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        for (int h = 0; h < 2; ++h) s[h] = odd_scales(read_as<uint32_t>(x.scales + 4 * h));
    }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        for (int i = 0; i < 8; ++i) {
            const uint64_t words = fields_to_words(read_as<uint32_t>(x.qs + 4 * i), 8) | fields_to_words(x.qh[i], 2)
                                                                                             << 8;
            const u64x4 magnitudes = four_entries(IQ2_S_GRID.entries, words);
            codes[i] = with_signs((u8x32)magnitudes, read_as<uint32_t>(x.signs + 4 * i), ZERO);
        }
    }
};

struct CodesIQ3_XXS {
    using Block = BlockIQ3_XXS;
    static constexpr int SUB = 32, ZERO = 64;
    static inline float d(const Block& x) { return 0.25f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        s[0] = odd_scales_of_words(reinterpret_cast<const uint8_t*>(x.signs_and_scale), 4);
    }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        const uint32_t* grid = IQ3_XXS_GRID.entries;
        uint32_t signs[8];
        even_signs_of_28(read_as<u32x8>(x.signs_and_scale), signs);
        for (int i = 0; i < 8; ++i) {
            const uint8_t* q = x.qs + 8 * i;
            const u32x8 magnitudes = {grid[q[0]], grid[q[1]], grid[q[2]], grid[q[3]],
                                      grid[q[4]], grid[q[5]], grid[q[6]], grid[q[7]]};
            codes[i] = with_signs((u8x32)magnitudes, signs[i], ZERO);
        }
    }
};

struct CodesIQ3_S {
    using Block = BlockIQ3_S;
    static constexpr int SUB = 32, ZERO = 16;
    static inline float d(const Block& x) { return f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) { s[0] = odd_scales(read_as<uint32_t>(x.scales)); }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        const uint32_t* grid = IQ3_S_GRID.entries;
        for (int i = 0; i < 8; ++i) {
            const uint8_t* q = x.qs + 8 * i;
            const uint64_t a = fields_to_words(read_as<uint32_t>(q), 8) | fields_to_words(x.qh[i] & 15, 1) << 8;
            const uint64_t b = fields_to_words(read_as<uint32_t>(q + 4), 8) | fields_to_words(x.qh[i] >> 4, 1) << 8;
            const u32x8 magnitudes = {grid[a & 0xffff], grid[a >> 16 & 0xffff], grid[a >> 32 & 0xffff], grid[a >> 48],
                                      grid[b & 0xffff], grid[b >> 16 & 0xffff], grid[b >> 32 & 0xffff], grid[b >> 48]};
            codes[i] = with_signs((u8x32)magnitudes, read_as<uint32_t>(x.signs + 4 * i), ZERO);
        }
    }
};

// Of IQ1 each byte of an entry goes one down or one up; they lie between 8 and 24.

struct CodesIQ1_S {
    using Block = BlockIQ1_S;
    static constexpr int SUB = 32, ZERO = 16;
    static inline float d(const Block& x) { return 0.125f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        uint32_t nibbles = 0;
        for (int i = 0; i < 8; ++i) nibbles |= (uint32_t)(x.qh[i] >> 12 & 7) << 4 * i;
        s[0] = odd_scales(nibbles);
    }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        for (int i = 0; i < 8; ++i) {
            const uint64_t words =
                fields_to_words(read_as<uint32_t>(x.qs + 4 * i), 8) | fields_to_words(x.qh[i] & 0xfff, 3) << 8;
            const uint8_t step = (uint8_t)(1 - (x.qh[i] >> 15 << 1));
            codes[i] = (u8x32)four_entries(IQ1_GRID.entries, words) + step;
        }
    }
};

struct CodesIQ1_M {
    using Block = BlockIQ1_M;
    static constexpr int SUB = 16, ZERO = 16;
    static inline float d(const Block& x) {
        const uint32_t half = (uint32_t)(x.scales[0] >> 12) | (x.scales[1] >> 8 & 0xf0u) | (x.scales[2] >> 4 & 0xf00u) |
                              (x.scales[3] & 0xf000u);
        return 0.125f * f16_to_f32((uint16_t)half);
    }
    static inline void scales(const Block& x, uint64_t s[2]) {
        for (int h = 0; h < 2; ++h) {
            const uint64_t first = fields_to_words(x.scales[2 * h] & 0xfff, 3),
                           second = fields_to_words(x.scales[2 * h + 1] & 0xfff, 3);
            s[h] = bytes_of_words(first) | bytes_of_words(second) << 32;
            s[h] = 2 * s[h] + 0x0101010101010101;
        }
    }
    // Four words below 256 as bytes.
    static inline uint64_t bytes_of_words(uint64_t x) {
        x = (x | x >> 8) & 0x0000ffff0000ffff;
        return (x | x >> 16) & 0xffffffff;
    }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        for (int i = 0; i < 8; ++i) {
            const uint64_t high = fields_to_words(x.qh[2 * i] | x.qh[2 * i + 1] << 8, 4);
            const uint64_t words = fields_to_words(read_as<uint32_t>(x.qs + 4 * i), 8) | (high & 0x0007000700070007)
                                                                                             << 8;
            const u64x4 bits = {8, 8ull << 16, 8ull << 32, 8ull << 48};
            const u64x4 down = (u64x4)(((u64x4{} + high) & bits) != 0);  // -1 in all bytes
            codes[i] = (u8x32)four_entries(IQ1_GRID.entries, words) + ((u8x32)down | 1);
        }
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
