// Functions of one element: all kinds of UNARY, SQR, SQRT, LOG, SIN, COS, SCALE, CLAMP, LEAKY_RELU, SOFTCAP. f32, f16
// and bf16 in any pair, computed in f32. The kind is looked at at run time: all threads take one branch. Floor: bytes
// of source and result over memory bandwidth.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/unary.cuh"
#include "cuda/kernels/unary.h"

namespace ggr {
namespace cuda {

// NaN becomes 0, as with comparisons in C; times x it is NaN again.
GGR_DEVICE float hard(float x) { return smallest(largest((x + 3.0f) / 6.0f, 0.0f), 1.0f); }

GGR_DEVICE float evaluate(int32_t kind, float x, const float (&p)[4]) {
    switch (kind) {
        case 0:
            return absolute(x);
        case 1:
            return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f;
        case 2:
            return -x;
        case 3:
            return x > 0.0f ? 1.0f : 0.0f;
        case 4:
            return hyperbolic_tangent(x);
        case 5:
            return x > 0.0f ? x : exp_m1(x);
        case 6:
            return x > 0.0f ? x : 0.0f;
        case 7:
            return sigmoid(x);
        case 8:
            return gelu(x);
        case 9:
            return gelu_quick(x);
        case 10:
            return silu(x);
        case 11:
            return x * hard(x);
        case 12:
            return hard(x);
        case 13:
            return exponential(x);
        case 14:
            return exp_m1(x);
        case 15:
            return softplus(x);
        case 16:
            return gelu_erf(x);
        case 17:  // p: alpha_n, alpha_p, beta, eps
            return x > 0.0f ? (p[1] * x + p[2]) * x : (exp_m1(at_most(x, p[3])) - x) * p[0] + p[2] * x;
        case 18:
            return round_down(x);
        case 19:
            return round_up(x);
        case 20:
            return round_away(x);
        case 21:
            return truncate(x);
        case 32:
            return square_root(softplus(x));
        case FUNCTION_SQR:
            return x * x;
        case FUNCTION_SQRT:
            return square_root(x);
        case FUNCTION_LOG:
            return logarithm(x);
        case FUNCTION_SIN:
            return sine(x);
        case FUNCTION_COS:
            return cosine(x);
        case FUNCTION_SCALE:
            return x * p[0] + p[1];
        case FUNCTION_SOFTCAP:
            return p[1] * hyperbolic_tangent(p[0] * x);
        case FUNCTION_CLAMP:
            return at_least(at_most(x, p[1]), p[0]);
        case FUNCTION_LEAKY_RELU:
            return at_least(x, 0.0f) + p[0] * at_most(x, 0.0f);
        default:  // FUNCTION_ZERO
            return 0.0f;
    }
}

GGR_KERNEL GGR_BOUNDS(256, 1) unary(const UnaryArgs a) {
    const Place at = place_of(a.cut, a.dst.t.ne[0]);
    if (!at.valid) return;
    float v[4];
    load_quad(v, a.x, row_at(a.x.t, at) + at.i0 * a.x.t.nb[0], at.n);
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = evaluate(a.kind, v[i], a.p);
    store_quad(a.dst, row_at(a.dst.t, at) + at.i0 * a.dst.t.nb[0], v, at.n);
}

}  // namespace cuda
}  // namespace ggr
