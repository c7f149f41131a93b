// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 on an even grid. n is a multiple of 32.
//
// Every product of a dequantisation is exact in f32 (11 bits of d, at most 8 of the code), so fused and unfused
// arithmetic agree bit for bit. Quantisation follows the reference quantisers of the format, bit for bit; Q8_0 follows
// the stock CPU backend's (activations.h).
// Floor: bytes of the f32 row; the codes are a seventh of it or less (Q8_0: a quarter).
#pragma once

#include "cpu/quants/activations.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

[[maybe_unused]] static void dequantize_row_q4_0(const uint8_t* src, float* y, int64_t n) {
    const BlockQ4_0* x = reinterpret_cast<const BlockQ4_0*>(src);
    for (int64_t b = 0; b < n / QK; ++b, y += QK) {
        const vf d = vset(f16_to_f32(x[b].d));
        const u8x16 q = load_u8x16(x[b].qs);
        scale_16((i8x16)(q & 15) - 8, d, y);
        scale_16((i8x16)(q >> 4) - 8, d, y + 16);
    }
}
[[maybe_unused]] static void dequantize_row_q4_1(const uint8_t* src, float* y, int64_t n) {
    const BlockQ4_1* x = reinterpret_cast<const BlockQ4_1*>(src);
    for (int64_t b = 0; b < n / QK; ++b, y += QK) {
        const vf d = vset(f16_to_f32(x[b].d)), m = vset(f16_to_f32(x[b].m));
        const u8x16 q = load_u8x16(x[b].qs);
        scale_16(q & 15, d, m, y);
        scale_16(q >> 4, d, m, y + 16);
    }
}
[[maybe_unused]] static void dequantize_row_q5_0(const uint8_t* src, float* y, int64_t n) {
    const BlockQ5_0* x = reinterpret_cast<const BlockQ5_0*>(src);
    for (int64_t b = 0; b < n / QK; ++b, y += QK) {
        const vf d = vset(f16_to_f32(x[b].d));
        const u8x16 q = load_u8x16(x[b].qs);
        uint32_t high;
        std::memcpy(&high, x[b].qh, 4);
        scale_16((i8x16)((q & 15) | (mask_of_bits(high) & 16)) - 16, d, y);
        scale_16((i8x16)((q >> 4) | (mask_of_bits(high >> 16) & 16)) - 16, d, y + 16);
    }
}
[[maybe_unused]] static void dequantize_row_q5_1(const uint8_t* src, float* y, int64_t n) {
    const BlockQ5_1* x = reinterpret_cast<const BlockQ5_1*>(src);
    for (int64_t b = 0; b < n / QK; ++b, y += QK) {
        const vf d = vset(f16_to_f32(x[b].d)), m = vset(f16_to_f32(x[b].m));
        const u8x16 q = load_u8x16(x[b].qs);
        uint32_t high;
        std::memcpy(&high, x[b].qh, 4);
        scale_16((q & 15) | (mask_of_bits(high) & 16), d, m, y);
        scale_16((q >> 4) | (mask_of_bits(high >> 16) & 16), d, m, y + 16);
    }
}
[[maybe_unused]] static void dequantize_row_q8_0(const uint8_t* src, float* y, int64_t n) {
    const BlockQ8_0* x = reinterpret_cast<const BlockQ8_0*>(src);
    for (int64_t b = 0; b < n / QK; ++b, y += QK) {
        const vf d = vset(f16_to_f32(x[b].d));
        for (int i = 0; i < QK; i += VL) vstore(y + i, to_float(load_i8(x[b].qs + i)) * d);
    }
}

// Least and largest of 32 elements; NaN is skipped. Of zeros of both signs the first counts.
static inline void range_of_32(const float* x, float* least, float* most) {
    vf lo = vset(-3.402823466e38f), hi = lo;  // lo: of -x
    for (int i = 0; i < QK; i += VL) {
        const vf v = vload(x + i);
        lo = vmax(-v, lo);
        hi = vmax(v, hi);
    }
    *least = -max_lane(lo);
    *most = max_lane(hi);
    if (*least != 0.0f) return;
    for (int i = 0; i < QK; ++i)
        if (x[i] == 0.0f) {
            *least = x[i];
            return;
        }
}
// Codes of 32 elements: (x - low) * scale + half, cut to an integer in 0 .. limit.
static inline void codes_of_32(const float* x, float low, float scale, float half, int limit, u8x16* first,
                               u8x16* second) {
    vi q[VPB];
    const vi top = vi{} + limit;
    for (int i = 0; i < VPB; ++i) {
        const vi c = truncate_to_int(keep_rounding((vload(x + i * VL) - low) * scale) + half);
        const vi positive = c & (c > 0);
        const vi over = positive > top;
        q[i] = (positive & ~over) | (top & over);
    }
    uint8_t bytes[QK];
    store_i8x32(reinterpret_cast<int8_t*>(bytes), q);
    *first = load_u8x16(bytes);
    *second = load_u8x16(bytes + 16);
}
static inline void store_nibbles(uint8_t* p, u8x16 first, u8x16 second) {
    const u8x16 both = (first & 15) | (second << 4);
    std::memcpy(p, &both, sizeof both);
}
static inline void store_high_bits(uint8_t* p, u8x16 first, u8x16 second) {
    const uint32_t high = bits_of(first >> 4) | bits_of(second >> 4) << 16;
    std::memcpy(p, &high, sizeof high);
}
static inline float inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

[[maybe_unused]] static void quantize_row_q4_0(const float* x, uint8_t* dst, int64_t n) {
    BlockQ4_0* y = reinterpret_cast<BlockQ4_0*>(dst);
    for (int64_t b = 0; b < n / QK; ++b, x += QK) {
        const float d = extreme_of(x, QK) / -8.0f;
        u8x16 first, second;
        codes_of_32(x, 0.0f, inverse(d), 8.5f, 15, &first, &second);
        y[b].d = f32_to_f16(d);
        store_nibbles(y[b].qs, first, second);
    }
}
[[maybe_unused]] static void quantize_row_q4_1(const float* x, uint8_t* dst, int64_t n) {
    BlockQ4_1* y = reinterpret_cast<BlockQ4_1*>(dst);
    for (int64_t b = 0; b < n / QK; ++b, x += QK) {
        float least, most;
        range_of_32(x, &least, &most);
        const float d = (most - least) / 15.0f;
        u8x16 first, second;
        codes_of_32(x, least, inverse(d), 0.5f, 15, &first, &second);
        y[b].d = f32_to_f16(d);
        y[b].m = f32_to_f16(least);
        store_nibbles(y[b].qs, first, second);
    }
}
[[maybe_unused]] static void quantize_row_q5_0(const float* x, uint8_t* dst, int64_t n) {
    BlockQ5_0* y = reinterpret_cast<BlockQ5_0*>(dst);
    for (int64_t b = 0; b < n / QK; ++b, x += QK) {
        const float d = extreme_of(x, QK) / -16.0f;
        u8x16 first, second;
        codes_of_32(x, 0.0f, inverse(d), 16.5f, 31, &first, &second);
        y[b].d = f32_to_f16(d);
        store_nibbles(y[b].qs, first, second);
        store_high_bits(y[b].qh, first, second);
    }
}
[[maybe_unused]] static void quantize_row_q5_1(const float* x, uint8_t* dst, int64_t n) {
    BlockQ5_1* y = reinterpret_cast<BlockQ5_1*>(dst);
    for (int64_t b = 0; b < n / QK; ++b, x += QK) {
        float least, most;
        range_of_32(x, &least, &most);
        const float d = (most - least) / 31.0f;
        u8x16 first, second;
        codes_of_32(x, least, inverse(d), 0.5f, 31, &first, &second);
        y[b].d = f32_to_f16(d);
        y[b].m = f32_to_f16(least);
        store_nibbles(y[b].qs, first, second);
        store_high_bits(y[b].qh, first, second);
    }
}
[[maybe_unused]] static void quantize_row_q8_0_bytes(const float* x, uint8_t* dst, int64_t n) {
    quantize_row_q8_0(x, reinterpret_cast<BlockQ8_0*>(dst), n);
}
[[maybe_unused]] static void quantize_row_q8_1_bytes(const float* x, uint8_t* dst, int64_t n) {
    quantize_row_q8_1(x, reinterpret_cast<BlockQ8_1*>(dst), n);
}
[[maybe_unused]] static void quantize_row_q8_K_bytes(const float* x, uint8_t* dst, int64_t n) {
    quantize_row_q8_K(x, reinterpret_cast<BlockQ8_K*>(dst), n);
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
