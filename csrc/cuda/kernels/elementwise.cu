// ADD, SUB, MUL, DIV, ADD1: dst = a op b, b repeated to a's shape; ADD_ID: dst = a + the row of b that an id names.
// f32, f16 and bf16 in any mix, computed in f32. The types are looked at at run time: a branch that a whole grid takes
// costs nothing beside the memory. Floor: bytes of a, b and dst over memory bandwidth.
#include "cuda/kernels/elementwise.cuh"

namespace ggr {
namespace cuda {

GGR_DEVICE float combine(int32_t op, float a, float b) {
    switch (op) {
        case BINARY_ADD:
            return a + b;
        case BINARY_SUB:
            return a - b;
        case BINARY_MUL:
            return a * b;
        default:
            return a / b;
    }
}

GGR_KERNEL GGR_BOUNDS(256, 1) binary(const BinaryArgs a) {
    const Place at = place_of(a.cut, a.dst.t.ne[0]);
    if (!at.valid) return;
    float x[4], y[4];
    load_quad(x, a.a, row_at(a.a.t, at) + at.i0 * a.a.t.nb[0], at.n);
    const uint8_t* pb =
        row_at(a.b.t, remainder_of(at.i1, a.b_ne[1]), remainder_of(at.i2, a.b_ne[2]), remainder_of(at.i3, a.b_ne[3]));
    if (a.b.t.ne[0] == a.dst.t.ne[0]) {
        load_quad(y, a.b, pb + at.i0 * a.b.t.nb[0], at.n);
    } else {
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint32_t i0 = a.b.t.ne[0] == 1 ? 0 : remainder_of(static_cast<uint32_t>(at.i0) + i, a.b_ne[0]);
            y[i] = i < at.n ? load_element(pb + i0 * a.b.t.nb[0], a.b.type) : 0.0f;
        }
    }
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) x[i] = combine(a.op, x[i], y[i]);
    store_quad(a.dst, row_at(a.dst.t, at) + at.i0 * a.dst.t.nb[0], x, at.n);
}

GGR_KERNEL GGR_BOUNDS(256, 1) add_id(const AddIdArgs a) {
    const Place at = place_of(a.cut, a.dst.t.ne[0]);
    if (!at.valid) return;
    const int32_t id = *reinterpret_cast<const int32_t*>(a.ids.data + at.i1 * a.ids.nb[0] + at.i2 * a.ids.nb[1]);
    if (id < 0 || id >= a.b.t.ne[1]) {
        fail_index(a.site, id, a.b.t.ne[1]);
        return;
    }
    float x[4], y[4];
    load_quad(x, a.a, row_at(a.a.t, at) + at.i0 * a.a.t.nb[0], at.n);
    load_quad(y, a.b, a.b.t.data + id * a.b.t.nb[1] + at.i0 * a.b.t.nb[0], at.n);
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) x[i] += y[i];
    store_quad(a.dst, row_at(a.dst.t, at) + at.i0 * a.dst.t.nb[0], x, at.n);
}

}  // namespace cuda
}  // namespace ggr
