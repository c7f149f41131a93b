// IQ4_NL, IQ4_XS, MXFP4: four-bit codes that index a table of 16 values. n is a multiple of the block (32, 256, 32).
// Dequantisation is exact in f32: 11 bits of d, 6 of the scale, 7 of the value. Floor: bytes of the f32 row.
#pragma once

#include "cpu/quants/small.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// An uneven grid, finer near zero.
#define GGR_IQ4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
// Twice the values of the 4-bit float with 2 exponent bits and 1 of mantissa.
#define GGR_FP4_VALUES 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12

// Half of 2^(e - 127): the table holds doubled values.
static inline float mxfp4_scale(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float d;
    std::memcpy(&d, &bits, 4);
    return d;
}

[[maybe_unused]] static void dequantize_row_iq4_nl(const uint8_t* src, float* y, int64_t n) {
    const i8x16 values = {GGR_IQ4_VALUES};
    const BlockIQ4_NL* x = reinterpret_cast<const BlockIQ4_NL*>(src);
    for (int64_t b = 0; b < n / QK; ++b, y += QK) {
        const vf d = vset(f16_to_f32(x[b].d));
        const u8x16 q = load_u8x16(x[b].qs);
        scale_16(lookup(values, q & 15), d, y);
        scale_16(lookup(values, q >> 4), d, y + 16);
    }
}
[[maybe_unused]] static void dequantize_row_mxfp4(const uint8_t* src, float* y, int64_t n) {
    const i8x16 values = {GGR_FP4_VALUES};
    const BlockMXFP4* x = reinterpret_cast<const BlockMXFP4*>(src);
    for (int64_t b = 0; b < n / QK; ++b, y += QK) {
        const vf d = vset(mxfp4_scale(x[b].e));
        const u8x16 q = load_u8x16(x[b].qs);
        scale_16(lookup(values, q & 15), d, y);
        scale_16(lookup(values, q >> 4), d, y + 16);
    }
}
[[maybe_unused]] static void dequantize_row_iq4_xs(const uint8_t* src, float* y, int64_t n) {
    const i8x16 values = {GGR_IQ4_VALUES};
    const BlockIQ4_XS* x = reinterpret_cast<const BlockIQ4_XS*>(src);
    for (int64_t b = 0; b < n / QK_K; ++b) {
        const float d = f16_to_f32(x[b].d);
        for (int i = 0; i < 8; ++i, y += QK) {  // 8 groups of 32, each with a 6-bit scale biased by 32
            const int scale = (x[b].scales_l[i / 2] >> 4 * (i % 2) & 15) | (x[b].scales_h >> 2 * i & 3) << 4;
            const vf dl = vset(d * (float)(scale - 32));
            const u8x16 q = load_u8x16(x[b].qs + 16 * i);
            scale_16(lookup(values, q & 15), dl, y);
            scale_16(lookup(values, q >> 4), dl, y + 16);
        }
    }
}

// Index of the value nearest to x; of two equally near the upper. Comparing with the midpoints is exact: they
// are halves of integers below 128.
static inline vi nearest_iq4(vf x) {
    static constexpr float VALUES[16] = {GGR_IQ4_VALUES};
    vi code = vi{};
    for (int i = 0; i < 15; ++i) code -= x >= vset(0.5f * (VALUES[i] + VALUES[i + 1]));
    return code;
}

// One pass as the stock CPU backend does it: codes by the block's extreme, then the scale that fits best with weights
// x^2. The sums run in the elements' order, unfused: the scale's last bit depends on it.
[[maybe_unused]] static void quantize_row_iq4_nl(const float* x, uint8_t* dst, int64_t n) {
    static constexpr float VALUES[16] = {GGR_IQ4_VALUES};
    BlockIQ4_NL* y = reinterpret_cast<BlockIQ4_NL*>(dst);
    for (int64_t b = 0; b < n / QK; ++b, x += QK) {
        const float extreme = extreme_of(x, QK);
        if (abs_of(extreme) < 1e-15f) {
            std::memset(&y[b], 0, sizeof y[b]);
            continue;
        }
        const vf scale = vset(1.0f / (extreme / VALUES[0]));
        vi q[VPB];
        for (int i = 0; i < VPB; ++i) q[i] = nearest_iq4(vload(x + i * VL) * scale);
        uint8_t codes[QK];
        store_i8x32(reinterpret_cast<int8_t*>(codes), q);
        float sum_qx = 0.0f, sum_qq = 0.0f;
        for (int i = 0; i < QK; ++i) {
            const float value = VALUES[codes[i]], weighted = x[i] * x[i] * value;
            sum_qx += keep_rounding(weighted * x[i]);
            sum_qq += keep_rounding(weighted * value);
        }
        y[b].d = f32_to_f16(sum_qq > 0.0f ? sum_qx / sum_qq : 0.0f);
        store_nibbles(y[b].qs, load_u8x16(codes), load_u8x16(codes + 16));
    }
}

// The exponent puts the largest magnitude into [4, 8) of the grid's 0 .. 6; nearest value, of two the smaller.
[[maybe_unused]] static void quantize_row_mxfp4(const float* x, uint8_t* dst, int64_t n) {
    static constexpr float MIDPOINTS[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    BlockMXFP4* y = reinterpret_cast<BlockMXFP4*>(dst);
    for (int64_t b = 0; b < n / QK; ++b, x += QK) {
        const float amax = max_magnitude(x, QK);
        // log2f rounds up just below a power of two, and the format's reference takes that for the exponent.
        const float exponent = amax > 0.0f ? __builtin_floorf(__builtin_log2f(amax)) + 125.0f : 0.0f;
        const uint8_t e = (uint8_t)(exponent > 0.0f ? exponent < 254.0f ? exponent : 254.0f : 0.0f);
        const float d = mxfp4_scale(e);
        vi q[VPB];
        for (int i = 0; i < VPB; ++i) {
            const vf v = vload(x + i * VL), a = vabs(v);
            vi code = vi{};
            for (const float midpoint : MIDPOINTS) code -= a > vset(midpoint * d);
            q[i] = code + ((v < 0.0f) & (code > 0) & 8);
        }
        uint8_t codes[QK];
        store_i8x32(reinterpret_cast<int8_t*>(codes), q);
        y[b].e = e;
        store_nibbles(y[b].qs, load_u8x16(codes), load_u8x16(codes + 16));
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
