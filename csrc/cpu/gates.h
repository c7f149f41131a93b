// The gates of ik_llama.cpp's fused ops: activation(gate) * up, where a limit (unlike llama.cpp's SWIGLU_CLAMP) bounds
// what the activation gave, not what it got.
#pragma once

#include "cpu/elementwise.h"
#include "cpu/vmath.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// d[0 .. n) = f(gate) * up; d may be either.
using Gate = void (*)(float* d, const float* gate, const float* up, int64_t n, float limit);

// A limit below this is none.
constexpr float LEAST_LIMIT = 1e-6f;

// NaN passes: vmin and vmax return their second operand then.
inline vf at_most(vf x, float limit) { return vmin(vset(limit), x); }
inline vf within(vf x, float limit) { return vmax(vset(-limit), vmin(vset(limit), x)); }

inline vf relu_of(vf x) { return vmax(x, vset(0.0f)); }
inline vf gelu_of(vf x) { return vgelu(x); }
inline vf silu_of(vf x) { return vsilu(x); }
// Its constants are not sent.
constexpr float OAI_ALPHA = 1.702f, OAI_LIMIT = 7.0f;
inline vf oai_of(vf x) {
    const vf c = at_most(x, OAI_LIMIT);
    return vgate(c, c * OAI_ALPHA);
}

enum UpForm { UP_PLAIN, UP_LIMITED, UP_OAI };

template <vf (*F)(vf), UpForm UP, bool LIMITED>
inline vf gated(vf gate, vf up, float limit) {
    vf g = F(gate);
    if (LIMITED) g = at_most(g, limit);
    if (UP == UP_LIMITED) up = within(up, limit);
    if (UP == UP_OAI) up = within(up, OAI_LIMIT) + 1.0f;
    return g * up;
}

template <vf (*F)(vf), UpForm UP, bool LIMITED>
void apply_gate(float* d, const float* gate, const float* up, int64_t n, float limit) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(d + i, gated<F, UP, LIMITED>(vload(gate + i), vload(up + i), limit));
    if (i < n)
        vstore_part(d + i, gated<F, UP, LIMITED>(vload_part(gate + i, n - i), vload_part(up + i, n - i), limit), n - i);
}

// The gate of an activation, nullptr if it is none.
[[maybe_unused]] static inline Gate gate_of(int32_t unary, bool limited) {
    switch (unary) {
        case UNARY_RELU:
            return limited ? apply_gate<relu_of, UP_LIMITED, true> : apply_gate<relu_of, UP_PLAIN, false>;
        case UNARY_GELU:
            return limited ? apply_gate<gelu_of, UP_LIMITED, true> : apply_gate<gelu_of, UP_PLAIN, false>;
        case UNARY_SILU:
            return limited ? apply_gate<silu_of, UP_LIMITED, true> : apply_gate<silu_of, UP_PLAIN, false>;
        case UNARY_SWIGLU_OAI:
            return limited ? apply_gate<oai_of, UP_OAI, true> : apply_gate<oai_of, UP_OAI, false>;
        default:
            return nullptr;
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
