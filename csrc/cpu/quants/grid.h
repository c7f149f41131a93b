// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M: entries of code books (grid_tables.h), eight or four elements
// each. IQ2 and IQ3 store magnitudes and signs apart, IQ1 shifts -1, 0, 1 by an eighth up or down; here that is 8 v + 1
// or 8 v - 1.
#pragma once

#include "cpu/quants/codes.h"
#include "cpu/quants/grid_tables.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

typedef uint64_t u64x4 __attribute__((vector_size(32)));

// zero + magnitude, or zero - magnitude where the bit is set.
static inline u8x32 with_signs(u8x32 magnitudes, uint32_t bits, int zero) {
    const u8x32 mask = mask_of_32_bits(bits);
    return (magnitudes ^ mask) - mask + (uint8_t)zero;
}
// Signs of eight elements in seven bits: the eighth makes their number even. Four such bytes.
static inline uint32_t even_signs(uint32_t sevens) {
    uint32_t parity = sevens ^ sevens >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return sevens | (parity & 0x01010101) << 7;
}
// The same from 28 bits in a row.
static inline uint32_t even_signs_of_28(uint32_t x) {
    return even_signs((x & 0x7f) | (x << 1 & 0x7f00) | (x << 2 & 0x7f0000) | (x << 3 & 0x7f000000));
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

struct CodesIQ2_XXS {
    using Block = BlockIQ2_XXS;
    static constexpr int SUB = 32, ZERO = 64;
    static inline float d(const Block& x) { return 0.125f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        s[0] = odd_scales_of_words(reinterpret_cast<const uint8_t*>(x.groups) + 4, 8);
    }
    static inline u8x32 piece(const Block& x, int i) {
        const uint64_t* grid = IQ2_XXS_GRID.entries;
        const auto& group = x.groups[i];
        const u64x4 magnitudes = {grid[group.qs[0]], grid[group.qs[1]], grid[group.qs[2]], grid[group.qs[3]]};
        return with_signs((u8x32)magnitudes, even_signs_of_28(group.signs_and_scale), ZERO);
    }
};

struct CodesIQ2_XS {
    using Block = BlockIQ2_XS;
    static constexpr int SUB = 16, ZERO = 64;
    static inline float d(const Block& x) { return 0.125f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        for (int h = 0; h < 2; ++h) s[h] = odd_scales(read_as<uint32_t>(x.scales + 4 * h));
    }
    static inline u8x32 piece(const Block& x, int i) {
        const uint64_t* grid = IQ2_XS_GRID.entries;
        const uint16_t q[4] = {x.qs[4 * i], x.qs[4 * i + 1], x.qs[4 * i + 2], x.qs[4 * i + 3]};
        const u64x4 magnitudes = {grid[q[0] & 511], grid[q[1] & 511], grid[q[2] & 511], grid[q[3] & 511]};
        const uint32_t sevens = (uint32_t)(q[0] >> 9) | (uint32_t)(q[1] >> 9) << 8 | (uint32_t)(q[2] >> 9) << 16 |
                                (uint32_t)(q[3] >> 9) << 24;
        return with_signs((u8x32)magnitudes, even_signs(sevens), ZERO);
    }
};

struct CodesIQ2_S {
    using Block = BlockIQ2_S;
    static constexpr int SUB = 16, ZERO = 64;
    static inline float d(const Block& x) { return 0.125f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        for (int h = 0; h < 2; ++h) s[h] = odd_scales(read_as<uint32_t>(x.scales + 4 * h));
    }
    static inline u8x32 piece(const Block& x, int i) {
        const uint64_t* grid = IQ2_S_GRID.entries;
        const uint8_t* q = x.qs + 4 * i;
        const int high = x.qh[i];
        const u64x4 magnitudes = {grid[q[0] | (high << 8 & 0x300)], grid[q[1] | (high << 6 & 0x300)],
                                  grid[q[2] | (high << 4 & 0x300)], grid[q[3] | (high << 2 & 0x300)]};
        return with_signs((u8x32)magnitudes, read_as<uint32_t>(x.signs + 4 * i), ZERO);
    }
};

struct CodesIQ3_XXS {
    using Block = BlockIQ3_XXS;
    static constexpr int SUB = 32, ZERO = 64;
    static inline float d(const Block& x) { return 0.25f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        s[0] = odd_scales_of_words(reinterpret_cast<const uint8_t*>(x.signs_and_scale), 4);
    }
    static inline u8x32 piece(const Block& x, int i) {
        const uint32_t* grid = IQ3_XXS_GRID.entries;
        const uint8_t* q = x.qs + 8 * i;
        const u32x8 magnitudes = {grid[q[0]], grid[q[1]], grid[q[2]], grid[q[3]],
                                  grid[q[4]], grid[q[5]], grid[q[6]], grid[q[7]]};
        return with_signs((u8x32)magnitudes, even_signs_of_28(x.signs_and_scale[i]), ZERO);
    }
};

struct CodesIQ3_S {
    using Block = BlockIQ3_S;
    static constexpr int SUB = 32, ZERO = 16;
    static inline float d(const Block& x) { return f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) { s[0] = odd_scales(read_as<uint32_t>(x.scales)); }
    static inline u8x32 piece(const Block& x, int i) {
        const uint32_t* grid = IQ3_S_GRID.entries;
        const uint8_t* q = x.qs + 8 * i;
        const int high = x.qh[i];
        const u32x8 magnitudes = {grid[q[0] | (high << 8 & 256)], grid[q[1] | (high << 7 & 256)],
                                  grid[q[2] | (high << 6 & 256)], grid[q[3] | (high << 5 & 256)],
                                  grid[q[4] | (high << 4 & 256)], grid[q[5] | (high << 3 & 256)],
                                  grid[q[6] | (high << 2 & 256)], grid[q[7] | (high << 1 & 256)]};
        return with_signs((u8x32)magnitudes, read_as<uint32_t>(x.signs + 4 * i), ZERO);
    }
};

// All bytes of an entry one down or one up; they lie between 8 and 24.
static inline uint64_t shifted(uint64_t entry, int down) {
    const uint64_t ones = 0x0101010101010101;
    return down ? entry - ones : entry + ones;
}

struct CodesIQ1_S {
    using Block = BlockIQ1_S;
    static constexpr int SUB = 32, ZERO = 16;
    static inline float d(const Block& x) { return 0.125f * f16_to_f32(x.d); }
    static inline void scales(const Block& x, uint64_t s[2]) {
        uint32_t nibbles = 0;
        for (int i = 0; i < 8; ++i) nibbles |= (uint32_t)(x.qh[i] >> 12 & 7) << 4 * i;
        s[0] = odd_scales(nibbles);
    }
    static inline u8x32 piece(const Block& x, int i) {
        const uint64_t* grid = IQ1_GRID.entries;
        const uint8_t* q = x.qs + 4 * i;
        const int high = x.qh[i], down = high & 0x8000;
        return (u8x32)u64x4{
            shifted(grid[q[0] | (high << 8 & 0x700)], down), shifted(grid[q[1] | (high << 5 & 0x700)], down),
            shifted(grid[q[2] | (high << 2 & 0x700)], down), shifted(grid[q[3] | (high >> 1 & 0x700)], down)};
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
            const uint32_t first = x.scales[2 * h], second = x.scales[2 * h + 1];
            uint32_t nibbles = 0;
            for (int i = 0; i < 4; ++i)
                nibbles |= (first >> 3 * i & 7) << 4 * i | (second >> 3 * i & 7) << (16 + 4 * i);
            s[h] = odd_scales(nibbles);
        }
    }
    static inline u8x32 piece(const Block& x, int i) {
        const uint64_t* grid = IQ1_GRID.entries;
        const uint8_t* q = x.qs + 4 * i;
        const int a = x.qh[2 * i], b = x.qh[2 * i + 1];
        return (u8x32)u64x4{
            shifted(grid[q[0] | (a << 8 & 0x700)], a & 0x08), shifted(grid[q[1] | (a << 4 & 0x700)], a & 0x80),
            shifted(grid[q[2] | (b << 8 & 0x700)], b & 0x08), shifted(grid[q[3] | (b << 4 & 0x700)], b & 0x80)};
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
