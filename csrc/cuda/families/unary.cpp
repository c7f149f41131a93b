// All kinds of UNARY, SQR, SQRT, LOG, SIN, COS, SCALE, SOFTCAP, CLAMP, LEAKY_RELU; GLU.
#include "cuda/kernels/unary.h"

#include "cuda/families/families.h"
#include "cuda/families/operands.h"

namespace ggr {
namespace cuda {

namespace {

static_assert(int{UNARY_COUNT_} <= int{FUNCTION_SQR}, "kinds of UNARY and other functions have different numbers");

// Relies on: source and result of one shape.
bool add_launch(PlanBuilder& builder, const Tensor& node, int32_t kind, int first_param, int n_params) {
    const Tensor& x = *node.src[0];
    if (!is_float(x.type) || !is_float(node.type)) return false;
    UnaryArgs args = {};
    const bool flat = is_contiguous(x) && is_contiguous(node);
    args.dst = flat ? flat_operand_of(node) : operand_of(node);
    args.x = flat ? flat_operand_of(x) : operand_of(x);
    if (!cut_of(args.dst.t, &args.cut)) return false;
    args.kind = kind;
    for (int i = 0; i < n_params; ++i) args.p[i] = param_f32(node, first_param + i);
    builder.launch(node, blocks_of(args.cut), threads_of(args.cut), 0, args, "unary", "unary");
    return true;
}

template <int32_t KIND, int PARAMS>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    return add_launch(builder, node, KIND, 0, PARAMS);
}

// Scaling by 0 is how clients reset a state that may hold anything, NaN too.
bool prepare_scale(PlanBuilder& builder, const Tensor& node) {
    const bool reset = param_f32(node, 0) == 0.0f && param_f32(node, 1) == 0.0f;
    return add_launch(builder, node, reset ? FUNCTION_ZERO : FUNCTION_SCALE, 0, 2);
}

bool prepare_unary(PlanBuilder& builder, const Tensor& node) {
    const int32_t kind = node.params[0];
    const bool known = (kind >= UNARY_ABS && kind <= UNARY_TRUNC) || kind == UNARY_SQRT_SOFTPLUS;
    return known && add_launch(builder, node, kind, 1, 4);
}

// Relies on: two sources of dst's shape, or one with rows twice as long; `swapped` says that up comes first then.
bool prepare_glu(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], *b = node.src[1];
    const int32_t kind = node.params[0];
    if (kind < 0 || kind >= GLU_COUNT_) return false;
    if (!is_float(a.type) || !is_float(node.type) || (b != nullptr && !is_float(b->type))) return false;
    GluArgs args = {};
    args.kind = kind;
    args.alpha = param_f32(node, 2);
    args.limit = param_f32(node, 3);
    if (b != nullptr) {
        const bool flat = is_contiguous(a) && is_contiguous(*b) && is_contiguous(node);
        args.dst = flat ? flat_operand_of(node) : operand_of(node);
        args.gate = flat ? flat_operand_of(a) : operand_of(a);
        args.up = flat ? flat_operand_of(*b) : operand_of(*b);
    } else {
        const bool swapped = node.params[1] != 0;
        const int64_t size = block_bytes(a.type), half = node.ne[0] * a.nb[0];
        args.dst = operand_of(node);
        args.gate = args.up = operand_of(a);
        (swapped ? args.gate : args.up).t.data += half;
        args.gate.packed = rows_aligned(args.gate.t, size, 4 * size);
        args.up.packed = rows_aligned(args.up.t, size, 4 * size);
    }
    if (!cut_of(args.dst.t, &args.cut)) return false;
    builder.launch(node, blocks_of(args.cut), threads_of(args.cut), 0, args, "glu", "glu");
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_UNARY] = prepare_unary;
    table.prepare[OP_SQR] = prepare<FUNCTION_SQR, 0>;
    table.prepare[OP_SQRT] = prepare<FUNCTION_SQRT, 0>;
    table.prepare[OP_LOG] = prepare<FUNCTION_LOG, 0>;
    table.prepare[OP_SIN] = prepare<FUNCTION_SIN, 0>;
    table.prepare[OP_COS] = prepare<FUNCTION_COS, 0>;
    table.prepare[OP_SCALE] = prepare_scale;
    table.prepare[OP_SOFTCAP] = prepare<FUNCTION_SOFTCAP, 2>;
    table.prepare[OP_CLAMP] = prepare<FUNCTION_CLAMP, 2>;
    table.prepare[OP_LEAKY_RELU] = prepare<FUNCTION_LEAKY_RELU, 1>;
    table.prepare[OP_GLU] = prepare_glu;
}

void list_kernels(void* context, KernelSink sink) {
    sink(context, {"unary", "unary"});
    sink(context, {"glu", "glu"});
}

}  // namespace

const Family UNARY = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
