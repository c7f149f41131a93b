// GLU: dst = activation(gate) * up, gate and up being the halves of one tensor's rows or two tensors. f32, f16 and
// bf16, computed in f32. Floor: bytes of gate, up and dst over memory bandwidth.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/glu.cuh"
#include "cuda/kernels/unary.h"

namespace ggr {
namespace cuda {

GGR_KERNEL GGR_BOUNDS(256, 1) glu(const GluArgs a) {
    const Place at = place_of(a.cut, a.dst.t.ne[0]);
    if (!at.valid) return;
    float g[4], u[4];
    load_quad(g, a.gate, row_at(a.gate.t, at) + at.i0 * a.gate.t.nb[0], at.n);
    load_quad(u, a.up, row_at(a.up.t, at) + at.i0 * a.up.t.nb[0], at.n);
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) g[i] = gated(a.kind, g[i], u[i], a.alpha, a.limit);
    store_quad(a.dst, row_at(a.dst.t, at) + at.i0 * a.dst.t.nb[0], g, at.n);
}

GGR_DEVICE void add_bias(float (&v)[4], const uint8_t* bias, int64_t nb, int32_t expert, const Place& at) {
    if (bias == nullptr) return;
    const float* from = reinterpret_cast<const float*>(bias + expert * nb) + at.i0;
    GGR_UNROLL
    for (int i = 0; i < 4; ++i)
        if (i < at.n) v[i] += from[i];
}

GGR_KERNEL GGR_BOUNDS(256, 1) glu_experts(const GluExpertsArgs e) {
    const GluArgs& a = e.glu;
    const Place at = place_of(a.cut, a.dst.t.ne[0]);
    if (!at.valid) return;
    const int32_t expert = *reinterpret_cast<const int32_t*>(e.ids.data + at.i1 * e.ids.nb[0] + at.i2 * e.ids.nb[1]);
    float g[4] = {};
    if (expert >= 0 && expert < e.experts) {
        float u[4];
        load_quad(g, a.gate, row_at(a.gate.t, at) + at.i0 * a.gate.t.nb[0], at.n);
        load_quad(u, a.up, row_at(a.up.t, at) + at.i0 * a.up.t.nb[0], at.n);
        add_bias(g, e.gate_bias, e.gate_bias_nb, expert, at);
        add_bias(u, e.up_bias, e.up_bias_nb, expert, at);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) g[i] = gated(a.kind, g[i], u[i], a.alpha, a.limit);
    }
    store_quad(a.dst, row_at(a.dst.t, at) + at.i0 * a.dst.t.nb[0], g, at.n);
}

}  // namespace cuda
}  // namespace ggr
