// Dequantisation of Q2_K, Q3_K, Q4_K, Q5_K, Q6_K: super-blocks of 256 with a scale for every 16 or 32 elements. n is a
// multiple of 256. All products are exact in f32 (11 bits of d, at most 8 of the scale, at most 6 of the code), so
// fused and unfused arithmetic agree bit for bit. Floor: bytes of the f32 row.
#pragma once

#include "cpu/quants/vec.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Scale and minimum of 6 bits of group i (0 .. 7) of Q4_K and Q5_K: bytes 0 .. 3 hold scales 0 .. 3, bytes 4 .. 7
// minima 0 .. 3; nibbles of bytes 8 .. 11 the low bits of groups 4 .. 7, whose high two lie on top of bytes 0 .. 7.
static inline void scale_and_min(const uint8_t* s, int i, int* scale, int* min) {
    if (i < 4) {
        *scale = s[i] & 63;
        *min = s[i + 4] & 63;
    } else {
        *scale = (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
        *min = s[i + 4] >> 4 | (s[i] >> 6) << 4;
    }
}
// The 16 scales of Q3_K, biased by 32: low nibbles of bytes 0 .. 7 for 0 .. 7, high ones for 8 .. 15; the upper two
// bits of scale i are bits 2 (i / 4) of byte 8 + i % 4.
static inline void unpack_q3_scales(const uint8_t* s, int8_t scales[16]) {
    for (int i = 0; i < 16; ++i)
        scales[i] = (int8_t)(((i < 8 ? s[i] & 15 : s[i - 8] >> 4) | (s[8 + i % 4] >> 2 * (i / 4) & 3) << 4) - 32);
}

[[maybe_unused]] static void dequantize_row_q2_K(const uint8_t* src, float* y, int64_t n) {
    const BlockQ2_K* x = reinterpret_cast<const BlockQ2_K*>(src);
    for (int64_t b = 0; b < n / QK_K; ++b) {
        const float d = f16_to_f32(x[b].d), dmin = f16_to_f32(x[b].dmin);
        for (int i = 0; i < 16; ++i, y += 16) {  // group i: bits 2 (i / 2 % 4) of half i % 2 of 32 bytes
            const vf scale = vset(d * (float)(x[b].scales[i] & 15)), min = vset(-dmin * (float)(x[b].scales[i] >> 4));
            const u8x16 q = load_u8x16(x[b].qs + 32 * (i / 8) + 16 * (i % 2));
            scale_16(q >> 2 * (i / 2 % 4) & 3, scale, min, y);
        }
    }
}
[[maybe_unused]] static void dequantize_row_q3_K(const uint8_t* src, float* y, int64_t n) {
    const BlockQ3_K* x = reinterpret_cast<const BlockQ3_K*>(src);
    for (int64_t b = 0; b < n / QK_K; ++b) {
        const float d = f16_to_f32(x[b].d);
        int8_t scales[16];
        unpack_q3_scales(x[b].scales, scales);
        for (int i = 0; i < 16; ++i, y += 16) {  // third bit: bit i / 2 of half i % 2 of hmask; clear means minus 4
            const u8x16 q = load_u8x16(x[b].qs + 32 * (i / 8) + 16 * (i % 2)),
                        high = load_u8x16(x[b].hmask + 16 * (i % 2));
            const u8x16 code = (q >> 2 * (i / 2 % 4) & 3) | (high >> i / 2 & 1) << 2;
            scale_16((i8x16)code - 4, vset(d * (float)scales[i]), y);
        }
    }
}
[[maybe_unused]] static void dequantize_row_q4_K(const uint8_t* src, float* y, int64_t n) {
    const BlockQ4_K* x = reinterpret_cast<const BlockQ4_K*>(src);
    for (int64_t b = 0; b < n / QK_K; ++b) {
        const float d = f16_to_f32(x[b].d), dmin = f16_to_f32(x[b].dmin);
        for (int i = 0; i < 8; ++i, y += 32) {  // groups 2j and 2j + 1: low and high nibbles of 32 bytes
            int scale, min;
            scale_and_min(x[b].scales, i, &scale, &min);
            const vf dl = vset(d * (float)scale), ml = vset(-dmin * (float)min);
            for (int h = 0; h < 32; h += 16) {
                const u8x16 q = load_u8x16(x[b].qs + 32 * (i / 2) + h);
                scale_16(i % 2 ? q >> 4 : q & 15, dl, ml, y + h);
            }
        }
    }
}
[[maybe_unused]] static void dequantize_row_q5_K(const uint8_t* src, float* y, int64_t n) {
    const BlockQ5_K* x = reinterpret_cast<const BlockQ5_K*>(src);
    for (int64_t b = 0; b < n / QK_K; ++b) {
        const float d = f16_to_f32(x[b].d), dmin = f16_to_f32(x[b].dmin);
        for (int i = 0; i < 8; ++i, y += 32) {  // as Q4_K, with bit i of qh as fifth bit
            int scale, min;
            scale_and_min(x[b].scales, i, &scale, &min);
            const vf dl = vset(d * (float)scale), ml = vset(-dmin * (float)min);
            for (int h = 0; h < 32; h += 16) {
                const u8x16 q = load_u8x16(x[b].qs + 32 * (i / 2) + h), high = load_u8x16(x[b].qh + h) >> i & 1;
                scale_16((i % 2 ? q >> 4 : q & 15) | high << 4, dl, ml, y + h);
            }
        }
    }
}
[[maybe_unused]] static void dequantize_row_q6_K(const uint8_t* src, float* y, int64_t n) {
    const BlockQ6_K* x = reinterpret_cast<const BlockQ6_K*>(src);
    for (int64_t b = 0; b < n / QK_K; ++b) {
        const float d = f16_to_f32(x[b].d);
        for (int i = 0; i < 16; ++i, y += 16) {
            // Within a half of 128, quarter k: bytes 32 (k % 2) of ql, nibble k / 2, and bits 2 k of qh.
            const int half = i / 8, k = i / 2 % 4, h = 16 * (i % 2);
            const u8x16 low = load_u8x16(x[b].ql + 64 * half + 32 * (k % 2) + h),
                        high = load_u8x16(x[b].qh + 32 * half + h);
            const u8x16 code = (k < 2 ? low & 15 : low >> 4) | (high >> 2 * k & 3) << 4;
            scale_16((i8x16)code - 32, vset(d * (float)x[b].scales[i]), y);
        }
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
