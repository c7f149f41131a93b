// Gated activations by kind, for GLU and for products that it is fused with.
#pragma once

#include "cuda/kernels/unary.cuh"

namespace ggr {
namespace cuda {

// Kinds by their numbers in spec/ids.h.
GGR_DEVICE float gated(int32_t kind, float gate, float up, float alpha, float limit) {
    switch (kind) {
        case 0:
            return gate > 0.0f ? gate * up : 0.0f;
        case 1:
            return gelu(gate) * up;
        case 2:
            return silu(gate) * up;
        case 3: {
            const float x = at_most(gate, limit);
            return gated_by(x, x * alpha) * (within(up, limit) + 1.0f);
        }
        case 4:
            return gelu_erf(gate) * up;
        case 5:
            return gelu_quick(gate) * up;
        default:  // SWIGLU_CLAMP
            return silu(at_most(gate, limit)) * within(up, limit);
    }
}

}  // namespace cuda
}  // namespace ggr
