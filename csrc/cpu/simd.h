// One vector of f32 as wide as the level's registers, by the compilers' vector extensions, so that most kernels are one
// source for every level. What the extensions lack (half conversion, integer dot products) is here or beside the kernel
// by intrinsics.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ggr {
namespace GGR_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));

static inline vf vload(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline void vstore(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
static inline vf vset(float x) { return x - vf{}; }  // subtracting keeps -0 and costs nothing; adding 0 does neither
static inline vf vselect(vi mask, vf a, vf b) {
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}  // lanes all ones or zero
// b where either is NaN, as x86's instructions have it; compilers make five instructions of the selection.
static inline vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
    return vselect(a > b, a, b);
#endif
}
static inline vf vmin(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    return vselect(a < b, a, b);
#endif
}
static inline vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

static inline float vsum(vf v) {
    float lanes[VL];
    vstore(lanes, v);
    for (int w = VL / 2; w > 0; w /= 2)
        for (int i = 0; i < w; ++i) lanes[i] += lanes[i + w];
    return lanes[0];
}
static inline float vmax_of(vf v) {
    float lanes[VL];
    vstore(lanes, v);
    for (int w = VL / 2; w > 0; w /= 2)
        for (int i = 0; i < w; ++i) lanes[i] = lanes[i] > lanes[i + w] ? lanes[i] : lanes[i + w];
    return lanes[0];
}

// Half precision, round to nearest even, as bits.
static inline float f16_to_f32(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 v;
    std::memcpy(&v, &h, 2);
    return (float)v;
#else
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    uint32_t bits;
    if (magnitude >= 0x7c00u) {
        bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    } else if (magnitude >= 0x400u) {
        bits = sign | ((magnitude << 13) + 0x38000000u);
    } else {  // subnormal: magnitude * 2^-24, exact in f32
        const float f = (float)(int32_t)magnitude * 5.9604644775390625e-8f;
        std::memcpy(&bits, &f, 4);
        bits |= sign;
    }
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
#endif
}
static inline uint16_t f32_to_f16(float x) {
#if defined(__F16C__)
    return (uint16_t)_cvtss_sh(x, 0);
#elif defined(__aarch64__)
    const __fp16 v = (__fp16)x;
    uint16_t h;
    std::memcpy(&h, &v, 2);
    return h;
#else
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // rounds to 65536 or more
    if (bits <
        0x38800000u) {  // subnormal half: its unit 2^-24 is the last place of floats in [0.5, 1), so adding 0.5 rounds
        float f;
        std::memcpy(&f, &bits, 4);
        f += 0.5f;
        uint32_t r;
        std::memcpy(&r, &f, 4);
        return (uint16_t)(sign | (r - 0x3f000000u));
    }
    bits += 0xc8000fffu + (bits >> 13 & 1u);  // rebias the exponent by 127 - 15 and round half to even
    return (uint16_t)(sign | bits >> 13);
#endif
}
static inline float bf16_to_f32(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
static inline uint16_t f32_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 64u);  // keep NaN quiet
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline vf vload_f16(const uint16_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__aarch64__)
    float f[VL];
    for (int i = 0; i < VL; ++i) f[i] = f16_to_f32(p[i]);
    return vload(f);
#else
    typedef uint16_t vh __attribute__((vector_size(VL * 2)));
    vh h;
    std::memcpy(&h, p, sizeof h);
    const vu bits = __builtin_convertvector(h, vu), magnitude = (bits & 0x7fffu) << 13;
    const vf f = (vf)magnitude * 5.192296858534828e33f;  // 2^112 rebiases the exponent, of subnormals too
    const vu special = (vu)(magnitude >= 0x0f800000u) & 0x7f800000u;
    return (vf)((vu)f | special | (bits & 0x8000u) << 16);
#endif
}
static inline void vstore_f16(uint16_t* p, vf v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, 0));
#elif defined(__AVX2__)
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0));
#else
    float f[VL];
    vstore(f, v);
    for (int i = 0; i < VL; ++i) p[i] = f32_to_f16(f[i]);
#endif
}
static inline vf vload_bf16(const uint16_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
    float f[VL];
    for (int i = 0; i < VL; ++i) f[i] = bf16_to_f32(p[i]);
    return vload(f);
#endif
}
static inline void vstore_bf16(uint16_t* p, vf v) {
    float f[VL];
    vstore(f, v);
    for (int i = 0; i < VL; ++i) p[i] = f32_to_bf16(f[i]);
}

// Nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low mantissa bits.
static inline vf vround(vf x) {
    const vf magic = vset(12582912.0f);
    return (x + magic) - magic;  // built without -ffast-math: not folded
}

// e^x to about 1 ulp for x in [-87.3, 88.7]; 0 below -104, infinity above 88.73; NaN stays NaN.
static inline vf vexp(vf x) {
    const vf hi = vset(88.8f), lo = vset(-104.5f);
    const vf c = vmin(hi, vmax(lo, x));
    const vf n = vround(c * 1.44269504088896341f);
    vf r = c - n * 0.693145751953125f;  // ln 2 in two parts: the first has 10 trailing zero bits
    r = r - n * 1.42860682030941723e-6f;
    vf p = vset(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // 2^n in two factors, so that subnormal results and n = 128 come out right
    const vi k = __builtin_convertvector(n, vi);
    const vi k1 = k >> 1, k2 = k - k1;
    const vf s1 = (vf)((k1 + 127) << 23), s2 = (vf)((k2 + 127) << 23);
    return p * s1 * s2;
#endif
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
