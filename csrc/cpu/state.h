// Helpers of recurrent layers, whose kernels walk rows of an f32 state token by token. Rows of a head and heads of a
// sequence do not depend on each other: they are what is shared out, the tokens are not.
#pragma once

#include "cpu/elementwise.h"
#include "cpu/layout.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// State rows or columns of a work item: few enough to stay in the first-level cache from token to token, enough to
// share the loading of the token's vectors.
constexpr int64_t STATE_BLOCK = 16;
// Columns that are updated at a time where channels lie side by side: as many sums as hide a fused operation's latency.
constexpr int STATE_VECTORS = VL == 4 ? 8 : 4;

inline int64_t blocks_of(int64_t n, int64_t block) { return (n + block - 1) / block; }

inline float* floats(const Tensor& t, int64_t i1 = 0, int64_t i2 = 0, int64_t i3 = 0) {
    return reinterpret_cast<float*>(row_at(t, i1, i2, i3));
}
// Element 0 of a row of a tensor whose rows are far apart.
inline float number(const Tensor& t, int64_t i1, int64_t i2, int64_t i3) { return *floats(t, i1, i2, i3); }

// `left` elements remain from p on; WHOLE promises that they are VL or more.
template <bool WHOLE>
static inline vf load_some(const float* p, int64_t left) {
    return WHOLE || left >= VL ? vload(p) : vload_part(p, left);
}
template <bool WHOLE>
static inline void store_some(float* p, vf v, int64_t left) {
    if (WHOLE || left >= VL)
        vstore(p, v);
    else
        vstore_part(p, v, left);
}

// Sum of the lanes, halved in registers: two a state row and token are a fifth of a row's work.
static inline float add_lanes(vf v) {
#if defined(__AVX512F__)
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#elif defined(__SSE3__)
    __m128 four = (__m128)v;
#endif
#if defined(__SSE3__)
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
#else
    return vsum(v);
#endif
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
