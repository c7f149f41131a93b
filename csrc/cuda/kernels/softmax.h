// Arguments of the softmax kernel.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

enum MaskType : int32_t { MASK_NONE = 0, MASK_F16 = 1, MASK_F32 = 2 };

struct SoftmaxArgs {
    View dst, a;
    View mask;   // rows as the logits'; dimensions 2 and 3 repeat
    View sinks;  // one logit a head, data nullptr: none
    Divisor ne1, ne2;
    Divisor mask_ne2, mask_ne3;
    uint32_t rows;
    int32_t mask_type;
    int32_t capped;
    float scale, max_bias;
    float before, after;  // logits are after * tanh(before * a) if capped
};

}  // namespace cuda
}  // namespace ggr
