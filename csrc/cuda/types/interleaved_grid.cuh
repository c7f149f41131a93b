// The interleaved forms of the types with code books, groups of four rows: entries of eight or four elements each
// (grid.cuh).
#pragma once

#include "cuda/types/grid.cuh"
#include "cuda/types/interleaved.cuh"

namespace ggr {
namespace cuda {

// A word of IQ2_XXS and IQ3_XXS: the lowest bits of its bytes are a scale, the others 32 signs as a Gray code.
GGR_DEVICE float xxs_scale(uint32_t word) {
    const uint32_t low = word & 0x01010101u;
    return odd((low | low >> 7 | low >> 14 | low >> 21) & 15);
}
GGR_DEVICE uint32_t xxs_signs(uint32_t word) {
    const uint32_t gray = word & 0xfefefefeu;
    return gray ^ gray >> 1;
}

struct IQ2_XXS_R4 : GroupBlock<256, 66, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        const uint32_t word = aligned_word(p + 8 + 4 * (4 * unit + k)), signs = xxs_signs(word) >> 16 * part;
        const uint32_t q = aligned_word(p + 136 + 16 * unit + 4 * k) >> 16 * part;
        GGR_UNROLL
        for (int i = 0; i < 2; ++i)
            entry8(IQ2_XXS_BOOK.entries[q >> 8 * i & 255], signs >> 8 * i & 255, v.codes + 2 * i);
        v.scale = 0.125f * half_of_row(p, k) * xxs_scale(word);
        v.min = -0.0f;
        return v;
    }
};

struct IQ3_XXS_R4 : GroupBlock<256, 98, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        const uint32_t word = aligned_word(p + 8 + 4 * (4 * unit + k)), signs = xxs_signs(word) >> 16 * part;
        const uint32_t q = aligned_word(p + 136 + 32 * unit + 8 * k + 4 * part);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) v.codes[i] = with_signs(IQ3_XXS_BOOK.entries[q >> 8 * i & 255], signs >> 4 * i);
        v.scale = 0.25f * half_of_row(p, k) * xxs_scale(word);
        v.min = -0.0f;
        return v;
    }
};

// Signs are a Gray code the other way round.
struct IQ2_XS_R4 : GroupBlock<256, 74, false> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        const uint32_t two = aligned_word(p + 8 + 2 * (16 * unit + 4 * k) + 4 * part);
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const uint32_t q = two >> 16 * i & 0xffff, gray = q >> 9;
            entry8(IQ2_XS_BOOK.entries[q & 511], (gray ^ gray << 1) & 255, v.codes + 2 * i);
        }
        v.scale = 0.125f * half_of_row(p, k) * odd(p[264 + 4 * unit + k] >> 4 * part & 15);
        v.min = -0.0f;
        return v;
    }
};

struct IQ2_S_R4 : GroupBlock<256, 82, false> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        const uint32_t q = aligned_word(p + 8 + 16 * unit + 4 * k), high = p[136 + 4 * unit + k];
        const uint32_t signs = aligned_word(p + 168 + 16 * unit + 4 * k);
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int n = 2 * part + i;
            entry8(IQ2_S_BOOK.entries[(q >> 8 * n & 255) | (high >> 2 * n & 3) << 8], signs >> 8 * n, v.codes + 2 * i);
        }
        v.scale = 0.125f * half_of_row(p, k) * odd(p[296 + 4 * unit + k] >> 4 * part & 15);
        v.min = -0.0f;
        return v;
    }
};

// Codes of four rows alternate; those of the first half of a block lie apart from those of the second. A sign of
// element 4 j + e is bit j of byte e.
struct IQ3_S_R4 : GroupBlock<256, 110, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        const uint8_t* q = p + 8 + 32 * unit + 4 * part + k;
        const uint32_t high = p[264 + 4 * unit + k] >> 4 * part;
        const uint32_t signs = aligned_word(p + 296 + 16 * unit + 4 * k) >> 4 * part;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint32_t minus = (signs >> i & 0x01010101u) * 255u;
            v.codes[i] = subtract4(IQ3_S_BOOK.entries[q[8 * i] | (high >> i & 1) << 8] ^ minus, minus);
        }
        const int at = 4 * unit + k;
        v.scale = half_of_row(p, k) * odd(p[424 + at % 16] >> at / 16 * 4 & 15);
        v.min = -0.0f;
        return v;
    }
};

struct IQ1_S_R4 : GroupBlock<32, 6, true, 4, 2> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        const uint32_t high = half_word(p + 16 + 2 * k);
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int n = 2 * part + i;
            shifted8(IQ1_BOOK.entries[p[4 * n + k] | (high >> 3 * n & 7) << 8], high >> 15 != 0, v.codes + 2 * i);
        }
        v.scale = 0.125f * odd(high >> 12 & 7);
        v.min = -0.0f;
        return v;
    }
};

struct IQ1_M_R4 : GroupBlock<32, 7, false, 4, 2> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        const uint32_t high = p[16 + 4 * part + k];
        GGR_UNROLL
        for (int i = 0; i < 2; ++i)
            shifted8(IQ1_BOOK.entries[p[4 * (2 * part + i) + k] | (high >> 4 * i & 7) << 8],
                     (high >> (4 * i + 3) & 1) != 0, v.codes + 2 * i);
        v.scale = 0.125f * static_cast<float>(p[24 + k] >> 4 * part & 15);
        v.min = -0.0f;
        return v;
    }
};

}  // namespace cuda
}  // namespace ggr
