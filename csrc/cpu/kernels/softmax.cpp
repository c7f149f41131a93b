// SOFT_MAX: dst = softmax(a * scale + slope(head) * mask) along rows, with an optional sink per head: a logit that
// takes part in the sum and has no place in the result. A row whose logits are all -inf and that has no sink becomes
// NaN. SOFT_CAP_MAX: the same of after * tanh(before * a). Floor: bytes of a, mask and dst over memory bandwidth, or
// one exp an element (about 20 vector operations for VL elements).
#include "cpu/attention/rows.h"
#include "cpu/level.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

enum : int { ARG_SCALE = 0, ARG_BIAS = 1, ARG_BEFORE = 2, ARG_AFTER = 3 };

// Sums of this many elements are kept in f32 lanes before they are added to the f64 total: 64 terms a lane at most.
constexpr int64_t SUM_BLOCK = 64 * VL;

struct NoMask {
    using Element = float;
    static inline vf load(const float*) { return vf{}; }
    static inline float get(const float*) { return 0.0f; }
};

// Store the logits of one row and return the largest; NaN logits are passed over, they show in the sum.
template <class M>
float logits(float* out, const float* a, const typename M::Element* mask, int64_t n, float scale, float slope) {
    const vf floor = vset(-__builtin_inff());
    vf top0 = floor, top1 = floor;
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        vf x0 = vload(a + i) * scale, x1 = vload(a + i + VL) * scale;
        if (mask != nullptr) {
            x0 += M::load(mask + i) * slope;
            x1 += M::load(mask + i + VL) * slope;
        }
        vstore(out + i, x0);
        vstore(out + i + VL, x1);
        top0 = vmax(x0, top0);
        top1 = vmax(x1, top1);
    }
    for (; i < n; i += VL) {
        const int64_t left = n - i < VL ? n - i : VL;
        vf x = load_tail<RowF32>(a + i, left, -__builtin_inff()) * scale;
        if (mask != nullptr) x += load_tail<M>(mask + i, left) * slope;
        store_tail<RowF32>(out + i, left, x);
        if (left < VL) x = load_tail<RowF32>(out + i, left, -__builtin_inff());  // a negative scale turns the filling
        top0 = vmax(x, top0);
    }
    return vmax_of(vmax(top0, top1));
}

// Replace logits by exp(logit - top) and return their sum.
double exponentials(float* row, int64_t n, float top) {
    double sum = 0.0;
    int64_t i = 0;
    while (i + VL <= n) {
        const int64_t end = i + SUM_BLOCK < n ? i + SUM_BLOCK : n;
        vf s0 = {}, s1 = {};
        for (; i + 2 * VL <= end; i += 2 * VL) {
            const vf e0 = vexp(vload(row + i) - top), e1 = vexp(vload(row + i + VL) - top);
            vstore(row + i, e0);
            vstore(row + i + VL, e1);
            s0 += e0;
            s1 += e1;
        }
        for (; i + VL <= end; i += VL) {
            const vf e = vexp(vload(row + i) - top);
            vstore(row + i, e);
            s0 += e;
        }
        sum += (double)vsum(s0 + s1);
    }
    if (i < n) {
        const vf e = vexp(load_tail<RowF32>(row + i, n - i, -__builtin_inff()) - top);
        store_tail<RowF32>(row + i, n - i, e);
        for (; i < n; ++i) sum += (double)row[i];
    }
    return sum;
}

void cap(float* out, const float* a, int64_t n, float before, float after) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(out + i, vtanh(vload(a + i) * before) * after);
    if (i < n) store_tail<RowF32>(out + i, n - i, vtanh(load_tail<RowF32>(a + i, n - i) * before) * after);
}

// Items are rows of dst. Capped logits are written to the result first and read from there.
template <class M, bool CAPPED>
bool run(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &a = *step.src[0];
    const Tensor *mask = step.src[1], *sinks = step.src[2];
    const int64_t n = dst.ne[0];
    const float scale = step.arg.f32[ARG_SCALE], max_bias = step.arg.f32[ARG_BIAS];
    int64_t slope_head = -1;
    float slope = 1.0f;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t i1 = item % dst.ne[1], i2 = item / dst.ne[1] % dst.ne[2], i3 = item / (dst.ne[1] * dst.ne[2]);
        if (i2 != slope_head) {
            slope = alibi_slope(max_bias, dst.ne[2], i2);
            slope_head = i2;
        }
        const typename M::Element* m = nullptr;
        if (mask != nullptr)
            m = at<typename M::Element>(
                mask->data, i1 * mask->nb[1] + i2 % mask->ne[2] * mask->nb[2] + i3 % mask->ne[3] * mask->nb[3]);
        float* row = at<float>(dst.data, i1 * dst.nb[1] + i2 * dst.nb[2] + i3 * dst.nb[3]);
        const float* from = at<float>(a.data, i1 * a.nb[1] + i2 * a.nb[2] + i3 * a.nb[3]);
        if (CAPPED) {
            cap(row, from, n, step.arg.f32[ARG_BEFORE], step.arg.f32[ARG_AFTER]);
            from = row;
        }
        float top = logits<M>(row, from, m, n, scale, slope);
        float sink = 0.0f;
        if (sinks != nullptr) {
            sink = *at<float>(sinks->data, i2 * sinks->nb[0]);
            top = top > sink ? top : sink;
        }
        double sum = exponentials(row, n, top);
        if (sinks != nullptr) sum += __builtin_exp((double)sink - (double)top);
        const float inverse = (float)(1.0 / sum);
        int64_t i = 0;
        for (; i + VL <= n; i += VL) vstore(row + i, vload(row + i) * inverse);
        for (; i < n; ++i) row[i] *= inverse;
    }
    return true;
}

// Relies on: a and dst f32 of one shape; the mask has a's row length, at least its ne[1] rows, and ne[2], ne[3] that
// divide a's; sinks (of SOFT_MAX alone) hold ne[2] values.
template <bool CAPPED>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], *mask = node.src[1], *sinks = CAPPED ? nullptr : node.src[2];
    if (node.type != TYPE_F32 || a.type != TYPE_F32 || (sinks != nullptr && sinks->type != TYPE_F32))
        return builder.unsupported(node, "types %s -> %s", type_traits(a.type)->name, type_traits(node.type)->name);
    if (mask != nullptr && mask->type != TYPE_F32 && mask->type != TYPE_F16)
        return builder.unsupported(node, "a mask of type %s", type_traits(mask->type)->name);
    if (!rows_contiguous(a) || !rows_contiguous(node) || (mask != nullptr && !rows_contiguous(*mask)))
        return builder.unsupported(node, "rows with gaps between elements");
    const Step::Fn fn = mask == nullptr          ? run<NoMask, CAPPED>
                        : mask->type == TYPE_F16 ? run<RowF16, CAPPED>
                                                 : run<RowF32, CAPPED>;
    Step& step = builder.add(fn, node, n_rows(node), n_elements(node) * (CAPPED ? 8 : 4));  // the exp counts for four
    step.arg.f32[ARG_SCALE] = param_f32(node, 0);
    step.arg.f32[ARG_BIAS] = param_f32(node, 1);
    step.arg.f32[ARG_BEFORE] = CAPPED ? param_f32(node, 2) : 0.0f;
    step.arg.f32[ARG_AFTER] = CAPPED ? param_f32(node, 3) : 0.0f;
    return true;
}

}  // namespace

void register_softmax(OpTable& table) {
    table.prepare[OP_SOFT_MAX] = prepare<false>;
    table.prepare[OP_SOFT_CAP_MAX] = prepare<true>;
}

GGR_KERNELS_END
