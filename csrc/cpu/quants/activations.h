// Quantisation of activations for products with quantised weights, on the grids that the stock CPU backend uses on x86:
//   Q8_0, Q8_1: d = max|x| / 127 stored as half, quants = x * (127 / max|x|) to nearest even;
//   Q8_2:       d = max|x| / 127 rounded to bf16, quants = x * (1 / d) to nearest even (ik_llama.cpp's grid);
//   Q8_K:       iscale = -127 / (first x of largest magnitude), quants = x * iscale to nearest even, d = 1 / iscale.
// n is a multiple of the block (32, 32, 256). Floor: one read of x; about 1.3 bytes written for 4 read.
#pragma once

#include "cpu/quants/vec.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// One block of 32; returns d before rounding to half and fills the integers.
static inline float quantize_32(const float* x, vi q[VPB]) {
    const float amax = max_magnitude(x, QK);
    const vf scale = vset(amax != 0.0f ? 127.0f / amax : 0.0f);
    for (int i = 0; i < VPB; ++i) q[i] = round_to_int(vload(x + i * VL) * scale);
    return amax / 127.0f;
}

// The same on the grid of Q8_2; returns d as it is stored.
static inline float quantize_32_bf16(const float* x, vi q[VPB]) {
    const float d = bf16_to_f32(f32_to_bf16(max_magnitude(x, QK) / 127.0f));
    const vf scale = vset(d > 0.0f ? 1.0f / d : 0.0f), top = vset(127.0f);
    for (int i = 0; i < VPB; ++i) q[i] = round_to_int(vmax(vmin(vload(x + i * VL) * scale, top), -top));
    return d;
}

[[maybe_unused]] static inline void quantize_row_q8_0(const float* x, BlockQ8_0* y, int64_t n) {
    for (int64_t b = 0; b < n / QK; ++b) {
        vi q[VPB];
        y[b].d = f32_to_f16(quantize_32(x + b * QK, q));
        store_i8x32(y[b].qs, q);
    }
}

[[maybe_unused]] static inline void quantize_row_q8_1(const float* x, BlockQ8_1* y, int64_t n) {
    for (int64_t b = 0; b < n / QK; ++b) {
        vi q[VPB];
        const float d = quantize_32(x + b * QK, q);
        vi sum = q[0];
        for (int i = 1; i < VPB; ++i) sum += q[i];
        y[b].d = f32_to_f16(d);
        y[b].s = f32_to_f16(d * (float)sum_lanes(sum));
        store_i8x32(y[b].qs, q);
    }
}

// Sums of 16 consecutive int8 each.
static inline void sums_of_16(const int8_t* q, int16_t* sums) {
#if defined(__AVX2__)
    const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    for (int i = 0; i < QK_K / 128; ++i) {
        __m256i s[4];
        for (int j = 0; j < 4; ++j) {
            const __m256i v = _mm256_loadu_si256((const __m256i*)(q + 128 * i + 32 * j));
            s[j] = _mm256_madd_epi16(_mm256_maddubs_epi16(ones8, v), ones16);  // lower half: first 16, in four parts
        }
        const __m256i t =
            _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));  // halves: even, odd sums
        const __m128i even = _mm256_castsi256_si128(t), odd = _mm256_extracti128_si256(t, 1);
        _mm_storeu_si128((__m128i*)(sums + 8 * i),
                         _mm_unpacklo_epi16(_mm_packs_epi32(even, even), _mm_packs_epi32(odd, odd)));
    }
#else
    for (int i = 0; i < QK_K / 16; ++i) {
        int s = 0;
        for (int j = 0; j < 16; ++j) s += q[16 * i + j];
        sums[i] = (int16_t)s;
    }
#endif
}

[[maybe_unused]] static inline void quantize_row_q8_K(const float* x, BlockQ8_K* y, int64_t n) {
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        const float extreme = extreme_of(x, QK_K);
        if (extreme == 0.0f) {
            std::memset(&y[b], 0, sizeof y[b]);
            continue;
        }
        const float iscale = -127.0f / extreme;
        const vf scale = vset(iscale);
        for (int i = 0; i < QK_K; i += QK) {
            vi q[VPB];
            for (int j = 0; j < VPB; ++j) q[j] = round_to_int(vload(x + i + j * VL) * scale);
            store_i8x32(y[b].qs + i, q);
        }
        int16_t sums[QK_K / 16];
        sums_of_16(y[b].qs, sums);
        std::memcpy(y[b].bsums, sums, sizeof sums);
        y[b].d = 1.0f / iscale;
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
