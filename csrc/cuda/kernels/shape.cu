// REPEAT, CONCAT, PAD: elements of plain types arranged anew. ARANGE, FILL: results without input. DIAG_MASK_INF,
// DIAG_MASK_ZERO, TRI, DIAG: triangles and diagonals. ACC, SET: a region added to or overwritten. A thread an element,
// neighbours beside each other. Floor: bytes read and written over memory bandwidth.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/shape.h"

namespace ggr {
namespace cuda {

GGR_DEVICE void move_element(uint8_t* to, const uint8_t* from, int size) {
    if (size == 4)
        *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
    else if (size == 2)
        *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
    else if (size == 8)
        *reinterpret_cast<uint64_t*>(to) = *reinterpret_cast<const uint64_t*>(from);
    else
        *to = *from;
}
GGR_DEVICE int64_t wrapped(int64_t i, int64_t n) {
    const int64_t rest = i % n;
    return rest < 0 ? rest + n : rest;
}
GGR_DEVICE uint8_t* element_at(const View& t, const int64_t (&i)[4]) {
    return t.data + i[0] * t.nb[0] + i[1] * t.nb[1] + i[2] * t.nb[2] + i[3] * t.nb[3];
}

GGR_KERNEL GGR_BOUNDS(256, 1) arrange(const ArrangeArgs a) {
    const uint32_t unit =
        static_cast<uint32_t>(block_x()) * static_cast<uint32_t>(n_threads()) + static_cast<uint32_t>(thread_index());
    if (unit >= a.total) return;
    const uint32_t i123 = quotient(unit, a.ne[0]), i23 = quotient(i123, a.ne[1]), i3 = quotient(i23, a.ne[2]);
    const int64_t i[4] = {unit - i123 * a.ne[0].divisor, i123 - i23 * a.ne[1].divisor, i23 - i3 * a.ne[2].divisor, i3};
    uint8_t* to = element_at(a.dst, i);
    int64_t from[4] = {i[0], i[1], i[2], i[3]};
    switch (a.kind) {
        case ARRANGE_MOVE:
            move_element(to, element_at(a.a, i), a.size);
            break;
        case ARRANGE_REPEAT:
            GGR_UNROLL
            for (int d = 0; d < 4; ++d) from[d] = a.a.ne[d] == 1 ? 0 : i[d] % a.a.ne[d];
            move_element(to, element_at(a.a, from), a.size);
            break;
        case ARRANGE_CONCAT: {
            bool second = false;
            GGR_UNROLL
            for (int d = 0; d < 4; ++d) {
                if (d != a.p[0] || i[d] < a.a.ne[d]) continue;
                second = true;
                from[d] = i[d] - a.a.ne[d];
            }
            move_element(to, second ? element_at(a.b, from) : element_at(a.a, from), a.size);
            break;
        }
        case ARRANGE_PAD: {
            bool inside = true;
            GGR_UNROLL
            for (int d = 0; d < 4; ++d) {
                from[d] = i[d] - a.p[d];
                if (a.p[4]) from[d] = wrapped(from[d], a.a.ne[d]);
                inside = inside && from[d] >= 0 && from[d] < a.a.ne[d];
            }
            *reinterpret_cast<float*>(to) = inside ? *reinterpret_cast<const float*>(element_at(a.a, from)) : 0.0f;
            break;
        }
        case ARRANGE_DIAG_MASK:
            *reinterpret_cast<float*>(to) =
                i[0] <= i[1] + a.p[0] ? *reinterpret_cast<const float*>(element_at(a.a, i)) : a.value;
            break;
        case ARRANGE_TRI: {
            const int64_t edge = i[1] + a.p[1];
            const bool kept = a.p[0] ? i[0] < edge : i[0] >= edge;
            *reinterpret_cast<float*>(to) = kept ? *reinterpret_cast<const float*>(element_at(a.a, i)) : 0.0f;
            break;
        }
        case ARRANGE_DIAG:
            from[1] = 0;
            *reinterpret_cast<float*>(to) =
                i[0] == i[1] ? *reinterpret_cast<const float*>(element_at(a.a, from)) : 0.0f;
            break;
        case ARRANGE_RANGE:
            *reinterpret_cast<float*>(to) = a.value + a.delta * static_cast<float>(i[0]);
            break;
        case ARRANGE_FILL:
            store_element(to, a.size == 4 ? ELEMENT_F32 : ELEMENT_F16, a.value);
            break;
        default:  // ARRANGE_ADD
            *reinterpret_cast<float*>(to) += *reinterpret_cast<const float*>(element_at(a.a, i));
            break;
    }
}

}  // namespace cuda
}  // namespace ggr
