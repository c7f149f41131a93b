// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M: entries of code books (core/code_books.h), eight or four
// elements each. IQ2 and IQ3 store magnitudes and signs apart, IQ1 shifts -1, 0, 1 by an eighth up or down; here that
// is 8 v + 1 or 8 v - 1. Pieces lie in order; a unit is a group of 32.
#pragma once

#include "core/code_books.h"
#include "cuda/types/piece.cuh"

namespace ggr {
namespace cuda {

// Magnitudes, or their negatives where the bit is set.
GGR_DEVICE uint32_t with_signs(uint32_t magnitudes, uint32_t bits) {
    const uint32_t mask = spread4(bits & 15) * 255u;
    return subtract4(magnitudes ^ mask, mask);
}
// Signs of eight elements in seven bits: the eighth makes their number even.
GGR_DEVICE uint32_t even_signs(uint32_t sevens) {
    uint32_t parity = sevens ^ sevens >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return sevens | (parity & 1) << 7;
}
GGR_DEVICE void entry8(uint64_t magnitudes, uint32_t signs, uint32_t* codes) {
    codes[0] = with_signs(static_cast<uint32_t>(magnitudes), signs);
    codes[1] = with_signs(static_cast<uint32_t>(magnitudes >> 32), signs >> 4);
}
GGR_DEVICE float odd(uint32_t nibble) { return static_cast<float>(2 * nibble + 1); }

struct IQ2_XXS : OrderedBlock<256, 66, 2, 2, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t w[2];  // four entries; four times 7 bits of signs, 4 of the scale
        words_at(block + 2 + 8 * unit, w);
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int k = 2 * part + i;
            entry8(IQ2_XXS_BOOK.entries[w[0] >> 8 * k & 255], even_signs(w[1] >> 7 * k & 127), p.codes + 2 * i);
        }
        p.scale = 0.125f * half_at(block) * odd(w[1] >> 28);
        p.min = -0.0f;
        return p;
    }
};

struct IQ2_XS : OrderedBlock<256, 74, 2, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t w = word_at(block + 2 + 8 * unit + 4 * part);  // twice 9 bits of the entry, 7 of signs
        GGR_UNROLL
        for (int i = 0; i < 2; ++i)
            entry8(IQ2_XS_BOOK.entries[w >> 16 * i & 511], even_signs(w >> (16 * i + 9) & 127), p.codes + 2 * i);
        p.scale = 0.125f * half_at(block) * odd(block[66 + unit] >> 4 * part & 15);
        p.min = -0.0f;
        return p;
    }
};

struct IQ2_S : OrderedBlock<256, 82, 2, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t q = load4_from2(block + 2 + 4 * unit), signs = load4_from2(block + 34 + 4 * unit);
        const uint32_t high = block[66 + unit];  // bits 8 and 9 of four entries
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int k = 2 * part + i;
            entry8(IQ2_S_BOOK.entries[(q >> 8 * k & 255) | (high >> 2 * k & 3) << 8], signs >> 8 * k, p.codes + 2 * i);
        }
        p.scale = 0.125f * half_at(block) * odd(block[74 + unit] >> 4 * part & 15);
        p.min = -0.0f;
        return p;
    }
};

struct IQ3_XXS : OrderedBlock<256, 98, 2, 2, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t q = load4_from2(block + 2 + 8 * unit + 4 * part), s = load4_from2(block + 66 + 4 * unit);
        const uint32_t signs = even_signs(s >> 14 * part & 127) | even_signs(s >> (14 * part + 7) & 127) << 8;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = with_signs(IQ3_XXS_BOOK.entries[q >> 8 * i & 255], signs >> 4 * i);
        p.scale = 0.25f * half_at(block) * odd(s >> 28);
        p.min = -0.0f;
        return p;
    }
};

struct IQ3_S : OrderedBlock<256, 110, 2, 2, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t q = load4_from2(block + 2 + 8 * unit + 4 * part), high = block[66 + unit] >> 4 * part;
        const uint32_t signs = load4_from2(block + 74 + 4 * unit) >> 16 * part;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i)
            p.codes[i] = with_signs(IQ3_S_BOOK.entries[(q >> 8 * i & 255) | (high >> i & 1) << 8], signs >> 4 * i);
        p.scale = half_at(block) * odd(block[106 + unit / 2] >> 4 * (unit % 2) & 15);
        p.min = -0.0f;
        return p;
    }
};

// Bytes of IQ1's book are 8 v + 16; each goes one up or down.
GGR_DEVICE void shifted8(uint64_t entry, bool down, uint32_t* codes) {
    const uint32_t zero = (down ? 17u : 15u) * 0x01010101u;
    codes[0] = subtract4(static_cast<uint32_t>(entry), zero);
    codes[1] = subtract4(static_cast<uint32_t>(entry >> 32), zero);
}

struct IQ1_S : OrderedBlock<256, 50, 2, 2, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        const uint32_t q = load4_from2(block + 2 + 4 * unit);
        // Bits 8 to 10 of four entries, 3 bits of scale, sign of the shift.
        const uint32_t high = *reinterpret_cast<const uint16_t*>(block + 34 + 2 * unit);
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int k = 2 * part + i;
            shifted8(IQ1_BOOK.entries[(q >> 8 * k & 255) | (high >> 3 * k & 7) << 8], high >> 15 != 0, p.codes + 2 * i);
        }
        p.scale = 0.125f * half_at(block) * odd(high >> 12 & 7);
        p.min = -0.0f;
        return p;
    }
};

struct IQ1_M : OrderedBlock<256, 56, 4, 2, false> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t s[2];  // four words: four times 3 bits of scales, then 4 of d, the low ones first
        words_at4(block + 48, s);
        const uint32_t d = (s[0] >> 12 & 15) | (s[0] >> 24 & 0xf0) | (s[1] >> 4 & 0xf00) | (s[1] >> 16 & 0xf000);
        const uint32_t q = load4_from2(block + 4 * unit);
        const uint32_t high = block[32 + 2 * unit + part];  // two nibbles: bits 8 to 10, sign of the shift
        GGR_UNROLL
        for (int i = 0; i < 2; ++i)
            shifted8(IQ1_BOOK.entries[(q >> 8 * (2 * part + i) & 255) | (high >> 4 * i & 7) << 8],
                     (high >> (4 * i + 3) & 1) != 0, p.codes + 2 * i);
        const int piece = 2 * unit + part;
        const uint32_t scale = s[piece / 8] >> (16 * (piece / 4 % 2) + 3 * (piece % 4)) & 7;
        p.scale = 0.125f * half_to_float(static_cast<uint16_t>(d)) * odd(scale);
        p.min = -0.0f;
        return p;
    }
};

}  // namespace cuda
}  // namespace ggr
