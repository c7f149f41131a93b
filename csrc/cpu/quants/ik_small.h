// ik_llama.cpp's types with small blocks: Q6_0 (32 elements), Q8_KV (bytes and one scale a row), IQ1_BN and IQ2_BN
// (64 values of -1, 0, 1, one scale a row). Floor of a decoder: bytes of the f32 row.
#pragma once

#include "cpu/quants/ik_vec.h"
#include "cpu/quants/small.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int Q6_0_BYTES = 26, BN_BLOCK = 64;

struct RowQ8_KV {
    static constexpr int HEADER = 8;  // a float, then the sum of the row's integers
    static constexpr float PRODUCT = 1.0f;
};

// The 6-bit codes of a block of Q6_0, raised by 32. Eight bytes hold the two high bits of elements i, 16 + i, 8 + i,
// 24 + i.
static inline void codes_of_q6_0(const uint8_t* p, u8x16* first, u8x16* second) {
    const uint64_t high = read_as<uint64_t>(p + 2);
    const u8x16 q = load_u8x16(p + 10), h = (u8x16)u64x2{high, high >> 4};
    *first = (q & 15) | (h & 3) << 4;
    *second = q >> 4 | (h >> 2 & 3) << 4;
}

[[maybe_unused]] static void decode_q6_0(const uint8_t* row, int64_t begin, int64_t n, float* y, int64_t) {
    const uint8_t* p = row + begin / QK * Q6_0_BYTES;
    for (const float* end = y + n; y < end; y += QK, p += Q6_0_BYTES) {
        const vf d = vset(half_at(p));
        u8x16 first, second;
        codes_of_q6_0(p, &first, &second);
        scale_16((i8x16)first - 32, d, y);
        scale_16((i8x16)second - 32, d, y + 16);
    }
}

[[maybe_unused]] static void decode_q8_kv(const uint8_t* row, int64_t begin, int64_t n, float* y, int64_t) {
    const vf d = vset(read_as<float>(row));
    const uint8_t* p = row + RowQ8_KV::HEADER + begin;
    for (int64_t i = 0; i < n; i += 16) scale_16((i8x16)load_u8x16(p + i), d, y + i);
}

// 13 bytes: a byte holds five digits of base 3 as a fraction of 256, the most significant one first. Three bytes hold
// 15 elements, and byte 12 the sixteenth of each quarter.
[[maybe_unused]] static void decode_iq1_bn(const uint8_t* row, int64_t begin, int64_t n, float* y, int64_t) {
    typedef uint16_t u16x16 __attribute__((vector_size(32)));
    const vf d = vset(half_at(row));
    const uint8_t* p = row + 2 + begin / BN_BLOCK * 13;
    for (const float* end = y + n; y < end; y += BN_BLOCK, p += 13) {
        const u8x16 bytes = load_u8x16(p);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            static constexpr uint16_t POWER[4] = {81, 27, 9, 3};
            const uint8_t a = (uint8_t)(3 * i), b = (uint8_t)(3 * i + 1), c = (uint8_t)(3 * i + 2);
            const u8x16 spread = __builtin_shuffle(bytes, u8x16{a, a, a, a, a, b, b, b, b, b, c, c, c, c, c, 12});
            const u16x16 powers = {81, 27, 9, 3, 1, 81, 27, 9, 3, 1, 81, 27, 9, 3, 1, POWER[i]};
            const u16x16 digits = ((__builtin_convertvector(spread, u16x16) * powers & 255) * 3) >> 8;
            scale_16((i8x16) __builtin_convertvector(digits, u8x16) - 1, d, y + 16 * i);
        }
    }
}

[[maybe_unused]] static void decode_iq2_bn(const uint8_t* row, int64_t begin, int64_t n, float* y, int64_t) {
    const vf d = vset(read_as<float>(row));
    const uint8_t* p = row + 4 + begin / BN_BLOCK * 16;
    for (const float* end = y + n; y < end; y += BN_BLOCK, p += 16) {
        const u8x16 q = load_u8x16(p);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) scale_16((i8x16)(q >> 2 * i & 3) - 1, d, y + 16 * i);
    }
}

// As for IQ4_NL: codes by the extreme, then the scale that fits them best. Here its sums run in pairs of elements 16
// apart, with weights x^2 of the scaled elements.
[[maybe_unused]] static void quantize_row_q6_0(const float* x, uint8_t* dst, int64_t n) {
    for (int64_t b = 0; b < n / QK; ++b, x += QK, dst += Q6_0_BYTES) {
        const float d = extreme_of(x, QK) / -32.0f, scale = inverse(d);
        u8x16 first, second;
        codes_of_32(x, 0.0f, scale, 32.5f, 63, &first, &second);
        float sum_qx = 0.0f, sum_qq = 0.0f;
        for (int i = 0; i < 16; ++i) {
            const float a = x[i] * scale, c = x[16 + i] * scale, weight_a = a * a, weight_c = c * c;
            const float qa = (float)first[i] - 32.0f, qc = (float)second[i] - 32.0f;
            sum_qx += keep_rounding(keep_rounding(weight_a * x[i] * qa) + keep_rounding(weight_c * x[16 + i] * qc));
            sum_qq += keep_rounding(keep_rounding(weight_a * qa * qa) + keep_rounding(weight_c * qc * qc));
        }
        const uint16_t half = f32_to_f16(sum_qq > 0.0f ? sum_qx / sum_qq : d);
        const u8x16 high = first >> 4 | (second >> 4) << 2;
        const u64x2 h = (u64x2)high;
        const uint64_t packed = h[0] | h[1] << 4;
        std::memcpy(dst, &half, 2);
        std::memcpy(dst + 2, &packed, 8);
        store_nibbles(dst + 10, first, second);
    }
}

// A whole row: its scale and the sum of its integers stand before them.
[[maybe_unused]] static void quantize_row_q8_kv(const float* x, uint8_t* dst, int64_t n) {
    float most = 0.0f;
    for (int64_t i = 0; i < n; i += QK) {
        const float m = max_magnitude(x + i, QK);
        most = m > most ? m : most;
    }
    const float d = most / 127.0f;
    const vf scale = vset(inverse(d));
    vi total = {};
    for (int64_t i = 0; i < n; i += QK) {
        vi q[VPB];
        for (int j = 0; j < VPB; ++j) {
            q[j] = round_to_int(vload(x + i + j * VL) * scale);
            total += q[j];
        }
        store_i8x32(reinterpret_cast<int8_t*>(dst + RowQ8_KV::HEADER + i), q);
    }
    const int32_t sum = sum_lanes(total);
    std::memcpy(dst, &d, 4);
    std::memcpy(dst + 4, &sum, 4);
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
