// Product engines of the types with code books, and of those with two bits and less.
#include "cpu/level.h"
#include "cpu/matmul/grid_decoders.h"
#include "cpu/matmul/quantised.h"

GGR_KERNELS_BEGIN

bool grid_engine(int32_t type, Engine* engine) {
    switch (type) {
        case TYPE_IQ2_XXS:
            fill_engine<Coded<CodesIQ2_XXS>>(engine);
            return true;
        case TYPE_IQ2_XS:
            fill_engine<Coded<CodesIQ2_XS>>(engine);
            return true;
        case TYPE_IQ2_S:
            fill_engine<Coded<CodesIQ2_S>>(engine);
            return true;
        case TYPE_IQ3_XXS:
            fill_engine<Coded<CodesIQ3_XXS>>(engine);
            return true;
        case TYPE_IQ3_S:
            fill_engine<Coded<CodesIQ3_S>>(engine);
            return true;
        case TYPE_IQ1_S:
            fill_engine<Coded<CodesIQ1_S>>(engine);
            return true;
        case TYPE_IQ1_M:
            fill_engine<Coded<CodesIQ1_M>>(engine);
            return true;
        case TYPE_TQ1_0:
            fill_engine<Coded<CodesTQ1_0>>(engine);
            return true;
        case TYPE_TQ2_0:
            fill_engine<Coded<CodesTQ2_0>>(engine);
            return true;
        case TYPE_Q1_0:
            fill_engine<Q1_0>(engine);
            return true;
        case TYPE_Q2_0:
            fill_engine<Q2_0>(engine);
            return true;
        case TYPE_NVFP4:
            fill_engine<NVFP4>(engine);
            return true;
        default:
            return false;
    }
}

GGR_KERNELS_END
