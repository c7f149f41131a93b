// Product engines of ik_llama.cpp's types.
#include "cpu/level.h"
#include "cpu/matmul/decoded.h"
#include "cpu/matmul/ik_decoders.h"
#include "cpu/quants/ik_grid_groups.h"

GGR_KERNELS_BEGIN

namespace {

template <class T>
bool fill_group(Engine* engine) {
    return fill_decoded<decode_group<T>, T::ROWS>(engine, T::BLOCK == QK_K ? ACT_Q8_K_AS_F32 : ACT_Q8_2_AS_F32);
}

bool interleaved_engine(int32_t type, Engine* engine) {
    switch (type) {
        case TYPE_Q4_0_R8:
            return fill_group<GroupQ4_0>(engine);
        case TYPE_Q5_0_R4:
            return fill_group<GroupQ5_0>(engine);
        case TYPE_Q8_0_R8:
            return fill_group<GroupQ8_0>(engine);
        case TYPE_Q2_K_R4:
            return fill_group<GroupQ2_K>(engine);
        case TYPE_Q3_K_R4:
            return fill_group<GroupQ3_K>(engine);
        case TYPE_Q4_K_R4:
            return fill_group<GroupQ4_K>(engine);
        case TYPE_Q5_K_R4:
            return fill_group<GroupQ5_K>(engine);
        case TYPE_Q6_K_R4:
            return fill_group<GroupQ6_K>(engine);
        case TYPE_IQ4_NL_R4:
            return fill_group<GroupIQ4_NL>(engine);
        case TYPE_IQ4_XS_R8:
            return fill_group<GroupIQ4_XS>(engine);
        case TYPE_IQ2_XXS_R4:
            return fill_group<GroupIQ2_XXS>(engine);
        case TYPE_IQ2_XS_R4:
            return fill_group<GroupIQ2_XS>(engine);
        case TYPE_IQ3_XXS_R4:
            return fill_group<GroupIQ3_XXS>(engine);
        case TYPE_IQ1_S_R4:
            return fill_group<GroupIQ1_S>(engine);
        case TYPE_IQ3_S_R4:
            return fill_group<GroupIQ3_S>(engine);
        case TYPE_IQ2_S_R4:
            return fill_group<GroupIQ2_S>(engine);
        case TYPE_IQ1_M_R4:
            return fill_group<GroupIQ1_M>(engine);
        case TYPE_BF16_R16:
            return fill_decoded<decode_bf16_r16, 16>(engine, ACT_BF16);
        case TYPE_Q6_0_R4:
            return fill_group<GroupQ6_0>(engine);
        case TYPE_IQ2_BN_R4:
            return fill_group<GroupIQ2_BN>(engine);
        case TYPE_IQ2_K_R4:
            return fill_group<GroupIQ2_K>(engine);
        case TYPE_IQ3_K_R4:
            return fill_group<GroupIQ3_K>(engine);
        case TYPE_IQ4_K_R4:
            return fill_group<GroupIQ4_K>(engine);
        case TYPE_IQ5_K_R4:
            return fill_group<GroupIQ5_K>(engine);
        case TYPE_IQ4_KS_R4:
            return fill_group<GroupIQ4_KS>(engine);
        case TYPE_IQ5_KS_R4:
            return fill_group<GroupIQ5_KS>(engine);
        case TYPE_MXFP4_R8:
            return fill_group<GroupMXFP4>(engine);
        case TYPE_Q8_K_R16:
            return fill_group<GroupQ8_K_R16>(engine);
        case TYPE_Q8_KV_R8:
            return fill_group<GroupQ8_KV>(engine);
        case TYPE_Q8_K_R8:
            return fill_group<GroupQ8_K_R8>(engine);
        default:
            return false;
    }
}

}  // namespace

bool ik_engine(int32_t type, Engine* engine) {
    switch (type) {
        case TYPE_Q6_0:
            fill_engine<Q6_0>(engine);
            return true;
        case TYPE_IQ1_BN:
            return fill_decoded<decode_iq1_bn>(engine, ACT_Q8_2_AS_F32);
        case TYPE_IQ2_BN:
            return fill_decoded<decode_iq2_bn>(engine, ACT_Q8_2_AS_F32);
        case TYPE_IQ2_K:
            return fill_grids<RowIQ2_K>(engine);
        case TYPE_IQ3_K:
            return fill_grids<RowIQ3_K>(engine);
        case TYPE_IQ4_K:
            return fill_grids<RowIQ4_K>(engine);
        case TYPE_IQ5_K:
            return fill_grids<RowIQ5_K>(engine);
        case TYPE_IQ6_K:
            return fill_grids<RowIQ6_K>(engine);
        case TYPE_IQ4_KS:
            return fill_grids<RowIQ4_KS>(engine);
        case TYPE_IQ2_KS:
            return fill_grids<RowIQ2_KS>(engine);
        case TYPE_IQ4_KSS:
            return fill_grids<RowIQ4_KSS>(engine);
        case TYPE_Q8_KV:
            return fill_behind_headers<Q8_KV, RowQ8_KV>(engine);
        case TYPE_IQ5_KS:
            return fill_grids<RowIQ5_KS>(engine);
        case TYPE_IQ2_KT:
            return fill_behind_headers<Trellis<RowIQ2_KT>, RowIQ2_KT>(engine);
        case TYPE_IQ3_KT:
            return fill_behind_headers<Trellis<RowIQ3_KT>, RowIQ3_KT>(engine);
        case TYPE_IQ4_KT:
            return fill_behind_headers<Trellis<RowIQ4_KT>, RowIQ4_KT>(engine);
        case TYPE_IQ3_KS:
            return fill_grids<RowIQ3_KS>(engine);
        case TYPE_IQ2_KL:
            return fill_grids<RowIQ2_KL>(engine);
        case TYPE_IQ1_KT:
            return fill_behind_headers<Trellis<RowIQ1_KT>, RowIQ1_KT>(engine);
        default:
            return interleaved_engine(type, engine);
    }
}

GGR_KERNELS_END
