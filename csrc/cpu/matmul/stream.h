// One column with rows of quantised weights at the speed of memory, for AVX-512 with vpdpbusd and for AVX2 without.
//
// A decode step reads every weight once, so the floor is the bytes of the rows over memory bandwidth: on Zen 4 a core
// reads 30 GB/s, 8.4 bytes a cycle, and 256 elements of Q4_0 (144 bytes) may take 17 cycles. Two things bring it near:
//   - Rows are read in two or four long streams, without software prefetching: the processor's own follows those best,
//     and what is loaded of the column serves for all of them. Neighbouring rows with prefetches took 1.3 times as long
//     as one stream (Q4_K, Q6_K); two streams make of one stream's GB/s, rows of 2048 on a core, Q4_0 21 -> 25,
//     IQ4_NL 17 -> 22, Q4_K 20 -> 24, Q5_K 19 -> 22, Q6_K 26 -> 27, where reading alone reaches 28 to 30. Rows of 5632
//     gain nothing (Q4_0: 25 with either), nor do several columns.
//   - What depends on the column only is computed once for all rows of an item, and laid out in the order in which
//     blocks unpack: the low nibbles of four blocks fill a register, their high nibbles the next, and both add to the
//     same lanes, so that four blocks need one conversion and one scaling.
#pragma once

#include "cpu/matmul/decoders.h"
#include "cpu/matmul/product.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Which types have it; the others are streamed by quantised.h.
template <class T>
struct Streamed {
    static constexpr int COLUMNS = 0;  // at a time, at most
};

#if GGR_VNNI

static inline __m512i zload(const void* p) { return _mm512_loadu_si512(p); }
static inline float sum16(__m512 v) { return sum8(fold8((fv)v)); }

// Held in a register: the compiler would rather load it twice, and loads are what these loops are bound by (64 bytes a
// cycle, less where they cross lines).
static inline __m512i kept(__m512i v) {
    __asm__("" : "+v"(v));
    return v;
}

// Blocks of 32, four at a time: 4 * BYTES bytes in two registers that overlap. Words of both are numbered by their
// place in memory.
constexpr int64_t UNIT = 4 * QK;

struct Words {
    uint16_t at[32];
    __m512i load() const { return zload(at); }
};
template <int BYTES>
static constexpr uint16_t word_at(int w) {
    return (uint16_t)(w < 32 ? w : w - (2 * BYTES - 32) + 32);
}
// The 16 bytes of nibbles of each block, `first` words behind its start.
template <int BYTES>
static constexpr Words nibble_words(int first) {
    Words t = {};
    for (int i = 0; i < 32; ++i) t.at[i] = word_at<BYTES>(i / 8 * BYTES / 2 + first + i % 8);
    return t;
}
// The first words of four blocks and of the four in the other register; or (Q5_0) of four blocks the first words, then
// the first and the second word of high bits.
template <int BYTES>
static constexpr Words scale_words(int high) {
    Words t = {};
    for (int i = 0; i < 4; ++i) {
        t.at[i] = word_at<BYTES>(i * BYTES / 2);
        t.at[4 + i] = high > 0 ? word_at<BYTES>(i * BYTES / 2 + high) : (uint16_t)(32 + i * BYTES / 2);
        t.at[8 + i] = word_at<BYTES>(i * BYTES / 2 + high + 1);
    }
    return t;
}

// The column for types with nibbles: 256 elements.
struct NibbleUnit {
    __m512i low[2], high[2];  // of four blocks
    __m512i start[2];         // what the zero point takes from each lane
    __m256 scale;
    __m256 unused;  // whole lines
};

// Q4_0, Q5_0, IQ4_NL. n is a multiple of UNIT.
template <class T, int NIBBLES, int HIGH>
struct NibbleStream {
    static constexpr int COLUMNS = 4, ROWS = 2;
    using Unit = NibbleUnit;
    static constexpr int64_t STEP = UNIT;
    static constexpr int BYTES = T::BLOCK;
    static constexpr Words Q = nibble_words<BYTES>(NIBBLES), S = scale_words<BYTES>(HIGH);

    static void prepare(const uint8_t* column, const ColumnLayout& l, int64_t n, Unit* to) {
        const __m512i zero = _mm512_set1_epi8((char)T::ZERO);
        for (int64_t i = 0; i < n / UNIT; ++i) {
            const __m512i a = zload(column + i * UNIT), b = zload(column + i * UNIT + 64);
            const __m512i low = _mm512_shuffle_i64x2(a, b, 0x88), high = _mm512_shuffle_i64x2(a, b, 0xdd);
            const __m512i sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), zero, low), zero, high);
            to[i / 2].low[i % 2] = low;
            to[i / 2].high[i % 2] = high;
            to[i / 2].start[i % 2] = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
            std::memcpy(reinterpret_cast<float*>(&to[i / 2].scale) + i % 2 * 4, column + l.scale + i * 16, 16);
        }
    }
    static inline void unpack(__m512i q, __m512i s, __m512i* low, __m512i* high) {
        const __m512i fifteen = _mm512_set1_epi8(15);
        *low = _mm512_and_si512(q, fifteen);
        *high = _mm512_and_si512(_mm512_srli_epi16(q, 4), fifteen);
        if constexpr (HIGH > 0) {
            const __m512i sixteen = _mm512_set1_epi8(16);
            const uint64_t first = (uint64_t)_mm_extract_epi64(_mm512_castsi512_si128(s), 1);
            const uint64_t second = (uint64_t)_mm_cvtsi128_si64(_mm256_extracti128_si256(_mm512_castsi512_si256(s), 1));
            *low = _mm512_mask_add_epi8(*low, (__mmask64)first, *low, sixteen);
            *high = _mm512_mask_add_epi8(*high, (__mmask64)second, *high, sixteen);
        }
        if constexpr (T::WIDE) {
            const __m512i table = _mm512_broadcast_i32x4((__m128i)iq4_table());
            *low = _mm512_shuffle_epi8(table, *low);
            *high = _mm512_shuffle_epi8(table, *high);
        }
    }
    static inline __m512 dot(__m512i low, __m512i high, const Unit& u, int i) {
        return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(u.start[i], low, u.low[i]), high, u.high[i]));
    }
    // The columns' units lie `pitch` apart.
    template <int NR, int NC>
    static inline void rows(const uint8_t* const* at, const Unit* u, int64_t pitch, int64_t n, float (*out)[NC]) {
        const __m512i q_words = Q.load(), s_words = S.load();
        const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        const __m512i second = _mm512_setr_epi32(4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
        __m512 acc[NR][NC] = {};
        int64_t offset = 0;
        for (; n >= 2 * UNIT; n -= 2 * UNIT, offset += 8 * BYTES, ++u) {
#pragma GCC unroll 4
            for (int r = 0; r < NR; ++r) {
                const uint8_t* p = at[r] + offset;
                const __m512i x0 = kept(zload(p)), y0 = kept(zload(p + 4 * BYTES - 64));
                const __m512i x1 = kept(zload(p + 4 * BYTES)), y1 = kept(zload(p + 8 * BYTES - 64));
                __m512i s0, s1 = {};
                __m128i halves;
                if constexpr (HIGH > 0) {
                    s0 = _mm512_permutex2var_epi16(x0, s_words, y0);
                    s1 = _mm512_permutex2var_epi16(x1, s_words, y1);
                    halves = _mm_unpacklo_epi64(_mm512_castsi512_si128(s0), _mm512_castsi512_si128(s1));
                } else {
                    s0 = _mm512_permutex2var_epi16(x0, s_words, x1);
                    halves = _mm512_castsi512_si128(s0);
                }
                const __m256 s = _mm256_cvtph_ps(halves);
                __m512i low[2], high[2];
                unpack(_mm512_permutex2var_epi16(x0, q_words, y0), s0, &low[0], &high[0]);
                unpack(_mm512_permutex2var_epi16(x1, q_words, y1), s1, &low[1], &high[1]);
#pragma GCC unroll 4
                for (int c = 0; c < NC; ++c) {
                    const Unit& of = u[c * pitch];
                    const __m512 d = _mm512_castps256_ps512(_mm256_mul_ps(s, of.scale));
                    acc[r][c] =
                        _mm512_fmadd_ps(dot(low[0], high[0], of, 0), _mm512_permutexvar_ps(first, d), acc[r][c]);
                    acc[r][c] =
                        _mm512_fmadd_ps(dot(low[1], high[1], of, 1), _mm512_permutexvar_ps(second, d), acc[r][c]);
                }
            }
        }
        for (int r = 0; r < NR; ++r) {
            if (n > 0) {
                const uint8_t* p = at[r] + offset;
                const __m512i x = zload(p), y = zload(p + 4 * BYTES - 64);
                const __m512i words = _mm512_permutex2var_epi16(x, s_words, HIGH > 0 ? y : x);
                const __m256 s = _mm256_cvtph_ps(_mm512_castsi512_si128(words));
                __m512i low, high;
                unpack(_mm512_permutex2var_epi16(x, q_words, y), words, &low, &high);
                for (int c = 0; c < NC; ++c) {
                    const Unit& of = u[c * pitch];
                    const __m512 d = _mm512_castps256_ps512(_mm256_mul_ps(s, of.scale));
                    acc[r][c] = _mm512_fmadd_ps(dot(low, high, of, 0), _mm512_permutexvar_ps(first, d), acc[r][c]);
                }
            }
            for (int c = 0; c < NC; ++c) out[r][c] = sum16(acc[r][c]);
        }
    }
};
template <>
struct Streamed<Q4_0> : NibbleStream<Q4_0, 1, 0> {};
template <>
struct Streamed<Q5_0> : NibbleStream<Q5_0, 3, 1> {};
template <>
struct Streamed<IQ4_NL> : NibbleStream<IQ4_NL, 1, 0> {};

// Q8_0: the products of 64 elements at a time, added up as two blocks side by side. What the zero point takes is
// computed anew for every four rows: a column of 5632 that held it (17 kB) would not stay in the first-level cache.
struct ByteUnit {
    __m512i bytes;
    __m128 scale;  // two
    __m128 unused[3];
};
template <>
struct Streamed<Q8_0> {
    static constexpr int COLUMNS = 1, ROWS = 4;
    using Unit = ByteUnit;
    static constexpr int64_t STEP = 64;

    static void prepare(const uint8_t* column, const ColumnLayout& l, int64_t n, Unit* to) {
        for (int64_t i = 0; i < n / STEP; ++i) {
            to[i].bytes = zload(column + i * 64);
            to[i].scale = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i*)(column + l.scale + i * 8)));
        }
    }
    template <int NR, int NC>
    static inline void rows(const uint8_t* const* at, const Unit* u, int64_t, int64_t n, float (*out)[NC]) {
        __m512 acc[NR] = {};
        const __m512i two = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        const __m512i middle = _mm512_set1_epi8((char)128);
        for (int64_t offset = 0; n > 0; n -= STEP, offset += 68, ++u) {
            const __m512i a = kept(u->bytes), zero = _mm512_setzero_si512();
            const __m512i start = _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, middle, a));
            const __m512 scale = _mm512_permutexvar_ps(two, _mm512_castps128_ps512(u->scale));
#pragma GCC unroll 4
            for (int r = 0; r < NR; ++r) {
                const uint8_t* p = at[r] + offset;
                __m512i q = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)(p + 2)));
                q = _mm512_inserti64x4(q, _mm256_loadu_si256((const __m256i*)(p + 36)), 1);
                q = _mm512_xor_si512(q, middle);
                const __m256i s =
                    _mm256_mask_set1_epi16(_mm256_set1_epi16((short)read_u16(p)), 0xff00, (short)read_u16(p + 34));
                const __m512 d = _mm512_mul_ps(_mm512_cvtph_ps(s), scale);
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, q, a)), d, acc[r]);
            }
        }
        for (int r = 0; r < NR; ++r) out[r][0] = sum16(acc[r]);
    }
};

// Super-blocks. The sums over 256 elements are exact, whatever their order.
struct SuperUnit {
    __m512i bytes[4];  // in the order in which the type unpacks them
    __m256i sums;      // of 16 elements each, or eight of 32; 16 bits
    __m128 scale;      // one, in every lane
    __m128 unused;
};

// How a type unpacks. unpack(p, u): 256 elements in four registers. FIRST[j]: the pieces of 16 elements in register j.
// factors(p): 16 words, the scales of 16 elements each, or of 32 and then the minima of 32.
struct Pieces {
    int8_t at[4];
};
template <class T>
struct Unpacked;

// Pairs of nibbles 32 elements apart: registers with the pieces of 32 elements 0 and 2, 1 and 3, 4 and 6, 5 and 7.
struct NibblePairs {
    static constexpr Pieces FIRST[4] = {{{0, 1, 4, 5}}, {{2, 3, 6, 7}}, {{8, 9, 12, 13}}, {{10, 11, 14, 15}}};
    static inline void unpack(const uint8_t* p, __m512i u[4]) {
        const __m512i fifteen = _mm512_set1_epi8(15);
        for (int i = 0; i < 2; ++i) {
            const __m512i x = kept(zload(p + 64 * i));
            u[2 * i] = _mm512_and_si512(x, fifteen);
            u[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(x, 4), fifteen);
        }
    }
    static inline __m256i factors(const uint8_t* p) {
        // 6 bits each: the first four as they lie, the others low bits in the last four bytes, high ones over the
        // first.
        const __m128i x = _mm_loadu_si128((const __m128i*)p);
        const __m128i a = _mm_srlv_epi32(_mm_shuffle_epi32(x, _MM_SHUFFLE(3, 2, 3, 1)), _mm_setr_epi32(0, 0, 0, 4));
        const __m128i b = _mm_srlv_epi32(_mm_shuffle_epi32(x, _MM_SHUFFLE(2, 2, 1, 1)), _mm_setr_epi32(0, 2, 0, 2));
        const __m128i first = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
        const __m128i second = _mm_setr_epi32(0, 0x30303030, 0, 0x30303030);
        return _mm256_cvtepu8_epi16(_mm_ternarylogic_epi32(_mm_and_si128(a, first), b, second, 0xf8));
    }
    static inline __m128 scale(const uint8_t* p) { return (__m128)two_halves(p); }
    static inline __m512i turn(int low, int high) {
        return _mm512_setr_epi32(low, low, low, low, low, low, low, low, high, high, high, high, high, high, high,
                                 high);
    }
};
template <>
struct Unpacked<Q4_K> : NibblePairs {
    static inline void unpack(const uint8_t* p, __m512i u[4]) { NibblePairs::unpack(p + 16, u); }
};
template <>
struct Unpacked<Q5_K> : NibblePairs {
    static inline void unpack(const uint8_t* p, __m512i u[4]) {
        NibblePairs::unpack(p + 48, u);
        const __m512i high = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)(p + 16)));
        // Bit i of a byte is the fifth of its element in piece i; turned to place 4.
        const __m512i by[4] = {turn(4, 2), turn(3, 1), turn(0, 30), turn(31, 29)};
        for (int j = 0; j < 4; ++j)
            u[j] = _mm512_ternarylogic_epi32(u[j], _mm512_rolv_epi32(high, by[j]), _mm512_set1_epi8(16), 0xf8);
    }
};
template <>
struct Unpacked<Q6_K> {
    static constexpr Pieces FIRST[4] = {{{0, 1, 2, 3}}, {{4, 5, 6, 7}}, {{8, 9, 10, 11}}, {{12, 13, 14, 15}}};
    static inline __m256i factors(const uint8_t* p) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 192)));
    }
    static inline __m128 scale(const uint8_t* p) { return (__m128)two_halves(p + 208); }
    static inline void unpack(const uint8_t* p, __m512i u[4]) {
        const __m512i fifteen = _mm512_set1_epi8(15), top = _mm512_set1_epi8(48);
        const __m512i low = NibblePairs::turn(4, 2), high = NibblePairs::turn(0, 30);
        for (int n = 0; n < 2; ++n) {
            const __m512i x = kept(zload(p + 64 * n));
            const __m512i h = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)(p + 128 + 32 * n)));
            u[2 * n] = _mm512_ternarylogic_epi32(_mm512_and_si512(x, fifteen), _mm512_rolv_epi32(h, low), top, 0xf8);
            u[2 * n + 1] = _mm512_ternarylogic_epi32(_mm512_and_si512(_mm512_srli_epi16(x, 4), fifteen),
                                                     _mm512_rolv_epi32(h, high), top, 0xf8);
        }
    }
};

template <class T>
struct SuperStream {
    static constexpr int COLUMNS = 1, ROWS = 2;
    using Unit = SuperUnit;
    static constexpr int64_t STEP = QK_K;

    static void prepare(const uint8_t* column, const ColumnLayout& l, int64_t n, Unit* to) {
        for (int64_t g = 0; g < n / QK_K; ++g, ++to) {
            for (int i = 0; i < 16; ++i)
                std::memcpy(reinterpret_cast<uint8_t*>(to->bytes) + i * 16,
                            column + g * QK_K + Unpacked<T>::FIRST[i / 4].at[i % 4] * 16, 16);
            to->sums = _mm256_loadu_si256((const __m256i*)(column + l.short16 + g * 32));
            if constexpr (T::MINIMUM)
                to->sums =
                    _mm256_castsi128_si256(_mm256_cvtepi32_epi16(_mm256_madd_epi16(to->sums, _mm256_set1_epi16(1))));
            float d;
            std::memcpy(&d, column + l.scale + 4 * g, 4);
            to->scale = _mm_set1_ps(d);
        }
    }
    static constexpr Words spread_words(int j) {
        Words t = {};
        for (int i = 0; i < 32; ++i) t.at[i] = (uint16_t)(Unpacked<T>::FIRST[j].at[i / 8] * 16 / T::SUB);
        return t;
    }
    static constexpr Words SPREAD[4] = {spread_words(0), spread_words(1), spread_words(2), spread_words(3)};

    template <int NR, int NC>
    static inline void rows(const uint8_t* const* at, const Unit* u, int64_t, int64_t n, float (*out)[NC]) {
        const __m512i spread[4] = {SPREAD[0].load(), SPREAD[1].load(), SPREAD[2].load(), SPREAD[3].load()};
        __m512 acc[NR] = {};
        __m128 extra[NR] = {};
        for (int64_t offset = 0; n > 0; n -= QK_K, offset += T::GROUP_BYTES, ++u) {
#pragma GCC unroll 4
            for (int r = 0; r < NR; ++r) {
                const uint8_t* p = at[r] + offset;
                const __m256i factors = Unpacked<T>::factors(p);
                const __m128 scale = _mm_mul_ps(Unpacked<T>::scale(p), u->scale);
                __m512i x[4], sum = _mm512_setzero_si512();
                Unpacked<T>::unpack(p, x);
                if constexpr (T::ZERO != 0) {
                    static_assert(T::ZERO == 32, "");
                    const __m256i zero = _mm256_slli_epi32(_mm256_madd_epi16(factors, u->sums), 5);
                    sum = _mm512_zextsi256_si512(_mm256_sub_epi32(_mm256_setzero_si256(), zero));
                }
                for (int j = 0; j < 4; ++j)
                    sum = _mm512_dpwssd_epi32(sum, _mm512_maddubs_epi16(x[j], u->bytes[j]),
                                              _mm512_permutexvar_epi16(spread[j], _mm512_castsi256_si512(factors)));
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_broadcastss_ps(scale), acc[r]);
                if constexpr (T::MINIMUM) {
                    const __m128i sums =
                        _mm_madd_epi16(_mm256_extracti128_si256(factors, 1), _mm256_castsi256_si128(u->sums));
                    const __m128 minimum = _mm_broadcastss_ps(_mm_movehdup_ps(scale));
                    extra[r] = _mm_fnmadd_ps(_mm_cvtepi32_ps(sums), minimum, extra[r]);
                }
            }
        }
        for (int r = 0; r < NR; ++r) out[r][0] = sum8((f8)_mm256_zextps128_ps256(extra[r]) + fold8((fv)acc[r]));
    }
};
template <>
struct Streamed<Q4_K> : SuperStream<Q4_K> {};
template <>
struct Streamed<Q5_K> : SuperStream<Q5_K> {};
template <>
struct Streamed<Q6_K> : SuperStream<Q6_K> {};

#elif defined(__AVX2__) && !GGR_DPBUSD

// With 256-bit registers, one column. Blocks j and j + 4 of 256 elements share a register: their low nibbles, then
// their high ones, add up in 16 bits (at most 4 * 31 * 127), so that two blocks take one widening, one conversion and
// one scaling. Floor: about 60 instructions for the 144 bytes of Q4_0, 15 cycles, where memory takes 17; 106 for the
// 176 of Q5_0, 27 cycles for 21. Of one block at a time it was 12.7 and 9.8 GB/s from the cache.
struct PairUnit {
    __m256i low[4], high[4];
    __m256i start[4];  // what the zero point takes from pairs, 16 bits
    __m256 scale;
};

static inline __m256i both(const void* p, const void* q) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)p)),
                                   _mm_loadu_si128((const __m128i*)q), 1);
}
// The halves at the starts of eight, or of four, blocks of BYTES: the one of block i is word i of what lies 2 * i bytes
// before its place.
template <int BYTES, int N>
static inline __m128i block_halves(const uint8_t* p) {
    const auto at = [p](int i) { return _mm_loadu_si128((const __m128i*)(p + (BYTES - 2) * i)); };
    const __m128i two = _mm_blend_epi16(at(0), at(1), 2);
    const __m128i four = _mm_blend_epi16(two, _mm_blend_epi16(at(2), at(3), 8), 0x0c);
    if (N == 4) return four;
    const __m128i last =
        _mm_blend_epi16(_mm_blend_epi16(at(4), at(5), 0x20), _mm_blend_epi16(at(6), at(7), 0x80), 0xc0);
    return _mm_blend_epi16(four, last, 0xf0);
}

// Q4_0, Q5_0. Units of 256 elements, the last one perhaps of 128: blocks 0 and 2, 1 and 3.
template <class T, int NIBBLES, int HIGH>
struct PairStream {
    static constexpr int COLUMNS = 1, ROWS = 2;
    using Unit = PairUnit;
    static constexpr int64_t STEP = 128;
    static constexpr int BYTES = T::BLOCK;

    static void prepare(const uint8_t* column, const ColumnLayout& l, int64_t n, Unit* to) {
        const __m256i zero = _mm256_set1_epi8((char)T::ZERO);
        const uint8_t* scale = column + l.scale;
        for (; n > 0; n -= 2 * STEP, column += 2 * STEP, ++to) {
            const int half = n > STEP ? 4 : 2;
            for (int j = 0; j < half; ++j) {
                const uint8_t *a = column + j * QK, *b = column + (j + half) * QK;
                to->low[j] = both(a, b);
                to->high[j] = both(a + 16, b + 16);
                to->start[j] = _mm256_sub_epi16(
                    _mm256_setzero_si256(),
                    _mm256_add_epi16(_mm256_maddubs_epi16(zero, to->low[j]), _mm256_maddubs_epi16(zero, to->high[j])));
            }
            std::memcpy(&to->scale, scale, (size_t)half * 8);
            scale += 32;
        }
    }
    static inline __m256i fifth_bits(__m256i bits, __m256i bytes) {
        const __m256i each = _mm256_set1_epi64x((int64_t)0x8040201008040201);
        const __m256i there = _mm256_and_si256(_mm256_shuffle_epi8(bits, bytes), each);
        return _mm256_and_si256(_mm256_cmpeq_epi8(there, each), _mm256_set1_epi8(16));
    }
    // Sums of blocks p and q, four lanes each.
    static inline __m256 dot(const uint8_t* p, const uint8_t* q, const Unit& u, int j) {
        const __m256i fifteen = _mm256_set1_epi8(15), x = both(p + NIBBLES, q + NIBBLES);
        __m256i low = _mm256_and_si256(x, fifteen), high = _mm256_and_si256(_mm256_srli_epi16(x, 4), fifteen);
        if constexpr (HIGH > 0) {
            const __m256i bits = _mm256_blend_epi32(_mm256_set1_epi32((int32_t)read_u32(p + HIGH)),
                                                    _mm256_set1_epi32((int32_t)read_u32(q + HIGH)), 0xf0);
            const __m256i first = _mm256_broadcastsi128_si256(_mm_set_epi64x(0x0101010101010101, 0));
            low = _mm256_or_si256(low, fifth_bits(bits, first));
            high = _mm256_or_si256(high, fifth_bits(bits, _mm256_or_si256(first, _mm256_set1_epi8(2))));
        }
        const __m256i pairs = _mm256_add_epi16(_mm256_add_epi16(_mm256_maddubs_epi16(low, u.low[j]), u.start[j]),
                                               _mm256_maddubs_epi16(high, u.high[j]));
        return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    template <int NR, int NC>
    static inline void rows(const uint8_t* const* at, const Unit* u, int64_t, int64_t n, float (*out)[NC]) {
        __m256 acc[NR] = {};
        int64_t offset = 0;
        for (; n >= 2 * STEP; n -= 2 * STEP, offset += 8 * BYTES, ++u) {
#pragma GCC unroll 2
            for (int r = 0; r < NR; ++r) {
                const uint8_t* p = at[r] + offset;
                const __m256 d = _mm256_mul_ps(_mm256_cvtph_ps(block_halves<BYTES, 8>(p)), u->scale);
                acc[r] = _mm256_fmadd_ps(dot(p, p + 4 * BYTES, *u, 0), _mm256_permute_ps(d, 0x00), acc[r]);
                acc[r] = _mm256_fmadd_ps(dot(p + BYTES, p + 5 * BYTES, *u, 1), _mm256_permute_ps(d, 0x55), acc[r]);
                acc[r] = _mm256_fmadd_ps(dot(p + 2 * BYTES, p + 6 * BYTES, *u, 2), _mm256_permute_ps(d, 0xaa), acc[r]);
                acc[r] = _mm256_fmadd_ps(dot(p + 3 * BYTES, p + 7 * BYTES, *u, 3), _mm256_permute_ps(d, 0xff), acc[r]);
            }
        }
        for (int r = 0; r < NR; ++r) {
            if (n > 0) {
                const uint8_t* p = at[r] + offset;
                const __m128 four =
                    _mm_mul_ps(_mm_cvtph_ps(block_halves<BYTES, 4>(p)), _mm256_castps256_ps128(u->scale));
                const __m256 d = _mm256_set_m128(_mm_movehl_ps(four, four), four);
                acc[r] = _mm256_fmadd_ps(dot(p, p + 2 * BYTES, *u, 0), _mm256_permute_ps(d, 0x00), acc[r]);
                acc[r] = _mm256_fmadd_ps(dot(p + BYTES, p + 3 * BYTES, *u, 1), _mm256_permute_ps(d, 0x55), acc[r]);
            }
            out[r][0] = sum8((f8)acc[r]);
        }
    }
};
template <>
struct Streamed<Q4_0> : PairStream<Q4_0, 2, 0> {};
template <>
struct Streamed<Q5_0> : PairStream<Q5_0, 6, 2> {};

// Q8_0: rows of 640 are two and a half times 256.
struct FourUnit {
    __m256i bytes[4];
    __m128 scale;
    __m128 unused;
};
template <>
struct Streamed<Q8_0> {
    static constexpr int COLUMNS = 1, ROWS = 2;
    using Unit = FourUnit;
    static constexpr int64_t STEP = 128;

    static void prepare(const uint8_t* column, const ColumnLayout& l, int64_t n, Unit* to) {
        for (int64_t i = 0; i < n / STEP; ++i) {
            std::memcpy(to[i].bytes, column + i * STEP, sizeof to[i].bytes);
            std::memcpy(&to[i].scale, column + l.scale + i * 16, 16);
        }
    }
    template <int NR, int NC>
    static inline void rows(const uint8_t* const* at, const Unit* u, int64_t, int64_t n, float (*out)[NC]) {
        __m256 acc[NR] = {};
        for (int64_t offset = 0; n > 0; n -= STEP, offset += 4 * Q8_0::BLOCK, ++u) {
#pragma GCC unroll 2
            for (int r = 0; r < NR; ++r) {
                const uint8_t* p = at[r] + offset;
                const __m128 d = _mm_mul_ps(_mm_cvtph_ps(block_halves<Q8_0::BLOCK, 4>(p)), u->scale);
                const __m256 two = _mm256_set_m128(d, d);
                const __m256 each[4] = {_mm256_permute_ps(two, 0x00), _mm256_permute_ps(two, 0x55),
                                        _mm256_permute_ps(two, 0xaa), _mm256_permute_ps(two, 0xff)};
                for (int j = 0; j < 4; ++j) {
                    const __m256i q = _mm256_loadu_si256((const __m256i*)(p + 2 + j * Q8_0::BLOCK));
                    const __m256i sum = dot256<true>(_mm256_setzero_si256(), q, u->bytes[j]);
                    acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), each[j], acc[r]);
                }
            }
        }
        for (int r = 0; r < NR; ++r) out[r][0] = sum8((f8)acc[r]);
    }
};

#endif

#if GGR_VNNI || (defined(__AVX2__) && !GGR_DPBUSD)

// Blocks behind the last whole step.
template <class T>
static inline float stream_tail(const uint8_t* p, const uint8_t* column, const ColumnLayout& l, int64_t block,
                                int64_t n_blocks) {
    f8 sum = {};
    for (; block < n_blocks; ++block, p += T::BLOCK) {
        const b32 a = vread<b32>(column + block * QK);
        float d;
        std::memcpy(&d, column + l.scale + 4 * block, 4);
        i8x start = {};
        if (T::ZERO != 0) start -= dot32<false>(i8x{}, b32{} + (uint8_t)T::ZERO, a);
        sum += __builtin_convertvector(dot32<T::WIDE>(start, T::piece(p), a), f8) * (T::scale(p) * d);
    }
    return sum8(sum);
}

// NR rows, `apart` rows from one to the next, with the columns [c, c + NC).
template <class T, int NR, int NC>
static inline void stream_some(const Product& p, const ColumnLayout& l, int64_t c, int64_t row, int64_t apart,
                               const typename Streamed<T>::Unit* units, int64_t pitch) {
    const int64_t n = p.k / Streamed<T>::STEP * Streamed<T>::STEP;
    const uint8_t* rows[NR];
    for (int r = 0; r < NR; ++r) rows[r] = p.weights + (row + r * apart) * p.row_bytes;
    float sums[NR][NC];
    Streamed<T>::template rows<NR, NC>(rows, units, pitch, n, sums);
    for (int r = 0; r < NR; ++r)
        for (int i = 0; i < NC; ++i) {
            if constexpr (T::SMALL) {
                if (n < p.k)
                    sums[r][i] += stream_tail<T>(rows[r] + n / QK * T::BLOCK, p.columns[c + i], l, n / QK, p.k / QK);
            }
            p.out[c + i][row + r * apart] = sums[r][i];
        }
}

// All rows with the columns [c, c + NC); false if they are too long for the scratch.
template <class T, int NC>
static inline bool stream_rows(const Product& p, const ColumnLayout& l, int64_t c) {
    using S = Streamed<T>;
    const int64_t n = p.k / S::STEP * S::STEP, pitch = n / S::STEP + 1;
    if (NC * pitch * (int64_t)sizeof(typename S::Unit) > LOCAL_BYTES) return false;
    typename S::Unit* units = reinterpret_cast<typename S::Unit*>(p.local);
    for (int i = 0; i < NC; ++i) S::prepare(p.columns[c + i], l, n, units + i * pitch);
    // In long parts that are read side by side, as rows of floats are (plain.h).
    constexpr int NR = NC == 1 ? S::ROWS : 1;
    const int64_t apart = p.n_rows / NR;
    int64_t r = 0;
    for (; r < apart; ++r) stream_some<T, NR, NC>(p, l, c, r, apart, units, pitch);
    for (r *= NR; r < p.n_rows; ++r) stream_some<T, 1, NC>(p, l, c, r, 0, units, pitch);
    return true;
}

#else

template <class T, int NC>
static inline bool stream_rows(const Product&, const ColumnLayout&, int64_t) {
    return false;
}

#endif

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
