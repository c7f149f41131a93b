// ADD, SUB, MUL, DIV, ADD1, ADD_ID.
#include "cuda/families/families.h"
#include "cuda/families/operands.h"

namespace ggr {
namespace cuda {

namespace {

// Relies on: a and dst of one shape, b repeatable to it (for ADD1 a single element).
template <BinaryOp OP>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    if (!is_float(a.type) || !is_float(b.type) || !is_float(node.type)) return false;
    BinaryArgs args = {};
    const bool flat = is_contiguous(a) && is_contiguous(b) && is_contiguous(node) && same_shape(a, b);
    args.dst = flat ? flat_operand_of(node) : operand_of(node);
    args.a = flat ? flat_operand_of(a) : operand_of(a);
    args.b = flat ? flat_operand_of(b) : operand_of(b);
    if (!cut_of(args.dst.t, &args.cut)) return false;
    for (int i = 0; i < MAX_DIMS; ++i) args.b_ne[i] = divisor_of_size(args.b.t.ne[i]);
    args.op = OP;
    builder.launch(node, blocks_of(args.cut), threads_of(args.cut), 0, args, "elementwise", "binary");
    return true;
}

// Relies on: a and dst [n, n_used, n_tokens, 1], b [n, n_expert], ids [n_used, n_tokens] of I32.
bool prepare_add_id(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1], &ids = *node.src[2];
    if (!is_float(a.type) || !is_float(b.type) || !is_float(node.type) || ids.type != TYPE_I32) return false;
    AddIdArgs args = {};
    args.dst = operand_of(node);
    args.a = operand_of(a);
    args.b = operand_of(b);
    args.ids = view_of(ids);
    args.site = builder.fault_site(node, 2);
    if (!cut_of(args.dst.t, &args.cut)) return false;
    builder.launch(node, blocks_of(args.cut), threads_of(args.cut), 0, args, "elementwise", "add_id");
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_ADD] = prepare<BINARY_ADD>;
    table.prepare[OP_ADD1] = prepare<BINARY_ADD>;
    table.prepare[OP_SUB] = prepare<BINARY_SUB>;
    table.prepare[OP_MUL] = prepare<BINARY_MUL>;
    table.prepare[OP_DIV] = prepare<BINARY_DIV>;
    table.prepare[OP_ADD_ID] = prepare_add_id;
}

void list_kernels(void* context, KernelSink sink) {
    sink(context, {"elementwise", "binary"});
    sink(context, {"elementwise", "add_id"});
}

}  // namespace

const Family ELEMENTWISE = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
