// ik_llama.cpp's types with super-blocks of 256, by look-up in uneven grids (IQ2_K .. IQ6_K, IQ2_KS .. IQ5_KS, IQ4_KSS,
// IQ2_KL). A type gives
//   BYTES, HEADER   of a super-block, of a row before its first one (a scale of the whole row)
//   SUB             elements that share a scale: 16 or 32
//   codes(p, v)     the values of a super-block, 16 to a vector
//   scales(p, s)    their 256 / SUB scales (s has room for 16), without the row's
// so that value i is row scale * scale[i / SUB] * code[i]. Floor of a decoder: bytes of the f32 row.
#pragma once

#include "cpu/quants/blocks.h"
#include "cpu/quants/ik_vec.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// The codes of 2 bits at `qs`: vector s holds elements 16 s on. 32 bytes hold the same elements of four blocks of 32.
static inline u8x16 two_bits(const uint8_t* qs, int s) {
    return load_u8x16(qs + s / 8 * 32 + s % 2 * 16) >> (s / 2 % 4 * 2) & 3;
}
// Of 4 bits: 32 bytes hold two blocks of 32.
static inline u8x16 four_bits(const uint8_t* qs, int s) {
    const u8x16 q = load_u8x16(qs + s / 4 * 32 + s % 2 * 16);
    return s / 2 % 2 != 0 ? q >> 4 : q & 15;
}
// Of 4 bits: 16 bytes hold one block of 32.
static inline u8x16 four_bits_of_one(const uint8_t* qs, int s) {
    const u8x16 q = load_u8x16(qs + s / 2 * 16);
    return s % 2 != 0 ? q >> 4 : q & 15;
}
// 0xff where an element has its bit in 32 bytes that hold one bit of each block of 32.
static inline u8x16 one_bit(const uint8_t* qh, int s) {
    return has_bits(load_u8x16(qh + s % 2 * 16), splat_u8(1 << s / 2));
}

// 16 moves, one for each 16 elements: `move` where a bit is set.
static inline i8x16 moves_of(uint32_t bits, uint8_t move) { return (i8x16)(mask_of_bits(bits) & move); }

struct RowIQ2_K {
    static constexpr int BYTES = 76, HEADER = 0, SUB = 16;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 moves = moves_of(read_as<uint16_t>(p + 2), IK2_MOVE);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik2_value(two_bits(p + 12, s)) + spread_byte(moves, s);
    }
    static inline void scales(const uint8_t* p, float* s) {
        scale_16((i8x16)nibbles_of_8(p + 4) - 8, vset(half_at(p)), s);
    }
};

struct RowIQ3_K {
    static constexpr int BYTES = 110, HEADER = 0, SUB = 16;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 moves = moves_of(read_as<uint16_t>(p + 2), IK3_MOVE);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s)
            v[s] = ik3_value(two_bits(p + 14, s) | (one_bit(p + 78, s) & 4)) + spread_byte(moves, s);
    }
    static inline void scales(const uint8_t* p, float* s) {
        const i8x16 minus = (i8x16)mask_of_bits(read_as<uint16_t>(p + 4));
        const i8x16 odd = (i8x16)(nibbles_of_8(p + 6) * 2 + 1);
        scale_16((odd ^ minus) - minus, vset(half_at(p)), s);
    }
};

// The scales of IQ4_K and IQ5_K: 4 bits of each and 2 more, raised by 32.
static inline void six_bit_scales(const uint8_t* p, float* s) {
    const u8x16 raised = nibbles_of_8(p + 8) | pairs_to_top(read_as<uint32_t>(p + 4));
    scale_16((i8x16)raised - 32, vset(half_at(p)), s);
}

struct RowIQ4_K {
    static constexpr int BYTES = 144, HEADER = 0, SUB = 16;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 moves = moves_of(read_as<uint16_t>(p + 2), IK4_MOVE);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik4_value(four_bits_of_one(p + 16, s)) + spread_byte(moves, s);
    }
    static inline void scales(const uint8_t* p, float* s) { six_bit_scales(p, s); }
};

struct RowIQ5_K {
    static constexpr int BYTES = 176, HEADER = 0, SUB = 16;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 moves = moves_of(read_as<uint16_t>(p + 2), IK5_MOVE);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s)
            v[s] = ik5_value(four_bits(p + 16, s), one_bit(p + 144, s)) + spread_byte(moves, s);
    }
    static inline void scales(const uint8_t* p, float* s) { six_bit_scales(p, s); }
};

// Scales of 7 bits in the upper ones of a byte; the lowest chooses the grid.
static inline void seven_bit_scales(const uint8_t* p, float* s) {
    scale_16((i8x16)((from_u64(read_as<uint64_t>(p)) & 254) - 127), vset(1.0f), s);
}
static inline i8x16 moves_by_scale(const uint8_t* p, uint8_t move) {
    return (i8x16)(has_bits(from_u64(read_as<uint64_t>(p)), splat_u8(1)) & move);
}

struct RowIQ4_KS {
    static constexpr int BYTES = 136, HEADER = 4, SUB = 32;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 moves = moves_by_scale(p, IK4_MOVE);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik4_value(four_bits_of_one(p + 8, s)) + spread_byte(moves, s / 2);
    }
    static inline void scales(const uint8_t* p, float* s) { seven_bit_scales(p, s); }
};

struct RowIQ5_KS {
    static constexpr int BYTES = 168, HEADER = 4, SUB = 32;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 moves = moves_by_scale(p, IK5_MOVE);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s)
            v[s] = ik5_value(four_bits(p + 8, s), one_bit(p + 136, s)) + spread_byte(moves, s / 2);
    }
    static inline void scales(const uint8_t* p, float* s) { seven_bit_scales(p, s); }
};

struct RowIQ2_KS {
    static constexpr int BYTES = 70, HEADER = 2, SUB = 32;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 moves = moves_of(read_as<uint16_t>(p), IK2_MOVE);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik2_value(two_bits(p + 6, s)) + spread_byte(moves, s / 2);
    }
    static inline void scales(const uint8_t* p, float* s) {
        const u8x16 top = mask_of_bits(read_as<uint16_t>(p) >> 8) & 16;
        scale_16((i8x16)(nibbles_of_8(p + 2) | top) - 16, vset(1.0f), s);
    }
};

struct RowIQ3_KS {
    static constexpr int BYTES = 102, HEADER = 2, SUB = 32;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 moves = moves_of(read_as<uint16_t>(p) >> 8, IK3_MOVE);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s)
            v[s] = ik3_value(two_bits(p + 6, s) | (one_bit(p + 70, s) & 4)) + spread_byte(moves, s / 2);
    }
    static inline void scales(const uint8_t* p, float* s) {
        scale_16((i8x16)(nibbles_of_4(p + 2) | (mask_of_bits(read_as<uint16_t>(p)) & 16)) - 16, vset(1.0f), s);
    }
};

// Eight words a block of 32. Their lowest bits are the scale, the others the nibbles, as a Gray code.
struct RowIQ4_KSS {
    static constexpr int BYTES = 128, HEADER = 4, SUB = 32;
    static inline uint8_t scale_byte(const uint8_t* p) {
        const u8x16 even = __builtin_shuffle(load_u8x16(p), u8x16{0, 2, 4, 6, 8, 10, 12, 14});
        return (uint8_t)bits_of(even);
    }
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 8
        for (int b = 0; b < 8; ++b) {
            const u16x8 w = read_as<u16x8>(p + 16 * b) & 0xfffe;
            const u8x16 q = (u8x16)(w ^ w >> 1);
            const i8x16 move = (i8x16)splat_u8((scale_byte(p + 16 * b) & 1) * IK4_MOVE);
            v[2 * b] = ik4_value(q & 15) + move;
            v[2 * b + 1] = ik4_value(q >> 4) + move;
        }
    }
    static inline void scales(const uint8_t* p, float* s) {
        for (int b = 0; b < 8; ++b) s[b] = (float)((scale_byte(p + 16 * b) & 254) - 127);
    }
};

// Pairs of neighbours index a list of 32 pairs.
struct RowIQ2_KL {
    static constexpr int BYTES = 86, HEADER = 2, SUB = 32;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 even0 = {-63, -63, -40, -40, -40, -40, -23, -23, -23, -23, -23, -10, -10, -10, -10, 1};
        const i8x16 even1 = {1, 1, 1, 1, 13, 13, 13, 13, 13, 28, 28, 28, 28, 28, 47, 47};
        const i8x16 odd0 = {-23, 13, -63, -10, 13, 47, -40, -23, 1, 13, 28, -63, 1, 13, 47, -23};
        const i8x16 odd1 = {-10, 1, 13, 28, -40, -23, -10, 1, 13, -63, -23, 1, 28, 47, -23, 13};
        const u8x16 high = load_u8x16(p + 70);
#pragma GCC unroll 8
        for (int b = 0; b < 8; ++b) {
            const u8x16 both = load_u8x16(p + 6 + b / 2 * 16), q = b % 2 != 0 ? both >> 4 : both & 15;
            const u8x16 top = has_bits(high, splat_u8(1 << b));
            const i8x16 even = lookup_32(even0, even1, q, top), odd = lookup_32(odd0, odd1, q, top);
            v[2 * b] = __builtin_shuffle(even, odd, i8x16{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
            v[2 * b + 1] =
                __builtin_shuffle(even, odd, i8x16{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
        }
    }
    static inline void scales(const uint8_t* p, float* s) {
        const u8x16 raised = nibbles_of_4(p + 2) | pairs_to_top(read_as<uint16_t>(p));
        scale_16((i8x16)raised - 32, vset(1.0f), s);
    }
};

// The scale of a row, from its header.
template <class T>
static inline float row_scale(const uint8_t* row) {
    if constexpr (T::HEADER == 0) return 1.0f;
    if constexpr (T::HEADER == 2) return half_at(row);
    return read_as<float>(row);
}

// Elements [begin, begin + n) of the row that starts at `row`, whole super-blocks.
template <class T>
static void decode_super(const uint8_t* row, int64_t begin, int64_t n, float* y, int64_t) {
    const float factor = row_scale<T>(row);
    const uint8_t* p = row + T::HEADER + begin / QK_K * T::BYTES;
    for (const float* end = y + n; y < end; p += T::BYTES) {
        i8x16 v[16];
        float s[16];
        T::codes(p, v);
        T::scales(p, s);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i, y += 16) scale_16(v[i], vset(s[i * 16 / T::SUB] * factor), y);
    }
}

// IQ6_K: a cubic in 6 bits instead of a grid.
static void decode_iq6_k(const uint8_t* row, int64_t begin, int64_t n, float* y, int64_t) {
    const uint8_t* p = row + begin / QK_K * 212;
    for (const float* end = y + n; y < end; p += 212) {
        const float d = half_at(p);
        const uint16_t moved = read_as<uint16_t>(p + 2);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s, y += 16) {
            const u8x16 q = four_bits(p + 20, s) | two_bits(p + 148, s) << 4;
            const vf scale = vset(d * (float)read_as<int8_t>(p + 4 + s));
            const float least = (moved >> s & 1) != 0 ? -126.0f : -127.0f;
            scale_16((i8x16)q, vset(1.0f), y);
            for (int i = 0; i < 16; i += VL) {
                const vf x = vload(y + i);
                vstore(y + i, ((x * 0.0011972f - 0.11218f) * x + 6.2568f) * x * scale + scale * least);
            }
        }
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
