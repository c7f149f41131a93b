// The table of row conversions: any supported type to f32. Rows can start at any address.
#pragma once

#include "core/tensor.h"
#include "cpu/quants/grid.h"
#include "cpu/quants/ik.h"
#include "cpu/quants/k.h"
#include "cpu/quants/tiny.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// n elements, a multiple of the type's block. A type with a row header (row_meta) is read from the row's start on.
using DequantRow = void (*)(const uint8_t* src, float* dst, int64_t n);

static void f32_row_to_f32(const uint8_t* src, float* y, int64_t n) { std::memcpy(y, src, (size_t)n * 4); }
static void f16_row_to_f32(const uint8_t* src, float* y, int64_t n) {
    const uint16_t* x = reinterpret_cast<const uint16_t*>(src);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(y + i, vload_f16(x + i));
    for (; i < n; ++i) y[i] = f16_to_f32(x[i]);
}
static void bf16_row_to_f32(const uint8_t* src, float* y, int64_t n) {
    const uint16_t* x = reinterpret_cast<const uint16_t*>(src);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(y + i, vload_bf16(x + i));
    for (; i < n; ++i) y[i] = bf16_to_f32(x[i]);
}
// The function that turns a row of `type` into f32, or nullptr.
[[maybe_unused]] static inline DequantRow dequant_row_for(int32_t type) {
    switch (type) {
        case TYPE_F32:
            return f32_row_to_f32;
        case TYPE_F16:
            return f16_row_to_f32;
        case TYPE_BF16:
            return bf16_row_to_f32;
        case TYPE_Q4_0:
            return dequantize_row_q4_0;
        case TYPE_Q4_1:
            return dequantize_row_q4_1;
        case TYPE_Q5_0:
            return dequantize_row_q5_0;
        case TYPE_Q5_1:
            return dequantize_row_q5_1;
        case TYPE_Q8_0:
            return dequantize_row_q8_0;
        case TYPE_Q2_K:
            return dequantize_row_q2_K;
        case TYPE_Q3_K:
            return dequantize_row_q3_K;
        case TYPE_Q4_K:
            return dequantize_row_q4_K;
        case TYPE_Q5_K:
            return dequantize_row_q5_K;
        case TYPE_Q6_K:
            return dequantize_row_q6_K;
        case TYPE_IQ4_NL:
            return dequantize_row_iq4_nl;
        case TYPE_IQ4_XS:
            return dequantize_row_iq4_xs;
        case TYPE_MXFP4:
            return dequantize_row_mxfp4;
        case TYPE_IQ2_XXS:
            return dequantize_codes<CodesIQ2_XXS>;
        case TYPE_IQ2_XS:
            return dequantize_codes<CodesIQ2_XS>;
        case TYPE_IQ2_S:
            return dequantize_codes<CodesIQ2_S>;
        case TYPE_IQ3_XXS:
            return dequantize_codes<CodesIQ3_XXS>;
        case TYPE_IQ3_S:
            return dequantize_codes<CodesIQ3_S>;
        case TYPE_IQ1_S:
            return dequantize_codes<CodesIQ1_S>;
        case TYPE_IQ1_M:
            return dequantize_codes<CodesIQ1_M>;
        case TYPE_TQ1_0:
            return dequantize_codes<CodesTQ1_0>;
        case TYPE_TQ2_0:
            return dequantize_codes<CodesTQ2_0>;
        case TYPE_Q1_0:
            return dequantize_small_codes<CodesQ1_0>;
        case TYPE_Q2_0:
            return dequantize_small_codes<CodesQ2_0>;
        case TYPE_NVFP4:
            return dequantize_small_codes<CodesNVFP4>;
        default:
            return ik_row_decoder(type);
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
