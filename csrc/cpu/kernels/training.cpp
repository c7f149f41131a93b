// Losses, optimisers and the gradient of attention: CROSS_ENTROPY_LOSS, CROSS_ENTROPY_LOSS_BACK, OPT_STEP_ADAMW,
// OPT_STEP_SGD, FLASH_ATTN_BACK.
#include "cpu/elementwise.h"
#include "cpu/elementwise_sums.h"
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

bool all_f32(const Tensor& node) {
    for (int i = 0; i < node.n_src; ++i)
        if (node.src[i]->type != TYPE_F32) return false;
    return node.type == TYPE_F32;
}
bool refuse(PlanBuilder& builder, const Tensor& node) { return builder.unsupported(node, "types other than F32"); }

inline const float* floats(const uint8_t* p) { return reinterpret_cast<const float*>(p); }
inline float* floats(uint8_t* p) { return reinterpret_cast<float*>(p); }

float largest(const float* x, int64_t n) {
    vf top = vset(-__builtin_inff());
    int64_t i = 0;
    for (; i + VL <= n; i += VL) top = vmax(vload(x + i), top);
    float max = vmax_of(top);
    for (; i < n; ++i) max = x[i] > max ? x[i] : max;
    return max;
}

inline float exp_of(float x) { return vexp(vset(x))[0]; }

// Sum of e^(x - max); the powers too where `out` is given.
double sum_powers(float* out, const float* x, int64_t n, float max) {
    double sum = 0.0;
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf e = vexp(vload(x + i) - max);
        if (out != nullptr) vstore(out + i, e);
        float lanes[VL];
        vstore(lanes, e);
        vd total = load_f64(lanes) + load_f64(lanes + VL / 2);
        sum += sum_lanes(total);
    }
    for (; i < n; ++i) {
        const float e = exp_of(x[i] - max);
        if (out != nullptr) out[i] = e;
        sum += static_cast<double>(e);
    }
    return sum;
}

// ---- CROSS_ENTROPY_LOSS: - mean over rows of labels . log softmax(logits) ----

// Items are rows; each leaves its sum in scratch.
bool run_row_losses(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &x = *step.src[0], &labels = *step.src[1];
    double* sums = reinterpret_cast<double*>(worker.shared + step.offset[0]);
    const int64_t n = x.ne[0];
    RowCursor at(x, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const float *px = floats(at.of(x)), *pl = floats(at.of(labels));
        const float max = largest(px, n);
        const float log_sum = vlog(vset(static_cast<float>(sum_powers(nullptr, px, n, max))))[0];
        double sum = 0.0;
        int64_t i = 0;
        for (; i + VL <= n; i += VL) {
            float lanes[VL];
            vstore(lanes, (vload(px + i) - max - log_sum) * vload(pl + i));
            sum += sum_lanes(load_f64(lanes) + load_f64(lanes + VL / 2));
        }
        for (; i < n; ++i) sum += static_cast<double>((px[i] - max - log_sum) * pl[i]);
        sums[item] = sum;
    }
    return true;
}

bool run_mean_loss(const Step& step, int64_t, int64_t, Worker& worker) {
    const double* sums = reinterpret_cast<const double*>(worker.shared + step.offset[0]);
    const int64_t rows = step.arg.i64[0];
    double sum = 0.0;
    for (int64_t i = 0; i < rows; ++i) sum += sums[i];
    *floats(step.dst->data) = static_cast<float>(-sum / static_cast<double>(rows));
    return true;
}

// Relies on: one shape, packed rows, a result of one element.
bool prepare_loss(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node)) return refuse(builder, node);
    const Tensor& x = *node.src[0];
    const int64_t rows = n_rows(x), bytes = rows * static_cast<int64_t>(sizeof(double));
    const int64_t sums = builder.scratch(bytes);
    Step& losses = builder.add_bare(run_row_losses, &node, rows, work_of(n_elements(x), 30));
    losses.src[0] = &x;
    losses.src[1] = node.src[1];
    losses.offset[0] = sums;
    builder.reads(x);
    builder.reads(*node.src[1]);
    builder.writes_scratch(sums, bytes);
    Step& mean = builder.add_bare(run_mean_loss, &node, 1, rows);
    mean.offset[0] = sums;
    mean.arg.i64[0] = rows;
    builder.reads_scratch(sums, bytes);
    builder.writes(node);
    return true;
}

// (softmax(logits) - labels) grad / rows. The powers are computed twice: the result may lie on labels or logits.
bool run_loss_back(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[1], &labels = *step.src[2], &dst = *step.dst;
    const float grad = *floats(step.src[0]->data) / static_cast<float>(n_rows(x));
    const int64_t n = x.ne[0];
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const float *px = floats(at.of(x)), *pl = floats(at.of(labels));
        float* pd = floats(at.of(dst));
        const float max = largest(px, n);
        const float scale = static_cast<float>(1.0 / sum_powers(nullptr, px, n, max));
        int64_t i = 0;
        for (; i + VL <= n; i += VL) vstore(pd + i, (vexp(vload(px + i) - max) * scale - vload(pl + i)) * grad);
        for (; i < n; ++i) pd[i] = (exp_of(px[i] - max) * scale - pl[i]) * grad;
    }
    return true;
}

// Relies on: one shape, packed rows, a gradient of one element.
bool prepare_loss_back(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node)) return refuse(builder, node);
    builder.add(run_loss_back, node, n_rows(node), work_of(n_elements(node), 50));
    return true;
}

// ---- OPT_STEP_ADAMW, OPT_STEP_SGD: weights changed in place ----

// Floor: seven streams of f32 over memory bandwidth. The parameters: rate, beta1, beta2, eps, decay, and the factors
// that undo the moments' bias.
bool run_adamw(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &grad = *step.src[1], &first = *step.src[2], &second = *step.src[3];
    const float* p = floats(step.src[4]->data);
    const float rate = p[0], beta1 = p[1], beta2 = p[2], eps = p[3], keep = 1.0f - p[0] * p[4];
    const float unbias1 = p[5], unbias2 = p[6];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        float* w = floats(row_at(dst, item.i1, item.i2, item.i3)) + item.at;
        float* m = floats(row_at(first, item.i1, item.i2, item.i3)) + item.at;
        float* v = floats(row_at(second, item.i1, item.i2, item.i3)) + item.at;
        const float* g = floats(row_at(grad, item.i1, item.i2, item.i3)) + item.at;
        for (int64_t i = 0; i < item.n; i += VL) {
            const int64_t n = least(VL, item.n - i);
            const bool whole = n == VL;
            const vf gi = whole ? vload(g + i) : vload_part(g + i, n), wi = whole ? vload(w + i) : vload_part(w + i, n);
            const vf mi = (whole ? vload(m + i) : vload_part(m + i, n)) * beta1 + gi * (1.0f - beta1);
            const vf vi_ = (whole ? vload(v + i) : vload_part(v + i, n)) * beta2 + gi * gi * (1.0f - beta2);
            const vf out = wi * keep - mi * unbias1 * rate / (vsqrt(vi_ * unbias2) + eps);
            if (whole) {
                vstore(m + i, mi);
                vstore(v + i, vi_);
                vstore(w + i, out);
            } else {
                vstore_part(m + i, mi, n);
                vstore_part(v + i, vi_, n);
                vstore_part(w + i, out, n);
            }
        }
    }
    return true;
}

bool run_sgd(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &grad = *step.src[1];
    const float* p = floats(step.src[2]->data);
    const float rate = p[0], keep = 1.0f - p[0] * p[1];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        float* w = floats(row_at(dst, item.i1, item.i2, item.i3)) + item.at;
        const float* g = floats(row_at(grad, item.i1, item.i2, item.i3)) + item.at;
        int64_t i = 0;
        for (; i + VL <= item.n; i += VL) vstore(w + i, vload(w + i) * keep - vload(g + i) * rate);
        for (; i < item.n; ++i) w[i] = w[i] * keep - g[i] * rate;
    }
    return true;
}

// Relies on: the result is src[0]; packed rows and one shape; the moments do not overlap the weights or each other, and
// the parameters none of them.
bool prepare_step(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node)) return refuse(builder, node);
    const bool adamw = node.op == OP_OPT_STEP_ADAMW;
    bool flat = is_contiguous(node);
    for (int i = 0; i < (adamw ? 4 : 2); ++i) flat = flat && is_contiguous(*node.src[i]);
    const Split split = split_rows(node, flat);
    Step& step =
        builder.add_bare(adamw ? run_adamw : run_sgd, &node, split.items, work_of(n_elements(node), adamw ? 16 : 3));
    for (int i = 0; i < node.n_src; ++i) {
        step.src[i] = node.src[i];
        builder.reads(*node.src[i]);
    }
    keep_split(step, split);
    builder.writes(node);
    if (adamw) {
        builder.writes(*node.src[2]);
        builder.writes(*node.src[3]);
    }
    return true;
}

// ---- FLASH_ATTN_BACK: gradients of q, k and transposed v, one behind the other ----

float dot(const float* x, const float* y, int64_t n) {
    vf s0 = {}, s1 = {};
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        s0 += vload(x + i) * vload(y + i);
        s1 += vload(x + i + VL) * vload(y + i + VL);
    }
    float sum = vsum(s0 + s1);
    for (; i < n; ++i) sum += x[i] * y[i];
    return sum;
}
void add_scaled(float* y, const float* x, float a, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(y + i, vload(y + i) + vload(x + i) * a);
    for (; i < n; ++i) y[i] += x[i] * a;
}

constexpr int64_t PART_ALIGNMENT = 4;  // f32; each gradient begins at a multiple
int64_t padded(int64_t n) { return (n + PART_ALIGNMENT - 1) / PART_ALIGNMENT * PART_ALIGNMENT; }

// Items are heads of k and v in each sequence: the heads of q that share one add to its gradients in turn. Scores of
// one query lie in the worker's scratch, probabilities behind them.
bool run_attention_back(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &q = *step.src[0], &k = *step.src[1], &v = *step.src[2], &grad = *step.src[3], &dst = *step.dst;
    const int64_t size = q.ne[0], n_q = q.ne[1], heads = q.ne[2], n_kv = k.ne[1], kv_heads = k.ne[2];
    float* const grad_q = floats(dst.data);
    float* const grad_k = grad_q + padded(n_elements(q));
    float* const grad_v = grad_k + padded(n_elements(k));
    float* const score = floats(worker.local);
    float* const probability = score + padded(n_kv);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(size));
    for (int64_t item = begin; item < end; ++item) {
        const int64_t kv_head = item % kv_heads, seq = item / kv_heads;
        float* gk = grad_k + item * n_kv * size;
        float* gv = grad_v + item * n_kv * size;
        std::memset(gk, 0, static_cast<size_t>(n_kv * size) * 4);
        std::memset(gv, 0, static_cast<size_t>(n_kv * size) * 4);
        for (int64_t head = kv_head; head < heads; head += kv_heads)
            for (int64_t i = 0; i < n_q; ++i) {
                const int64_t seen = dst.params[0] != 0 ? n_kv - n_q + i + 1 : n_kv;
                const float* row = floats(row_at(q, i, head, seq));
                const uint8_t* up = row_at(grad, i, head, seq);
                for (int64_t j = 0; j < seen; ++j)
                    score[j] = dot(floats(row_at(k, j, kv_head, seq)), row, size) * scale;
                const double sum = sum_powers(probability, score, seen, largest(score, seen));
                const float part = static_cast<float>(1.0 / sum);
                for (int64_t j = 0; j < seen; ++j) probability[j] *= part;

                std::memset(score, 0, static_cast<size_t>(seen) * 4);  // from here on: gradients of the probabilities
                for (int64_t d = 0; d < size; ++d) {
                    const float g = *floats(up + d * grad.nb[0]);
                    add_scaled(score, floats(row_at(v, d, kv_head, seq)), g, seen);
                    add_scaled(gv + d * n_kv, probability, g, seen);
                }
                const float common = dot(probability, score, seen);
                float* gq = grad_q + ((seq * heads + head) * n_q + i) * size;
                std::memset(gq, 0, static_cast<size_t>(size) * 4);
                for (int64_t j = 0; j < seen; ++j) {
                    const float s = (score[j] - common) * probability[j] * scale;
                    add_scaled(gq, floats(row_at(k, j, kv_head, seq)), s, size);
                    add_scaled(gk + j * size, row, s, size);
                }
            }
    }
    if (begin == 0) {  // what lies between the parts
        for (int64_t i = n_elements(q); i < padded(n_elements(q)); ++i) grad_q[i] = 0.0f;
        for (int64_t i = n_elements(k); i < padded(n_elements(k)); ++i) grad_k[i] = 0.0f;
        for (int64_t i = n_elements(v); i < padded(n_elements(v)); ++i) grad_v[i] = 0.0f;
    }
    return true;
}

// Relies on: q [size, n_q, heads, seqs], k [size, n_kv, kv_heads, seqs], v [n_kv, size, kv_heads, seqs] in packed rows,
// kv_heads dividing heads, n_kv >= n_q; the result a vector of the padded gradients.
bool prepare_attention_back(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node)) return refuse(builder, node);
    const Tensor &q = *node.src[0], &k = *node.src[1];
    builder.need_local(2 * padded(k.ne[1]) * static_cast<int64_t>(sizeof(float)));
    builder.add(run_attention_back, node, k.ne[2] * k.ne[3], n_elements(q) * k.ne[1] * 2);
    return true;
}

}  // namespace

void register_training(OpTable& table) {
    table.prepare[OP_CROSS_ENTROPY_LOSS] = prepare_loss;
    table.prepare[OP_CROSS_ENTROPY_LOSS_BACK] = prepare_loss_back;
    table.prepare[OP_OPT_STEP_ADAMW] = prepare_step;
    table.prepare[OP_OPT_STEP_SGD] = prepare_step;
    table.prepare[OP_FLASH_ATTN_BACK] = prepare_attention_back;
}

GGR_KERNELS_END
