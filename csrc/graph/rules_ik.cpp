// Rules of ops that only ik_llama.cpp has.
#include "graph/rules.h"

namespace ggr {

namespace {

// ---- Norms ----

bool weight_fits(const Tensor& node, const Tensor& weight, Error* err) {
    REQUIRE(is_f32(weight) && is_vector(weight) && weight.ne[0] == node.ne[0] && rows_contiguous(weight),
            "a weight must be one contiguous row of F32 as long as those of the result");
    return true;
}

// FUSED_RMS_NORM and FUSED_NORM.
bool fused_norm(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source 0 and the result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of source 0");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(param_epsilon(node, 0), "parameter 0 (eps) must be finite and not negative");
    return node.src[1] == nullptr || weight_fits(node, *node.src[1], err);
}

bool fused_rms_rms_add(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[2];
    REQUIRE(is_float(a) && b.type == a.type, "sources 0 and 2 must have one type: F32, F16 or BF16");
    REQUIRE(is_f32(node), "the result must be F32");
    REQUIRE(same_shape(a, node) && same_shape(b, node), "the result must have the shape of sources 0 and 2");
    REQUIRE(rows_contiguous(a) && rows_contiguous(b) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(param_epsilon(node, 0), "parameter 0 (eps) must be finite and not negative");
    return weight_fits(node, *node.src[1], err) && weight_fits(node, *node.src[3], err);
}

// ---- Element by element ----

bool limit_fits(const Tensor& node, Error* err) {
    REQUIRE(!__builtin_isnan(param_f32(node, 1)), "parameter 1 (limit) must be a number");
    return true;
}

bool fused_mul_unary(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    REQUIRE(is_f32(a) && is_f32(b) && is_f32(node), "sources and result must be F32");
    REQUIRE(same_shape(b, node), "the result must have the shape of source 1");
    REQUIRE(rows_contiguous(a) && rows_contiguous(b) && rows_contiguous(node), "rows must be contiguous");
    const int32_t kind = node.params[0];
    if (same_shape(a, b)) {
        REQUIRE(kind == UNARY_GELU || kind == UNARY_RELU || kind == UNARY_SILU,
                "parameter 0 (kind) must be GELU, RELU or SILU");
    } else {
        REQUIRE(is_shape(a, 1, b.ne[1], b.ne[2], b.ne[3]),
                "source 0 must have the shape of source 1, or one element for each of its rows");
        REQUIRE(kind == UNARY_SILU || kind == UNARY_SIGMOID,
                "parameter 0 (kind) of a row's gate must be SILU or SIGMOID");
    }
    return limit_fits(node, err);
}

bool softcap(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(param_finite(node, 0) && param_finite(node, 1), "parameters 0 and 1 (factors) must be finite");
    return true;
}

bool soft_cap_max(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], *mask = node.src[1];
    REQUIRE(is_f32(x) && is_f32(node), "source 0 and the result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of source 0");
    REQUIRE(is_contiguous(x) && is_contiguous(node), "source 0 and the result must be contiguous");
    REQUIRE(param_finite(node, 0) && param_finite(node, 2) && param_finite(node, 3),
            "parameters 0, 2 and 3 (factors) must be finite");
    REQUIRE(param_epsilon(node, 1), "parameter 1 (max_bias) must be finite and not negative");
    REQUIRE(mask != nullptr || param_f32(node, 1) == 0, "a bias by position must come with a mask");
    if (mask == nullptr) return true;
    REQUIRE(is_f32_or_f16(*mask), "the mask must be F16 or F32");
    REQUIRE(rows_contiguous(*mask) && is_matrix(*mask), "the mask must have two dimensions and contiguous rows");
    REQUIRE(mask->ne[0] == x.ne[0], "rows of the mask must have the length of the scores");
    REQUIRE(mask->ne[1] >= x.ne[1], "the mask must have a row for each token");
    return true;
}

bool hadamard(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_float_or_quantized(x), "the source must have one of the types that hold floats");
    REQUIRE(is_f32(node), "the result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    const int32_t n = node.params[0];
    REQUIRE(n > 1 && (n & (n - 1)) == 0 && x.ne[0] % n == 0,
            "parameter 0 (n) must be a power of two above 1 that divides the rows");
    return true;
}

// ---- Sums ----

bool mul_multi_add(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &weights = *node.src[1], *scale = node.src[2], *ids = node.src[3];
    REQUIRE(is_f32(x) && is_f32(weights) && is_f32(node), "sources 0 and 1 and the result must be F32");
    REQUIRE(x.ne[3] == 1, "source 0 must have three dimensions");
    REQUIRE(is_shape(weights, 1, x.ne[1], x.ne[2], 1), "source 1 must have a weight for each row of source 0");
    REQUIRE(is_shape(node, x.ne[0], x.ne[2], 1, 1), "the result must have a row for each matrix of source 0");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE((scale == nullptr) == (ids == nullptr), "sources 2 (scale) and 3 (ids) must come together");
    if (scale == nullptr) return true;
    REQUIRE(is_f32(*scale) && is_vector(*scale), "source 2 (scale) must be a vector of F32");
    REQUIRE(scale->ne[0] <= INT32_MAX, "ids must fit in I32");
    REQUIRE(is_i32(*ids) && is_shape(*ids, x.ne[1], x.ne[2], 1, 1),
            "source 3 (ids) must have an I32 for each row of source 0");
    return true;
}

// The rows that are added follow each other in the tensor that source 0 is a view of: they reach past its own end.
bool multi_add(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int64_t n = node.params[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(is_matrix(x) && same_shape(x, node), "the result must have the two dimensions of the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(n > 0, "parameter 0 (n) must be positive");
    REQUIRE(work_fits(n_elements(node), n), "the sums must not take more than 2^50 operations");
    if (is_empty(node)) return true;
    const Tensor& base = x.view_src != nullptr ? *x.view_src : x;
    // A program's tensors may have no places yet: then the view says where it begins.
    const bool placed = base.data != nullptr && x.data != nullptr;
    const int64_t unplaced_room =
        x.data != nullptr ? 0 : extent_bytes(base) - (&base != &x ? static_cast<int64_t>(x.view_offs) : 0);
    const int64_t room = placed ? extent_bytes(base) - (x.data - base.data) : unplaced_room;
    REQUIRE((x.ne[1] - 1) * x.nb[1] + n * x.ne[0] * 4 <= room, "all rows must lie in the tensor that the source views");
    return true;
}

bool sum_dim(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int32_t dim = node.params[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(dim > 0 && dim < MAX_DIMS, "parameter 0 (dim) must be 1 to 3");
    for (int i = 0; i < MAX_DIMS; ++i)
        REQUIRE(node.ne[i] == (i == dim ? 1 : x.ne[i]),
                "the result must have the shape of the source, with one element along the summed dimension");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

// ---- Products with gates ----

bool gate_fits(const Tensor& node, Error* err) {
    const int32_t kind = node.params[0];
    REQUIRE(kind == UNARY_GELU || kind == UNARY_RELU || kind == UNARY_SILU || kind == UNARY_SWIGLU_OAI,
            "parameter 0 (kind) must be GELU, RELU, SILU or SWIGLU_OAI");
    return limit_fits(node, err);
}

bool matrices_fit(const Tensor& node, const Tensor& up, const Tensor* gate, Error* err) {
    REQUIRE(is_weights(up), "source 0 (up) must hold floats in rows without gaps, interleaved rows in whole groups");
    if (gate == nullptr) return true;
    REQUIRE(gate->type == up.type && same_shape(*gate, up), "sources 0 and 1 (up, gate) must have one type and shape");
    REQUIRE(is_weights(*gate), "rows of source 1 (gate) must be without gaps, interleaved rows in whole groups");
    return true;
}

bool fused_up_gate(const Tensor& node, Error* err) {
    const Tensor &up = *node.src[0], &x = *node.src[2];
    if (!matrices_fit(node, up, node.src[1], err)) return false;
    REQUIRE(is_f32(x) && is_f32(node), "source 2 and the result must be F32");
    REQUIRE(is_matrix(up) && is_matrix(x), "all sources must have two dimensions");
    REQUIRE(up.ne[0] == x.ne[0], "rows of all sources must have the same length");
    REQUIRE(is_shape(node, up.ne[1], x.ne[1], 1, 1),
            "the result must have a column for each row of source 0 and a row for each row of source 2");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(work_fits(n_elements(node), up.ne[0], 2), "the products must not take more than 2^50 operations");
    return gate_fits(node, err);
}

bool bias_fits(const Tensor& node, const Tensor& bias, const Tensor& experts, Error* err) {
    REQUIRE(is_f32(bias) && rows_contiguous(bias), "a bias must be F32 with contiguous rows");
    REQUIRE(is_shape(bias, experts.ne[1], experts.ne[2], 1, 1),
            "a bias must have an element for each row of each expert");
    return true;
}

bool moe_fused_up_gate(const Tensor& node, Error* err) {
    const Tensor &up = *node.src[0], *gate = node.src[1], &x = *node.src[2], &ids = *node.src[3];
    const Tensor *up_bias = node.src[4], *gate_bias = node.src[5];
    if (!matrices_fit(node, up, gate, err)) return false;
    const bool merged = gate == nullptr;
    REQUIRE(is_f32(x) && is_f32(node), "source 2 and the result must be F32");
    REQUIRE(is_i32(ids) && is_matrix(ids), "source 3 (ids) must be I32 and have two dimensions");
    REQUIRE(up.ne[3] == 1 && x.ne[3] == 1, "sources 0 and 2 must have three dimensions");
    REQUIRE(up.ne[0] == x.ne[0], "rows of sources 0 and 2 must have the same length");
    REQUIRE(ids.ne[1] == x.ne[2], "source 3 must have a list of ids for each token of source 2");
    REQUIRE(divides(x.ne[1], ids.ne[0]), "rows of source 2 must repeat evenly over the ids of a token");
    REQUIRE(!merged || up.ne[1] % (2 * type_traits(up.type)->row_group) == 0,
            "matrices that hold gate and up must have an even number of rows, or of groups of interleaved rows");
    REQUIRE(is_shape(node, merged ? up.ne[1] / 2 : up.ne[1], ids.ne[0], x.ne[2], 1),
            "the result must have a row for each id, with a column for each row of gate and up");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(up.ne[2] <= INT32_MAX, "ids must fit in I32");
    REQUIRE(!merged || gate_bias == nullptr, "gates without a tensor of their own must not have a bias of their own");
    if (up_bias != nullptr && !bias_fits(node, *up_bias, up, err)) return false;
    if (gate_bias != nullptr && !bias_fits(node, *gate_bias, up, err)) return false;
    REQUIRE(work_fits(n_elements(node), up.ne[0], 2), "the products must not take more than 2^50 operations");
    return gate_fits(node, err);
}

// ---- Choice of experts ----

bool grouped_topk(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x), "the source must be F32");
    REQUIRE(is_i32(node), "the result must be I32");
    REQUIRE(x.ne[0] <= INT32_MAX, "positions must fit in I32");
    REQUIRE(is_shape(node, node.ne[0], x.ne[1], x.ne[2], x.ne[3]) && node.ne[0] <= x.ne[0],
            "the result must have a row for each row of the source, not longer than it");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    const int32_t groups = node.params[0], top = node.params[1], n_best = node.params[2];
    REQUIRE(groups > 0 && x.ne[0] % groups == 0, "parameter 0 (groups) must divide the rows of the source");
    REQUIRE(top > 0 && top <= groups, "parameter 1 (top groups) must be 1 to the groups");
    REQUIRE(n_best > 0 && n_best <= x.ne[0] / groups, "parameter 2 (n) must be 1 to the size of a group");
    // Each entry that is taken costs a pass over the row, or over its group.
    REQUIRE(work_fits(n_elements(x), node.ne[0] + n_best + 1) && work_fits(n_rows(x), groups, top),
            "the choice must not take more than 2^50 operations");
    return true;
}

constexpr Rule RULES[] = {
    {OP_FUSED_RMS_NORM, fused_norm},
    {OP_FUSED_NORM, fused_norm},
    {OP_FUSED_RMS_RMS_ADD, fused_rms_rms_add},
    {OP_FUSED_MUL_UNARY, fused_mul_unary},
    {OP_SOFTCAP, softcap},
    {OP_SOFT_CAP_MAX, soft_cap_max},
    {OP_HADAMARD, hadamard},
    {OP_MUL_MULTI_ADD, mul_multi_add},
    {OP_MULTI_ADD, multi_add},
    {OP_SUM_DIM, sum_dim},
    {OP_FUSED_UP_GATE, fused_up_gate},
    {OP_MOE_FUSED_UP_GATE, moe_fused_up_gate},
    {OP_GROUPED_TOPK, grouped_topk},
};

}  // namespace

RuleFamily ik_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
