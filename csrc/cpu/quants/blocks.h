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

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24,
              "");
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ8_1) == 36 && sizeof(BlockQ8_K) == 292, "");
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144 &&
                  sizeof(BlockQ5_K) == 176,
              "");
static_assert(sizeof(BlockQ6_K) == 210 && sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136 &&
                  sizeof(BlockMXFP4) == 17,
              "");

}  // namespace ggr
