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

}  // namespace cuda
}  // namespace ggr
