// How a column of activations lies in scratch: one record a column, its parts behind each other.
//
//   F32, F16, BF16: k floats, already rounded to the type.
//   Q8_0, Q8_1:     k int8, then per 32 elements: the scale, -sum of the int8 (int32), and scale * sum (Q8_1's s,
//                   rounded to half).
//   Q8_K:           k int8, then the scale per 256 elements, and per 32 and per 16 elements -sum (int32) and sum
//   (float),
//                   and per 16 the sum as int16.
#pragma once

#include "cpu/plan.h"
#include "cpu/quants/activations.h"
#include "cpu/quants/blocks.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

struct ColumnLayout {
    int64_t scale, negative, sum, negative16, sum16, short16;  // offsets of the parts
    int64_t stride;
};

static inline ColumnLayout column_layout(ActFormat format, int64_t k) {
    ColumnLayout l = {};
    int64_t bytes;
    if (format == ACT_F32 || format == ACT_F16 || format == ACT_BF16) {
        bytes = 4 * k;
    } else {
        const int64_t part = k / QK * 4;
        l.scale = (k + 63) & ~int64_t{63};
        l.negative = l.scale + part;
        l.sum = l.negative + part;
        l.negative16 = l.sum + part;
        l.sum16 = l.negative16 + 2 * part;
        l.short16 = l.sum16 + 2 * part;
        bytes = format == ACT_Q8_K ? l.short16 + part : l.negative16;
    }
    // An odd number of lines, so that neighbouring columns do not meet in the same sets of the cache.
    l.stride = ((bytes + 127) & ~int64_t{127}) + 64;
    return l;
}

// A column's elements [begin, begin + n), n a multiple of the block, in its record.
static inline void write_column(ActFormat format, const ColumnLayout& l, const float* x, int64_t begin, int64_t n,
                                uint8_t* record) {
    float* plain = reinterpret_cast<float*>(record) + begin;
    const int64_t b0 = begin / QK;
    float* scale = reinterpret_cast<float*>(record + l.scale);
    int32_t* negative = reinterpret_cast<int32_t*>(record + l.negative) + b0;
    float* sum = reinterpret_cast<float*>(record + l.sum) + b0;
    switch (format) {
        case ACT_F32:
            std::memcpy(plain, x, (size_t)n * 4);
            return;
        case ACT_F16:
            for (int64_t i = 0; i < n; ++i) plain[i] = f16_to_f32(f32_to_f16(x[i]));
            return;
        case ACT_BF16:
            for (int64_t i = 0; i < n; ++i) plain[i] = bf16_to_f32(f32_to_bf16(x[i]));
            return;
        case ACT_Q8_0:
        case ACT_Q8_1:
            for (int64_t b = 0; b < n / QK; ++b) {
                BlockQ8_1 block;
                quantize_row_q8_1(x + b * QK, &block, QK);
                std::memcpy(record + begin + b * QK, block.qs, QK);
                scale[b0 + b] = f16_to_f32(block.d);
                sum[b] = f16_to_f32(block.s);
                int32_t s = 0;
                for (int i = 0; i < QK; ++i) s += block.qs[i];
                negative[b] = -s;
            }
            return;
        case ACT_Q8_K:
            for (int64_t b = 0; b < n / QK_K; ++b) {
                BlockQ8_K block;
                quantize_row_q8_K(x + b * QK_K, &block, QK_K);
                std::memcpy(record + begin + b * QK_K, block.qs, QK_K);
                scale[begin / QK_K + b] = block.d;
                int32_t* negative16 = reinterpret_cast<int32_t*>(record + l.negative16) + begin / 16 + 16 * b;
                float* sum16 = reinterpret_cast<float*>(record + l.sum16) + begin / 16 + 16 * b;
                std::memcpy(record + l.short16 + 2 * (begin / 16 + 16 * b), block.bsums, sizeof block.bsums);
                for (int i = 0; i < 16; ++i) {
                    negative16[i] = -block.bsums[i];
                    sum16[i] = block.bsums[i];
                }
                for (int i = 0; i < 8; ++i) {
                    negative[8 * b + i] = negative16[2 * i] + negative16[2 * i + 1];
                    sum[8 * b + i] = (float)-negative[8 * b + i];
                }
            }
            return;
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
