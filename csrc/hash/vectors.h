// Vectors of bytes for the level that a file is compiled for: as many groups of 16 lanes as the level's registers hold.
#pragma once

#if defined(__SSSE3__) && defined(__SSE4_1__)

#include <immintrin.h>

#include <cstdint>

#define GGR_HASH_VECTORS 1

namespace ggr {
namespace GGR_LEVEL {
namespace {

#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
using Bytes = __m512i;
constexpr int LANES = 64;
// Vectors in flight: what hides latency and still leaves a block's working set in the first-level cache.
constexpr int UNITS = 3;
#define GGR_V(name) _mm512_##name
inline Bytes load(const void* p) { return _mm512_loadu_si512(p); }
inline void store(void* p, Bytes v) { _mm512_store_si512(p, v); }
inline Bytes zero() { return _mm512_setzero_si512(); }
inline Bytes both(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
inline Bytes flip(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
inline Bytes flip(Bytes a, Bytes b, Bytes c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline Bytes table(const uint8_t* t) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
}
template <int N>
inline Bytes up(Bytes a) {
    return _mm512_bslli_epi128(a, N);
}
inline Bytes dot(Bytes sum, Bytes a, Bytes b) { return _mm512_dpwssd_epi32(sum, a, b); }
// From every group the exclusive xor of the groups before it, and the xor of all.
inline Bytes before_groups(Bytes v, Bytes* all) {
    Bytes s = flip(v, _mm512_alignr_epi64(v, zero(), 6));
    s = flip(s, _mm512_alignr_epi64(s, zero(), 4));
    *all = _mm512_shuffle_i64x2(s, s, 0xff);
    return flip(s, v);
}
inline Bytes widen(Bytes v) {
    return _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(v)),
                            _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1)));
}
inline uint64_t total(Bytes v) {
    const __m256i halves = _mm256_add_epi64(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i s = _mm_add_epi64(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    return static_cast<uint64_t>(_mm_cvtsi128_si64(s)) + static_cast<uint64_t>(_mm_extract_epi64(s, 1));
}
#elif defined(__AVX2__)
using Bytes = __m256i;
constexpr int LANES = 32;
constexpr int UNITS = 4;
#define GGR_V(name) _mm256_##name
inline Bytes load(const void* p) { return _mm256_loadu_si256(static_cast<const Bytes*>(p)); }
inline void store(void* p, Bytes v) { _mm256_store_si256(static_cast<Bytes*>(p), v); }
inline Bytes zero() { return _mm256_setzero_si256(); }
inline Bytes both(Bytes a, Bytes b) { return _mm256_and_si256(a, b); }
inline Bytes flip(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
inline Bytes flip(Bytes a, Bytes b, Bytes c) { return flip(flip(a, b), c); }
inline Bytes table(const uint8_t* t) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
}
template <int N>
inline Bytes up(Bytes a) {
    return _mm256_bslli_epi128(a, N);
}
inline Bytes dot(Bytes sum, Bytes a, Bytes b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
inline Bytes before_groups(Bytes v, Bytes* all) {
    const Bytes before = _mm256_permute2x128_si256(v, v, 0x08), s = flip(v, before);
    *all = _mm256_permute2x128_si256(s, s, 0x11);
    return before;
}
inline Bytes widen(Bytes v) {
    return _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(v)),
                            _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1)));
}
inline uint64_t total(Bytes v) {
    const __m128i s = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return static_cast<uint64_t>(_mm_cvtsi128_si64(s)) + static_cast<uint64_t>(_mm_extract_epi64(s, 1));
}
#else
using Bytes = __m128i;
constexpr int LANES = 16;
constexpr int UNITS = 4;
#define GGR_V(name) _mm_##name
inline Bytes load(const void* p) { return _mm_loadu_si128(static_cast<const Bytes*>(p)); }
inline void store(void* p, Bytes v) { _mm_store_si128(static_cast<Bytes*>(p), v); }
inline Bytes zero() { return _mm_setzero_si128(); }
inline Bytes both(Bytes a, Bytes b) { return _mm_and_si128(a, b); }
inline Bytes flip(Bytes a, Bytes b) { return _mm_xor_si128(a, b); }
inline Bytes flip(Bytes a, Bytes b, Bytes c) { return flip(flip(a, b), c); }
inline Bytes table(const uint8_t* t) { return load(t); }
template <int N>
inline Bytes up(Bytes a) {
    return _mm_bslli_si128(a, N);
}
inline Bytes dot(Bytes sum, Bytes a, Bytes b) { return _mm_add_epi32(sum, _mm_madd_epi16(a, b)); }
inline Bytes before_groups(Bytes v, Bytes* all) {
    *all = v;
    return zero();
}
inline Bytes widen(Bytes v) { return _mm_add_epi64(_mm_cvtepi32_epi64(v), _mm_cvtepi32_epi64(_mm_srli_si128(v, 8))); }
inline uint64_t total(Bytes v) {
    return static_cast<uint64_t>(_mm_cvtsi128_si64(v)) + static_cast<uint64_t>(_mm_extract_epi64(v, 1));
}
#endif

inline Bytes add(Bytes a, Bytes b) { return GGR_V(add_epi8)(a, b); }
inline Bytes same(int v) { return GGR_V(set1_epi8)(static_cast<char>(v)); }
// Look up 16 entries by the low nibbles; bit 7 of an index must be 0, bits 4 to 6 do not matter.
inline Bytes look(Bytes entries, Bytes index) { return GGR_V(shuffle_epi8)(entries, index); }
inline Bytes high_nibbles(Bytes v) { return both(GGR_V(srli_epi16)(v, 4), same(15)); }

// For every lane the xor of the lanes before it, and the xor of all lanes in each. Lanes are ordered as `LANES / 16`
// groups of 16 interleaved: byte 0 of every group, byte 1 of every group, ...
inline Bytes before_lanes(Bytes v, Bytes* all) {
    Bytes columns;
    const Bytes groups = before_groups(v, &columns);
    Bytes w = up<1>(columns);
    w = flip(w, up<1>(w));
    w = flip(w, up<2>(w));
    w = flip(w, up<4>(w));
    w = flip(w, up<8>(w));
    *all = look(flip(w, columns), same(15));
    return flip(w, groups);
}

// Columns of 16 rows become rows, in each group of 16 lanes.
inline void transpose(Bytes (&r)[16]) {
    Bytes s[16];
#pragma GCC unroll 4
    for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            s[2 * i] = GGR_V(unpacklo_epi8)(r[i], r[i + 8]);
            s[2 * i + 1] = GGR_V(unpackhi_epi8)(r[i], r[i + 8]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) r[i] = s[i];
    }
}

// Four sums of products with the 16-bit digits of a number (least first), as one number.
inline uint64_t join(const Bytes (&digits)[4]) {
    const Bytes upper = GGR_V(add_epi32)(digits[2], GGR_V(slli_epi32)(digits[3], 16));
    // Only 32 bits of the upper half count, so its lanes need no sign.
    const Bytes shifted =
        GGR_V(add_epi64)(GGR_V(slli_epi64)(upper, 32), GGR_V(slli_epi64)(GGR_V(srli_epi64)(upper, 32), 32));
    const Bytes lower = GGR_V(add_epi64)(widen(digits[0]), GGR_V(slli_epi64)(widen(digits[1]), 16));
    return total(GGR_V(add_epi64)(lower, shifted));
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr

#endif
