// FUSED_UP_GATE, MOE_FUSED_UP_GATE, FUSED_MUL_UNARY of ik_llama.cpp. One column, or few pairs of token and expert: both
// products and the gate are one launch. More: up's product goes to the result, the gate's to scratch, then they meet.
#include "cuda/families/families.h"
#include "cuda/families/gates.h"
#include "cuda/families/operands.h"
#include "cuda/families/types.h"
#include "cuda/kernels/unary.h"

namespace ggr {
namespace cuda {

namespace {

static_assert(int{GLU_COUNT_} <= int{GATE_SIGMOID}, "kinds of GLU and other gates have different numbers");

// A limit up to this is none.
constexpr float LEAST_LIMIT = 1e-6f;

// Kind, alpha and limit of a gate by its activation; Args: GatedArgs or GluArgs. False if it is none.
template <class Args>
bool set_gate(int32_t unary, float limit, Args* args) {
    if (unary == UNARY_RELU)
        args->kind = GLU_REGLU;
    else if (unary == UNARY_GELU)
        args->kind = GLU_GEGLU;
    else if (unary == UNARY_SILU)
        args->kind = GLU_SWIGLU;
    else if (unary == UNARY_SIGMOID)
        args->kind = GATE_SIGMOID;
    else if (unary == UNARY_SWIGLU_OAI)
        args->kind = GLU_SWIGLU_OAI;
    else
        return false;
    const bool bounded = limit > LEAST_LIMIT;
    args->alpha = OAI_ALPHA;
    args->limit = bounded ? limit : OAI_LIMIT;
    if (bounded) args->kind += GATE_BOUNDED;
    return true;
}

// ---- Products ----

bool same_strides(const Tensor& a, const Tensor& b) {
    return a.nb[1] == b.nb[1] && a.nb[2] == b.nb[2] && a.nb[3] == b.nb[3];
}

// The product of `w` with the node's activations, as a node of its own that gives what the node gives.
Tensor product_of(const Tensor& node, const Tensor& w, const Tensor& x, const Tensor* ids) {
    Tensor t = node;
    t.op = ids != nullptr ? OP_MUL_MAT_ID : OP_MUL_MAT;
    t.n_src = ids != nullptr ? 3 : 2;
    for (int i = 0; i < MAX_SRC; ++i) t.src[i] = nullptr;
    t.src[0] = &w;
    t.src[1] = &x;
    t.src[2] = ids;
    return t;
}

// gate and up are products of the node's shape, at the node's place. The biases are in `gated`.
bool add_gated(PlanBuilder& builder, const Tensor& node, Tensor& gate, const Tensor& up, const GatedArgs& gated) {
    const Tensor& w = *gate.src[0];
    if (node.type != TYPE_F32 || gate.src[1]->type != TYPE_F32) return false;
    const bool one_launch = same_strides(w, *up.src[0]) && readable(*up.src[0]) && readable(w) && readable(node) &&
                            readable(*gate.src[1]) && w.ne[1] <= (1 << 30) && w.ne[0] <= (1 << 30);
    if (one_launch && add_gated_vector(builder, node, gate, *up.src[0], gated)) return true;
    for (int i = 1; i < MAX_DIMS; ++i) gate.nb[i] = gate.nb[i - 1] * gate.ne[i - 1];
    gate.data = builder.scratch(static_cast<uint64_t>(gate.nb[3] * gate.ne[3]));
    // Up last: where the result lies on the activations, they are converted by then.
    if (!add_product(builder, gate) || !add_product(builder, up)) return false;
    GluExpertsArgs args = {};
    args.glu.dst = args.glu.up = operand_of(node);
    args.glu.gate = operand_of(gate);
    if (!cut_of(args.glu.dst.t, &args.glu.cut)) return false;
    args.glu.kind = gated.kind;
    args.glu.alpha = gated.alpha;
    args.glu.limit = gated.limit;
    if (gated.gate_bias == nullptr && gated.up_bias == nullptr) {
        builder.launch(node, blocks_of(args.glu.cut), threads_of(args.glu.cut), 0, args.glu, "glu", "glu");
        return true;
    }
    args.ids = view_of(*gate.src[2]);
    args.experts = static_cast<int32_t>(w.ne[2]);
    args.gate_bias = gated.gate_bias;
    args.up_bias = gated.up_bias;
    args.gate_bias_nb = gated.gate_bias_nb;
    args.up_bias_nb = gated.up_bias_nb;
    builder.launch(node, blocks_of(args.glu.cut), threads_of(args.glu.cut), 0, args, "glu", "glu_experts");
    return true;
}

// Relies on: up and gate of one type [k, m], x f32 [k, n], node [m, n], packed rows.
bool prepare_dense(PlanBuilder& builder, const Tensor& node) {
    GatedArgs gated = {};
    if (!set_gate(node.params[0], param_f32(node, 1), &gated)) return false;
    Tensor gate = product_of(node, *node.src[1], *node.src[2], nullptr);
    return add_gated(builder, node, gate, product_of(node, *node.src[0], *node.src[2], nullptr), gated);
}

// Relies on: up [k, m, experts] (2 m rows, the gate's first, if there is no gate, which else is like up), x f32 [k, 1
// or a divisor of slots, tokens], ids I32 [slots, tokens], biases f32 [m or 2 m, experts], node [m, slots, tokens].
bool prepare_experts(PlanBuilder& builder, const Tensor& node) {
    GatedArgs gated = {};
    if (!set_gate(node.params[0], param_f32(node, 1), &gated)) return false;
    const Tensor &x = *node.src[2], *ids = node.src[3], *up_bias = node.src[4], *gate_bias = node.src[5];
    for (const Tensor* bias : {up_bias, gate_bias})
        if (bias != nullptr && (bias->type != TYPE_F32 || !readable(*bias))) return false;
    Tensor up_w = *node.src[0], gate_w = node.src[1] != nullptr ? *node.src[1] : up_w;
    if (gate_bias != nullptr) {
        gated.gate_bias = gate_bias->data;
        gated.gate_bias_nb = gate_bias->nb[1];
    }
    if (up_bias != nullptr) {
        gated.up_bias = up_bias->data;
        gated.up_bias_nb = up_bias->nb[1];
    }
    if (node.src[1] == nullptr) {
        up_w.ne[1] = gate_w.ne[1] = node.ne[0];
        up_w.data += node.ne[0] * up_w.nb[1];
        if (up_bias != nullptr) {
            gated.gate_bias = up_bias->data;
            gated.gate_bias_nb = gated.up_bias_nb;
            gated.up_bias = up_bias->data + node.ne[0] * 4;
        }
    }
    Tensor gate = product_of(node, gate_w, x, ids);
    return add_gated(builder, node, gate, product_of(node, up_w, x, ids), gated);
}

// ---- Element by element ----

// Relies on: f32; b and node of one shape, a of that shape or with rows of one element; packed rows.
bool prepare_mul_unary(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    if (a.type != TYPE_F32 || b.type != TYPE_F32 || node.type != TYPE_F32) return false;
    const bool by_row = !same_shape(a, b);
    GluArgs args = {};
    // Of gates of whole rows all know a limit, of others SILU alone.
    const float limit = by_row || node.params[0] == UNARY_SILU ? param_f32(node, 1) : 0.0f;
    if (!set_gate(node.params[0], limit, &args)) return false;
    const bool flat = !by_row && is_contiguous(a) && is_contiguous(b) && is_contiguous(node);
    args.dst = flat ? flat_operand_of(node) : operand_of(node);
    args.gate = flat ? flat_operand_of(a) : operand_of(a);
    args.up = flat ? flat_operand_of(b) : operand_of(b);
    if (by_row) {  // the same element again and again
        args.gate.t.nb[0] = 0;
        args.gate.packed = 0;
    }
    if (!cut_of(args.dst.t, &args.cut)) return false;
    builder.launch(node, blocks_of(args.cut), threads_of(args.cut), 0, args, "glu", "glu");
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_FUSED_UP_GATE] = prepare_dense;
    table.prepare[OP_MOE_FUSED_UP_GATE] = prepare_experts;
    table.prepare[OP_FUSED_MUL_UNARY] = prepare_mul_unary;
}

void list_kernels(void* context, KernelSink sink) { sink(context, {"glu", "glu_experts"}); }

}  // namespace

const Family GATED = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
