// How a column of activations lies in scratch: one record a column, its parts behind each other.
//
//   F32, F16, BF16: k floats, already rounded to the type.
//   Q8_2_AS_F32, Q8_K_AS_F32: k floats, rounded to what the blocks of those types hold. (Q8_2: 32 elements on an even
//                   grid whose step is a bf16; what ik_llama.cpp multiplies most small blocks with.)
//                   With AMX those of F16 and BF16 are followed by what its products take: bf16, up to a multiple of 32
//                   elements with zeros; of F16 also what is left of its rounding.
//   Q8_0, Q8_1:     k int8, then per 32 elements: the scale, -sum of the int8 (int32), and scale * sum (Q8_1's s,
//                   rounded to half).
//   Q8_2:           the same with scales of bf16, and scale * sum as it is.
//   Q8_K:           k int8, then the scale per 256 elements, and per 32 and per 16 elements -sum (int32) and the sum as
//                   int16.
#pragma once

#include "cpu/plan.h"
#include "cpu/quants/activations.h"
#include "cpu/quants/blocks.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

struct ColumnLayout {
    int64_t scale, negative, sum, negative16, short16, short32;  // offsets of the parts
    int64_t high, low;
    int64_t stride;
};

static inline ColumnLayout column_layout(ActFormat format, int64_t k) {
    ColumnLayout l = {};
    int64_t bytes;
    if (format == ACT_F32 || format == ACT_F16 || format == ACT_BF16 || format == ACT_Q8_2_AS_F32 ||
        format == ACT_Q8_K_AS_F32) {
        bytes = 4 * k;
#if defined(GGR_AMX)
        if (format == ACT_F16 || format == ACT_BF16) {
            const int64_t part = (2 * k + 63) & ~int64_t{63};
            l.high = (bytes + 63) & ~int64_t{63};
            l.low = l.high + part;
            bytes = format == ACT_F16 ? l.low + part : l.low;
        }
#endif
    } else {
        const int64_t part = k / QK * 4;
        l.scale = (k + 63) & ~int64_t{63};
        l.negative = l.scale + part;
        l.sum = l.negative16 = l.negative + part;  // small blocks have the one, super-blocks the other
        l.short16 = l.negative16 + 2 * part;
        l.short32 = l.short16 + part;
        bytes = format == ACT_Q8_K ? l.short32 + part / 2 : l.sum + part;
    }
    // An odd number of lines, so that neighbouring columns do not meet in the same sets of the cache.
    l.stride = ((bytes + 127) & ~int64_t{127}) + 64;
    return l;
}

// Round to half, or to bf16 with NaN kept quiet, and back.
static inline void round_floats(const float* x, int64_t n, float* to, bool half) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf v = vload(x + i);
        if (half) {
            uint16_t bits[VL];
            vstore_f16(bits, v);
            vstore(to + i, vload_f16(bits));
        } else {
            const vu bits = (vu)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
            const vf kept = vselect((bits & 0x7fffffff) > 0x7f800000, (vf)(bits | 0x400000), (vf)rounded);
            vstore(to + i, (vf)((vu)kept & 0xffff0000));
        }
    }
    for (; i < n; ++i) to[i] = half ? f16_to_f32(f32_to_f16(x[i])) : bf16_to_f32(f32_to_bf16(x[i]));
}

#if defined(GGR_AMX)
// 32 floats as bf16, rounded (truncated, what is left would have one sign and add up), and exactly, if they have 16
// bits at most, what is left.
static inline void split_in_bf16(__m512 a, __m512 b, void* high, void* low) {
    const __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i words = _mm512_add_epi32(_mm512_mullo_epi32(number, _mm512_set1_epi32(0x00040004)),
                                           _mm512_set1_epi32(0x00030001));  // the upper ones
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
    const __m512i a0 = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(a), half), upper);
    const __m512i b0 = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(b), half), upper);
    const __m512i bits = _mm512_permutex2var_epi16(a0, words, b0);
    std::memcpy(high, &bits, sizeof bits);
    if (low == nullptr) return;
    const __m512i a1 = _mm512_castps_si512(_mm512_sub_ps(a, _mm512_castsi512_ps(a0)));
    const __m512i b1 = _mm512_castps_si512(_mm512_sub_ps(b, _mm512_castsi512_ps(b0)));
    const __m512i rest = _mm512_permutex2var_epi16(a1, words, b1);
    std::memcpy(low, &rest, sizeof rest);
}
static inline void write_parts(const float* x, int64_t n, uint8_t* high, uint8_t* low) {
    for (int64_t i = 0; i < n; i += 32) {
        const uint32_t there = n - i < 32 ? (1u << (n - i)) - 1 : ~0u;
        split_in_bf16(_mm512_maskz_loadu_ps((__mmask16)there, x + i),
                      _mm512_maskz_loadu_ps((__mmask16)(there >> 16), x + i + 16), high + 2 * i,
                      low == nullptr ? nullptr : low + 2 * i);
    }
}
#endif

// 32 elements to nearest multiples of a step, -127 to 127 of them.
static inline void round_to_q8_2(const float* x, float* to) {
    vi q[VPB];
    const float step = quantize_32_bf16(x, q);
    for (int i = 0; i < VPB; ++i) vstore(to + i * VL, to_float(q[i]) * step);
}

// A column's elements [begin, begin + n), n a multiple of the block, in its record.
static inline void write_column(ActFormat format, const ColumnLayout& l, const float* x, int64_t begin, int64_t n,
                                uint8_t* record) {
    float* plain = reinterpret_cast<float*>(record) + begin;
    const int64_t b0 = begin / QK;
    float* scale = reinterpret_cast<float*>(record + l.scale);
    int32_t* negative = reinterpret_cast<int32_t*>(record + l.negative) + b0;
    float* sum = reinterpret_cast<float*>(record + l.sum) + b0;
    switch (format) {
        case ACT_F32:
            std::memcpy(plain, x, (size_t)n * 4);
            return;
        case ACT_F16:
        case ACT_BF16:
            round_floats(x, n, plain, format == ACT_F16);
#if defined(GGR_AMX)
            write_parts(plain, n, record + l.high + 2 * begin,
                        format == ACT_F16 ? record + l.low + 2 * begin : nullptr);
#endif
            return;
        case ACT_Q8_2_AS_F32:
            for (int64_t i = 0; i < n; i += QK) round_to_q8_2(x + i, plain + i);
            return;
        case ACT_Q8_K_AS_F32:
            for (int64_t i = 0; i < n; i += QK_K) {
                BlockQ8_K block;
                quantize_row_q8_K(x + i, &block, QK_K);
                const vf d = vset(block.d);
                for (int j = 0; j < QK_K; j += VL) vstore(plain + i + j, to_float(load_i8(block.qs + j)) * d);
            }
            return;
        case ACT_Q8_0:
        case ACT_Q8_1:
        case ACT_Q8_2:
            for (int64_t b = 0; b < n / QK; ++b) {
                vi q[VPB], total = {};
                const bool bf16 = format == ACT_Q8_2;
                const float d = bf16 ? quantize_32_bf16(x + b * QK, q) : quantize_32(x + b * QK, q);
                store_i8x32(reinterpret_cast<int8_t*>(record + begin + b * QK), q);
                for (int i = 0; i < VPB; ++i) total += q[i];
                const int32_t s = sum_lanes(total);
                scale[b0 + b] = bf16 ? d : f16_to_f32(f32_to_f16(d));
                sum[b] = bf16 ? d * (float)s : f16_to_f32(f32_to_f16(d * (float)s));
                negative[b] = -s;
            }
            return;
        case ACT_Q8_K:
            for (int64_t b = 0; b < n / QK_K; ++b) {
                BlockQ8_K block;
                quantize_row_q8_K(x + b * QK_K, &block, QK_K);
                std::memcpy(record + begin + b * QK_K, block.qs, QK_K);
                scale[begin / QK_K + b] = block.d;
                int32_t* negative16 = reinterpret_cast<int32_t*>(record + l.negative16) + begin / 16 + 16 * b;
                int16_t* short32 = reinterpret_cast<int16_t*>(record + l.short32) + begin / 32 + 8 * b;
                std::memcpy(record + l.short16 + 2 * (begin / 16 + 16 * b), block.bsums, sizeof block.bsums);
                for (int i = 0; i < 16; ++i) negative16[i] = -block.bsums[i];
                for (int i = 0; i < 8; ++i) {
                    negative[8 * b + i] = negative16[2 * i] + negative16[2 * i + 1];
                    short32[i] = (int16_t)-negative[8 * b + i];
                }
            }
            return;
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
