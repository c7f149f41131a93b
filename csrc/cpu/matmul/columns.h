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

// Where the parts of a block of Q8_K go.
struct SuperParts {
    int8_t* quants;
    int32_t *negative, *negative16;
    int16_t *short32, *short16;
};

#if defined(__AVX2__)
static inline __m256i bytes_of(const vi q[VPB]) {  // 32 integers, saturated
#if defined(__AVX512F__)
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtsepi32_epi8((__m512i)q[0])),
                                   _mm512_cvtsepi32_epi8((__m512i)q[1]), 1);
#else
    const __m256i a = _mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]);
    const __m256i b = _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works within halves
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
#endif
}
#endif

// 256 elements on the grid of Q8_K; returns the scale. Floor: one read; 1.5 bytes are written for 4.
static inline float write_super(const float* x, const SuperParts& to) {
#if defined(__AVX2__)
    // As quantize_row_q8_K. The sums come from registers: what was just written in pieces is slow to read back whole,
    // and twice as much time went there.
    const float extreme = extreme_of(x, QK_K), iscale = extreme == 0.0f ? 0.0f : -127.0f / extreme;
    const vf scale = vset(iscale);
    const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; ++i) {
        __m256i s[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            vi q[VPB];
            for (int v = 0; v < VPB; ++v) {
                q[v] = vi{};
                if (extreme != 0.0f) q[v] = round_to_int(vload(x + i * 128 + j * QK + v * VL) * scale);
            }
            const __m256i bytes = bytes_of(q);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.quants + i * 128 + j * QK), bytes);
            s[j] = _mm256_madd_epi16(_mm256_maddubs_epi16(ones8, bytes), ones16);  // of 4
        }
        const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
        const __m128i even = _mm256_castsi256_si128(sums), odd = _mm256_extracti128_si256(sums, 1), zero = {};
        const __m128i low = _mm_unpacklo_epi32(even, odd), high = _mm_unpackhi_epi32(even, odd);
        const __m128i both = _mm_add_epi32(even, odd);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to.negative16 + 8 * i), _mm_sub_epi32(zero, low));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to.negative16 + 8 * i + 4), _mm_sub_epi32(zero, high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to.negative + 4 * i), _mm_sub_epi32(zero, both));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to.short16 + 8 * i), _mm_packs_epi32(low, high));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to.short32 + 4 * i), _mm_packs_epi32(both, both));
    }
    return extreme == 0.0f ? 0.0f : 1.0f / iscale;
#else
    BlockQ8_K block;
    quantize_row_q8_K(x, &block, QK_K);
    std::memcpy(to.quants, block.qs, QK_K);
    std::memcpy(to.short16, block.bsums, sizeof block.bsums);
    for (int i = 0; i < 16; ++i) to.negative16[i] = -block.bsums[i];
    for (int i = 0; i < 8; ++i) {
        to.negative[i] = to.negative16[2 * i] + to.negative16[2 * i + 1];
        to.short32[i] = (int16_t)-to.negative[i];
    }
    return block.d;
#endif
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
                negative[b] = static_cast<int32_t>(-static_cast<uint32_t>(s));  // of NaN it is the least number
            }
            return;
        case ACT_Q8_K:
            for (int64_t b = 0; b < n / QK_K; ++b) {
                const int64_t at = begin / QK_K + b;
                const SuperParts parts = {reinterpret_cast<int8_t*>(record + at * QK_K), negative + 8 * b,
                                          reinterpret_cast<int32_t*>(record + l.negative16) + 16 * at,
                                          reinterpret_cast<int16_t*>(record + l.short32) + 8 * at,
                                          reinterpret_cast<int16_t*>(record + l.short16) + 16 * at};
                scale[at] = write_super(x + b * QK_K, parts);
            }
            return;
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
