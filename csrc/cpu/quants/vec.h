// Vector pieces that quantisers share: conversions to integers, narrow stores and loads, reductions.
#pragma once

#include "cpu/quants/blocks.h"
#include "cpu/simd.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// A product must be rounded before it is added to something: byte-exact results need this where the compiler would
// fuse.
static inline vf keep_rounding(vf v) {
#if defined(__x86_64__)
    __asm__("" : "+v"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}
static inline float keep_rounding(float v) {
#if defined(__x86_64__)
    __asm__("" : "+v"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}

// Nearest integer, ties to even; any value, but never a trap, outside int32 and for NaN.
static inline vi round_to_int(vf x) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(__x86_64__)
    return (vi)_mm_cvtps_epi32((__m128)x);
#elif defined(__aarch64__)
    return (vi)vcvtnq_s32_f32((float32x4_t)x);
#else
    return __builtin_convertvector(vround(x), vi);
#endif
}
// Towards zero.
static inline vi truncate_to_int(vf x) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvttps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (vi)_mm256_cvttps_epi32((__m256)x);
#elif defined(__x86_64__)
    return (vi)_mm_cvttps_epi32((__m128)x);
#elif defined(__aarch64__)
    return (vi)vcvtq_s32_f32((float32x4_t)x);
#else
    return __builtin_convertvector(x, vi);
#endif
}
// The same for one element.
static inline int32_t round_to_int(float x) {
#if defined(__x86_64__)
    return _mm_cvtss_si32(_mm_set_ss(x));
#elif defined(__aarch64__)
    return vcvtns_s32_f32(x);
#else
    const float magic = 12582912.0f;
    return (int32_t)((keep_rounding(x) + magic) - magic);
#endif
}

constexpr int VPB = QK / VL;  // vectors of f32 in 32 elements

// Saturate 32 integers to int8.
static inline void store_i8x32(int8_t* p, const vi v[VPB]) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8((__m512i)v[0]));
    _mm_storeu_si128((__m128i*)(p + 16), _mm512_cvtsepi32_epi8((__m512i)v[1]));
#elif defined(__AVX2__)
    const __m256i a = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]);
    const __m256i b = _mm256_packs_epi32((__m256i)v[2], (__m256i)v[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works within halves
    _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order));
#elif defined(__x86_64__)
    for (int i = 0; i < 2; ++i) {
        const __m128i a = _mm_packs_epi32((__m128i)v[4 * i], (__m128i)v[4 * i + 1]);
        const __m128i b = _mm_packs_epi32((__m128i)v[4 * i + 2], (__m128i)v[4 * i + 3]);
        _mm_storeu_si128((__m128i*)(p + 16 * i), _mm_packs_epi16(a, b));
    }
#else
    for (int i = 0; i < QK; ++i) {
        const int32_t x = v[i / VL][i % VL];
        p[i] = (int8_t)(x < -128 ? -128 : x > 127 ? 127 : x);
    }
#endif
}

static inline float max_lane(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#elif defined(__x86_64__)
#if defined(__AVX2__)
    __m128 m = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
    __m128 m = (__m128)v;
#endif
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
#elif defined(__aarch64__)
    return vmaxnmvq_f32((float32x4_t)v);
#else
    return vmax_of(v);
#endif
}
static inline int32_t sum_lanes(vi v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#elif defined(__x86_64__)
#if defined(__AVX2__)
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
#else
    __m128i s = (__m128i)v;
#endif
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
#else
    int32_t s = 0;
    for (int i = 0; i < VL; ++i) s += v[i];
    return s;
#endif
}

// VL bytes, sign- or zero-extended.
static inline vi load_i8(const int8_t* p) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#elif defined(__x86_64__)
    return (vi)_mm_cvtepi8_epi32(_mm_loadu_si32(p));
#else
    vi v;
    for (int i = 0; i < VL; ++i) v[i] = p[i];
    return v;
#endif
}
static inline vi load_u8(const uint8_t* p) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#elif defined(__x86_64__)
    return (vi)_mm_cvtepu8_epi32(_mm_loadu_si32(p));
#else
    vi v;
    for (int i = 0; i < VL; ++i) v[i] = p[i];
    return v;
#endif
}
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

static inline u8x16 load_u8x16(const uint8_t* p) {
    u8x16 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
// values[index], indices 0 .. 15.
static inline i8x16 lookup(i8x16 values, u8x16 index) {
#if defined(__SSSE3__)
    return (i8x16)_mm_shuffle_epi8((__m128i)values, (__m128i)index);
#elif defined(__aarch64__)
    return (i8x16)vqtbl1q_s8((int8x16_t)values, (uint8x16_t)index);
#else
    i8x16 v;
    for (int i = 0; i < 16; ++i) v[i] = values[index[i]];
    return v;
#endif
}
// y = q * d for 16 signed codes.
static inline void scale_16(i8x16 q, vf d, float* y) {
#if defined(__AVX512F__)
    vstore(y, (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)q)) * d);
#elif defined(__AVX2__)
    vstore(y, (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32((__m128i)q)) * d);
    vstore(y + 8, (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)q, 8))) * d);
#elif defined(__x86_64__)
    vstore(y, (vf)_mm_cvtepi32_ps(_mm_cvtepi8_epi32((__m128i)q)) * d);
    vstore(y + 4, (vf)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_srli_si128((__m128i)q, 4))) * d);
    vstore(y + 8, (vf)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_srli_si128((__m128i)q, 8))) * d);
    vstore(y + 12, (vf)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_srli_si128((__m128i)q, 12))) * d);
#else
    for (int i = 0; i < 16; ++i) y[i] = (float)q[i] * d[0];
#endif
}
// y = q * d + m for 16 codes below 128.
static inline void scale_16(u8x16 q, vf d, vf m, float* y) {
    scale_16((i8x16)q, d, y);
    for (int i = 0; i < 16; i += VL) vstore(y + i, vload(y + i) + m);
}
// Bytes of 0xff where bit i of `bits` is set, else 0.
static inline u8x16 mask_of_bits(uint32_t bits) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return (u8x16)_mm_movm_epi8((__mmask16)bits);
#else
    const u8x16 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8_t lo = (uint8_t)bits, hi = (uint8_t)(bits >> 8);
    const u8x16 spread = {lo, lo, lo, lo, lo, lo, lo, lo, hi, hi, hi, hi, hi, hi, hi, hi};
    return (u8x16)((spread & bit) == bit);
#endif
}
// Bit i of the result is the lowest bit of byte i.
static inline uint32_t bits_of(u8x16 v) {
#if defined(__x86_64__)
    return (uint32_t)_mm_movemask_epi8(_mm_slli_epi16((__m128i)v, 7));
#else
    uint32_t bits = 0;
    for (int i = 0; i < 16; ++i) bits |= (uint32_t)(v[i] & 1) << i;
    return bits;
#endif
}

static inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }

static inline float abs_of(float x) { return x < 0 ? -x : x; }

// Largest magnitude of n elements (n a multiple of VL); NaN is skipped.
static inline float max_magnitude(const float* x, int n) {
    vf m = vf{};
    for (int i = 0; i < n; i += VL) m = vmax(vabs(vload(x + i)), m);
    return max_lane(m);
}
// The first of n elements that has the largest magnitude, with its sign; 0 if all are 0.
static inline float extreme_of(const float* x, int n) {
    vf hi = vf{}, lo = vf{};
    for (int i = 0; i < n; i += VL) {
        const vf v = vload(x + i);
        hi = vmax(v, hi);
        lo = vmax(-v, lo);
    }
    const float most = max_lane(hi), least = max_lane(lo);
    if (most == 0.0f && least == 0.0f) return 0.0f;  // +0 whatever the signs of the elements
    if (most != least) return most > least ? most : -least;
    for (int i = 0; i < n; ++i)
        if (abs_of(x[i]) == most) return x[i];
    return 0.0f;
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
