// What decoders of ik_llama.cpp's types share: its value tables, and codes and scales on their way into vectors.
#pragma once

#include "cpu/quants/codes.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint32_t w32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint64_t u64x2 __attribute__((vector_size(16)));

// Uneven grids. Each has a second form with all values moved up by a constant; a bit of the block chooses.
#define GGR_IK2_VALUES -31, -13, 1, 17, -31, -13, 1, 17, -31, -13, 1, 17, -31, -13, 1, 17
#define GGR_IK3_VALUES -63, -40, -23, -10, 1, 13, 28, 47, -63, -40, -23, -10, 1, 13, 28, 47
#define GGR_IK4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
constexpr uint8_t IK2_MOVE = 5, IK3_MOVE = 4, IK4_MOVE = 4, IK5_MOVE = 2;

static inline i8x16 ik2_value(u8x16 q) { return lookup(i8x16{GGR_IK2_VALUES}, q); }
static inline i8x16 ik3_value(u8x16 q) { return lookup(i8x16{GGR_IK3_VALUES}, q); }
static inline i8x16 ik4_value(u8x16 q) { return lookup(i8x16{GGR_IK4_VALUES}, q); }

static inline i8x16 choose(u8x16 mask, i8x16 a, i8x16 b) { return (i8x16)((mask & (u8x16)a) | (~mask & (u8x16)b)); }
// Bytes of 0xff where a byte has one of these bits.
static inline u8x16 has_bits(u8x16 v, u8x16 bits) { return (u8x16)((v & bits) != 0); }
static inline u8x16 splat_u8(int x) { return u8x16{} + (uint8_t)x; }
static inline u8x16 from_u64(uint64_t x) { return (u8x16)u64x2{x, 0}; }

// A table of 32; q < 16, `high` chooses the upper half.
static inline i8x16 lookup_32(i8x16 lower, i8x16 upper, u8x16 q, u8x16 high) {
    return choose(high, lookup(upper, q), lookup(lower, q));
}
static inline i8x16 ik5_value(u8x16 q, u8x16 high) {
    const i8x16 lower = {-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6};
    const i8x16 upper = {-1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121};
    return lookup_32(lower, upper, q, high);
}

static inline float half_at(const uint8_t* p) { return f16_to_f32(read_as<uint16_t>(p)); }

// The nibbles of eight bytes, the low one of each first.
static inline u8x16 nibbles_of_8(const uint8_t* p) {
    const u8x16 twice =
        __builtin_shuffle(from_u64(read_as<uint64_t>(p)), u8x16{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7});
    const u8x16 odd = {0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255};
    return (twice & 15 & ~odd) | (twice >> 4 & odd);
}
// The low nibbles of four bytes, then the high ones; the rest is 0.
static inline u8x16 nibbles_of_4(const uint8_t* p) {
    const uint64_t w = read_as<uint32_t>(p);
    return from_u64((w & 0x0f0f0f0fu) | (w >> 4 & 0x0f0f0f0fu) << 32);
}
// Sixteen pairs of bits as the bits 4 and 5 of sixteen bytes.
static inline u8x16 pairs_to_top(uint32_t bits) {
    const u8x16 four =
        __builtin_shuffle((u8x16)w32x4{bits, 0, 0, 0}, u8x16{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3});
    const u8x16 low = {1, 4, 16, 64, 1, 4, 16, 64, 1, 4, 16, 64, 1, 4, 16, 64};
    return (has_bits(four, low) & 16) | (has_bits(four, low + low) & 32);
}
// One byte of a vector in all bytes.
static inline i8x16 spread_byte(i8x16 v, int i) { return lookup(v, splat_u8(i)); }

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
