// Bytes in registers and the integer dot product of each instruction-set level.
//
// Weights are unpacked to unsigned bytes u with w = scale * (u - zero) or scale * u + minimum, activations are signed
// bytes. Unsigned times signed is what vpdpbusd and pmaddubsw take. pmaddubsw adds pairs into 16 bits with saturation:
// u <= 126 and |a| <= 128 stay at or below 2 * 126 * 128 = 32256. Types with 8 significant bits ("wide") are therefore
// kept signed at levels without vpdpbusd and multiplied as |w| * (a with the sign of w), at most 2 * 128 * 127 = 32512.
#pragma once

#include "cpu/simd.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define GGR_VNNI 1
constexpr int BW = 64;  // bytes of a register of weights in dot products of rows
#else
#define GGR_VNNI 0
constexpr int BW = 32;  // without 32-byte registers the compiler takes two of 16
#endif
// vpdpbusd of some width: sums of four products without saturation.
#if GGR_VNNI || defined(__AVXVNNI__) || (defined(GGR_EMULATED) && defined(__AVX2__))
#define GGR_DPBUSD 1
#else
#define GGR_DPBUSD 0
#endif

typedef uint8_t b16 __attribute__((vector_size(16)));
typedef uint8_t b32 __attribute__((vector_size(32)));
typedef uint8_t bv __attribute__((vector_size(BW)));
typedef int8_t s32 __attribute__((vector_size(32)));
typedef uint8_t bl __attribute__((vector_size(VL * 4)));  // four bytes for each of VL rows
typedef int16_t w16 __attribute__((vector_size(32)));
typedef uint16_t h8 __attribute__((vector_size(16)));
typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8x __attribute__((vector_size(32)));
typedef float fv __attribute__((vector_size(BW)));
typedef int32_t iv __attribute__((vector_size(BW)));

template <class V>
static inline V vread(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
static inline void vwrite(void* p, V v) {
    std::memcpy(p, &v, sizeof v);
}

static inline b32 join16(b16 low, b16 high) {
#if defined(__AVX2__)
    return (b32)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)low), (__m128i)high, 1);
#else
    b32 v;
    std::memcpy(&v, &low, 16);
    std::memcpy(reinterpret_cast<uint8_t*>(&v) + 16, &high, 16);
    return v;
#endif
}

// Two pieces of 32 elements as registers of the row dot product.
static inline void join32(bv* out, b32 low, b32 high) {
#if GGR_VNNI
    out[0] = (bv)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)low), (__m256i)high, 1);
#else
    out[0] = low;
    out[1] = high;
#endif
}

// table[index] for 16-entry tables, indices 0 .. 15.
static inline b16 lookup16(b16 table, b16 index) {
#if defined(__SSSE3__)
    return (b16)_mm_shuffle_epi8((__m128i)table, (__m128i)index);
#elif defined(__aarch64__)
    return (b16)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
#else
    return __builtin_shuffle(table, index);
#endif
}
static inline b32 lookup(b16 table, b32 index) {
#if defined(__AVX2__)
    return (b32)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256((__m128i)table), (__m256i)index);
#else
    b16 half[2];
    std::memcpy(half, &index, 32);
    return join16(lookup16(table, half[0]), lookup16(table, half[1]));
#endif
}

#if !GGR_VNNI && !defined(__SSSE3__)
static inline int32_t saturated_pair(const uint8_t* u, const int8_t* a) {
    const int32_t sum = u[0] * a[0] + u[1] * a[1];
    return sum > INT16_MAX ? INT16_MAX : sum < INT16_MIN ? INT16_MIN : sum;
}
// Portable: widen and multiply; four neighbours meet in one lane.
template <int N>
static inline void dot_portable(int32_t* acc, const uint8_t* u, const int8_t* a, bool signed_u) {
    for (int i = 0; i < N; ++i) {
        int32_t s = 0;
        for (int j = 0; j < 4; ++j)
            s += (signed_u ? (int32_t)(int8_t)u[4 * i + j] : (int32_t)u[4 * i + j]) * a[4 * i + j];
        acc[i] += s;
    }
}
#endif

#if !GGR_VNNI && defined(__SSSE3__)
template <bool WIDE>
static inline __m128i dot128(__m128i acc, __m128i u, __m128i a) {
    const __m128i ones = _mm_set1_epi16(1);
    const __m128i pairs = WIDE ? _mm_maddubs_epi16(_mm_abs_epi8(u), _mm_sign_epi8(a, u)) : _mm_maddubs_epi16(u, a);
    return _mm_add_epi32(acc, _mm_madd_epi16(pairs, ones));
}
#endif
#if !GGR_VNNI && defined(__AVX2__)
template <bool WIDE>
static inline __m256i dot256(__m256i acc, __m256i u, __m256i a) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(acc, u, a);
#elif GGR_DPBUSD  // the same in the encoding of AVX-512, which does not come by itself without 512-bit vectors
    asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(u), "x"(a));
    return acc;
#else
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i pairs =
        WIDE ? _mm256_maddubs_epi16(_mm256_abs_epi8(u), _mm256_sign_epi8(a, u)) : _mm256_maddubs_epi16(u, a);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, ones));
#endif
}
#endif

// acc + dot of 32 elements, in 8 lanes of 4.
template <bool WIDE>
static inline i8x dot32(i8x acc, b32 u, b32 a) {
#if GGR_VNNI
    return (i8x)_mm256_dpbusd_epi32((__m256i)acc, (__m256i)u, (__m256i)a);
#elif defined(__AVX2__)
    return (i8x)dot256<WIDE>((__m256i)acc, (__m256i)u, (__m256i)a);
#elif defined(__SSSE3__)
    __m128i s[2], x[2], y[2];
    std::memcpy(s, &acc, 32);
    std::memcpy(x, &u, 32);
    std::memcpy(y, &a, 32);
    s[0] = dot128<WIDE>(s[0], x[0], y[0]);
    s[1] = dot128<WIDE>(s[1], x[1], y[1]);
    std::memcpy(&acc, s, 32);
    return acc;
#else
    dot_portable<8>(reinterpret_cast<int32_t*>(&acc), reinterpret_cast<const uint8_t*>(&u),
                    reinterpret_cast<const int8_t*>(&a), WIDE);
    return acc;
#endif
}

// The same for a register of BW elements.
template <bool WIDE>
static inline iv dot(iv acc, bv u, bv a) {
#if GGR_VNNI
    return (iv)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)u, (__m512i)a);
#else
    return dot32<WIDE>(acc, u, a);
#endif
}

// acc + sums of u * a * the factor of each 16 elements: pairs in 16 bits (saturated if u is wide), times the factors
// into 32. The
// register j of a group of 256, for which `factors` are the 16 of the group.
static inline iv dot_scaled(iv acc, bv u, bv a, w16 factors, int j) {
#if GGR_VNNI
    const __m512i which =
        _mm512_add_epi16(_mm512_set_epi64(0x0003000300030003, 0x0003000300030003, 0x0002000200020002,
                                          0x0002000200020002, 0x0001000100010001, 0x0001000100010001, 0, 0),
                         _mm512_set1_epi16((short)(4 * j)));
    const __m512i f = _mm512_permutexvar_epi16(which, _mm512_castsi256_si512((__m256i)factors));
    return (iv)_mm512_dpwssd_epi32((__m512i)acc, _mm512_maddubs_epi16((__m512i)u, (__m512i)a), f);
#elif defined(__AVX2__)
    const __m256i both =
        j < 4 ? _mm256_permute4x64_epi64((__m256i)factors, 0x44) : _mm256_permute4x64_epi64((__m256i)factors, 0xee);
    const __m256i which = _mm256_add_epi8(
        _mm256_setr_epi64x(0x0100010001000100, 0x0100010001000100, 0x0302030203020302, 0x0302030203020302),
        _mm256_set1_epi8((char)(j % 4 * 4)));
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)u, (__m256i)a);
    return acc + (iv)_mm256_madd_epi16(pairs, _mm256_shuffle_epi8(both, which));
#elif defined(__SSSE3__)
    __m128i s[2], x[2], y[2];
    std::memcpy(s, &acc, 32);
    std::memcpy(x, &u, 32);
    std::memcpy(y, &a, 32);
    for (int i = 0; i < 2; ++i)
        s[i] = _mm_add_epi32(s[i], _mm_madd_epi16(_mm_maddubs_epi16(x[i], y[i]), _mm_set1_epi16(factors[2 * j + i])));
    std::memcpy(&acc, s, 32);
    return acc;
#else
    uint8_t x[BW];
    int8_t y[BW];
    std::memcpy(x, &u, sizeof x);
    std::memcpy(y, &a, sizeof y);
    for (int i = 0; i < BW / 4; ++i)
        acc[i] += (saturated_pair(x + 4 * i, y + 4 * i) + saturated_pair(x + 4 * i + 2, y + 4 * i + 2)) *
                  factors[2 * j + i / 4];
    return acc;
#endif
}
// Eight sums as a start of dot_scaled.
static inline iv start_from(i8x v) {
#if GGR_VNNI
    return (iv)_mm512_zextsi256_si512((__m256i)v);
#else
    return v;
#endif
}
// Products of 16 pairs, neighbours added.
static inline i8x multiply_pairs(w16 x, w16 y) {
#if defined(__AVX2__)
    return (i8x)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#else
    i8x v;
    for (int i = 0; i < 8; ++i) v[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
    return v;
#endif
}

// acc + dot of four elements in each of VL lanes: u holds four of each row, a four of one column, in every lane.
template <bool WIDE>
static inline vi dot_lanes(vi acc, bl u, vi a) {
#if GGR_VNNI
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)u, (__m512i)a);
#elif defined(__AVX2__)
    return (vi)dot256<WIDE>((__m256i)acc, (__m256i)u, (__m256i)a);
#elif defined(__SSSE3__)
    return (vi)dot128<WIDE>((__m128i)acc, (__m128i)u, (__m128i)a);
#else
    dot_portable<VL>(reinterpret_cast<int32_t*>(&acc), reinterpret_cast<const uint8_t*>(&u),
                     reinterpret_cast<const int8_t*>(&a), WIDE);
    return acc;
#endif
}

static inline vi vset_i(int32_t x) { return vi{} + x; }
static inline vi load_four(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return vset_i(four);
}

static inline float sum8(f8 v) {
#if defined(__AVX2__)
    __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
    float x[8];
    vwrite(x, v);
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
#endif
}
static inline f8 fold8(fv v) {
#if GGR_VNNI
    return (f8)_mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    return v;
#endif
}

// The scales of the register j of a group of 256, one in every lane: 8 (SUB = 32) or 16 (SUB = 16) scales to a group.
template <int SUB>
static inline fv spread(const f8* s, int j) {
#if GGR_VNNI
    if (SUB == 32) {
        const __m512i index = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                                               _mm512_set1_epi32(2 * j));
        return (fv)_mm512_permutexvar_ps(index, _mm512_castps256_ps512((__m256)s[0]));
    }
    const __m512i index =
        _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), _mm512_set1_epi32(4 * j));
    return (fv)_mm512_permutexvar_ps(index, _mm512_insertf32x8(_mm512_castps256_ps512((__m256)s[0]), (__m256)s[1], 1));
#else
    if (SUB == 32) return f8{} + s[0][j];
    const float a = s[j / 4][2 * j % 8], b = s[j / 4][2 * j % 8 + 1];
    return f8{a, a, a, a, b, b, b, b};
#endif
}

// The first two of four are the halves at p.
static inline f4 two_halves(const void* p) {
    uint16_t h[2];
    std::memcpy(h, p, 4);
#if defined(__F16C__)
    return (f4)_mm_cvtph_ps(_mm_cvtsi32_si128((int32_t)((uint32_t)h[1] << 16 | h[0])));
#else
    return f4{f16_to_f32(h[0]), f16_to_f32(h[1]), 0, 0};
#endif
}
static inline f8 half8(h8 h) {
#if defined(__AVX2__)
    return (f8)_mm256_cvtph_ps((__m128i)h);
#else
    f8 v;
    for (int i = 0; i < 8; ++i) v[i] = f16_to_f32(h[i]);
    return v;
#endif
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
