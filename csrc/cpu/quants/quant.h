// The table of row conversions from f32 to every type that graphs may write. Rows can start at any address.
#pragma once

#include "core/tensor.h"
#include "cpu/quants/ik.h"
#include "cpu/quants/quant_k.h"
#include "cpu/quants/small.h"
#include "cpu/quants/tables4.h"
#include "cpu/quants/tiny.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// n elements, a multiple of the type's block. A type with a row header (row_meta) is written as a whole row.
using QuantRow = void (*)(const float* src, uint8_t* dst, int64_t n);

static void f32_row_from_f32(const float* x, uint8_t* dst, int64_t n) { std::memcpy(dst, x, (size_t)n * 4); }
static void f16_row_from_f32(const float* x, uint8_t* dst, int64_t n) {
    uint16_t* y = reinterpret_cast<uint16_t*>(dst);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore_f16(y + i, vload(x + i));
    for (; i < n; ++i) y[i] = f32_to_f16(x[i]);
}
static void bf16_row_from_f32(const float* x, uint8_t* dst, int64_t n) {
    uint16_t* y = reinterpret_cast<uint16_t*>(dst);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore_bf16(y + i, vload(x + i));
    for (; i < n; ++i) y[i] = f32_to_bf16(x[i]);
}

// The function that turns a row of f32 into `type`, or nullptr.
[[maybe_unused]] static inline QuantRow quant_row_for(int32_t type) {
    switch (type) {
        case TYPE_F32:
            return f32_row_from_f32;
        case TYPE_F16:
            return f16_row_from_f32;
        case TYPE_BF16:
            return bf16_row_from_f32;
        case TYPE_Q4_0:
            return quantize_row_q4_0;
        case TYPE_Q4_1:
            return quantize_row_q4_1;
        case TYPE_Q5_0:
            return quantize_row_q5_0;
        case TYPE_Q5_1:
            return quantize_row_q5_1;
        case TYPE_Q8_0:
            return quantize_row_q8_0_bytes;
        case TYPE_Q8_1:
            return quantize_row_q8_1_bytes;
        case TYPE_Q8_K:
            return quantize_row_q8_K_bytes;
        case TYPE_IQ4_NL:
            return quantize_row_iq4_nl;
        case TYPE_MXFP4:
            return quantize_row_mxfp4;
        case TYPE_Q2_K:
            return quantize_row_q2_K;
        case TYPE_Q3_K:
            return quantize_row_q3_K;
        case TYPE_Q4_K:
            return quantize_row_q4_K;
        case TYPE_Q5_K:
            return quantize_row_q5_K;
        case TYPE_Q6_K:
            return quantize_row_q6_K;
        case TYPE_IQ4_XS:
            return quantize_row_iq4_xs;
        case TYPE_TQ1_0:
            return quantize_row_tq1_0;
        case TYPE_TQ2_0:
            return quantize_row_tq2_0;
        case TYPE_Q1_0:
            return quantize_row_q1_0;
        case TYPE_Q2_0:
            return quantize_row_q2_0;
        case TYPE_NVFP4:
            return quantize_row_nvfp4;
        default:
            return ik_row_quantiser(type);
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
