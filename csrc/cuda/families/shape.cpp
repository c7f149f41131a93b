// REPEAT, CONCAT, PAD, ARANGE, FILL, DIAG_MASK_INF, DIAG_MASK_ZERO, TRI, DIAG, ACC, SET.
#include "cuda/kernels/shape.h"

#include <cmath>

#include "cuda/families/families.h"
#include "cuda/families/operands.h"

namespace ggr {
namespace cuda {

namespace {

bool start(const View& dst, int64_t element, ArrangeKind kind, ArrangeArgs* args) {
    const int64_t all = dst.ne[0] * dst.ne[1] * dst.ne[2] * dst.ne[3];
    if (all >= MAX_COUNT || (element != 1 && element != 2 && element != 4 && element != 8)) return false;
    *args = {};
    args->dst = dst;
    for (int i = 0; i < 3; ++i) args->ne[i] = divisor_of_size(dst.ne[i]);
    args->total = static_cast<uint32_t>(all);
    args->kind = kind;
    args->size = static_cast<int32_t>(element);
    return true;
}

void add(PlanBuilder& builder, const Tensor& node, const ArrangeArgs& args) {
    const uint32_t threads = args.total <= 16384 ? 64 : 256;
    builder.launch(node, {(args.total + threads - 1) / threads, 1, 1}, static_cast<int>(threads), 0, args, "shape",
                   "arrange");
}

bool is_plain(int32_t type) { return block_size(type) == 1; }
bool both_f32(const Tensor& node) { return node.src[0]->type == TYPE_F32 && node.type == TYPE_F32; }

// Relies on: every dimension of src[0] divides the result's.
bool prepare_repeat(PlanBuilder& builder, const Tensor& node) {
    ArrangeArgs args;
    if (node.src[0]->type != node.type || !is_plain(node.type)) return false;
    if (!start(view_of(node), block_bytes(node.type), ARRANGE_REPEAT, &args)) return false;
    args.a = view_of(*node.src[0]);
    add(builder, node, args);
    return true;
}

// Relies on: parameter 0 in 0 .. 3; shapes equal but for that dimension, in which the result has the sum.
bool prepare_concat(PlanBuilder& builder, const Tensor& node) {
    ArrangeArgs args;
    if (node.src[0]->type != node.type || node.src[1]->type != node.type || !is_plain(node.type)) return false;
    if (!start(view_of(node), block_bytes(node.type), ARRANGE_CONCAT, &args)) return false;
    args.a = view_of(*node.src[0]);
    args.b = view_of(*node.src[1]);
    args.p[0] = node.params[0];
    add(builder, node, args);
    return true;
}

// Relies on: the result's dimensions are the source's plus both paddings, which are not negative.
bool prepare_pad(PlanBuilder& builder, const Tensor& node) {
    ArrangeArgs args;
    if (!both_f32(node) || is_empty(*node.src[0])) return false;
    if (!start(view_of(node), 4, ARRANGE_PAD, &args)) return false;
    args.a = view_of(*node.src[0]);
    for (int i = 0; i < MAX_DIMS; ++i) args.p[i] = node.params[2 * i];
    args.p[4] = node.params[8] != 0;
    add(builder, node, args);
    return true;
}

// Relies on: a result of one dimension. Parameters: start, stop, step.
bool prepare_arange(PlanBuilder& builder, const Tensor& node) {
    ArrangeArgs args;
    if (node.type != TYPE_F32 || !start(view_of(node), 4, ARRANGE_RANGE, &args)) return false;
    args.value = param_f32(node, 0);
    args.delta = param_f32(node, 2);
    add(builder, node, args);
    return true;
}

bool prepare_fill(PlanBuilder& builder, const Tensor& node) {
    ArrangeArgs args;
    if (node.type != TYPE_F32 && node.type != TYPE_F16) return false;
    if (!start(view_of(node), block_bytes(node.type), ARRANGE_FILL, &args)) return false;
    args.value = param_f32(node, 0);
    add(builder, node, args);
    return true;
}

// Relies on: equal shapes. Parameter: n_past.
template <bool ZERO>
bool prepare_diag_mask(PlanBuilder& builder, const Tensor& node) {
    ArrangeArgs args;
    if (!both_f32(node) || node.params[0] < 0 || !start(view_of(node), 4, ARRANGE_DIAG_MASK, &args)) return false;
    args.a = view_of(*node.src[0]);
    args.p[0] = node.params[0];
    args.value = ZERO ? 0.0f : -INFINITY;
    add(builder, node, args);
    return true;
}

// Relies on: x and dst of one square shape, a known kind.
bool prepare_tri(PlanBuilder& builder, const Tensor& node) {
    ArrangeArgs args;
    const int32_t kind = node.params[0];
    if (!both_f32(node) || !start(view_of(node), 4, ARRANGE_TRI, &args)) return false;
    args.a = view_of(*node.src[0]);
    args.p[0] = kind == TRI_LOWER || kind == TRI_LOWER_DIAG;
    args.p[1] = kind == TRI_LOWER_DIAG || kind == TRI_UPPER;
    add(builder, node, args);
    return true;
}

// Relies on: x [n, 1, ...], dst [n, n, ...].
bool prepare_diag(PlanBuilder& builder, const Tensor& node) {
    ArrangeArgs args;
    if (!both_f32(node) || !start(view_of(node), 4, ARRANGE_DIAG, &args)) return false;
    args.a = view_of(*node.src[0]);
    add(builder, node, args);
    return true;
}

// Relies on: src[0] of the result's shape, both contiguous; the region lies in the result and its elements apart (the
// rules). Parameters: byte strides 1 .. 3 and byte offset of the region.
template <bool ADD>
bool prepare_region(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    const bool types =
        a.type == node.type && b.type == node.type && (node.type == TYPE_F32 || (!ADD && node.type == TYPE_I32));
    if (!types || !is_contiguous(node)) return false;
    ArrangeArgs args;
    if (a.data != node.data) {
        if (!start(view_of(node), 4, ARRANGE_MOVE, &args)) return false;
        args.a = view_of(a);
        add(builder, node, args);
    }
    if (is_empty(b)) return true;
    View region = view_of(b);
    region.data = node.data + node.params[3];
    region.nb[0] = 4;
    for (int i = 1; i < MAX_DIMS; ++i) region.nb[i] = node.params[i - 1];
    if (!start(region, 4, ADD ? ARRANGE_ADD : ARRANGE_MOVE, &args)) return false;
    args.a = view_of(b);
    add(builder, node, args);
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_REPEAT] = prepare_repeat;
    table.prepare[OP_CONCAT] = prepare_concat;
    table.prepare[OP_PAD] = prepare_pad;
    table.prepare[OP_ARANGE] = prepare_arange;
    table.prepare[OP_FILL] = prepare_fill;
    table.prepare[OP_DIAG_MASK_INF] = prepare_diag_mask<false>;
    table.prepare[OP_DIAG_MASK_ZERO] = prepare_diag_mask<true>;
    table.prepare[OP_TRI] = prepare_tri;
    table.prepare[OP_DIAG] = prepare_diag;
    table.prepare[OP_ACC] = prepare_region<true>;
    table.prepare[OP_SET] = prepare_region<false>;
}

void list_kernels(void* context, KernelSink sink) { sink(context, {"shape", "arrange"}); }

}  // namespace

const Family SHAPE = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
