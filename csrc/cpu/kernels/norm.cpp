// NORM, RMS_NORM, L2_NORM, GROUP_NORM, FUSED_NORM, FUSED_RMS_NORM of f32 rows, and the chains NORM or RMS_NORM -> MUL
// (-> ADD) as one step. Floor: bytes of source and result over memory bandwidth for many rows; for the single row of a
// decode step, which lies in the first-level cache, two passes of it.
#include "cpu/elementwise.h"
#include "cpu/elementwise_sums.h"
#include "cpu/level.h"
#include "graph/norm_chain.h"

GGR_KERNELS_BEGIN

namespace {

enum Norm { CENTRED, ROOT_MEAN_SQUARE, LENGTH };

// y = (x - centre) * scale, element for element; y may be x.
struct Affine {
    float centre, scale;
};

template <Norm KIND>
inline Affine measure(const uint8_t* x, int64_t stride, int64_t n, float eps) {
    const double count = static_cast<double>(n);
    if (KIND == CENTRED) {
        const float mean = static_cast<float>(sum_row<Plain>(x, stride, n) / count);
        const double variance = sum_row<SquaredDistance>(x, stride, n, static_cast<double>(mean)) / count;
        return {mean, static_cast<float>(1.0 / __builtin_sqrt(variance + static_cast<double>(eps)))};
    }
    const double squares = sum_row<Square>(x, stride, n);
    if (KIND == ROOT_MEAN_SQUARE) {
        const double mean = squares / count;
        if (mean > 1e-30 && mean < 1e30)  // rounded to f32 in the places where stock does it
            return {0.0f, 1.0f / __builtin_sqrtf(static_cast<float>(mean) + eps)};
        return {0.0f, static_cast<float>(1.0 / __builtin_sqrt(mean + static_cast<double>(eps)))};
    }
    const double length = __builtin_sqrt(squares), least = static_cast<double>(eps);
    return {0.0f, static_cast<float>(1.0 / (length > least ? length : least))};
}

inline void scale_row(uint8_t* y, int64_t stride_y, const uint8_t* x, int64_t stride_x, int64_t n, Affine a) {
    int64_t i = 0;
    if (stride_x == sizeof(float) && stride_y == sizeof(float)) {
        const float* px = reinterpret_cast<const float*>(x);
        float* py = reinterpret_cast<float*>(y);
        for (; i + VL <= n; i += VL) vstore(py + i, (vload(px + i) - a.centre) * a.scale);
    }
    for (; i < n; ++i)
        *reinterpret_cast<float*>(y + i * stride_y) =
            (*reinterpret_cast<const float*>(x + i * stride_x) - a.centre) * a.scale;
}

// Items are rows.
template <Norm KIND>
bool run(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const int64_t n = dst.ne[0];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const uint8_t* px = row_at(x, item.i1, item.i2, item.i3);
        scale_row(row_at(dst, item.i1, item.i2, item.i3), dst.nb[0], px, x.nb[0], n,
                  measure<KIND>(px, x.nb[0], n, step.arg.f32[0]));
    }
    return true;
}

bool refuse(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s -> %s", type_traits(node.src[0]->type)->name,
                               type_traits(node.type)->name);
}

void keep_rows(Step& step, const Tensor& dst) { keep_split(step, {dst.ne[0], dst.ne[0], 1, n_rows(dst)}); }

// Relies on: source and result of one shape.
template <Norm KIND>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return refuse(builder, node);
    Step& step = builder.add(run<KIND>, node, n_rows(node), n_elements(node) * 2);
    keep_rows(step, node);
    step.arg.f32[0] = param_f32(node, 0);
    return true;
}

// ---- GROUP_NORM: dimension 2 (channels) in groups; each group of each i3 is normalised as one row ----

bool run_group(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const int64_t n_groups = step.arg.i64[1], size = step.arg.i64[2], n = x.ne[0];
    const double eps = static_cast<double>(step.arg.f32[0]);
    for (int64_t index = begin; index < end; ++index) {
        const int64_t i3 = index / n_groups, first = index % n_groups * size;
        const int64_t last = first + size < x.ne[2] ? first + size : x.ne[2];
        const double count = static_cast<double>((last - first) * x.ne[1] * n);
        double sum = 0.0;
        for (int64_t i2 = first; i2 < last; ++i2)
            for (int64_t i1 = 0; i1 < x.ne[1]; ++i1) sum += sum_row<Plain>(row_at(x, i1, i2, i3), x.nb[0], n);
        const float mean = static_cast<float>(sum / count);
        double squares = 0.0;
        for (int64_t i2 = first; i2 < last; ++i2)
            for (int64_t i1 = 0; i1 < x.ne[1]; ++i1)
                squares += sum_row<SquaredDistance>(row_at(x, i1, i2, i3), x.nb[0], n, static_cast<double>(mean));
        const Affine a = {mean, static_cast<float>(1.0 / __builtin_sqrt(squares / count + eps))};
        for (int64_t i2 = first; i2 < last; ++i2)
            for (int64_t i1 = 0; i1 < x.ne[1]; ++i1)
                scale_row(row_at(dst, i1, i2, i3), dst.nb[0], row_at(x, i1, i2, i3), x.nb[0], n, a);
    }
    return true;
}

// Relies on: source and result of one shape, 1 to ne2 groups, a channel for each.
bool prepare_group(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return refuse(builder, node);
    // Channels per group are rounded up: the last group takes what is left.
    const int64_t n_groups = node.params[0], size = (node.ne[2] + n_groups - 1) / n_groups;
    Step& step = builder.add(run_group, node, n_groups * node.ne[3], n_elements(node) * 3);
    step.arg.f32[0] = param_f32(node, 1);
    step.arg.i64[1] = n_groups;
    step.arg.i64[2] = size;
    return true;
}

// ---- Fused chains: src[0] the rows, src[1] the factor, src[2] the addend or nullptr; dst that of the last node ----

template <Norm KIND, bool WITH_ADD>
bool run_fused(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0], &factor = *step.src[1];
    const Tensor& addend = WITH_ADD ? *step.src[2] : factor;
    const int64_t n = dst.ne[0];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const float* px = reinterpret_cast<const float*>(row_at(x, item.i1, item.i2, item.i3));
        const float* pf = reinterpret_cast<const float*>(repeated_row_at(factor, item.i1, item.i2, item.i3));
        const float* pa = reinterpret_cast<const float*>(repeated_row_at(addend, item.i1, item.i2, item.i3));
        float* pd = reinterpret_cast<float*>(row_at(dst, item.i1, item.i2, item.i3));
        const Affine a = measure<KIND>(reinterpret_cast<const uint8_t*>(px), sizeof(float), n, step.arg.f32[0]);
        int64_t i = 0;
        for (; i + VL <= n; i += VL) {
            vf y = (vload(px + i) - a.centre) * a.scale * vload(pf + i);
            if (WITH_ADD) y = y + vload(pa + i);
            vstore(pd + i, y);
        }
        for (; i < n; ++i) {
            const float y = (px[i] - a.centre) * a.scale * pf[i];
            pd[i] = WITH_ADD ? y + pa[i] : y;
        }
    }
    return true;
}

// FUSED_NORM and FUSED_RMS_NORM, the chains as one op. Relies on: source and result of one shape, packed rows; a weight
// is one row, also packed.
template <Norm KIND>
bool prepare_weighted(PlanBuilder& builder, const Tensor& node) {
    const Tensor &x = *node.src[0], *weight = node.src[1];
    if (weight == nullptr) return prepare<KIND>(builder, node);
    if (x.type != TYPE_F32 || weight->type != TYPE_F32 || node.type != TYPE_F32) return refuse(builder, node);
    Step& step = builder.add(run_fused<KIND, false>, node, n_rows(node), n_elements(node) * 3);
    keep_rows(step, node);
    step.arg.f32[0] = param_f32(node, 0);
    return true;
}

bool may_skip(const void* builder, const Tensor& node) {
    return static_cast<const PlanBuilder*>(builder)->can_elide(node, 1);
}

template <Norm KIND>
uint32_t fuse(PlanBuilder& builder, uint32_t i) {
    const NormChain chain = norm_chain(builder.graph(), i, may_skip, &builder);
    if (chain.nodes == 0) return 0;
    const Tensor &x = *chain.norm->src[0], &last = *chain.last;
    Step& step = builder.add_bare(chain.addend != nullptr ? run_fused<KIND, true> : run_fused<KIND, false>, &last,
                                  n_rows(last), n_elements(last) * 3);
    step.src[0] = &x;
    step.src[1] = chain.factor;
    step.src[2] = chain.addend;
    keep_rows(step, last);
    step.arg.f32[0] = param_f32(*chain.norm, 0);
    builder.reads(x);
    builder.reads(*chain.factor);
    if (chain.addend != nullptr) builder.reads(*chain.addend);
    builder.writes(last);
    return chain.nodes;
}

}  // namespace

void register_norm(OpTable& table) {
    table.prepare[OP_NORM] = prepare<CENTRED>;
    table.prepare[OP_RMS_NORM] = prepare<ROOT_MEAN_SQUARE>;
    table.prepare[OP_L2_NORM] = prepare<LENGTH>;
    table.prepare[OP_GROUP_NORM] = prepare_group;
    table.prepare[OP_FUSED_NORM] = prepare_weighted<CENTRED>;
    table.prepare[OP_FUSED_RMS_NORM] = prepare_weighted<ROOT_MEAN_SQUARE>;
    table.fuse[OP_NORM] = fuse<CENTRED>;
    table.fuse[OP_RMS_NORM] = fuse<ROOT_MEAN_SQUARE>;
}

GGR_KERNELS_END
