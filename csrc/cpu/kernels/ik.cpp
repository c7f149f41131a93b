// Ops that only ik_llama.cpp has and that are no products: gates, weighted sums of experts, sums along a dimension,
// Walsh-Hadamard transforms, a sum of two norms, experts chosen by group. Floor of all but the last: bytes of sources
// and result over memory bandwidth.
#include "cpu/elementwise_sums.h"
#include "cpu/gates.h"
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/quants/dequant.h"

GGR_KERNELS_BEGIN

namespace {

const float* floats(const uint8_t* p) { return reinterpret_cast<const float*>(p); }
float* floats(uint8_t* p) { return reinterpret_cast<float*>(p); }

bool all_f32(PlanBuilder& builder, const Tensor& node, int n_sources) {
    for (int i = -1; i < n_sources; ++i) {
        const Tensor& t = i < 0 ? node : *node.src[i];
        if (t.type != TYPE_F32)
            return builder.unsupported(node, "type %s of %s", type_traits(t.type)->name, i < 0 ? "the result" : t.name);
    }
    return true;
}

// ---- FUSED_MUL_UNARY: activation(a) * b; a may be one number for each row of b ----

bool run_gate(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &a = *step.src[0], &b = *step.src[1];
    const Gate gate = reinterpret_cast<Gate>(step.arg.i64[6]);
    for (int64_t index = begin; index < end; ++index) {
        const Item at = item_of(step, index);
        gate(floats(row_at(dst, at.i1, at.i2, at.i3)) + at.at, floats(row_at(a, at.i1, at.i2, at.i3)) + at.at,
             floats(row_at(b, at.i1, at.i2, at.i3)) + at.at, at.n, step.arg.f32[0]);
    }
    return true;
}

template <bool LIMITED>
bool run_row_gate(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &a = *step.src[0], &b = *step.src[1];
    const float limit = step.arg.f32[0];
    const bool silu = step.arg.i64[6] != 0;
    for (int64_t index = begin; index < end; ++index) {
        const Item at = item_of(step, index);
        const vf x = vset(*floats(row_at(a, at.i1, at.i2, at.i3)));
        vf g = silu ? vsilu(x) : vsigmoid(x);
        if (LIMITED) g = at_most(g, limit);
        const float* pb = floats(row_at(b, at.i1, at.i2, at.i3)) + at.at;
        float* pd = floats(row_at(dst, at.i1, at.i2, at.i3)) + at.at;
        int64_t i = 0;
        for (; i + VL <= at.n; i += VL) {
            const vf up = vload(pb + i);
            vstore(pd + i, g * (LIMITED ? within(up, limit) : up));
        }
        if (i < at.n) {
            const vf up = vload_part(pb + i, at.n - i);
            vstore_part(pd + i, g * (LIMITED ? within(up, limit) : up), at.n - i);
        }
    }
    return true;
}

// Relies on: b and node of one shape, a of that shape or with rows of one element; packed rows.
bool prepare_gate(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(builder, node, 2)) return false;
    const Tensor &a = *node.src[0], &b = *node.src[1];
    const int32_t kind = node.params[0];
    const float limit = param_f32(node, 1);
    const bool limited = limit > LEAST_LIMIT, by_row = !same_shape(a, b);
    // Whole rows of gates know a limit for SILU only.
    const Gate gate = by_row ? nullptr : gate_of(kind, limited && kind == UNARY_SILU);
    if (by_row ? kind != UNARY_SILU && kind != UNARY_SIGMOID : gate == nullptr)
        return builder.unsupported(node, "activation %d", kind);
    const Split split = split_rows(node, !by_row && is_contiguous(a) && is_contiguous(b) && is_contiguous(node));
    const Step::Fn fn = !by_row ? run_gate : limited ? run_row_gate<true> : run_row_gate<false>;
    Step& step = builder.add(fn, node, split.items, work_of(n_elements(node), by_row ? 1 : 5));
    keep_split(step, split);
    step.arg.f32[0] = limit;
    step.arg.i64[6] = by_row ? kind == UNARY_SILU : reinterpret_cast<int64_t>(gate);
    return true;
}

// ---- MUL_MULTI_ADD: the experts' rows of a token, weighted and added ----

constexpr int64_t MAX_TERMS = 64;  // rows added in one pass over the result

// d[0 .. n) = sum of factors[j] * x[j * stride ..], on top of d if `more`.
void weighted_sum(float* d, const uint8_t* x, int64_t stride, const float* factors, int64_t terms, int64_t n,
                  bool more) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf sum = more ? vload(d + i) : vf{};
        for (int64_t j = 0; j < terms; ++j) sum += vload(floats(x + j * stride) + i) * factors[j];
        vstore(d + i, sum);
    }
    for (; i < n; ++i) {
        float sum = more ? d[i] : 0.0f;
        for (int64_t j = 0; j < terms; ++j) sum += floats(x + j * stride)[i] * factors[j];
        d[i] = sum;
    }
}

// Items are parts of rows of dst [e, tokens].
bool run_weighted(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &x = *step.src[0], &weights = *step.src[1];
    const Tensor *scale = step.src[2], *ids = step.src[3];
    const int64_t used = x.ne[1];
    float factors[MAX_TERMS];
    for (int64_t index = begin; index < end; ++index) {
        const Item at = item_of(step, index);
        const int64_t token = at.i1;
        for (int64_t u = 0; u < used; u += MAX_TERMS) {
            const int64_t terms = least(MAX_TERMS, used - u);
            for (int64_t j = 0; j < terms; ++j) {
                factors[j] = *floats(weights.data + (u + j) * weights.nb[1] + token * weights.nb[2]);
                if (scale == nullptr) continue;
                int32_t id;
                std::memcpy(&id, ids->data + (u + j) * ids->nb[0] + token * ids->nb[1], sizeof id);
                if (id < 0 || id >= scale->ne[0]) return fail_index(worker, step, ids, id, scale->ne[0]);
                factors[j] *= *floats(scale->data + id * scale->nb[0]);
            }
            weighted_sum(floats(dst.data + token * dst.nb[1]) + at.at,
                         x.data + u * x.nb[1] + token * x.nb[2] + at.at * 4, x.nb[1], factors, terms, at.n, u > 0);
        }
    }
    return true;
}

// Relies on: x [e, used, tokens], weights [1, used, tokens], node [e, tokens]; scale [experts] and ids i32 [used,
// tokens] both or neither; rows of x and node packed.
bool prepare_weighted(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(builder, node, 2)) return false;
    const Split split = split_rows(node, false);
    keep_split(builder.add(run_weighted, node, split.items, n_elements(*node.src[0])), split);
    return true;
}

// ---- MULTI_ADD and SUM_DIM: rows added, at one distance from each other ----

// arg.i64[0]: number of rows; [1]: bytes from one to the next. Items are parts of rows of dst.
bool run_sum(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const int64_t n_rows = step.arg.i64[0], stride = step.arg.i64[1];
    for (int64_t index = begin; index < end; ++index) {
        const Item at = item_of(step, index);
        const uint8_t* from = row_at(x, at.i1, at.i2, at.i3) + at.at * 4;
        float* to = floats(row_at(dst, at.i1, at.i2, at.i3)) + at.at;
        int64_t i = 0;
        for (; i + VL <= at.n; i += VL) {
            vf sum = vload(floats(from) + i);
            for (int64_t j = 1; j < n_rows; ++j) sum += vload(floats(from + j * stride) + i);
            vstore(to + i, sum);
        }
        for (; i < at.n; ++i) {
            float sum = floats(from)[i];
            for (int64_t j = 1; j < n_rows; ++j) sum += floats(from + j * stride)[i];
            to[i] = sum;
        }
    }
    return true;
}

void add_sum(PlanBuilder& builder, const Tensor& node, const Tensor& read, int64_t n_rows, int64_t stride) {
    const Split split = split_rows(node, false);
    Step& step = builder.add_bare(run_sum, &node, split.items, n_elements(node) * n_rows);
    step.src[0] = node.src[0];
    keep_split(step, split);
    step.arg.i64[0] = n_rows;
    step.arg.i64[1] = stride;
    builder.reads(read);
    builder.writes(node);
}

// Relies on: x and node [e, tokens], packed rows; behind the start of each row of x n * e floats of the tensor it
// views.
bool prepare_multi_add(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(builder, node, 1)) return false;
    const Tensor& x = *node.src[0];
    add_sum(builder, node, x.view_src != nullptr ? *x.view_src : x, node.params[0], node.ne[0] * 4);
    return true;
}

// Relies on: node like x, but of size 1 in dimension params[0], which is not 0; packed rows.
bool prepare_sum_dim(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(builder, node, 1)) return false;
    const Tensor& x = *node.src[0];
    const int32_t dim = node.params[0];
    add_sum(builder, node, x, x.ne[dim], x.nb[dim]);
    return true;
}

// ---- HADAMARD: runs of n elements times the Walsh-Hadamard matrix in Sylvester's order, over sqrt(n) ----

void hadamard(float* x, int64_t n, float scale) {
    for (int64_t half = 1; half < n; half *= 2) {
        for (int64_t i = 0; i < n; i += 2 * half) {
            float *low = x + i, *high = low + half;
            if (half >= VL) {
                for (int64_t j = 0; j < half; j += VL) {
                    const vf a = vload(low + j), b = vload(high + j);
                    vstore(low + j, a + b);
                    vstore(high + j, a - b);
                }
            } else {
                for (int64_t j = 0; j < half; ++j) {
                    const float a = low[j], b = high[j];
                    low[j] = a + b;
                    high[j] = a - b;
                }
            }
        }
    }
    for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

// Items are rows.
bool run_hadamard(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const DequantRow read = dequant_row_for(x.type);
    const int64_t n = step.arg.i64[1];
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        float* to = floats(row.of(dst));
        const uint8_t* from = row.of(x);
        if (x.type != TYPE_F32 || floats(from) != to) read(from, to, dst.ne[0]);
        for (int64_t i = 0; i < dst.ne[0]; i += n) hadamard(to + i, n, step.arg.f32[0]);
    }
    return true;
}

// Relies on: x and node of one shape with packed rows, which are multiples of params[0], a power of two.
bool prepare_hadamard(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    if (node.type != TYPE_F32 || dequant_row_for(x.type) == nullptr)
        return builder.unsupported(node, "types %s -> %s", type_traits(x.type)->name, type_traits(node.type)->name);
    const int64_t n = node.params[0];
    Step& step = builder.add(run_hadamard, node, n_rows(node), n_elements(node) * (64 - __builtin_clzll((uint64_t)n)));
    step.arg.f32[0] = (float)(1.0 / __builtin_sqrt((double)n));
    step.arg.i64[1] = n;
    return true;
}

// ---- FUSED_RMS_RMS_ADD: rms(a) * weight_a + rms(b) * weight_b ----

double mean_of_squares(const Tensor& x, const uint8_t* row) {
    const int64_t n = x.ne[0];
    if (x.type == TYPE_F32) return sum_row<Square>(row, 4, n) / (double)n;
    float tile[TILE];
    double sum = 0.0;
    for (int64_t i = 0; i < n; i += TILE) {
        load_tile(tile, x.type, row + i * x.nb[0], x.nb[0], least(TILE, n - i));
        sum += sum_packed<Square>(tile, least(TILE, n - i), 0.0);
    }
    return sum / (double)n;
}

// Items are rows.
bool run_two_norms(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor& dst = *step.dst;
    const double eps = (double)step.arg.f32[0];
    float ta[TILE], tb[TILE];
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const Tensor &a = *step.src[0], &b = *step.src[2];
        const uint8_t *pa = row.of(a), *pb = row.of(b);
        const float sa = (float)(1.0 / __builtin_sqrt(mean_of_squares(a, pa) + eps));
        const float sb = (float)(1.0 / __builtin_sqrt(mean_of_squares(b, pb) + eps));
        const float *wa = floats(step.src[1]->data), *wb = floats(step.src[3]->data);
        float* to = floats(row.of(dst));
        for (int64_t i = 0; i < dst.ne[0]; i += TILE) {
            const int64_t n = least(TILE, dst.ne[0] - i);
            load_tile(ta, a.type, pa + i * a.nb[0], a.nb[0], n);
            load_tile(tb, b.type, pb + i * b.nb[0], b.nb[0], n);
            for (int64_t j = 0; j < n; ++j) to[i + j] = ta[j] * sa * wa[i + j] + tb[j] * sb * wb[i + j];
        }
    }
    return true;
}

// Relies on: a, b and node of one shape with packed rows, a row of f32 for each weight.
bool prepare_two_norms(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[2];
    if (!is_float(a.type) || !is_float(b.type) || node.type != TYPE_F32)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(a.type)->name, type_traits(b.type)->name,
                                   type_traits(node.type)->name);
    builder.add(run_two_norms, node, n_rows(node), n_elements(node) * 4).arg.f32[0] = param_f32(node, 0);
    return true;
}

// ---- GROUPED_TOPK: the largest entries of each row, from the groups whose best entries have the largest sums ----

// The position of the largest entry that is not taken, the last of equal ones; it is marked as taken. NaN is least.
int64_t take_largest(const float* x, uint8_t* taken, int64_t n) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; ++i)
        if (taken[i] == 0 && (best < 0 || x[i] >= x[best] || x[best] != x[best])) best = i;
    taken[best] = 1;
    return best;
}

// Items are rows. In the worker's scratch: a mark an entry, then a sum and a mark a group.
bool run_grouped(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const int64_t n = x.ne[0], groups = dst.params[0], top = dst.params[1], n_best = dst.params[2], size = n / groups;
    float* sums = reinterpret_cast<float*>(worker.local);
    uint8_t *poor = worker.local + groups * 4, *taken = poor + groups;
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const float* from = floats(row.of(x));
        int32_t* to = reinterpret_cast<int32_t*>(row.of(dst));
        if (dst.ne[0] > top * size) {  // more than the kept groups have: as stock, no choice at all
            for (int64_t j = 0; j < dst.ne[0]; ++j) to[j] = (int32_t)j;
            continue;
        }
        std::memset(taken, 0, (size_t)n);
        for (int64_t g = 0; g < groups; ++g) {
            sums[g] = 0.0f;
            for (int64_t j = 0; j < n_best; ++j) {
                const int64_t i = take_largest(from + g * size, taken + g * size, size);
                sums[g] += from[g * size + i];
            }
        }
        std::memset(poor, 0, (size_t)groups);
        std::memset(taken, 1, (size_t)n);
        for (int64_t j = 0; j < top; ++j) {
            const int64_t g = take_largest(sums, poor, groups);
            std::memset(taken + g * size, 0, (size_t)size);
        }
        for (int64_t j = 0; j < dst.ne[0]; ++j) to[j] = (int32_t)take_largest(from, taken, n);
    }
    return true;
}

// Relies on: node [k, ...] of x [n, ...], packed rows; params: groups that divide n, how many of them are kept, how
// many entries of a group are summed (at most all).
bool prepare_grouped(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    if (x.type != TYPE_F32 || node.type != TYPE_I32)
        return builder.unsupported(node, "types %s -> %s", type_traits(x.type)->name, type_traits(node.type)->name);
    builder.need_local(x.ne[0] + node.params[0] * int64_t{5});
    const int64_t groups = n_rows(x) * node.params[0] * node.params[1];
    builder.add(run_grouped, node, n_rows(node), 4 * (n_elements(x) * (node.ne[0] + node.params[2] + 1) + groups));
    return true;
}

}  // namespace

void register_ik(OpTable& table) {
    table.prepare[OP_FUSED_MUL_UNARY] = prepare_gate;
    table.prepare[OP_MUL_MULTI_ADD] = prepare_weighted;
    table.prepare[OP_MULTI_ADD] = prepare_multi_add;
    table.prepare[OP_SUM_DIM] = prepare_sum_dim;
    table.prepare[OP_HADAMARD] = prepare_hadamard;
    table.prepare[OP_FUSED_RMS_RMS_ADD] = prepare_two_norms;
    table.prepare[OP_GROUPED_TOPK] = prepare_grouped;
}

GGR_KERNELS_END
