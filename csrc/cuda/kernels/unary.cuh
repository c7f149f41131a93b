// Activations, with the limits at infinity that the CPU's have.
#pragma once

#include "cuda/kernels/base.cuh"

namespace ggr {
namespace cuda {

constexpr float LARGEST_FLOAT = 3.402823466e38f;

// Comparisons that let NaN pass, unlike largest() and smallest().
GGR_DEVICE float at_most(float x, float limit) { return x > limit ? limit : x; }
GGR_DEVICE float at_least(float x, float limit) { return x < limit ? limit : x; }
GGR_DEVICE float within(float x, float limit) { return at_least(at_most(x, limit), -limit); }

// x / (1 + e^-s); -infinity is held at the largest float, so that the result is the limit, -0.
GGR_DEVICE float gated_by(float x, float s) { return at_least(x, -LARGEST_FLOAT) / (1.0f + exponential(-s)); }
GGR_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
GGR_DEVICE float silu(float x) { return gated_by(x, x); }
GGR_DEVICE float gelu_quick(float x) { return gated_by(x, x * 1.702f); }
// x/2 (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2/pi) x (1 + 0.044715 x^2): no cancellation in the negative tail
GGR_DEVICE float gelu(float x) { return gated_by(x, x * (1.0f + 0.044715f * x * x) * 1.59576912160573071f); }

// Half of erfc(|x| / sqrt(2)), the normal distribution's tail: e^(-x^2/2) Q(t), t = (|x| - 3) / (|x| + 3); the
// polynomial is that of the CPU's vnormal_tail.
GGR_DEVICE float normal_tail(float x) {
    const float a = at_most(absolute(x), 14.5f);  // the tail is below f32 from there
    const float t = (a - 3.0f) / (a + 3.0f);
    float q = 5.31614824e-5f;
    q = q * t + 1.15013849e-4f;
    q = q * t - 3.3901236e-4f;
    q = q * t - 9.83288512e-4f;
    q = q * t + 2.90438719e-3f;
    q = q * t + 6.13194238e-3f;
    q = q * t - 4.62132618e-2f;
    q = q * t + 1.23225041e-1f;
    q = q * t - 2.06402615e-1f;
    q = q * t + 1.21513948e-1f;
    return q * exponential(a * a * -0.5f);
}
GGR_DEVICE float gelu_erf(float x) {
    const float tail = normal_tail(x);
    return at_least(x, -LARGEST_FLOAT) * (x < 0.0f ? tail : 1.0f - tail);
}
GGR_DEVICE float softplus(float x) { return at_least(x, 0.0f) + log_1p(exponential(-absolute(x))); }

}  // namespace cuda
}  // namespace ggr
