// Gradients of the ops of a forward pass: REPEAT_BACK, SILU_BACK, RMS_NORM_BACK, SOFT_MAX_BACK, GET_ROWS_BACK.
// Floor: bytes of sources and result over memory bandwidth.
#include "cpu/elementwise.h"
#include "cpu/elementwise_sums.h"
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

bool refuse(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s, %s -> %s", type_traits(node.src[0]->type)->name,
                               node.n_src > 1 ? type_traits(node.src[1]->type)->name : "none",
                               type_traits(node.type)->name);
}

// Elements of a result row whose sums stay in registers and first-level cache while the source passes by.
constexpr int64_t COLUMNS = 256;

void accumulate(float* sum, const float* x, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(sum + i, vload(sum + i) + vload(x + i));
    for (; i < n; ++i) sum[i] += x[i];
}

// ---- REPEAT_BACK: every element sums the places that it was repeated to ----

// Items are parts of rows of the result.
bool run_repeat_back(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const int64_t ne1 = dst.ne[1], ne2 = dst.ne[2], ne3 = dst.ne[3];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        float sum[COLUMNS] = {};
        for (int64_t i3 = item.i3; i3 < x.ne[3]; i3 += ne3)
            for (int64_t i2 = item.i2; i2 < x.ne[2]; i2 += ne2)
                for (int64_t i1 = item.i1; i1 < x.ne[1]; i1 += ne1) {
                    const float* row = reinterpret_cast<const float*>(row_at(x, i1, i2, i3));
                    for (int64_t i0 = item.at; i0 < x.ne[0]; i0 += dst.ne[0]) accumulate(sum, row + i0, item.n);
                }
        std::memcpy(row_at(dst, item.i1, item.i2, item.i3) + item.at * 4, sum, static_cast<size_t>(item.n) * 4);
    }
    return true;
}

// One element a row: the sum of rows.
bool run_repeat_back_to_one(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        double sum = 0.0;
        for (int64_t i3 = at.i3; i3 < x.ne[3]; i3 += dst.ne[3])
            for (int64_t i2 = at.i2; i2 < x.ne[2]; i2 += dst.ne[2])
                for (int64_t i1 = at.i1; i1 < x.ne[1]; i1 += dst.ne[1])
                    sum += sum_row<Plain>(row_at(x, i1, i2, i3), x.nb[0], x.ne[0]);
        *reinterpret_cast<float*>(at.of(dst)) = static_cast<float>(sum);
    }
    return true;
}

Split split_columns(const Tensor& dst) {
    Split s;
    s.n = dst.ne[0];
    s.part = s.n < COLUMNS ? s.n : COLUMNS;
    s.parts = (s.n + s.part - 1) / s.part;
    s.items = n_rows(dst) * s.parts;
    return s;
}

// Relies on: packed rows of F32, every dimension of the result dividing the source's.
bool prepare_repeat_back(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return refuse(builder, node);
    const int64_t work = n_elements(*node.src[0]) + n_elements(node);
    if (node.ne[0] == 1) {
        builder.add(run_repeat_back_to_one, node, n_rows(node), work);
        return true;
    }
    const Split split = split_columns(node);
    keep_split(builder.add(run_repeat_back, node, split.items, work), split);
    return true;
}

// ---- SILU_BACK: dy s (1 + x (1 - s)) with s = sigmoid(x) ----

inline vf silu_gradient(vf grad, vf x) {
    const vf s = vsigmoid(x);
    return grad * s * (1.0f + x * (1.0f - s));
}

template <class F>
bool run_silu_back(const Step& step, int64_t begin, int64_t end, Worker&) {
    using E = typename F::Element;
    const Tensor &grad = *step.src[0], &x = *step.src[1], &dst = *step.dst;
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const int64_t offset = item.at * static_cast<int64_t>(sizeof(E));
        const E* pg = reinterpret_cast<const E*>(row_at(grad, item.i1, item.i2, item.i3) + offset);
        const E* px = reinterpret_cast<const E*>(row_at(x, item.i1, item.i2, item.i3) + offset);
        E* pd = reinterpret_cast<E*>(row_at(dst, item.i1, item.i2, item.i3) + offset);
        int64_t i = 0;
        for (; i + VL <= item.n; i += VL) F::store(pd + i, silu_gradient(F::load(pg + i), F::load(px + i)));
        if (i == item.n) continue;
        E tail_g[VL] = {}, tail_x[VL] = {}, tail_d[VL];
        const size_t bytes = static_cast<size_t>(item.n - i) * sizeof(E);
        std::memcpy(tail_g, pg + i, bytes);
        std::memcpy(tail_x, px + i, bytes);
        F::store(tail_d, silu_gradient(F::load(tail_g), F::load(tail_x)));
        std::memcpy(pd + i, tail_d, bytes);
    }
    return true;
}

// Relies on: one type, one shape, packed rows.
bool prepare_silu_back(PlanBuilder& builder, const Tensor& node) {
    const Tensor &grad = *node.src[0], &x = *node.src[1];
    if (grad.type != x.type || x.type != node.type || (node.type != TYPE_F32 && node.type != TYPE_F16))
        return refuse(builder, node);
    const Split split = split_rows(node, is_contiguous(grad) && is_contiguous(x) && is_contiguous(node));
    Step& step = builder.add(node.type == TYPE_F32 ? run_silu_back<F32> : run_silu_back<F16>, node, split.items,
                             work_of(n_elements(node), 24));
    keep_split(step, split);
    return true;
}

// ---- RMS_NORM_BACK, SOFT_MAX_BACK: one dot product a row, then one pass ----

double dot_rows(const float* x, const float* y, int64_t n) {
    constexpr int H = VL / 2;
    vd s0 = {}, s1 = {};
    int64_t i = 0;
    for (; i + 2 * H <= n; i += 2 * H) {
        s0 += load_f64(x + i) * load_f64(y + i);
        s1 += load_f64(x + i + H) * load_f64(y + i + H);
    }
    double sum = sum_lanes(s0 + s1);
    for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    return sum;
}

// dx = (dy - x (x . dy) / (n (mean square + eps))) / sqrt(mean square + eps)
bool run_rms_norm_back(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &grad = *step.src[0], &x = *step.src[1], &dst = *step.dst;
    const double eps = static_cast<double>(param_f32(dst, 0));
    const int64_t n = dst.ne[0];
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const float* pg = reinterpret_cast<const float*>(at.of(grad));
        const float* px = reinterpret_cast<const float*>(at.of(x));
        float* pd = reinterpret_cast<float*>(at.of(dst));
        const double squares = sum_packed<Square>(px, n, 0.0) + eps * static_cast<double>(n);
        const float scale = static_cast<float>(1.0 / __builtin_sqrt(squares / static_cast<double>(n)));
        const float along = static_cast<float>(-dot_rows(px, pg, n) / squares);
        int64_t i = 0;
        for (; i + VL <= n; i += VL) vstore(pd + i, (vload(pg + i) + vload(px + i) * along) * scale);
        for (; i < n; ++i) pd[i] = (pg[i] + px[i] * along) * scale;
    }
    return true;
}

// dx = scale y (dy - y . dy)
bool run_soft_max_back(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &grad = *step.src[0], &y = *step.src[1], &dst = *step.dst;
    const float scale = param_f32(dst, 0);
    const int64_t n = dst.ne[0];
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const float* pg = reinterpret_cast<const float*>(at.of(grad));
        const float* py = reinterpret_cast<const float*>(at.of(y));
        float* pd = reinterpret_cast<float*>(at.of(dst));
        const float common = static_cast<float>(dot_rows(py, pg, n));
        int64_t i = 0;
        for (; i + VL <= n; i += VL) vstore(pd + i, (vload(pg + i) - common) * vload(py + i) * scale);
        for (; i < n; ++i) pd[i] = (pg[i] - common) * py[i] * scale;
    }
    return true;
}

// Relies on: packed rows, one shape; for SOFT_MAX_BACK a max_bias of 0.
template <Step::Fn RUN>
bool prepare_rows(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.src[1]->type != TYPE_F32 || node.type != TYPE_F32)
        return refuse(builder, node);
    builder.add(RUN, node, n_rows(node), work_of(n_elements(node), 8) + 16 * n_rows(node));
    return true;
}

// ---- GET_ROWS_BACK: rows added up at the places that ids name ----

// Items are parts of columns: each goes through all ids and owns its columns of every result row.
template <class F>
bool run_get_rows_back(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    using E = typename F::Element;
    const Tensor &x = *step.src[0], &ids = *step.src[1], &dst = *step.dst;
    const int64_t part = step.arg.i64[0], from = begin * part, n = least(end * part, dst.ne[0]) - from;
    const int32_t* id = reinterpret_cast<const int32_t*>(ids.data);
    for (int64_t i = 0; i < x.ne[1]; ++i)
        if (id[i] < 0 || id[i] >= dst.ne[1]) return fail_index(worker, step, &ids, id[i], dst.ne[1]);
    for (int64_t i = 0; i < dst.ne[1]; ++i)
        std::memset(dst.data + i * dst.nb[1] + from * 4, 0, static_cast<size_t>(n) * 4);
    for (int64_t i = 0; i < x.ne[1]; ++i) {
        const E* px = reinterpret_cast<const E*>(x.data + i * x.nb[1]) + from;
        float* pd = reinterpret_cast<float*>(dst.data + id[i] * dst.nb[1]) + from;
        int64_t k = 0;
        for (; k + VL <= n; k += VL) vstore(pd + k, vload(pd + k) + F::load(px + k));
        for (; k < n; ++k) pd[k] += F::get(px + k);
    }
    return true;
}

// Relies on: x [n, k] in packed rows, k packed ids, a contiguous result [n, .]; the result does not overlap the ids.
bool prepare_get_rows_back(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    if ((x.type != TYPE_F32 && x.type != TYPE_F16) || node.src[1]->type != TYPE_I32 || node.type != TYPE_F32)
        return refuse(builder, node);
    const int64_t part = node.ne[0] < COLUMNS ? node.ne[0] : COLUMNS;
    Step& step = builder.add(x.type == TYPE_F32 ? run_get_rows_back<F32> : run_get_rows_back<F16>, node,
                             (node.ne[0] + part - 1) / part, n_elements(x) + n_elements(node));
    step.arg.i64[0] = part;
    return true;
}

}  // namespace

void register_gradient(OpTable& table) {
    table.prepare[OP_REPEAT_BACK] = prepare_repeat_back;
    table.prepare[OP_SILU_BACK] = prepare_silu_back;
    table.prepare[OP_RMS_NORM_BACK] = prepare_rows<run_rms_norm_back>;
    table.prepare[OP_SOFT_MAX_BACK] = prepare_rows<run_soft_max_back>;
    table.prepare[OP_GET_ROWS_BACK] = prepare_get_rows_back;
}

GGR_KERNELS_END
