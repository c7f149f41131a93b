// POOL_1D, POOL_2D: the largest or the mean of each window; POOL_2D_BACK: the gradients of means, or of the largest,
// back at their places. A mean over a line counts the elements inside the source, one over an image all of the window.
// Floor: bytes of source and result over memory bandwidth.
#include "cpu/elementwise.h"
#include "cpu/layout.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

constexpr float LOWEST = -3.402823466e38f;
// An element of a window waits for the sum, or the largest, before it: 1 ns, where work counts four operations.
constexpr int64_t COST = 4;

// k and s across and down; the kind is 0 for the largest, 1 for the mean.
struct Pool {
    bool mean, flat;
    int64_t k0, k1, s0, s1, p0, p1;
};
Pool pool_of(const Tensor& node) {
    const int32_t* p = node.params;
    if (node.op == OP_POOL_1D) return {p[0] == 1, true, p[1], 1, p[2], 1, p[3], 0};
    return {p[0] == 1, false, p[1], p[2], p[3], p[4], p[5], p[6]};
}

struct Range {
    int64_t begin, end;
};
// The part of a window that lies inside the source.
inline Range inside(int64_t start, int64_t k, int64_t size) {
    return {start > 0 ? start : 0, start + k < size ? start + k : size};
}

// Items are lines of the result.
template <class F>
bool run_pool(const Step& step, int64_t begin, int64_t end, Worker&) {
    using E = typename F::Element;
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const Pool p = pool_of(dst);
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const Range down = p.flat ? Range{at.i1, at.i1 + 1} : inside(at.i1 * p.s1 - p.p1, p.k1, x.ne[1]);
        const uint8_t* plane = x.data + at.i2 * x.nb[2] + at.i3 * x.nb[3];
        float* to = reinterpret_cast<float*>(at.of(dst));
        for (int64_t i = 0; i < dst.ne[0]; ++i) {
            const Range across = inside(i * p.s0 - p.p0, p.k0, x.ne[0]);
            float result = p.mean ? 0.0f : LOWEST;
            for (int64_t y = down.begin; y < down.end; ++y) {
                const E* row = reinterpret_cast<const E*>(plane + y * x.nb[1]);
                for (int64_t k = across.begin; k < across.end; ++k) {
                    const float v = F::get(row + k);
                    result = p.mean ? result + v : v < result ? result : v;
                }
            }
            const int64_t count = p.flat ? across.end - across.begin : p.k0 * p.k1;
            if (p.mean) result = count > 0 ? result / static_cast<float>(count) : 0.0f;
            to[i] = result;
        }
    }
    return true;
}

// Relies on: packed rows, a result with an element for each window.
bool prepare_pool(PlanBuilder& builder, const Tensor& node) {
    const int32_t type = node.src[0]->type;
    if ((type != TYPE_F32 && type != TYPE_F16) || node.type != TYPE_F32)
        return builder.unsupported(node, "types %s -> %s", type_traits(type)->name, type_traits(node.type)->name);
    const Pool p = pool_of(node);
    builder.add(type == TYPE_F32 ? run_pool<F32> : run_pool<F16>, node, n_rows(node),
                n_elements(node) * COST * (p.k0 * p.k1 + 2));
    return true;
}

// Items are planes: windows that overlap add to the same elements.
bool run_pool_back(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &grad = *step.src[0], &x = *step.src[1], &dst = *step.dst;
    const Pool p = pool_of(dst);
    const float share = static_cast<float>(p.k0 * p.k1);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t i2 = item % dst.ne[2], i3 = item / dst.ne[2];
        for (int64_t y = 0; y < dst.ne[1]; ++y)
            std::memset(row_at(dst, y, i2, i3), 0, static_cast<size_t>(dst.ne[0]) * sizeof(float));
        for (int64_t oy = 0; oy < grad.ne[1]; ++oy) {
            const Range down = inside(oy * p.s1 - p.p1, p.k1, dst.ne[1]);
            const float* from = reinterpret_cast<const float*>(row_at(grad, oy, i2, i3));
            for (int64_t ox = 0; ox < grad.ne[0]; ++ox) {
                const Range across = inside(ox * p.s0 - p.p0, p.k0, dst.ne[0]);
                if (p.mean) {
                    for (int64_t y = down.begin; y < down.end; ++y) {
                        float* row = reinterpret_cast<float*>(row_at(dst, y, i2, i3));
                        for (int64_t k = across.begin; k < across.end; ++k) row[k] += from[ox] / share;
                    }
                    continue;
                }
                float* best = nullptr;  // the first of the largest
                float top = LOWEST;
                for (int64_t y = down.begin; y < down.end; ++y) {
                    const float* row = reinterpret_cast<const float*>(row_at(x, y, i2, i3));
                    for (int64_t k = across.begin; k < across.end; ++k)
                        if (row[k] > top) {
                            top = row[k];
                            best = reinterpret_cast<float*>(row_at(dst, y, i2, i3)) + k;
                        }
                }
                if (best != nullptr) *best += from[ox];
            }
        }
    }
    return true;
}

// Relies on: packed rows of F32, the gradient with an element for each window of the result.
bool prepare_pool_back(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.src[1]->type != TYPE_F32 || node.type != TYPE_F32)
        return builder.unsupported(node, "types other than F32");
    const Pool p = pool_of(node);
    builder.add(run_pool_back, node, node.ne[2] * node.ne[3],
                n_elements(*node.src[0]) * COST * (p.k0 * p.k1 + 2) + n_elements(node));
    return true;
}

}  // namespace

void register_pooling(OpTable& table) {
    table.prepare[OP_POOL_1D] = prepare_pool;
    table.prepare[OP_POOL_2D] = prepare_pool;
    table.prepare[OP_POOL_2D_BACK] = prepare_pool_back;
}

GGR_KERNELS_END
