// Gated activations by kind, for GLU and for products that it is fused with.
#pragma once

#include "cuda/kernels/unary.cuh"
#include "cuda/kernels/unary.h"

namespace ggr {
namespace cuda {

GGR_DEVICE float gated_bounded(int32_t kind, float gate, float up, float limit) {
    float g, u = within(up, limit);
    switch (kind) {
        case 0:
            g = at_least(gate, 0.0f);
            break;
        case 1:
            g = gelu(gate);
            break;
        case 2:
            g = silu(gate);
            break;
        case 3: {
            const float x = at_most(gate, OAI_LIMIT);
            g = gated_by(x, x * OAI_ALPHA);
            u = within(up, OAI_LIMIT) + 1.0f;
            break;
        }
        default:  // GATE_SIGMOID
            g = sigmoid(gate);
            break;
    }
    return at_most(g, limit) * u;
}

// Kinds by their numbers in spec/ids.h and unary.h.
GGR_DEVICE float gated(int32_t kind, float gate, float up, float alpha, float limit) {
    if (kind >= GATE_BOUNDED) return gated_bounded(kind - GATE_BOUNDED, gate, up, limit);
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
        case GATE_SIGMOID:
            return sigmoid(gate) * up;
        default:  // SWIGLU_CLAMP
            return silu(at_most(gate, limit)) * within(up, limit);
    }
}

}  // namespace cuda
}  // namespace ggr
