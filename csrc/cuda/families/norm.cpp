// NORM, RMS_NORM, L2_NORM, GROUP_NORM, FUSED_NORM, FUSED_RMS_NORM, and the chains NORM or RMS_NORM -> MUL (-> ADD).
#include "cuda/kernels/norm.h"

#include "cuda/families/families.h"
#include "cuda/families/operands.h"
#include "graph/norm_chain.h"

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
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32 || node.ne[3] > 65535 || node.ne[2] >= MAX_COUNT)
        return false;
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

bool may_skip(const void* builder, const Tensor& node) {
    return static_cast<const PlanBuilder*>(builder)->can_elide(node, 1);
}

template <NormKind KIND>
uint32_t fuse(PlanBuilder& builder, uint32_t i) {
    const NormChain chain = norm_chain(builder.graph(), i, may_skip, &builder);
    if (chain.nodes == 0) return 0;
    const Tensor& last = *chain.last;
    const float eps = param_f32(*chain.norm, 0);
    return add_launch(builder, last, last, *chain.norm->src[0], chain.factor, chain.addend, KIND, eps) ? chain.nodes
                                                                                                       : 0;
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
