// MUL_MULTI_ADD, MULTI_ADD, SUM_DIM, HADAMARD, FUSED_RMS_RMS_ADD, GROUPED_TOPK of ik_llama.cpp.
#include "cuda/kernels/ik.h"

#include <cmath>

#include "cuda/families/families.h"
#include "cuda/families/operands.h"
#include "cuda/families/types.h"

namespace ggr {
namespace cuda {

namespace {

bool is_f32(const Tensor& t) { return t.type == TYPE_F32; }

// Relies on: x [e, used, tokens], weights [1, used, tokens], node [e, tokens]; scale [experts] and ids I32 [used,
// tokens] both or neither; rows of x and node packed.
bool prepare_weighted(PlanBuilder& builder, const Tensor& node) {
    const Tensor &x = *node.src[0], &weights = *node.src[1], *scale = node.src[2], *ids = node.src[3];
    if (!is_f32(x) || !is_f32(weights) || !is_f32(node) || !readable(weights) || x.ne[1] > MAX_STEPS) return false;
    WeightedSumArgs args = {};
    args.dst = operand_of(node);
    args.x = operand_of(x);
    args.weights = view_of(weights);
    if (scale != nullptr) {
        if (!is_f32(*scale) || ids->type != TYPE_I32 || !readable(*scale) || !readable(*ids)) return false;
        args.scale = view_of(*scale);
        args.ids = view_of(*ids);
        args.site = builder.fault_site(node, 3);
    }
    if (!cut_of(args.dst.t, &args.cut)) return false;
    builder.launch(node, blocks_of(args.cut), threads_of(args.cut), 0, args, "ik", "weighted_sum");
    return true;
}

bool add_sum(PlanBuilder& builder, const Tensor& node, int64_t n, int64_t stride) {
    if (!is_f32(*node.src[0]) || !is_f32(node) || n > MAX_STEPS) return false;
    StridedSumArgs args = {};
    args.dst = operand_of(node);
    args.x = operand_of(*node.src[0]);
    args.x.packed = args.x.packed && stride % 16 == 0;
    args.n = n;
    args.stride = stride;
    if (!cut_of(args.dst.t, &args.cut)) return false;
    builder.launch(node, blocks_of(args.cut), threads_of(args.cut), 0, args, "ik", "strided_sum");
    return true;
}

// Relies on: x and node [e, tokens], packed rows; behind the start of each row of x params[0] * e floats of the tensor
// it views.
bool prepare_multi_add(PlanBuilder& builder, const Tensor& node) {
    return add_sum(builder, node, node.params[0], node.ne[0] * 4);
}

// Relies on: node like x, but of size 1 in dimension params[0], which is not 0; packed rows.
bool prepare_sum_dim(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    return add_sum(builder, node, x.ne[node.params[0]], x.nb[node.params[0]]);
}

// Relies on: x and node of one shape with packed rows, which are multiples of params[0], a power of two. Quantised rows
// become f32 where the result goes.
bool prepare_hadamard(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    const int64_t n = node.params[0], runs = node.ne[0] / n;
    if (!is_f32(node) || n > HADAMARD_MAX || runs * n_rows(node) >= MAX_COUNT) return false;
    const bool quantised = quantised_type(x.type) != nullptr;
    if (quantised ? !add_dequantised(builder, node, x) : !is_float(x.type)) return false;
    HadamardArgs args = {};
    args.dst = operand_of(node);
    args.x = quantised ? args.dst : operand_of(x);
    args.runs = divisor_of_size(runs);
    args.ne1 = divisor_of_size(node.ne[1]);
    args.ne2 = divisor_of_size(node.ne[2]);
    args.n = static_cast<int32_t>(n);
    args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
    const int threads = n >= 512 ? 256 : n >= 64 ? static_cast<int>(n / 2) : WARP;
    builder.launch(node, {static_cast<uint32_t>(runs * n_rows(node)), 1, 1}, threads, static_cast<int>(n * 4), args,
                   "ik", "hadamard");
    return true;
}

// Relies on: a, b and node of one shape with packed rows, a row of f32 for each weight.
bool prepare_two_norms(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[2];
    if (!is_float(a.type) || !is_float(b.type) || !is_f32(node) || n_rows(node) >= MAX_COUNT) return false;
    if (!is_f32(*node.src[1]) || !is_f32(*node.src[3])) return false;
    TwoNormsArgs args = {};
    args.dst = operand_of(node);
    args.a = operand_of(a);
    args.b = operand_of(b);
    args.weight_a = operand_of(*node.src[1]);
    args.weight_b = operand_of(*node.src[3]);
    args.ne1 = divisor_of_size(node.ne[1]);
    args.ne2 = divisor_of_size(node.ne[2]);
    args.eps = param_f32(node, 0);
    int threads = WARP;
    while (threads < 256 && threads * 4 < node.ne[0]) threads *= 2;
    builder.launch(node, {static_cast<uint32_t>(n_rows(node)), 1, 1}, threads, 0, args, "ik", "two_norms");
    return true;
}

// Relies on: node I32 [k, ...] of x f32 [n, ...], packed rows; params: groups that divide n, how many of them are kept,
// how many entries of a group are summed (at most all).
bool prepare_grouped(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    if (!is_f32(x) || node.type != TYPE_I32 || n_rows(node) >= MAX_COUNT) return false;
    if (x.ne[0] > GROUPED_ENTRIES || node.params[0] > GROUPED_GROUPS) return false;
    GroupedArgs args = {};
    args.dst = view_of(node);
    args.x = view_of(x);
    args.ne1 = divisor_of_size(node.ne[1]);
    args.ne2 = divisor_of_size(node.ne[2]);
    args.groups = node.params[0];
    args.top = node.params[1];
    args.best = node.params[2];
    builder.launch(node, {static_cast<uint32_t>(n_rows(node)), 1, 1}, WARP, 0, args, "ik", "grouped_topk");
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_MUL_MULTI_ADD] = prepare_weighted;
    table.prepare[OP_MULTI_ADD] = prepare_multi_add;
    table.prepare[OP_SUM_DIM] = prepare_sum_dim;
    table.prepare[OP_HADAMARD] = prepare_hadamard;
    table.prepare[OP_FUSED_RMS_RMS_ADD] = prepare_two_norms;
    table.prepare[OP_GROUPED_TOPK] = prepare_grouped;
}

void list_kernels(void* context, KernelSink sink) {
    for (const char* kernel : {"weighted_sum", "strided_sum", "hadamard", "two_norms", "grouped_topk"})
        sink(context, {"ik", kernel});
}

}  // namespace

const Family IK = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
