// Types whose super-blocks of 256 are given as codes: what dequantisation and products (matmul/grid_decoders.h) share.
//
//   w[i] = d * scale[i / SUB] * (code[i] - ZERO)
//
//   Block         the layout
//   SUB           elements that share a scale: 32 or 16
//   ZERO          what a code is above the signed value; a power of two, and codes are at most 126 (matmul/int8.h)
//   d(x)          the factor of all scales
//   scales(x, s)  256 / SUB integers, a byte each, the first in the low byte of s[0]
//   unpack(x, q)  the codes in order, 32 a register
#pragma once

#include "cpu/quants/vec.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

typedef uint8_t u8x32 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));

template <class V>
static inline V read_as(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline u8x32 both_halves(u8x16 first, u8x16 second) {
#if defined(__AVX2__)
    return (u8x32)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)first), (__m128i)second, 1);
#else
    u8x32 v;
    std::memcpy(&v, &first, sizeof first);
    std::memcpy(reinterpret_cast<uint8_t*>(&v) + sizeof first, &second, sizeof second);
    return v;
#endif
}
// Eight bytes, the lowest first, as words of 32 bits.
static inline u32x8 eight_words(uint64_t bytes) {
#if defined(__AVX2__)
    return (u32x8)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
#else
    u32x8 v;
    for (int i = 0; i < 8; ++i) v[i] = (uint32_t)(bytes >> 8 * i & 255);
    return v;
#endif
}
// Bit i as byte i: 255 or 0.
static inline u8x32 mask_of_32_bits(uint32_t bits) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return (u8x32)_mm256_movm_epi8(bits);
#elif defined(__AVX2__)
    const __m256i four =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);  // which byte of bits
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), four);
    return (u8x32)_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
#else
    return both_halves(mask_of_bits(bits & 0xffff), mask_of_bits(bits >> 16));
#endif
}

// 32 values `code - zero`, the halves with scales of their own.
static inline void scale_piece(u8x32 codes, int zero, float first, float second, float* y) {
    const u8x32 values = codes - (uint8_t)zero;
    i8x16 halves[2];
    std::memcpy(halves, &values, sizeof halves);
    scale_16(halves[0], vset(first), y);
    scale_16(halves[1], vset(second), y + 16);
}

// Products are exact in f32 (11 bits of d, 5 of the scale, 6 of the code), so the order of factors does not matter.
template <class T>
static inline void dequantize_codes(const uint8_t* src, float* y, int64_t n) {
    using Block = typename T::Block;
    const Block* x = reinterpret_cast<const Block*>(src);
    for (int64_t b = 0; b < n / QK_K; ++b) {
        const float d = T::d(x[b]);
        uint64_t words[2] = {};
        T::scales(x[b], words);
        uint8_t scales[16];
        std::memcpy(scales, words, sizeof scales);
        u8x32 codes[QK_K / QK];
        T::unpack(x[b], codes);
        for (int i = 0; i < QK_K / QK; ++i, y += QK) {
            const uint8_t first = scales[i * QK / T::SUB], second = scales[(i * QK + 16) / T::SUB];
            scale_piece(codes[i], T::ZERO, d * (float)first, d * (float)second, y);
        }
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
