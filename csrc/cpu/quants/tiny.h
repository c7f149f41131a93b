// TQ1_0, TQ2_0 (super-blocks with one scale), Q1_0, Q2_0, NVFP4 (blocks of 128, 64, 64): codes of two bits or less, and
// NVFP4's floats of four with a scale for every 16.
//
// Quantisation follows the format's reference quantisers, which are the stock CPU backend's, bit for bit for finite
// values.
#pragma once

#include "cpu/quants/codes.h"
#include "cpu/quants/tables4.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// The first digit to base 3 of a fraction in 256ths, of which the next is the first of three times it.
template <class V>
static inline V first_trit(V q) {
    return -(V)(q > 85) - (V)(q > 170);
}
template <class V>
static inline V thrice(V q) {
    return q + q + q;
}
static inline uint32_t thrice_bytes(uint32_t four) {
    const uint32_t even = (four & 0x00ff00ff) * 3, odd = (four >> 8 & 0x00ff00ff) * 3;
    return (even & 0x00ff00ff) | (odd & 0x00ff00ff) << 8;
}

struct CodesTQ1_0 {
    using Block = BlockTQ1_0;
    static constexpr int SUB = 32, ZERO = 1;
    static inline float d(const Block& x) { return f16_to_f32(x.d); }
    static inline void scales(const Block&, uint64_t s[2]) { s[0] = 0x0101010101010101; }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        u8x32 q = read_as<u8x32>(x.qs);
        for (int i = 0; i < 5; ++i, q = thrice(q)) codes[i] = first_trit(q);
        u8x16 r = load_u8x16(x.qs + 32), trits[5];
        for (int i = 0; i < 5; ++i, r = thrice(r)) trits[i] = first_trit(r);
        typedef uint32_t u32x4 __attribute__((vector_size(16)));
        const uint32_t one = read_as<uint32_t>(x.qh), three = thrice_bytes(one), nine = thrice_bytes(three);
        const u32x4 places = {one, three, nine, thrice_bytes(nine)};
        codes[5] = both_halves(trits[0], trits[1]);
        codes[6] = both_halves(trits[2], trits[3]);
        codes[7] = both_halves(trits[4], first_trit((u8x16)places));
    }
};

struct CodesTQ2_0 {
    using Block = BlockTQ2_0;
    static constexpr int SUB = 32, ZERO = 1;
    static inline float d(const Block& x) { return f16_to_f32(x.d); }
    static inline void scales(const Block&, uint64_t s[2]) { s[0] = 0x0101010101010101; }
    static inline void unpack(const Block& x, u8x32 codes[8]) {
        for (int i = 0; i < 8; ++i) codes[i] = read_as<u8x32>(x.qs + 32 * (i / 4)) >> 2 * (i % 4) & 3;
    }
};

// Types with blocks of fewer than 256 elements: piece i and scale i (of SUB elements) of a row.

struct CodesQ1_0 {
    using Block = BlockQ1_0;
    static constexpr int ELEMENTS = 128, SUB = 32, ZERO = 1;
    static inline float scale(const Block* x, int64_t i) { return f16_to_f32(x[i / 4].d); }
    static inline u8x32 piece(const Block* x, int64_t i) {  // 2 or 0
        const uint32_t bits = read_as<uint32_t>(x[i / 4].qs + 4 * (i % 4));
        return mask_of_32_bits(bits) & 2;
    }
};

struct CodesQ2_0 {
    using Block = BlockQ2_0;
    static constexpr int ELEMENTS = 64, SUB = 32, ZERO = 1;
    static inline float scale(const Block* x, int64_t i) { return f16_to_f32(x[i / 2].d); }
    static inline u8x32 piece(const Block* x, int64_t i) {
        const u32x8 q = eight_words(read_as<uint64_t>(x[i / 2].qs + 8 * (i % 2)));
        return (u8x32)((q | q << 6 | q << 12 | q << 18) & 0x03030303);
    }
};

// Unsigned float of 4 bits of exponent (bias 7) and 3 of mantissa, halved because the codes are doubled values. Bit 7
// is without meaning, and the pattern that would be NaN is 0.
static inline float nvfp4_scale(uint8_t e) {
    const uint32_t bits = (uint32_t)(e & 0x7f) << 20;  // as f32 with the exponent 120 too low, subnormals too
    float d;
    std::memcpy(&d, &bits, 4);
    return e == 0x7f ? 0.0f : d * 0x1p119f;
}

struct CodesNVFP4 {
    using Block = BlockNVFP4;
    static constexpr int ELEMENTS = 64, SUB = 16, ZERO = 16;
    static inline float scale(const Block* x, int64_t i) { return nvfp4_scale(x[i / 4].d[i % 4]); }
    static inline u8x32 piece(const Block* x, int64_t i) {
        const i8x16 values = {GGR_FP4_VALUES};
        const u8x16 q = load_u8x16(x[i / 2].qs + 16 * (i % 2));
        typedef uint64_t u64x2 __attribute__((vector_size(16)));
        const u64x2 low = (u64x2)lookup(values, q & 15), high = (u64x2)lookup(values, q >> 4);
        return both_halves((u8x16)__builtin_shuffle(low, high, u64x2{0, 2}),
                           (u8x16)__builtin_shuffle(low, high, u64x2{1, 3})) +
               (uint8_t)ZERO;
    }
};

template <class T>
static inline void dequantize_small_codes(const uint8_t* src, float* y, int64_t n) {
    using Block = typename T::Block;
    const Block* x = reinterpret_cast<const Block*>(src);
    for (int64_t i = 0; i < n / QK; ++i, y += QK)
        scale_piece(T::piece(x, i), T::ZERO, T::scale(x, i * QK / T::SUB), T::scale(x, (i * QK + 16) / T::SUB), y);
}

// ---- Quantisation ----

// -1, 0, 1 raised by 1: x * factor rounded to the nearest integer, halves away from zero. The scale is the largest
// magnitude, so there is nothing beyond; NaN counts as -1.
static inline void ternary_codes(const float* x, int n, float factor, uint8_t* codes) {
    for (int i = 0; i < n; i += QK) {
        vi q[VPB];
        for (int j = 0; j < VPB; ++j) {
            const vf v = keep_rounding(vload(x + i + j * VL) * factor);
            q[j] = -(vi)(v > vset(-0.5f)) - (vi)(v >= vset(0.5f));
        }
        store_i8x32(reinterpret_cast<int8_t*>(codes + i), q);
    }
}
// As a fraction in 256ths, rounded up; the last place of four elements is 0.
static inline uint8_t pack_trits(const uint8_t* codes, int pitch, int n) {
    uint32_t q = 0;
    for (int place = 0; place < 5; ++place) q = 3 * q + (place < n ? codes[place * pitch] : 0);
    return (uint8_t)((q * 256 + 242) / 243);
}

[[maybe_unused]] static void quantize_row_tq1_0(const float* x, uint8_t* dst, int64_t n) {
    BlockTQ1_0* y = reinterpret_cast<BlockTQ1_0*>(dst);
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        const float d = max_magnitude(x, QK_K);
        uint8_t codes[QK_K];
        ternary_codes(x, QK_K, inverse(d), codes);
        for (int i = 0; i < 32; ++i) y[b].qs[i] = pack_trits(codes + i, 32, 5);
        for (int i = 0; i < 16; ++i) y[b].qs[32 + i] = pack_trits(codes + 160 + i, 16, 5);
        for (int i = 0; i < 4; ++i) y[b].qh[i] = pack_trits(codes + 240 + i, 4, 4);
        y[b].d = f32_to_f16(d);
    }
}
[[maybe_unused]] static void quantize_row_tq2_0(const float* x, uint8_t* dst, int64_t n) {
    BlockTQ2_0* y = reinterpret_cast<BlockTQ2_0*>(dst);
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        const float d = max_magnitude(x, QK_K);
        uint8_t codes[QK_K];
        ternary_codes(x, QK_K, inverse(d), codes);
        for (int i = 0; i < 64; ++i) {
            const uint8_t* c = codes + i / 32 * 128 + i % 32;
            y[b].qs[i] = (uint8_t)(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
        }
        y[b].d = f32_to_f16(d);
    }
}
[[maybe_unused]] static void quantize_row_q2_0(const float* x, uint8_t* dst, int64_t n) {
    BlockQ2_0* y = reinterpret_cast<BlockQ2_0*>(dst);
    for (int64_t b = 0; b < n / 64; ++b, x += 64) {
        const float d = max_magnitude(x, 64);
        uint8_t codes[64];
        ternary_codes(x, 64, inverse(d), codes);
        for (int i = 0; i < 16; ++i) {
            const uint8_t* c = codes + 4 * i;
            y[b].qs[i] = (uint8_t)(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
        }
        y[b].d = f32_to_f16(d);
    }
}
// The mean magnitude, summed in order, and the signs; NaN counts as negative.
[[maybe_unused]] static void quantize_row_q1_0(const float* x, uint8_t* dst, int64_t n) {
    BlockQ1_0* y = reinterpret_cast<BlockQ1_0*>(dst);
    for (int64_t b = 0; b < n / 128; ++b, x += 128) {
        float sum = 0.0f;
        for (int i = 0; i < 128; ++i) sum += abs_of(x[i]);
        std::memset(y[b].qs, 0, sizeof y[b].qs);
        for (int i = 0; i < 128; ++i) y[b].qs[i / 8] = (uint8_t)(y[b].qs[i / 8] | (x[i] >= 0.0f) << i % 8);
        y[b].d = f32_to_f16(sum / 128.0f);
    }
}

// The nearest unsigned float of 4 and 3 bits; halves go up, and all from 256 on becomes the largest, 448.
static inline uint8_t nvfp4_exponent(float x) {
    if (!(x > 0.0f)) return 0;
    if (x >= 256.0f) return 0x7e;
    if (x < 0x1p-6f) {  // subnormal: multiples of 2^-9; the format has no carry to the smallest normal one
        const int mantissa = (int)(x * 512.0f + 0.5f);
        return (uint8_t)(mantissa < 7 ? mantissa : 7);
    }
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t e = (((bits >> 19) + 1) >> 1) - (120 << 3);
    return (uint8_t)(e < 0x78 ? e : 0x7e);
}

// The scale puts the largest magnitude on 6, the grid's end. Codes by the error in f32, the first of equal ones: where
// the scale has reached its limit, the elements may be so large that all errors round to the same.
[[maybe_unused]] static void quantize_row_nvfp4(const float* x, uint8_t* dst, int64_t n) {
    static constexpr float VALUES[16] = {GGR_FP4_VALUES};
    BlockNVFP4* y = reinterpret_cast<BlockNVFP4*>(dst);
    for (int64_t b = 0; b < n / 64; ++b, x += 64) {
        float d[4];
        for (int sub = 0; sub < 4; ++sub) {
            y[b].d[sub] = nvfp4_exponent(max_magnitude(x + 16 * sub, 16) / 6.0f);
            d[sub] = nvfp4_scale(y[b].d[sub]);
        }
        uint8_t codes[64];
        for (int i = 0; i < 64; i += QK) {
            vi q[VPB];
            for (int j = 0; j < VPB; ++j) {
                const vf v = vload(x + i + j * VL), scale = vset(d[(i + j * VL) / 16]);
                vf least = vabs(v);
                q[j] = vi{};
                for (int code = 1; code < 16; ++code) {
                    const vf error = vabs(VALUES[code] * scale - v);
                    const vi better = error < least;
                    least = vselect(better, error, least);
                    q[j] = (better & code) | (~better & q[j]);
                }
            }
            store_i8x32(reinterpret_cast<int8_t*>(codes + i), q);
        }
        for (int i = 0; i < 32; ++i) {
            const uint8_t* c = codes + i / 8 * 16 + i % 8;
            y[b].qs[i] = (uint8_t)(c[0] | c[8] << 4);
        }
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
