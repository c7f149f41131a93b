// NORM, RMS_NORM, L2_NORM, GROUP_NORM, FUSED_NORM, FUSED_RMS_NORM, and the chains NORM or RMS_NORM -> MUL (-> ADD).
#include "cuda/kernels/norm.h"

#include "cuda/families/families.h"
#include "cuda/families/operands.h"

namespace ggr {
namespace cuda {

namespace {

// Rows up to this length are a warp's: 8 quads a lane.
constexpr int64_t WARP_ROW = 1024;

// Relies on: x and dst f32 of one shape; factor and addend, if any, f32 with whole rows that repeat to dst's.
bool add_launch(PlanBuilder& builder, const Tensor& node, const Tensor& dst, const Tensor& x, const Tensor* factor,
                const Tensor* addend, int32_t kind, float eps) {
    const int64_t rows = n_rows(dst);
    if (rows >= MAX_COUNT) return false;
    NormArgs args = {};
    args.dst = operand_of(dst);
    args.x = operand_of(x);
    args.ne1 = divisor_of_size(dst.ne[1]);
    args.ne2 = divisor_of_size(dst.ne[2]);
    for (int i = 0; i < 3; ++i) {
        args.factor_ne[i] = divisor_of_size(factor != nullptr ? factor->ne[i + 1] : 1);
        args.addend_ne[i] = divisor_of_size(addend != nullptr ? addend->ne[i + 1] : 1);
    }
    if (factor != nullptr) args.factor = operand_of(*factor);
    if (addend != nullptr) args.addend = operand_of(*addend);
    args.rows = static_cast<uint32_t>(rows);
    args.kind = kind;
    args.eps = eps;
    if (dst.ne[0] <= WARP_ROW && rows > 1) {
        const uint32_t warps = rows < 512 ? 1 : 4;
        builder.launch(node, {(args.rows + warps - 1) / warps, 1, 1}, static_cast<int>(warps) * WARP, 0, args, "norm",
                       "norm<%s>", "false");
    } else {
        int threads = WARP;
        while (threads < 1024 && threads * 4 < dst.ne[0]) threads *= 2;
        builder.launch(node, {args.rows, 1, 1}, threads, 0, args, "norm", "norm<%s>", "true");
    }
    return true;
}

template <NormKind KIND>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return false;
    return add_launch(builder, node, node, *node.src[0], nullptr, nullptr, KIND, param_f32(node, 0));
}

// Relies on: source and result of one shape, packed rows; a weight is one row, also packed.
template <NormKind KIND>
bool prepare_weighted(PlanBuilder& builder, const Tensor& node) {
    const Tensor &x = *node.src[0], *weight = node.src[1];
    if (weight == nullptr) return prepare<KIND>(builder, node);
    if (x.type != TYPE_F32 || weight->type != TYPE_F32 || node.type != TYPE_F32) return false;
    return add_launch(builder, node, node, x, weight, nullptr, KIND, param_f32(node, 0));
}

// Relies on: source and result of one shape, 1 to ne2 groups, a channel for each.
bool prepare_group(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32 || node.ne[3] > 65535) return false;
    GroupNormArgs args = {};
    args.dst = view_of(node);
    args.x = view_of(*node.src[0]);
    args.n_groups = node.params[0];
    args.size = static_cast<int32_t>((node.ne[2] + args.n_groups - 1) / args.n_groups);
    args.eps = param_f32(node, 1);
    builder.launch(node, {static_cast<uint32_t>(args.n_groups), static_cast<uint32_t>(node.ne[3]), 1}, 1024, 0, args,
                   "norm", "group_norm");
    return true;
}

// ---- Chains ----

// The other source of a two-source node that takes `link`, if that can be an operand of the fused row: whole rows of
// f32 that are repeated, `link` itself not being repeated. nullptr otherwise.
const Tensor* operand_beside(const Tensor& node, const Tensor& link) {
    const Tensor *a = node.src[0], *b = node.src[1];
    const Tensor* other = a == &link ? b : b == &link ? a : nullptr;
    if (other == nullptr || other == &link || !packed_f32(*other) || other->ne[0] != node.ne[0]) return nullptr;
    if (node.type != TYPE_F32 || !same_shape(node, link) || !can_repeat(*other, node)) return nullptr;
    return other;
}

// What one row writes, no other row reads: the result lies beside the source, or exactly on it.
bool rows_independent(const Tensor& result, const Tensor& source) {
    return !PlanBuilder::overlap(result, source) || same_layout(result, source);
}

// An intermediate that is not stored must not be a way of changing another tensor.
bool may_skip(const PlanBuilder& builder, const Tensor& node) {
    return node.view_src == nullptr && builder.can_elide(node, 1);
}

template <NormKind KIND>
uint32_t fuse(PlanBuilder& builder, uint32_t i) {
    const Graph& graph = builder.graph();
    if (i + 1 >= graph.n_nodes) return 0;
    const Tensor &norm = *graph.nodes[i], &mul = *graph.nodes[i + 1];
    const Tensor& x = *norm.src[0];
    if (mul.op != OP_MUL || !packed_f32(x) || norm.type != TYPE_F32 || !may_skip(builder, norm)) return 0;
    const Tensor* factor = operand_beside(mul, norm);
    if (factor == nullptr || PlanBuilder::overlap(*factor, norm)) return 0;

    const Tensor *last = &mul, *addend = nullptr;
    uint32_t taken = 2;
    if (i + 2 < graph.n_nodes && graph.nodes[i + 2]->op == OP_ADD && may_skip(builder, mul)) {
        const Tensor& add = *graph.nodes[i + 2];
        const Tensor* other = operand_beside(add, mul);
        if (other != nullptr && !PlanBuilder::overlap(*other, norm) && !PlanBuilder::overlap(*other, mul) &&
            packed_f32(add) && rows_independent(add, x) && rows_independent(add, *factor) &&
            rows_independent(add, *other)) {
            addend = other;
            last = &add;
            taken = 3;
        }
    }
    if (taken == 2 && !(packed_f32(mul) && rows_independent(mul, x) && rows_independent(mul, *factor))) return 0;
    return add_launch(builder, *last, *last, x, factor, addend, KIND, param_f32(norm, 0)) ? taken : 0;
}

void enter(OpTable& table) {
    table.prepare[OP_NORM] = prepare<NORM_CENTRED>;
    table.prepare[OP_RMS_NORM] = prepare<NORM_ROOT_MEAN_SQUARE>;
    table.prepare[OP_L2_NORM] = prepare<NORM_LENGTH>;
    table.prepare[OP_GROUP_NORM] = prepare_group;
    table.prepare[OP_FUSED_NORM] = prepare_weighted<NORM_CENTRED>;
    table.prepare[OP_FUSED_RMS_NORM] = prepare_weighted<NORM_ROOT_MEAN_SQUARE>;
    table.fuse[OP_NORM] = fuse<NORM_CENTRED>;
    table.fuse[OP_RMS_NORM] = fuse<NORM_ROOT_MEAN_SQUARE>;
}

void list_kernels(void* context, KernelSink sink) {
    sink(context, {"norm", "norm<false>"});
    sink(context, {"norm", "norm<true>"});
    sink(context, {"norm", "group_norm"});
}

}  // namespace

const Family NORM = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
