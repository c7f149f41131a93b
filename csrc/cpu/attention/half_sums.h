// Sums over V in half precision. For F16 K and V and fewer than 64 queries the stock CPU rounds q to half and keeps the
// sum over V in half, rounded after every position. Clients see that in logits, so these values are followed: position
// by position, with the maximum so far, whereas f32 sums take the maximum of a whole visit.
#pragma once

#include "cpu/attention/problem.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int64_t HALF_SUMS_BELOW = 64;  // queries

// Round every lane to half precision.
static inline vf round_f16(vf v) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)v, 0));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)v, 0));
#else
    const vu bits = (vu)v, sign = bits & 0x80000000u, magnitude = bits & 0x7fffffffu;
    const vu normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u)) & ~0x1fffu;
    // Subnormal halves: their unit, 2^-24, is the last place of floats in [0.5, 1).
    const vf small = ((vf)magnitude + 0.5f) - 0.5f;
    vf out = vselect((vi)(magnitude < 0x38800000u), small, (vf)normal);
    out = vselect((vi)(magnitude >= 0x477ff000u), (vf)(vu{} + 0x7f800000u), out);  // 65520 and more
    out = vselect((vi)(magnitude > 0x7f800000u), (vf)magnitude, out);              // NaN
    return (vf)((vu)out | sign);
#endif
}

// Round every lane of a sum to half precision; 65520 and more stay finite where a half would not.
static inline vf round_sum(vf v) {
#if defined(__AVX512F__)
    // Adding 1.5 * 2^13 times the lane's power of two pushes out what a half does not hold, ties to even. Halves below
    // 2^-14 are subnormal, and all of one step. Four operations that spread over the ports instead of two conversions
    // of two each: 0.97 ns instead of 1.14 for a position's vector in four rows, 1.13 instead of 1.45 in one (Zen 4).
    const __m512i power = _mm512_ternarylogic_epi32((__m512i)v, _mm512_set1_epi32(0x7f800000),
                                                    _mm512_set1_epi32(0x00400000), 0xea);  // v & a | b
    // Of NaN, which infinity turns into, and a number this takes the second.
    const __m512 scaled = _mm512_max_ps((__m512)power, _mm512_set1_ps(1.5f / 16384)), by = _mm512_set1_ps(8192.0f);
    return (vf)_mm512_fnmadd_ps(scaled, by, _mm512_fmadd_ps(scaled, by, (__m512)v));
#else
    return round_f16(v);
#endif
}

// Positions of a visit at which the maximum of some row rises (bits), and by what the sums of each row then shrink.
struct Rises {
    uint64_t at;
    const float* shrink;  // [row][KV_TILE]
};

// Turn the scores of a row into weights against the maximum so far; return where it rises. `shrink` takes the factors
// of all positions, 1 where nothing rises.
static inline uint64_t weigh_in_order(const Visit& visit, float* scores, float* maximum, vf* sum, float* shrink) {
    float base[KV_TILE], m = *maximum, total = vsum(*sum);
    uint64_t rises = 0;
    for (int64_t j = 0; j < visit.n; ++j) {
        shrink[j] = 1.0f;
        if (scores[j] > m) {
            shrink[j] = __builtin_expf(m - scores[j]);
            m = scores[j];
            rises |= uint64_t{1} << j;
        }
        base[j] = m == MINUS_INF ? 0.0f : m;
    }
    for (int64_t j = visit.n; j < round_up(visit.n, VL); ++j) base[j] = 0.0f;
    for (int64_t j = 0; j < visit.n; j += VL) vstore(scores + j, vexp(vload(scores + j) - vload(base + j)));
    for (int64_t j = 0; j < visit.n; ++j) total = total * shrink[j] + scores[j];
    *maximum = m;
    *sum = vf{};
    (*sum)[0] = total;
    return rises;
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
