// The interleaved forms of the types with code books: groups of four rows, in the form of ik_groups.h. Codes are
// entries of the books (grid_tables.h), eight or four elements each.
#pragma once

#include "cpu/quants/grid.h"
#include "cpu/quants/ik_groups.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

static inline void split_piece(u8x32 piece, i8x16 v[2]) { std::memcpy(v, &piece, sizeof piece); }

// A word of IQ2_XXS_R4 and IQ3_XXS_R4: the lowest bits of its bytes are a scale, the others 32 signs as a Gray code.
static inline float xxs_scale(uint32_t word) {
    const uint32_t low = word & 0x01010101;
    return (float)(2 * ((low | low >> 7 | low >> 14 | low >> 21) & 15) + 1);
}
static inline uint32_t xxs_signs(uint32_t word) {
    const uint32_t gray = word & 0xfefefefe;
    return gray ^ gray >> 1;
}

struct GroupIQ2_XXS : GroupShape<256, 66> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        const uint64_t* grid = IQ2_XXS_GRID.entries;
        const uint32_t word = read_as<uint32_t>(p + 8 + 4 * (4 * i + k));
        const uint8_t* q = p + 136 + 16 * i + 4 * k;
        split_piece(with_signs((u8x32)u64x4{grid[q[0]], grid[q[1]], grid[q[2]], grid[q[3]]}, xxs_signs(word), 0), v);
        return one_scale(0.125f * half_at(p + 2 * k) * xxs_scale(word));
    }
};
struct GroupIQ3_XXS : GroupShape<256, 98> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        const uint32_t* grid = IQ3_XXS_GRID.entries;
        const uint32_t word = read_as<uint32_t>(p + 8 + 4 * (4 * i + k));
        const uint8_t* q = p + 136 + 32 * i + 8 * k;
        const u32x8 entries = {grid[q[0]], grid[q[1]], grid[q[2]], grid[q[3]],
                               grid[q[4]], grid[q[5]], grid[q[6]], grid[q[7]]};
        split_piece(with_signs((u8x32)entries, xxs_signs(word), 0), v);
        return one_scale(0.25f * half_at(p + 2 * k) * xxs_scale(word));
    }
};

// Of IQ2_XS and IQ2_S: two scales in a byte.
static inline PieceScales odd_nibbles(float d, uint8_t byte) {
    return {{d * (float)(2 * (byte & 15) + 1), d * (float)(2 * (byte >> 4) + 1)}, {0, 0}};
}
struct GroupIQ2_XS : GroupShape<256, 74> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        const uint64_t* grid = IQ2_XS_GRID.entries;
        u64x4 entries = {};
        uint32_t signs = 0;
        for (int j = 0; j < 4; ++j) {
            const uint32_t q = read_as<uint16_t>(p + 8 + 2 * (16 * i + 4 * k + j)), gray = q >> 9;
            entries[j] = grid[q & 511];
            signs |= ((gray ^ gray << 1) & 255) << 8 * j;
        }
        split_piece(with_signs((u8x32)entries, signs, 0), v);
        return odd_nibbles(0.125f * half_at(p + 2 * k), p[264 + 4 * i + k]);
    }
};
struct GroupIQ2_S : GroupShape<256, 82> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        const uint64_t* grid = IQ2_S_GRID.entries;
        const uint8_t* q = p + 8 + 16 * i + 4 * k;
        const int high = p[136 + 4 * i + k];
        const u64x4 entries = {grid[q[0] | (high << 8 & 0x300)], grid[q[1] | (high << 6 & 0x300)],
                               grid[q[2] | (high << 4 & 0x300)], grid[q[3] | (high << 2 & 0x300)]};
        split_piece(with_signs((u8x32)entries, read_as<uint32_t>(p + 168 + 16 * i + 4 * k), 0), v);
        return odd_nibbles(0.125f * half_at(p + 2 * k), p[296 + 4 * i + k]);
    }
};

// Codes of four rows alternate; the first four are of elements 0, 4, 8, 12 on and lie apart from those of the others.
// A sign of element 4 j + e is bit j of byte e.
struct GroupIQ3_S : GroupShape<256, 110> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        const uint32_t* grid = IQ3_S_GRID.entries;
        const uint8_t* q = p + 8 + 32 * i + k;
        const int high = p[264 + 4 * i + k];
        const u8x16 signs = repeat_four(p + 296 + 16 * i + 4 * k);
        const i8x16 minus[2] = {(i8x16)has_bits(signs, by_fours(1, 2, 4, 8)),
                                (i8x16)has_bits(signs, by_fours(16, 32, 64, 128))};
        for (int h = 0; h < 2; ++h) {
            const int top = high >> 4 * h;
            const i8x16 x =
                (i8x16)w32x4{grid[q[4 * h] | (top << 8 & 256)], grid[q[4 * h + 8] | (top << 7 & 256)],
                             grid[q[4 * h + 16] | (top << 6 & 256)], grid[q[4 * h + 24] | (top << 5 & 256)]};
            v[h] = (x ^ minus[h]) - minus[h];
        }
        const int at = 4 * i + k;
        return one_scale(half_at(p + 2 * k) * (float)(2 * (p[424 + at % 16] >> (at / 16 * 4) & 15) + 1));
    }
};

// Of IQ1: entries are 16 + 8 v, and v is moved by an eighth.
static inline u8x32 around_zero(u64x4 entries) { return (u8x32)entries - 16; }
static inline uint64_t shifted(uint64_t entry, int down) {
    const uint64_t ones = 0x0101010101010101;
    return down != 0 ? entry - ones : entry + ones;
}

struct GroupIQ1_S : GroupShape<32, 6, 4, 2> {
    static inline PieceScales piece(const uint8_t* header, const uint8_t* p, int k, int, i8x16 v[2]) {
        const uint64_t* grid = IQ1_GRID.entries;
        const int high = read_as<uint16_t>(p + 16 + 2 * k), down = high & 0x8000;
        const uint8_t* q = p + k;
        const u64x4 entries = {
            shifted(grid[q[0] | (high << 8 & 0x700)], down), shifted(grid[q[4] | (high << 5 & 0x700)], down),
            shifted(grid[q[8] | (high << 2 & 0x700)], down), shifted(grid[q[12] | (high >> 1 & 0x700)], down)};
        split_piece(around_zero(entries), v);
        return one_scale(0.125f * half_at(header + 2 * k) * (float)(2 * (high >> 12 & 7) + 1));
    }
};
struct GroupIQ1_M : GroupShape<32, 7, 4, 2> {
    static inline PieceScales piece(const uint8_t* header, const uint8_t* p, int k, int, i8x16 v[2]) {
        const uint64_t* grid = IQ1_GRID.entries;
        const uint8_t* q = p + k;
        const int a = p[16 + k], b = p[20 + k];
        const u64x4 entries = {
            shifted(grid[q[0] | (a << 8 & 0x700)], a & 0x08), shifted(grid[q[4] | (a << 4 & 0x700)], a & 0x80),
            shifted(grid[q[8] | (b << 8 & 0x700)], b & 0x08), shifted(grid[q[12] | (b << 4 & 0x700)], b & 0x80)};
        split_piece(around_zero(entries), v);
        const float d = 0.125f * half_at(header + 2 * k);
        const uint8_t scales = p[24 + k];
        return {{d * (float)(scales & 15), d * (float)(scales >> 4)}, {0, 0}};
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
