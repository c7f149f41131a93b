// Product engines of the quantised types with blocks of 32.
#include "cpu/level.h"
#include "cpu/matmul/quantised.h"

GGR_KERNELS_BEGIN

bool small_engine(int32_t type, Engine* engine) {
    switch (type) {
        case TYPE_Q4_0:
            fill_engine<Q4_0>(engine);
            return true;
        case TYPE_Q4_1:
            fill_engine<Q4_1>(engine);
            return true;
        case TYPE_Q5_0:
            fill_engine<Q5_0>(engine);
            return true;
        case TYPE_Q5_1:
            fill_engine<Q5_1>(engine);
            return true;
        case TYPE_Q8_0:
            fill_engine<Q8_0>(engine);
            return true;
        case TYPE_IQ4_NL:
            fill_engine<IQ4_NL>(engine);
            return true;
        case TYPE_MXFP4:
            fill_engine<MXFP4>(engine);
            return true;
        default:
            return false;
    }
}

GGR_KERNELS_END
