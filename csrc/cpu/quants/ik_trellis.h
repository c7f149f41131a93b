// ik_llama.cpp's trellis types: an index of 13 to 16 bits starts a generator that gives the values of 8 (IQ4_KT: 4)
// elements. The structures have the form of ik_k.h. Floor: three multiplications of 32 bits an element, which take two
// thirds of the time of a decoder.
#pragma once

#include "cpu/quants/ik_k.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr uint32_t TRELLIS_FACTOR = 0xcbac1fed, TRELLIS_OFFSET = 4096;

// FACTOR to the powers 1 .. 8, or 1 .. 4, again and again.
template <int PERIOD>
static inline u32x16 trellis_powers() {
    u32x16 v = {};
    uint32_t power = 1;
    for (int i = 0; i < 16; ++i) {
        power = (i % PERIOD == 0 ? 1 : power) * TRELLIS_FACTOR;
        v[i] = power;
    }
    return v;
}
// Each state's four low six-bit bytes added up, less the mean.
static inline i8x16 trellis_values(u32x16 state) {
    const u32x16 sums = ((state & 0x3f3f3f3f) * 0x01010101) >> 24;
    return (i8x16)(__builtin_convertvector(sums, u8x16) - 126);
}
static inline i8x16 trellis_16(uint32_t a, uint32_t b) {
    return trellis_values(u32x16{a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b} * trellis_powers<8>());
}

// Sixteen starts from the low bytes of their indices and up to five bits above.
static inline void store_starts(u8x16 low, u8x16 high, uint32_t* start) {
    const u32x16 index = __builtin_convertvector(low, u32x16) | __builtin_convertvector(high, u32x16) << 8;
    const u32x16 all = index + TRELLIS_OFFSET;
    std::memcpy(start, &all, sizeof all);
}

struct RowIQ1_KT : RowShape<56, 4, 32, 128> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const u8x16 scales = from_u64(read_as<uint64_t>(p)), high = load_u8x16(p + 40);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {  // 16 groups each
            const u8x16 low = load_u8x16(p + 8 + 16 * h), nibble = h != 0 ? high >> 4 : high & 15;
            const u8x16 of_block =
                __builtin_shuffle(scales, u8x16{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3} + (uint8_t)(4 * h));
            const u8x16 bits = {16, 32, 64, 128, 16, 32, 64, 128, 16, 32, 64, 128, 16, 32, 64, 128};
            uint32_t start[16];
            store_starts(low, nibble | (has_bits(of_block, bits) & 16), start);
#pragma GCC unroll 8
            for (int s = 0; s < 8; ++s) v[8 * h + s] = trellis_16(start[2 * s], start[2 * s + 1]);
        }
    }
    static inline i8x16 scales(const uint8_t* p) { return ik4_value(from_u64(read_as<uint64_t>(p)) & 15); }
};

// IQ2_KT and IQ3_KT: a word for 8 elements.
static inline void trellis_of_words(const uint8_t* p, i8x16 v[16]) {
    typedef uint16_t u16x16 __attribute__((vector_size(32)));
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        uint32_t start[16];
        const u32x16 all = __builtin_convertvector(read_as<u16x16>(p + 32 * h), u32x16) + TRELLIS_OFFSET;
        std::memcpy(start, &all, sizeof all);
#pragma GCC unroll 8
        for (int s = 0; s < 8; ++s) v[8 * h + s] = trellis_16(start[2 * s], start[2 * s + 1]);
    }
}

struct RowIQ2_KT : RowShape<68, 4, 32, 128> {
    static constexpr float PRODUCT = 1.05f;
    static inline void codes(const uint8_t* p, i8x16 v[16]) { trellis_of_words(p + 4, v); }
    static inline i8x16 scales(const uint8_t* p) { return ik4_value(nibbles_of_4(p)); }
};

struct RowIQ3_KT : RowShape<100, 4, 32, 128> {
    static constexpr float PRODUCT = 1.01f;
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        trellis_of_words(p + 4, v);
#pragma GCC unroll 16
        for (int s = 0; s < 16; ++s) {
            const i8x16 minus = (i8x16)one_bit(p + 68, s) ^ (v[s] < 0);  // the sign is of the magnitude
            v[s] = (v[s] ^ minus) - minus;
        }
    }
    static inline i8x16 scales(const uint8_t* p) { return (i8x16)nibbles_of_4(p); }
};

struct RowIQ4_KT : RowShape<128, 4, 32, 128> {
    static inline void codes(const uint8_t* p, i8x16 v[16]) {
        const u32x16 shifts = {8, 11, 14, 17, 20, 23, 26, 29, 8, 11, 14, 17, 20, 23, 26, 29};
#pragma GCC unroll 4
        for (int h = 0; h < 4; ++h) {  // 16 groups each
            const u8x16 high = load_u8x16(p + 96 + 16 * (h % 2));
            const uint32_t a = read_as<uint32_t>(p + 8 * h), b = read_as<uint32_t>(p + 8 * h + 4);
            const u32x16 word = {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b};
            uint32_t start[16];
            store_starts(load_u8x16(p + 32 + 16 * h), h / 2 != 0 ? high >> 4 : high & 15, start);
            const u32x16 all = read_as<u32x16>(start) + ((word >> shifts & 7) << 12) + (word & 1) * 32768;
            std::memcpy(start, &all, sizeof all);
#pragma GCC unroll 4
            for (int s = 0; s < 4; ++s) {
                const uint32_t *x = start + 4 * s, c = x[0], d = x[1], e = x[2], f = x[3];
                v[4 * h + s] =
                    trellis_values(u32x16{c, c, c, c, d, d, d, d, e, e, e, e, f, f, f, f} * trellis_powers<4>());
            }
        }
    }
    static inline i8x16 scales(const uint8_t* p) {
        uint64_t bytes = 0;
        for (int b = 0; b < 8; ++b) bytes |= (uint64_t)p[4 * b] << 8 * b;
        return (i8x16)(from_u64(bytes) >> 1) - 64;
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
