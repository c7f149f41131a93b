// One decoder a quantised type: how 256 elements of a row become bytes and scales. All that the product engines know of
// a type is here.
//
//   w[i] = scale[i / SUB] * (u[i] - ZERO) + minimum[i / SUB]
//
//   FORMAT   how activations are quantised
//   GROUP_BYTES  of 256 elements
//   SUB      elements that share a scale: 32 or 16
//   ZERO     what u is above the signed value; a power of two or 0
//   WIDE     8 significant bits
//   MOST     the largest u, if not WIDE
//   MINIMUM  whether there are minima
//   unpack(p, u)     256 elements in order
//   scales(p, s, m)  256 / SUB scales, and minima if MINIMUM
// SMALL types, whose rows can end within a group, have for the 32 elements i of a group as well
//   piece_of(p, i)   the bytes
//   lanes(p, i)      the scales, one for each four elements
//   minimum_of(p, i) if MINIMUM
// INTEGER types
// (narrow, super-blocks) also give
//   factors(p)       integer scales and (to be subtracted) minima of every 16 elements, and what both are to be
//   multiplied with.
#pragma once

#include "cpu/matmul/int8.h"
#include "cpu/plan.h"
#include "cpu/quants/blocks.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int GROUP = QK_K;            // elements that an engine takes at a time
constexpr int PIECES = GROUP / QK;     // pieces of 32 in a group
constexpr int REGISTERS = GROUP / BW;  // registers of a group
constexpr int WIDE_ZERO = GGR_DPBUSD ? 128 : 0;

static inline uint16_t read_u16(const uint8_t* p) {
    uint16_t v;
    std::memcpy(&v, p, 2);
    return v;
}
static inline uint32_t read_u32(const uint8_t* p) {
    uint32_t v;
    std::memcpy(&v, p, 4);
    return v;
}
static inline float read_half(const uint8_t* p) { return f16_to_f32(read_u16(p)); }

// 16 bytes as 32 nibbles, the low ones first.
static inline b32 nibbles(const uint8_t* p) {
    const b16 q = vread<b16>(p);
    return join16(q & 15, q >> 4);
}
// Bit i of 32 as byte i: 255 or 0.
static inline b32 bits_to_bytes(const uint8_t* p) {
#if GGR_VNNI
    return (b32)_mm256_movm_epi8(read_u32(p));
#else
    typedef uint32_t u4 __attribute__((vector_size(16)));
    const b16 table = (b16)(u4{} + read_u32(p));
    const b16 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const b16 low = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    return join16((b16)((lookup16(table, low) & bit) == bit), (b16)((lookup16(table, low + 2) & bit) == bit));
#endif
}
// The values of IQ4_NL and IQ4_XS, and twice those of MXFP4 raised by 16.
static inline b16 iq4_table() {
    const b16 t = {(uint8_t)-127,
                   (uint8_t)-104,
                   (uint8_t)-83,
                   (uint8_t)-65,
                   (uint8_t)-49,
                   (uint8_t)-35,
                   (uint8_t)-22,
                   (uint8_t)-10,
                   1,
                   13,
                   25,
                   38,
                   53,
                   69,
                   89,
                   113};
    return t + WIDE_ZERO;
}
static inline b16 mxfp4_table() { return b16{16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4}; }

// The nibbles of two blocks of 32, in order.
static inline void nibble_pair(bv* out, const uint8_t* first, const uint8_t* second) {
#if GGR_VNNI
    __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)first));
    v = _mm512_mask_broadcast_i32x4(v, 0xff00, _mm_loadu_si128((const __m128i*)second));
    const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    out[0] = (bv)_mm512_srlv_epi32(v, shift) & 15;
#else
    join32(out, nibbles(first), nibbles(second));
#endif
}
// The same with a fifth bit each.
static inline void five_bit_pair(bv* out, const uint8_t* first, const uint8_t* second, const uint8_t* first_high,
                                 const uint8_t* second_high) {
#if GGR_VNNI
    const __mmask64 high = (uint64_t)read_u32(second_high) << 32 | read_u32(first_high);
    nibble_pair(out, first, second);
    out[0] = (bv)_mm512_mask_add_epi8((__m512i)out[0], high, (__m512i)out[0], _mm512_set1_epi8(16));
#else
    join32(out, nibbles(first) | (bits_to_bytes(first_high) & 16), nibbles(second) | (bits_to_bytes(second_high) & 16));
#endif
}
// The same as indices to a table.
static inline void lookup_pair(bv* out, b16 table, const uint8_t* first, const uint8_t* second) {
#if GGR_VNNI
    nibble_pair(out, first, second);
    out[0] = (bv)_mm512_shuffle_epi8(_mm512_broadcast_i32x4((__m128i)table), (__m512i)out[0]);
#else
    join32(out, lookup(table, nibbles(first)), lookup(table, nibbles(second)));
#endif
}

static inline f8 bytes_to_f8(uint64_t bytes) {
#if defined(__AVX2__)
    return (f8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)bytes)));
#else
    uint8_t b[8];
    std::memcpy(b, &bytes, 8);
    f8 v;
    for (int i = 0; i < 8; ++i) v[i] = b[i];
    return v;
#endif
}
static inline f8 signed_bytes_to_f8(const void* p) {
#if defined(__AVX2__)
    return (f8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    int8_t b[8];
    std::memcpy(b, p, 8);
    f8 v;
    for (int i = 0; i < 8; ++i) v[i] = b[i];
    return v;
#endif
}

// What the types with blocks of 32 share. T gives piece and pair, and a half-precision scale (and minimum) at the
// block's start.
template <class T, int BYTES, ActFormat FORMAT_, int ZERO_, bool WIDE_, bool MINIMUM_>
struct Small {
    static constexpr ActFormat FORMAT = FORMAT_;
    static constexpr int BLOCK = BYTES, GROUP_BYTES = BYTES * PIECES, SUB = 32, ZERO = ZERO_;
    static constexpr bool WIDE = WIDE_, MINIMUM = MINIMUM_, SMALL = true, INTEGER = false;
    static constexpr int MOST = 126;  // of pmaddubsw, unless T says less

    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        for (int i = 0; i < PIECES; i += 2) T::pair(u + i * QK / BW, p + i * BYTES, p + (i + 1) * BYTES);
    }
#if GGR_VNNI
    static inline __m512i word_index(int a, int b, int c, int d, int e, int f, int g, int h) {
        return _mm512_castsi128_si512(
            _mm_setr_epi16((short)a, (short)b, (short)c, (short)d, (short)e, (short)f, (short)g, (short)h));
    }
#endif
    // The halves at the same place of eight blocks.
    static inline f8 halves(const uint8_t* p) {
#if GGR_VNNI
        constexpr int W = BYTES / 2;
        if constexpr (BYTES <= 20) {  // four blocks' to a register
            const __m128i words = _mm512_castsi512_si128(_mm512_permutex2var_epi16(
                _mm512_loadu_si512(p), word_index(0, W, 2 * W, 3 * W, 32, 32 + W, 32 + 2 * W, 32 + 3 * W),
                _mm512_loadu_si512(p + 4 * BYTES)));
            return half8((h8)words);
        } else if constexpr (BYTES <= 24) {  // three
            const __m512i six =
                _mm512_permutex2var_epi16(_mm512_loadu_si512(p), word_index(0, W, 2 * W, 32, 32 + W, 32 + 2 * W, 0, 0),
                                          _mm512_loadu_si512(p + 3 * BYTES));
            const __m512i words = _mm512_permutex2var_epi16(six, word_index(0, 1, 2, 3, 4, 5, 32, 32 + W),
                                                            _mm512_loadu_si512(p + 6 * BYTES));
            return half8((h8)_mm512_castsi512_si128(words));
        }
#endif
        return half8(h8{read_u16(p), read_u16(p + BYTES), read_u16(p + 2 * BYTES), read_u16(p + 3 * BYTES),
                        read_u16(p + 4 * BYTES), read_u16(p + 5 * BYTES), read_u16(p + 6 * BYTES),
                        read_u16(p + 7 * BYTES)});
    }
    static inline void scales(const uint8_t* p, f8* s, f8* m) {
        s[0] = halves(p);
        if (MINIMUM) m[0] = halves(p + 2);
    }
    static inline float scale(const uint8_t* p) { return read_half(p); }
    static inline b32 piece_of(const uint8_t* p, int i) { return T::piece(p + i * BYTES); }
    static inline f8 lanes(const uint8_t* p, int i) { return f8{} + T::scale(p + i * BYTES); }
    static inline float minimum_of(const uint8_t* p, int i) { return read_half(p + i * BYTES + 2); }
};

struct Q4_0 : Small<Q4_0, 18, ACT_Q8_0, 8, false, false> {
    static constexpr int MOST = 15;
    static inline b32 piece(const uint8_t* p) { return nibbles(p + 2); }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) { nibble_pair(out, p + 2, q + 2); }
};
struct Q4_1 : Small<Q4_1, 20, ACT_Q8_1, 0, false, true> {
    static constexpr int MOST = 15;
    static inline b32 piece(const uint8_t* p) { return nibbles(p + 4); }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) { nibble_pair(out, p + 4, q + 4); }
};
struct Q5_0 : Small<Q5_0, 22, ACT_Q8_0, 16, false, false> {
    static constexpr int MOST = 31;
    static inline b32 piece(const uint8_t* p) { return nibbles(p + 6) | (bits_to_bytes(p + 2) & 16); }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) {
        five_bit_pair(out, p + 6, q + 6, p + 2, q + 2);
    }
};
struct Q5_1 : Small<Q5_1, 24, ACT_Q8_1, 0, false, true> {
    static constexpr int MOST = 31;
    static inline b32 piece(const uint8_t* p) { return nibbles(p + 8) | (bits_to_bytes(p + 4) & 16); }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) {
        five_bit_pair(out, p + 8, q + 8, p + 4, q + 4);
    }
};
struct Q8_0 : Small<Q8_0, 34, ACT_Q8_0, WIDE_ZERO, true, false> {
    static inline b32 piece(const uint8_t* p) { return vread<b32>(p + 2) ^ (uint8_t)WIDE_ZERO; }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) { join32(out, piece(p), piece(q)); }
};
struct IQ4_NL : Small<IQ4_NL, 18, ACT_Q8_0, WIDE_ZERO, true, false> {
    static inline b32 piece(const uint8_t* p) { return lookup(iq4_table(), nibbles(p + 2)); }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) {
        lookup_pair(out, iq4_table(), p + 2, q + 2);
    }
};
struct MXFP4 : Small<MXFP4, 17, ACT_Q8_0, 16, false, false> {
    static constexpr int MOST = 28;
    static inline b32 piece(const uint8_t* p) { return lookup(mxfp4_table(), nibbles(p + 1)); }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) {
        lookup_pair(out, mxfp4_table(), p + 1, q + 1);
    }
    // 2^(e - 127) / 2: the table holds doubled values. e < 2 gives subnormals.
    static inline float scale(const uint8_t* p) {
        const uint32_t bits = *p < 2 ? 0x200000u << *p : (uint32_t)(*p - 1) << 23;
        float v;
        std::memcpy(&v, &bits, 4);
        return v;
    }
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        const i8x e = {p[0],         p[BLOCK],     p[2 * BLOCK], p[3 * BLOCK],
                       p[4 * BLOCK], p[5 * BLOCK], p[6 * BLOCK], p[7 * BLOCK]};
        const i8x tiny = e < 2;
        s[0] = (f8)((tiny & (0x200000 << (e & 1))) | (~tiny & (e - 1) << 23));
    }
};

struct Factors {
    w16 scales, minima;
    f4 d;  // of the scales, of the minima
};
static inline w16 widen(b16 v) { return __builtin_convertvector(v, w16); }
static inline w16 widen_signed(b16 v) {
    typedef int8_t s16 __attribute__((vector_size(16)));
    return __builtin_convertvector((s16)v, w16);
}
// Eight bytes, each twice.
static inline w16 widen_twice(uint64_t bytes) {
    typedef uint64_t u2 __attribute__((vector_size(16)));
    const b16 v = (b16)u2{bytes, 0};
    return widen(__builtin_shuffle(v, b16{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7}));
}

// What the types with super-blocks share.
template <int BYTES, int SUB_, int ZERO_, bool WIDE_, bool MINIMUM_>
struct Super {
    static constexpr ActFormat FORMAT = ACT_Q8_K;
    static constexpr int GROUP_BYTES = BYTES, SUB = SUB_, ZERO = ZERO_;
    static constexpr bool WIDE = WIDE_, MINIMUM = MINIMUM_, SMALL = false, INTEGER = !WIDE_;
    static constexpr int MOST = 126;
};

struct Q2_K : Super<84, 16, 0, false, true> {
    static constexpr int MOST = 3;
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        for (int n = 0; n < 2; ++n) {
            const b32 q = vread<b32>(p + 16 + 32 * n);
            join32(u + 4 * n * QK / BW, q & 3, (q >> 2) & 3);
            join32(u + (4 * n + 2) * QK / BW, (q >> 4) & 3, q >> 6);
        }
    }
    static inline void scales(const uint8_t* p, f8* s, f8* m) {
        const float d = read_half(p + 80), dmin = -read_half(p + 82);
        for (int i = 0; i < 2; ++i) {
            uint64_t packed;
            std::memcpy(&packed, p + 8 * i, 8);
            s[i] = bytes_to_f8(packed & 0x0f0f0f0f0f0f0f0full) * d;
            m[i] = bytes_to_f8(packed >> 4 & 0x0f0f0f0f0f0f0f0full) * dmin;
        }
    }
    static inline Factors factors(const uint8_t* p) {
        const b16 both = vread<b16>(p);
        return {widen(both & 15), widen(both >> 4), two_halves(p + 80)};
    }
};

struct Q3_K : Super<110, 16, 4, false, false> {
    static constexpr int MOST = 7;
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        const b32 high = vread<b32>(p);
        for (int n = 0; n < 2; ++n) {
            const b32 q = vread<b32>(p + 32 + 32 * n), h = n == 0 ? high : high >> 4;
            join32(u + 4 * n * QK / BW, (q & 3) | ((h << 2) & 4), ((q >> 2) & 3) | ((h << 1) & 4));
            join32(u + (4 * n + 2) * QK / BW, ((q >> 4) & 3) | (h & 4), (q >> 6) | ((h >> 1) & 4));
        }
    }
    // 16 scales of 6 bits, raised by 32.
    static inline void six_bits(const uint8_t* p, uint64_t out[2]) {
        const uint32_t a = read_u32(p + 96), b = read_u32(p + 100), c = read_u32(p + 104);
        const uint32_t low = 0x0f0f0f0fu, two = 0x03030303u;
        out[0] = (uint64_t)((b & low) | (c >> 2 & two) << 4) << 32 | ((a & low) | (c & two) << 4);
        out[1] = (uint64_t)((b >> 4 & low) | (c >> 6 & two) << 4) << 32 | ((a >> 4 & low) | (c >> 4 & two) << 4);
    }
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        const float d = read_half(p + 108);
        uint64_t raised[2];
        six_bits(p, raised);
        s[0] = (bytes_to_f8(raised[0]) - 32.0f) * d;
        s[1] = (bytes_to_f8(raised[1]) - 32.0f) * d;
    }
    static inline Factors factors(const uint8_t* p) {
        typedef uint64_t u2 __attribute__((vector_size(16)));
        uint64_t raised[2];
        six_bits(p, raised);
        return {widen((b16)u2{raised[0], raised[1]}) - 32, w16{}, f4{read_half(p + 108)}};
    }
};

// The 6-bit scales and minima of Q4_K and Q5_K: 12 bytes behind d and dmin.
struct ScalesQ4_K {
    uint64_t scales, minima;
};
static inline ScalesQ4_K scales_q4_k(const uint8_t* p) {
    const uint32_t a = read_u32(p + 4), b = read_u32(p + 8), c = read_u32(p + 12);
    const uint32_t six = 0x3f3f3f3fu, low = 0x0f0f0f0fu, top = 0x30303030u;
    return {(uint64_t)((c & low) | (a >> 2 & top)) << 32 | (a & six),
            (uint64_t)((c >> 4 & low) | (b >> 2 & top)) << 32 | (b & six)};
}
static inline void float_scales_q4_k(const uint8_t* p, f8* s, f8* m) {
    const ScalesQ4_K x = scales_q4_k(p);
    s[0] = bytes_to_f8(x.scales) * read_half(p);
    m[0] = bytes_to_f8(x.minima) * -read_half(p + 2);
}
static inline Factors factors_q4_k(const uint8_t* p) {
    const ScalesQ4_K x = scales_q4_k(p);
    return {widen_twice(x.scales), widen_twice(x.minima), two_halves(p)};
}

struct Q4_K : Super<144, 32, 0, false, true> {
    static constexpr int MOST = 15;
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        for (int i = 0; i < 4; ++i) {
            const b32 q = vread<b32>(p + 16 + 32 * i);
            join32(u + 2 * i * QK / BW, q & 15, q >> 4);
        }
    }
    static inline void scales(const uint8_t* p, f8* s, f8* m) { float_scales_q4_k(p, s, m); }
    static inline Factors factors(const uint8_t* p) { return factors_q4_k(p); }
};

struct Q5_K : Super<176, 32, 0, false, true> {
    static constexpr int MOST = 31;
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        b32 high = vread<b32>(p + 16);
        for (int i = 0; i < 4; ++i) {
            const b32 q = vread<b32>(p + 48 + 32 * i);
            join32(u + 2 * i * QK / BW, (q & 15) | ((high << 4) & 16), (q >> 4) | ((high << 3) & 16));
            high >>= 2;
        }
    }
    static inline void scales(const uint8_t* p, f8* s, f8* m) { float_scales_q4_k(p, s, m); }
    static inline Factors factors(const uint8_t* p) { return factors_q4_k(p); }
};

struct Q6_K : Super<210, 16, 32, false, false> {
    static constexpr int MOST = 63;
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        for (int n = 0; n < 2; ++n) {
            const b32 a = vread<b32>(p + 64 * n), b = vread<b32>(p + 64 * n + 32), h = vread<b32>(p + 128 + 32 * n);
            join32(u + 4 * n * QK / BW, (a & 15) | ((h << 4) & 48), (b & 15) | ((h << 2) & 48));
            join32(u + (4 * n + 2) * QK / BW, (a >> 4) | (h & 48), (b >> 4) | ((h >> 2) & 48));
        }
    }
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        const float d = read_half(p + 208);
        s[0] = signed_bytes_to_f8(p + 192) * d;
        s[1] = signed_bytes_to_f8(p + 200) * d;
    }
    static inline Factors factors(const uint8_t* p) {
        return {widen_signed(vread<b16>(p + 192)), w16{}, f4{read_half(p + 208)}};
    }
};

struct IQ4_XS : Super<136, 32, WIDE_ZERO, true, false> {
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        for (int i = 0; i < PIECES; i += 2) lookup_pair(u + i * QK / BW, iq4_table(), p + 8 + 16 * i, p + 24 + 16 * i);
    }
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        const float d = read_half(p);
        const uint64_t low = read_u32(p + 4), high = read_u16(p + 2);
        uint64_t packed = 0;
        for (int i = 0; i < 8; ++i) packed |= ((low >> 4 * i & 15) | (high >> 2 * i & 3) << 4) << 8 * i;
        s[0] = (bytes_to_f8(packed) - 32.0f) * d;
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
