// Memory layout of one block of each quantised type, as clients send it. Half-precision fields are bits. All members
// are aligned to at most 4 bytes; rows can start at any address, so blocks are read through memcpy or unaligned loads.
#pragma once

#include <cstdint>

namespace ggr {

constexpr int QK = 32;     // elements of a small block
constexpr int QK_K = 256;  // elements of a super-block

struct __attribute__((packed)) BlockQ4_0 {
    uint16_t d;
    uint8_t qs[16];  // element i in the low nibble of byte i, element i + 16 in the high one
};
struct __attribute__((packed)) BlockQ4_1 {
    uint16_t d, m;
    uint8_t qs[16];
};
struct __attribute__((packed)) BlockQ5_0 {
    uint16_t d;
    uint8_t qh[4];  // fifth bit of element i at bit i
    uint8_t qs[16];
};
struct __attribute__((packed)) BlockQ5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct __attribute__((packed)) BlockQ8_0 {
    uint16_t d;
    int8_t qs[32];
};
struct __attribute__((packed)) BlockQ8_1 {
    uint16_t d, s;  // s = d * sum of qs
    int8_t qs[32];
};
struct __attribute__((packed)) BlockQ2_K {
    uint8_t scales[16];  // low nibble scale, high nibble minimum, of 16 elements each
    uint8_t qs[64];
    uint16_t d, dmin;
};
struct __attribute__((packed)) BlockQ3_K {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];  // 16 scales of 6 bits
    uint16_t d;
};
struct __attribute__((packed)) BlockQ4_K {
    uint16_t d, dmin;
    uint8_t scales[12];  // 8 scales and 8 minima of 6 bits
    uint8_t qs[128];
};
struct __attribute__((packed)) BlockQ5_K {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct __attribute__((packed)) BlockQ6_K {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
};
struct __attribute__((packed)) BlockQ8_K {
    float d;
    int8_t qs[256];
    int16_t bsums[16];  // sums of 16 elements
};
struct __attribute__((packed)) BlockIQ4_NL {
    uint16_t d;
    uint8_t qs[16];
};
struct __attribute__((packed)) BlockIQ4_XS {
    uint16_t d;
    uint16_t scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
};
struct __attribute__((packed)) BlockMXFP4 {
    uint8_t e;  // power of two with bias 127
    uint8_t qs[16];
};
struct __attribute__((packed)) BlockNVFP4 {  // of 64
    uint8_t d[4];                            // of 16 elements each: unsigned, 4 bits of exponent, 3 of mantissa
    uint8_t qs[32];  // 8 bytes of 16 elements: element i in the low nibble of byte i, i + 8 in the high one
};
struct __attribute__((packed)) BlockQ1_0 {  // of 128
    uint16_t d;
    uint8_t qs[16];  // a bit an element, set for +d, clear for -d
};
struct __attribute__((packed)) BlockQ2_0 {  // of 64
    uint16_t d;
    uint8_t qs[16];  // two bits an element, in order, raised by 1
};
struct __attribute__((packed)) BlockTQ1_0 {
    uint8_t qs[48];  // five elements a byte, as digits of a fraction to base 3; of 32 bytes, then of 16
    uint8_t qh[4];   // four elements a byte
    uint16_t d;
};
struct __attribute__((packed)) BlockTQ2_0 {
    uint8_t qs[64];  // as Q2_K, raised by 1
    uint16_t d;
};
struct __attribute__((packed)) BlockIQ2_XXS {
    uint16_t d;
    struct __attribute__((packed)) {
        uint8_t qs[4];             // entries of the grid
        uint32_t signs_and_scale;  // four times 7 bits, then 4
    } groups[8];
};
struct __attribute__((packed)) BlockIQ2_XS {
    uint16_t d;
    uint16_t qs[32];    // 9 bits of the entry, 7 of signs
    uint8_t scales[8];  // nibbles, of 16 elements each
};
struct __attribute__((packed)) BlockIQ2_S {
    uint16_t d;
    uint8_t qs[32];
    uint8_t signs[32];
    uint8_t qh[8];  // bits 8 and 9 of four entries
    uint8_t scales[8];
};
struct __attribute__((packed)) BlockIQ3_XXS {
    uint16_t d;
    uint8_t qs[64];               // entries of four elements
    uint32_t signs_and_scale[8];  // as IQ2_XXS
};
struct __attribute__((packed)) BlockIQ3_S {
    uint16_t d;
    uint8_t qs[64];
    uint8_t qh[8];  // bit 8 of eight entries
    uint8_t signs[32];
    uint8_t scales[4];  // nibbles, of 32 elements each
};
struct __attribute__((packed)) BlockIQ1_S {
    uint16_t d;
    uint8_t qs[32];
    uint16_t qh[8];  // bits 8 to 10 of four entries, 3 bits of scale, sign of the shift
};
struct __attribute__((packed)) BlockIQ1_M {
    uint8_t qs[32];
    uint8_t qh[16];      // nibbles: bits 8 to 10 of an entry, sign of its shift
    uint16_t scales[4];  // four times 3 bits, of 16 elements each, then 4 bits of d, the low ones first
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24,
              "");
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ8_1) == 36 && sizeof(BlockQ8_K) == 292, "");
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144 &&
                  sizeof(BlockQ5_K) == 176,
              "");
static_assert(sizeof(BlockQ6_K) == 210 && sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136 &&
                  sizeof(BlockMXFP4) == 17,
              "");
static_assert(sizeof(BlockNVFP4) == 36 && sizeof(BlockQ1_0) == 18 && sizeof(BlockQ2_0) == 18 &&
                  sizeof(BlockTQ1_0) == 54 && sizeof(BlockTQ2_0) == 66,
              "");
static_assert(sizeof(BlockIQ2_XXS) == 66 && sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82 &&
                  sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110 && sizeof(BlockIQ1_S) == 50 &&
                  sizeof(BlockIQ1_M) == 56,
              "");

}  // namespace ggr
