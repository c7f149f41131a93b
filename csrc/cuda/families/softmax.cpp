// SOFT_MAX, SOFT_CAP_MAX.
#include "cuda/kernels/softmax.h"

#include "cuda/families/families.h"
#include "cuda/families/operands.h"

namespace ggr {
namespace cuda {

namespace {

// Rows up to this length are a warp's.
constexpr int64_t WARP_ROW = 256;

// Relies on: a and dst f32 of one shape; the mask has a's row length, at least its ne[1] rows, and ne[2], ne[3] that
// divide a's; sinks (of SOFT_MAX alone) hold ne[2] values.
template <bool CAPPED>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], *mask = node.src[1], *sinks = CAPPED ? nullptr : node.src[2];
    if (!packed_f32(node) || !packed_f32(a) || (sinks != nullptr && sinks->type != TYPE_F32)) return false;
    if (mask != nullptr && ((mask->type != TYPE_F32 && mask->type != TYPE_F16) || !rows_contiguous(*mask)))
        return false;
    if (n_rows(node) >= MAX_COUNT) return false;
    SoftmaxArgs args = {};
    args.dst = view_of(node);
    args.a = view_of(a);
    args.ne1 = divisor_of_size(node.ne[1]);
    args.ne2 = divisor_of_size(node.ne[2]);
    args.mask_ne2 = divisor_of_size(mask != nullptr ? mask->ne[2] : 1);
    args.mask_ne3 = divisor_of_size(mask != nullptr ? mask->ne[3] : 1);
    if (mask != nullptr) {
        args.mask = view_of(*mask);
        args.mask_type = mask->type == TYPE_F16 ? MASK_F16 : MASK_F32;
    }
    if (sinks != nullptr) args.sinks = view_of(*sinks);
    args.rows = static_cast<uint32_t>(n_rows(node));
    args.capped = CAPPED;
    args.scale = param_f32(node, 0);
    args.max_bias = param_f32(node, 1);
    args.before = CAPPED ? param_f32(node, 2) : 0.0f;
    args.after = CAPPED ? param_f32(node, 3) : 0.0f;
    if (node.ne[0] <= WARP_ROW) {
        const uint32_t warps = args.rows < 512 ? 1 : 4;
        builder.launch(node, {(args.rows + warps - 1) / warps, 1, 1}, static_cast<int>(warps) * WARP, 0, args,
                       "softmax", "softmax<%s>", "false");
    } else {
        int threads = 128;
        while (threads < 1024 && threads * 8 < node.ne[0]) threads *= 2;
        builder.launch(node, {args.rows, 1, 1}, threads, 0, args, "softmax", "softmax<%s>", "true");
    }
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_SOFT_MAX] = prepare<false>;
    table.prepare[OP_SOFT_CAP_MAX] = prepare<true>;
}

void list_kernels(void* context, KernelSink sink) {
    sink(context, {"softmax", "softmax<false>"});
    sink(context, {"softmax", "softmax<true>"});
}

}  // namespace

const Family SOFTMAX = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
