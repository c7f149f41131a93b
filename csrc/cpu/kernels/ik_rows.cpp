// Rows of ik_llama.cpp's types to f32, and of its caches' types from f32.
#include "cpu/level.h"
#include "cpu/quants/ik.h"
#include "cpu/quants/ik_small.h"
#include "cpu/quants/ik_trellis.h"
#include "spec/ids.h"

GGR_KERNELS_BEGIN

namespace {

template <DecodeRows DECODE>
void whole_row(const uint8_t* row, float* y, int64_t n) {
    DECODE(row, 0, n, y, 0);
}

}  // namespace

IkRow ik_row_decoder(int32_t type) {
    switch (type) {
        case TYPE_Q6_0:
            return whole_row<decode_q6_0>;
        case TYPE_IQ1_BN:
            return whole_row<decode_iq1_bn>;
        case TYPE_IQ2_BN:
            return whole_row<decode_iq2_bn>;
        case TYPE_IQ2_K:
            return whole_row<decode_super<RowIQ2_K>>;
        case TYPE_IQ3_K:
            return whole_row<decode_super<RowIQ3_K>>;
        case TYPE_IQ4_K:
            return whole_row<decode_super<RowIQ4_K>>;
        case TYPE_IQ5_K:
            return whole_row<decode_super<RowIQ5_K>>;
        case TYPE_IQ6_K:
            return whole_row<decode_iq6_k>;
        case TYPE_IQ4_KS:
            return whole_row<decode_super<RowIQ4_KS>>;
        case TYPE_IQ2_KS:
            return whole_row<decode_super<RowIQ2_KS>>;
        case TYPE_IQ4_KSS:
            return whole_row<decode_super<RowIQ4_KSS>>;
        case TYPE_Q8_KV:
            return whole_row<decode_q8_kv>;
        case TYPE_IQ5_KS:
            return whole_row<decode_super<RowIQ5_KS>>;
        case TYPE_IQ2_KT:
            return whole_row<decode_super<RowIQ2_KT>>;
        case TYPE_IQ3_KT:
            return whole_row<decode_super<RowIQ3_KT>>;
        case TYPE_IQ4_KT:
            return whole_row<decode_super<RowIQ4_KT>>;
        case TYPE_IQ3_KS:
            return whole_row<decode_super<RowIQ3_KS>>;
        case TYPE_IQ2_KL:
            return whole_row<decode_super<RowIQ2_KL>>;
        case TYPE_IQ1_KT:
            return whole_row<decode_super<RowIQ1_KT>>;
        default:
            return nullptr;
    }
}

IkQuantRow ik_row_quantiser(int32_t type) {
    switch (type) {
        case TYPE_Q6_0:
            return quantize_row_q6_0;
        case TYPE_Q8_KV:
            return quantize_row_q8_kv;
        default:
            return nullptr;
    }
}

GGR_KERNELS_END
