// Product engines of the quantised types with super-blocks of 256.
#include "cpu/level.h"
#include "cpu/matmul/quantised.h"

GGR_KERNELS_BEGIN

bool super_engine(int32_t type, Engine* engine) {
    switch (type) {
        case TYPE_Q2_K:
            fill_engine<Q2_K>(engine);
            return true;
        case TYPE_Q3_K:
            fill_engine<Q3_K>(engine);
            return true;
        case TYPE_Q4_K:
            fill_engine<Q4_K>(engine);
            return true;
        case TYPE_Q5_K:
            fill_engine<Q5_K>(engine);
            return true;
        case TYPE_Q6_K:
            fill_engine<Q6_K>(engine);
            return true;
        case TYPE_IQ4_XS:
            fill_engine<IQ4_XS>(engine);
            return true;
        default:
            return false;
    }
}

GGR_KERNELS_END
