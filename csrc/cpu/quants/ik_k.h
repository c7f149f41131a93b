// ik_llama.cpp's types with super-blocks of 256, by look-up in uneven grids (IQ2_K .. IQ6_K, IQ2_KS .. IQ5_KS, IQ4_KSS,
// IQ2_KL). A type gives
//   BYTES, HEADER   of a super-block, of a row before its first one (a scale of the whole row)
//   SUB             elements that share a scale: 16 or 32
//   BELOW           less than any code, a power of two, so that code + BELOW is a byte without sign
//   codes(p, v)     codes of a super-block, 16 to a vector
//   scales(p)       an integer for each SUB elements
//   moves(p)        what is to be added to the codes, for each SUB elements
//   d(p)            the factor of the super-block
// so that element i is d * scale[i / SUB] * (code[i] + move[i / SUB]), times the row's scale. Floor of a decoder: bytes
// of the f32 row.
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

// `move` where a bit is set.
static inline i8x16 moves_of(uint32_t bits, uint8_t move) { return (i8x16)(mask_of_bits(bits) & move); }

// What the types share: the defaults are those of types whose rows have a scale.
template <int BYTES_, int HEADER_, int SUB_, int BELOW_>
struct RowShape {
    static constexpr int BYTES = BYTES_, HEADER = HEADER_, SUB = SUB_, BELOW = BELOW_;
    static constexpr float PRODUCT = 1.0f;  // what products multiply the values with; rows alone are decoded without it
    static inline i8x16 moves(const uint8_t*) { return i8x16{}; }
    static inline float d(const uint8_t*) { return 1.0f; }
};

struct RowIQ2_K : RowShape<76, 0, 16, 32> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik2_value(two_bits(p + 12, s));
    }
    static inline i8x16 scales(const uint8_t* p) { return (i8x16)nibbles_of_8(p + 4) - 8; }
    static inline i8x16 moves(const uint8_t* p) { return moves_of(read_as<uint16_t>(p + 2), IK2_MOVE); }
    static inline float d(const uint8_t* p) { return half_at(p); }
};

struct RowIQ3_K : RowShape<110, 0, 16, 64> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik3_value(two_bits(p + 14, s) | (one_bit(p + 78, s) & 4));
    }
    static inline i8x16 scales(const uint8_t* p) {
        const i8x16 minus = (i8x16)mask_of_bits(read_as<uint16_t>(p + 4));
        const i8x16 odd = (i8x16)(nibbles_of_8(p + 6) * 2 + 1);
        return (odd ^ minus) - minus;
    }
    static inline i8x16 moves(const uint8_t* p) { return moves_of(read_as<uint16_t>(p + 2), IK3_MOVE); }
    static inline float d(const uint8_t* p) { return half_at(p); }
};

// The scales of IQ4_K and IQ5_K: 4 bits of each and 2 more, raised by 32.
static inline i8x16 six_bit_scales(const uint8_t* p) {
    return (i8x16)(nibbles_of_8(p + 8) | pairs_to_top(read_as<uint32_t>(p + 4))) - 32;
}

struct RowIQ4_K : RowShape<144, 0, 16, 128> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik4_value(four_bits_of_one(p + 16, s));
    }
    static inline i8x16 scales(const uint8_t* p) { return six_bit_scales(p); }
    static inline i8x16 moves(const uint8_t* p) { return moves_of(read_as<uint16_t>(p + 2), IK4_MOVE); }
    static inline float d(const uint8_t* p) { return half_at(p); }
};

struct RowIQ5_K : RowShape<176, 0, 16, 128> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik5_value(four_bits(p + 16, s), one_bit(p + 144, s));
    }
    static inline i8x16 scales(const uint8_t* p) { return six_bit_scales(p); }
    static inline i8x16 moves(const uint8_t* p) { return moves_of(read_as<uint16_t>(p + 2), IK5_MOVE); }
    static inline float d(const uint8_t* p) { return half_at(p); }
};

// A cubic in 6 bits. These codes are its values rounded to integers, as products take them; rows are decoded exactly
// (decode_iq6_k).
struct RowIQ6_K : RowShape<212, 0, 16, 128> {
    static inline u8x16 six_bits(const uint8_t* p, int s) { return four_bits(p + 20, s) | two_bits(p + 148, s) << 4; }
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const i8x16 a = {-127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54};
        const i8x16 b = {-51, -47, -44, -40, -37, -34, -31, -28, -25, -22, -19, -16, -13, -11, -8, -5};
        const i8x16 c = {-2, 0, 3, 6, 9, 12, 14, 17, 20, 23, 27, 30, 33, 36, 40, 44};
        const i8x16 e = {47, 51, 55, 59, 63, 68, 72, 77, 82, 87, 92, 98, 103, 109, 115, 121};
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) {
            const u8x16 q = six_bits(p, s), low = q & 15, odd = has_bits(q, splat_u8(16));
            v[s] = choose(has_bits(q, splat_u8(32)), lookup_32(c, e, low, odd), lookup_32(a, b, low, odd));
        }
    }
    static inline i8x16 scales(const uint8_t* p) { return (i8x16)load_u8x16(p + 4); }
    static inline i8x16 moves(const uint8_t* p) { return moves_of(read_as<uint16_t>(p + 2), 1); }
    static inline float d(const uint8_t* p) { return half_at(p); }
};

// Scales of 7 bits in the upper ones of a byte; the lowest chooses the grid.
static inline i8x16 seven_bit_scales(u8x16 bytes) { return (i8x16)((bytes & 254) - 127); }
static inline i8x16 moves_by_scale(u8x16 bytes, uint8_t move) { return (i8x16)(has_bits(bytes, splat_u8(1)) & move); }

struct RowIQ4_KS : RowShape<136, 4, 32, 128> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik4_value(four_bits_of_one(p + 8, s));
    }
    static inline i8x16 scales(const uint8_t* p) { return seven_bit_scales(from_u64(read_as<uint64_t>(p))); }
    static inline i8x16 moves(const uint8_t* p) { return moves_by_scale(from_u64(read_as<uint64_t>(p)), IK4_MOVE); }
};

struct RowIQ5_KS : RowShape<168, 4, 32, 128> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik5_value(four_bits(p + 8, s), one_bit(p + 136, s));
    }
    static inline i8x16 scales(const uint8_t* p) { return seven_bit_scales(from_u64(read_as<uint64_t>(p))); }
    static inline i8x16 moves(const uint8_t* p) { return moves_by_scale(from_u64(read_as<uint64_t>(p)), IK5_MOVE); }
};

struct RowIQ2_KS : RowShape<70, 2, 32, 32> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik2_value(two_bits(p + 6, s));
    }
    static inline i8x16 scales(const uint8_t* p) {
        const u8x16 top = mask_of_bits(read_as<uint16_t>(p) >> 8) & 16;
        return (i8x16)(nibbles_of_8(p + 2) | top) - 16;
    }
    static inline i8x16 moves(const uint8_t* p) { return moves_of(read_as<uint8_t>(p), IK2_MOVE); }
};

struct RowIQ3_KS : RowShape<102, 2, 32, 64> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) v[s] = ik3_value(two_bits(p + 6, s) | (one_bit(p + 70, s) & 4));
    }
    static inline i8x16 scales(const uint8_t* p) {
        return (i8x16)(nibbles_of_4(p + 2) | (mask_of_bits(read_as<uint8_t>(p)) & 16)) - 16;
    }
    static inline i8x16 moves(const uint8_t* p) { return moves_of(read_as<uint8_t>(p + 1), IK3_MOVE); }
};

// Eight words a block of 32. Their lowest bits are a byte like the scales of IQ4_KS, the others the nibbles, as a Gray
// code.
struct RowIQ4_KSS : RowShape<128, 4, 32, 128> {
    static inline u8x16 scale_bytes(const uint8_t* p) {
        uint64_t bytes = 0;
#pragma GCC unroll 8
        for (int b = 0; b < 8; ++b) {
            const u8x16 low = __builtin_shuffle(load_u8x16(p + 16 * b), u8x16{0, 2, 4, 6, 8, 10, 12, 14});
            bytes |= (uint64_t)(bits_of(low) & 255) << 8 * b;
        }
        return from_u64(bytes);
    }
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
#pragma GCC unroll 8
        for (int b = 0; b < 8; ++b) {
            const u16x8 w = read_as<u16x8>(p + 16 * b) & 0xfffe;
            const u8x16 q = (u8x16)(w ^ w >> 1);
            v[2 * b] = ik4_value(q & 15);
            v[2 * b + 1] = ik4_value(q >> 4);
        }
    }
    static inline i8x16 scales(const uint8_t* p) { return seven_bit_scales(scale_bytes(p)); }
    static inline i8x16 moves(const uint8_t* p) { return moves_by_scale(scale_bytes(p), IK4_MOVE); }
};

// Pairs of neighbours index a list of 32 pairs.
struct RowIQ2_KL : RowShape<86, 2, 32, 64> {
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
    static inline i8x16 scales(const uint8_t* p) {
        return (i8x16)(nibbles_of_4(p + 2) | pairs_to_top(read_as<uint16_t>(p))) - 32;
    }
};

// The scale of a row, from its header.
template <class T>
static inline float row_scale(const uint8_t* row) {
    if constexpr (T::HEADER == 0) return 1.0f;
    if constexpr (T::HEADER == 2) return half_at(row);
    return read_as<float>(row);
}

template <class T>
static inline float product_scale(const uint8_t* row) {
    return row_scale<T>(row) * T::PRODUCT;
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
        scale_16(T::scales(p), vset(T::d(p) * factor), s);
        const i8x16 moves = T::moves(p);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i, y += 16)
            scale_16(v[i] + spread_byte(moves, i * 16 / T::SUB), vset(s[i * 16 / T::SUB]), y);
    }
}

[[maybe_unused]] static void decode_iq6_k(const uint8_t* row, int64_t begin, int64_t n, float* y, int64_t) {
    const uint8_t* p = row + begin / QK_K * RowIQ6_K::BYTES;
    for (const float* end = y + n; y < end; p += RowIQ6_K::BYTES) {
        const float d = half_at(p);
        const uint16_t moved = read_as<uint16_t>(p + 2);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s, y += 16) {
            const vf scale = vset(d * (float)read_as<int8_t>(p + 4 + s));
            const float least = (moved >> s & 1) != 0 ? -126.0f : -127.0f;
            scale_16((i8x16)RowIQ6_K::six_bits(p, s), vset(1.0f), y);
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
