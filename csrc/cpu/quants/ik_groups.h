// ik_llama.cpp's interleaved types: groups of 4, 8 or 16 rows in one run of memory. The headers of a group's rows stand
// before its blocks, all rows of a block together. In a block a row has four consecutive elements, or the codes of as
// many, then the next row has. A type gives
//   ROWS, BLOCK     rows of a group; elements of a block
//   BYTES, HEADER   of a block a row, of a row's header
//   Block(p, group) what the pieces of a block share
//   piece(k, i, v)  elements 32 i on of row k: two vectors of codes, returns their scales and minima
// Floor of a decoder: bytes of the f32 rows.
#pragma once

#include "cpu/quants/blocks.h"
#include "cpu/quants/ik_vec.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

struct PieceScales {
    float d[2], m[2];  // of the first and second 16 elements
};

// ---- Codes ----

// Fours of bytes at p, p + pitch, ... as one vector.
static inline u8x16 gather_fours(const uint8_t* p, int a, int b, int c, int d) {
    return (u8x16)w32x4{read_as<uint32_t>(p + a), read_as<uint32_t>(p + b), read_as<uint32_t>(p + c),
                        read_as<uint32_t>(p + d)};
}
// The four bytes at p, four times.
static inline u8x16 repeat_four(const uint8_t* p) { return (u8x16)(w32x4{} + read_as<uint32_t>(p)); }
// Bits: of the first four bytes by a, of the next four by b, ...
static inline u8x16 by_fours(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
    return u8x16{a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d};
}
// Fours of a vector moved right by other distances, and `mask` of each byte.
static inline u8x16 shift_fours(u8x16 v, int a, int b, int c, int d, int mask) {
    const u8x16 m = splat_u8(mask);
    const u8x16 x = v >> a & m, y = v >> b & m, z = v >> c & m, w = v >> d & m;
    const u8x16 low = __builtin_shuffle(x, y, u8x16{0, 1, 2, 3, 20, 21, 22, 23, 0, 0, 0, 0, 0, 0, 0, 0});
    const u8x16 high = __builtin_shuffle(z, w, u8x16{0, 0, 0, 0, 0, 0, 0, 0, 8, 9, 10, 11, 28, 29, 30, 31});
    return __builtin_shuffle(low, high, u8x16{0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31});
}

// 32 nibbles of row k among four, 64 bytes a block of 32: bytes 0 .. 3 hold elements 0 and 8 on, bytes 16 .. 16 and 24,
// bytes 32 .. 4 and 12, bytes 48 .. 20 and 28.
static inline void nibbles_of_four(const uint8_t* qs, int k, u8x16 q[2]) {
    const u8x16 packed = gather_fours(qs + 4 * k, 0, 32, 16, 48), low = packed & 15, high = packed >> 4;
    q[0] = __builtin_shuffle(low, high, u8x16{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23});
    q[1] = __builtin_shuffle(low, high, u8x16{8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31});
}
// 32 codes of 2 bits of row k among four, 32 bytes a block of 32.
static inline void pairs_of_four(const uint8_t* qs, int k, u8x16 q[2]) {
    q[0] = shift_fours(repeat_four(qs + 4 * k), 0, 2, 4, 6, 3);
    q[1] = shift_fours(repeat_four(qs + 4 * k + 16), 0, 2, 4, 6, 3);
}
// 32 nibbles of row k among eight, 128 bytes a block of 32.
static inline u8x16 nibbles_of_eight(const uint8_t* qs, int k) { return gather_fours(qs + 4 * k, 0, 32, 64, 96); }

// The high bits of five-bit codes, four bytes for a row: as masks. Two orders are in use.
static inline void fifth_bits_k(const uint8_t* qh, int k, u8x16 high[2]) {
    const u8x16 h = repeat_four(qh + 4 * k);
    high[0] = has_bits(h, by_fours(1, 16, 2, 32));
    high[1] = has_bits(h, by_fours(4, 64, 8, 128));
}

// ---- Scales ----

// Six bits of scale `i` of a block: 4 at sl, counted through the low nibbles first, 2 at sh, `n_low` and `n_high`
// bytes.
static inline int six_bits_of(const uint8_t* sl, int n_low, const uint8_t* sh, int n_high, int i) {
    return (sl[i % n_low] >> (i / n_low * 4) & 15) | (sh[i % n_high] >> (i / n_high * 2) & 3) << 4;
}
static inline PieceScales one_scale(float d) { return {{d, d}, {0, 0}}; }

// ---- Groups of four ----

template <int BLOCK_, int BYTES_, int ROWS_ = 4, int HEADER_ = 0>
struct GroupShape {
    static constexpr int ROWS = ROWS_, BLOCK = BLOCK_, BYTES = BYTES_, HEADER = HEADER_;
    static constexpr bool MINIMUM = false;
};

struct GroupIQ4_NL : GroupShape<32, 18> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int, i8x16 v[2]) {
        u8x16 q[2];
        nibbles_of_four(p + 8, k, q);
        v[0] = ik4_value(q[0]);
        v[1] = ik4_value(q[1]);
        return one_scale(half_at(p + 2 * k));
    }
};
struct GroupQ5_0 : GroupShape<32, 22> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int, i8x16 v[2]) {
        u8x16 q[2];
        nibbles_of_four(p + 24, k, q);
        const u8x16 h = repeat_four(p + 8 + 4 * k);
        v[0] = (i8x16)(q[0] | (has_bits(h, by_fours(1, 4, 16, 64)) & 16)) - 16;
        v[1] = (i8x16)(q[1] | (has_bits(h, by_fours(2, 8, 32, 128)) & 16)) - 16;
        return one_scale(half_at(p + 2 * k));
    }
};
struct GroupQ6_0 : GroupShape<32, 26> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int, i8x16 v[2]) {
        u8x16 q[2];
        nibbles_of_four(p + 40, k, q);
        for (int i = 0; i < 2; ++i) {
            const u8x16 h = shift_fours(repeat_four(p + 8 + 16 * i + 4 * k), 0, 2, 4, 6, 3);
            v[i] = (i8x16)(q[i] | h << 4) - 32;
        }
        return one_scale(half_at(p + 2 * k));
    }
};

struct GroupQ2_K : GroupShape<256, 84> {
    static constexpr bool MINIMUM = true;
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2];
        pairs_of_four(p + 80 + 32 * i, k, q);
        v[0] = (i8x16)q[0];
        v[1] = (i8x16)q[1];
        const float d = half_at(p + 2 * k), m = -half_at(p + 8 + 2 * k);
        const uint8_t a = p[16 + 8 * i + k], b = p[16 + 8 * i + k + 4];
        return {{d * (float)(a & 15), d * (float)(b & 15)}, {m * (float)(a >> 4), m * (float)(b >> 4)}};
    }
};
struct GroupQ3_K : GroupShape<256, 110> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        const uint8_t *high = p + 8, *low = p + 24;
        u8x16 q[2];
        pairs_of_four(p + 184 + 32 * i, k, q);
        const u8x16 h = repeat_four(p + 56 + 16 * i + 4 * k);
        v[0] = (i8x16)(q[0] | (has_bits(h, by_fours(1, 2, 4, 8)) & 4)) - 4;
        v[1] = (i8x16)(q[1] | (has_bits(h, by_fours(16, 32, 64, 128)) & 4)) - 4;
        const float d = half_at(p + 2 * k);
        return {{d * (float)(six_bits_of(low, 32, high, 16, 8 * i + k) - 32),
                 d * (float)(six_bits_of(low, 32, high, 16, 8 * i + k + 4) - 32)},
                {0, 0}};
    }
};

// Of Q4_K and Q5_K: scale and minimum of block i of row k, 4 bits of each at 32 bytes, 2 more at 16.
static inline PieceScales scale_and_minimum(const uint8_t* p, int k, int i) {
    const int at = 4 * i + k, low = p[32 + at], high = p[16 + at % 16] >> (at / 16 * 4);
    const float d = half_at(p + 2 * k) * (float)((low & 15) | (high & 3) << 4);
    const float m = -half_at(p + 8 + 2 * k) * (float)(low >> 4 | (high & 12) << 2);
    return {{d, d}, {m, m}};
}
struct GroupQ4_K : GroupShape<256, 144> {
    static constexpr bool MINIMUM = true;
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2];
        nibbles_of_four(p + 64 + 64 * i, k, q);
        v[0] = (i8x16)q[0];
        v[1] = (i8x16)q[1];
        return scale_and_minimum(p, k, i);
    }
};
struct GroupQ5_K : GroupShape<256, 176> {
    static constexpr bool MINIMUM = true;
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2];
        nibbles_of_four(p + 192 + 64 * i, k, q);
        const u8x16 h = repeat_four(p + 64 + 16 * i + 4 * k);
        v[0] = (i8x16)(q[0] | (has_bits(h, by_fours(1, 4, 2, 8)) & 16));
        v[1] = (i8x16)(q[1] | (has_bits(h, by_fours(16, 64, 32, 128)) & 16));
        return scale_and_minimum(p, k, i);
    }
};
struct GroupQ6_K : GroupShape<256, 210> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2];
        nibbles_of_four(p + 328 + 64 * i, k, q);
        for (int j = 0; j < 2; ++j) {
            const u8x16 h = shift_fours(repeat_four(p + 72 + 32 * i + 16 * j + 4 * k), 0, 4, 2, 6, 3);
            v[j] = (i8x16)(q[j] | h << 4) - 32;
        }
        const float d = half_at(p + 2 * k);
        return {{d * (float)read_as<int8_t>(p + 8 + 8 * i + k), d * (float)read_as<int8_t>(p + 12 + 8 * i + k)},
                {0, 0}};
    }
};

// Of IQ2_K .. IQ5_K: whether the first and the second 16 elements are on the moved grid.
static inline i8x16 moved(const uint8_t* extra, int k, int half, int i, uint8_t move) {
    return (i8x16)splat_u8((extra[k + 4 * half] >> i & 1) * move);
}

struct GroupIQ2_K : GroupShape<256, 76> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2];
        pairs_of_four(p + 48 + 32 * i, k, q);
        PieceScales s = {};
        const float d = half_at(p + 2 * k);
        for (int j = 0; j < 2; ++j) {
            const int at = 8 * i + k + 4 * j;
            v[j] = ik2_value(q[j]) + moved(p + 8, k, j, i, IK2_MOVE);
            s.d[j] = d * (float)((p[16 + at % 32] >> (at / 32 * 4) & 15) - 8);
        }
        return s;
    }
};
struct GroupIQ3_K : GroupShape<256, 110> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2];
        pairs_of_four(p + 56 + 32 * i, k, q);
        const u8x16 h = repeat_four(p + 312 + 16 * i + 4 * k);
        q[0] |= has_bits(h, by_fours(1, 2, 4, 8)) & 4;
        q[1] |= has_bits(h, by_fours(16, 32, 64, 128)) & 4;
        PieceScales s = {};
        const float d = half_at(p + 2 * k);
        for (int j = 0; j < 2; ++j) {
            const int at = 8 * i + k + 4 * j, odd = 2 * (p[24 + at % 32] >> (at / 32 * 4) & 15) + 1;
            v[j] = ik3_value(q[j]) + moved(p + 8, k, j, i, IK3_MOVE);
            s.d[j] = d * (float)((p[16 + at % 8] >> (at / 8) & 1) != 0 ? -odd : odd);
        }
        return s;
    }
};
struct GroupIQ4_K : GroupShape<256, 144> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2];
        nibbles_of_four(p + 64 + 64 * i, k, q);
        PieceScales s = {};
        const float d = half_at(p + 2 * k);
        for (int j = 0; j < 2; ++j) {
            v[j] = ik4_value(q[j]) + moved(p + 8, k, j, i, IK4_MOVE);
            s.d[j] = d * (float)(six_bits_of(p + 32, 32, p + 16, 16, 8 * i + k + 4 * j) - 32);
        }
        return s;
    }
};
struct GroupIQ5_K : GroupShape<256, 176> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2], high[2];
        nibbles_of_four(p + 64 + 64 * i, k, q);
        fifth_bits_k(p + 576 + 16 * i, k, high);
        PieceScales s = {};
        const float d = half_at(p + 2 * k);
        for (int j = 0; j < 2; ++j) {
            v[j] = ik5_value(q[j], high[j]) + moved(p + 8, k, j, i, IK5_MOVE);
            s.d[j] = d * (float)(six_bits_of(p + 32, 32, p + 16, 16, 8 * i + k + 4 * j) - 32);
        }
        return s;
    }
};
struct GroupIQ4_KS : GroupShape<256, 136, 4, 4> {
    static inline PieceScales piece(const uint8_t* header, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2];
        nibbles_of_four(p + 32 + 64 * i, k, q);
        const uint8_t scale = p[4 * i + k];
        for (int j = 0; j < 2; ++j) v[j] = ik4_value(q[j]) + (i8x16)splat_u8((scale & 1) * IK4_MOVE);
        return one_scale(read_as<float>(header + 4 * k) * (float)((scale & 254) - 127));
    }
};
struct GroupIQ5_KS : GroupShape<256, 168, 4, 4> {
    static inline PieceScales piece(const uint8_t* header, const uint8_t* p, int k, int i, i8x16 v[2]) {
        u8x16 q[2], high[2];
        nibbles_of_four(p + 32 + 64 * i, k, q);
        fifth_bits_k(p + 544 + 16 * i, k, high);
        const uint8_t scale = p[4 * i + k];
        for (int j = 0; j < 2; ++j) v[j] = ik5_value(q[j], high[j]) + (i8x16)splat_u8((scale & 1) * IK5_MOVE);
        return one_scale(read_as<float>(header + 4 * k) * (float)((scale & 254) - 127));
    }
};
// 16 bytes a row hold 64 elements, 16 of them in each four bytes.
struct GroupIQ2_BN : GroupShape<64, 16, 4, 4> {
    static inline PieceScales piece(const uint8_t* header, const uint8_t* p, int k, int i, i8x16 v[2]) {
        for (int j = 0; j < 2; ++j)
            v[j] = (i8x16)shift_fours(repeat_four(p + 4 * k + 32 * i + 16 * j), 0, 2, 4, 6, 3) - 1;
        return one_scale(read_as<float>(header + 4 * k));
    }
};

// ---- Groups of eight and sixteen ----

struct GroupQ4_0 : GroupShape<32, 18, 8> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int, i8x16 v[2]) {
        const u8x16 q = nibbles_of_eight(p + 16, k);
        v[0] = (i8x16)(q & 15) - 8;
        v[1] = (i8x16)(q >> 4) - 8;
        return one_scale(half_at(p + 2 * k));
    }
};
struct GroupMXFP4 : GroupShape<32, 17, 8> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int, i8x16 v[2]) {
        const i8x16 values = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // doubled
        const u8x16 q = nibbles_of_eight(p + 8, k);
        v[0] = lookup(values, q & 15);
        v[1] = lookup(values, q >> 4);
        const uint32_t bits = p[k] < 2 ? 0x00200000u << p[k] : (uint32_t)(p[k] - 1) << 23;  // half of 2^(e - 127)
        float d;
        std::memcpy(&d, &bits, 4);
        return one_scale(d);
    }
};
struct GroupQ8_0 : GroupShape<32, 34, 8> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int, i8x16 v[2]) {
        for (int j = 0; j < 2; ++j)
            v[j] = (i8x16)nibbles_of_eight(p + 16 + 128 * j, k);  // whole bytes, the same places
        return one_scale(half_at(p + 2 * k));
    }
};
struct GroupIQ4_XS : GroupShape<256, 136, 8> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        const u8x16 packed = nibbles_of_eight(p + 64 + 128 * i, k);
        const i8x16 low = ik4_value(packed & 15), high = ik4_value(packed >> 4);
        v[0] = __builtin_shuffle(low, high, i8x16{0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23});
        v[1] = __builtin_shuffle(low, high, i8x16{8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31});
        return one_scale(half_at(p + 2 * k) * (float)(six_bits_of(p + 32, 32, p + 16, 16, 8 * i + k) - 32));
    }
};
struct GroupQ8_KV : GroupShape<32, 32, 8, 4> {
    static inline PieceScales piece(const uint8_t* header, const uint8_t* p, int k, int, i8x16 v[2]) {
        for (int j = 0; j < 2; ++j) v[j] = (i8x16)nibbles_of_eight(p + 128 * j, k);
        return one_scale(read_as<float>(header + 4 * k));
    }
};
struct GroupQ8_K_R8 : GroupShape<256, 258, 8> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        for (int j = 0; j < 2; ++j) v[j] = (i8x16)nibbles_of_eight(p + 16 + 256 * i + 128 * j, k);
        return one_scale(half_at(p + 2 * k));
    }
};
// Bytes raised by 128.
struct GroupQ8_K_R16 : GroupShape<256, 258, 16> {
    static inline PieceScales piece(const uint8_t*, const uint8_t* p, int k, int i, i8x16 v[2]) {
        for (int j = 0; j < 2; ++j)
            v[j] = (i8x16)(gather_fours(p + 32 + 512 * i + 256 * j + 4 * k, 0, 64, 128, 192) ^ 128);
        return one_scale(half_at(p + 2 * k));
    }
};

// ---- Decoding ----

// y = q * d + m for 16 signed codes.
static inline void scale_and_move_16(i8x16 q, vf d, vf m, float* y) {
    scale_16(q, d, y);
    for (int i = 0; i < 16; i += VL) vstore(y + i, vload(y + i) + m);
}

// Elements [begin, begin + n) of the group of rows that starts at `group`, whole blocks: row k to y + k * ld.
template <class T>
static void decode_group(const uint8_t* group, int64_t begin, int64_t n, float* y, int64_t ld) {
    const uint8_t* p = group + T::ROWS * (T::HEADER + begin / T::BLOCK * T::BYTES);
    for (int64_t at = 0; at < n; at += T::BLOCK, p += T::ROWS * T::BYTES)
        for (int i = 0; i < T::BLOCK / 32; ++i)
            for (int k = 0; k < T::ROWS; ++k) {
                float* to = y + k * ld + at + 32 * i;
                i8x16 v[2];
                const PieceScales s = T::piece(group, p, k, i, v);
                for (int j = 0; j < 2; ++j) {
                    if (T::MINIMUM)
                        scale_and_move_16(v[j], vset(s.d[j]), vset(s.m[j]), to + 16 * j);
                    else
                        scale_16(v[j], vset(s.d[j]), to + 16 * j);
                }
            }
}

// Pairs of neighbours of one row after the other.
static void decode_bf16_r16(const uint8_t* group, int64_t begin, int64_t n, float* y, int64_t ld) {
    for (int64_t i = 0; i < n; i += 2)
        for (int k = 0; k < 16; ++k) {
            const uint32_t both = read_as<uint32_t>(group + 4 * (16 * ((begin + i) / 2) + k));
            y[k * ld + i] = bf16_to_f32((uint16_t)both);
            y[k * ld + i + 1] = bf16_to_f32((uint16_t)(both >> 16));
        }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
