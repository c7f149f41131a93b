// Rules of gradients, losses and optimisers. Gradients of convolutions and of rows by index stand beside their ops.
#include "graph/rules.h"

namespace ggr {

namespace {

constexpr int64_t MAX_LOSSES = int64_t{1} << 28;

bool silu_back(const Tensor& node, Error* err) {
    const Tensor &grad = *node.src[0], &x = *node.src[1];
    REQUIRE(is_f32_or_f16(x) && grad.type == x.type && node.type == x.type, "all must have one type: F32 or F16");
    REQUIRE(same_shape(grad, x) && same_shape(x, node), "sources and result must have one shape");
    REQUIRE(rows_evenly_spaced(grad) && rows_evenly_spaced(x) && rows_evenly_spaced(node),
            "rows must be contiguous and evenly spaced");
    return true;
}

bool rms_norm_back(const Tensor& node, Error* err) {
    const Tensor &grad = *node.src[0], &x = *node.src[1];
    REQUIRE(is_f32(grad) && is_f32(x) && is_f32(node), "sources and result must be F32");
    REQUIRE(same_shape(grad, x) && same_shape(x, node), "sources and result must have one shape");
    REQUIRE(rows_contiguous(grad) && rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(param_epsilon(node, 0), "parameter 0 (eps) must be finite and not negative");
    return true;
}

bool soft_max_back(const Tensor& node, Error* err) {
    const Tensor &grad = *node.src[0], &y = *node.src[1];
    REQUIRE(is_f32(grad) && is_f32(y) && is_f32(node), "sources and result must be F32");
    REQUIRE(same_shape(grad, y) && same_shape(y, node), "sources and result must have one shape");
    REQUIRE(is_contiguous(grad) && is_contiguous(y) && is_contiguous(node), "sources and result must be contiguous");
    REQUIRE(param_finite(node, 0), "parameter 0 (scale) must be finite");
    REQUIRE(param_f32(node, 1) == 0, "parameter 1 (max_bias) must be 0");
    return true;
}

bool repeat_back(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(can_repeat(node, x), "the result must repeat evenly into the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool cross_entropy_loss(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &labels = *node.src[1];
    REQUIRE(is_f32(x) && is_f32(labels) && is_f32(node), "sources and result must be F32");
    REQUIRE(same_shape(x, labels), "both sources must have one shape");
    REQUIRE(is_scalar(node), "the result must be one element");
    REQUIRE(!is_empty(x), "the sources must not be empty");
    REQUIRE(rows_contiguous(x) && rows_contiguous(labels), "rows must be contiguous");
    // A number a row is kept.
    REQUIRE(n_rows(x) <= MAX_LOSSES, "the sources must not have more than 2^28 rows");
    return true;
}

bool cross_entropy_loss_back(const Tensor& node, Error* err) {
    const Tensor &grad = *node.src[0], &x = *node.src[1], &labels = *node.src[2];
    REQUIRE(is_f32(grad) && is_f32(x) && is_f32(labels) && is_f32(node), "sources and result must be F32");
    REQUIRE(is_scalar(grad), "source 0 must be one element");
    REQUIRE(same_shape(x, labels) && same_shape(x, node), "sources 1 and 2 and the result must have one shape");
    REQUIRE(rows_contiguous(x) && rows_contiguous(labels) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

// Both optimisers change source 0, whose view the result is; AdamW its moments, sources 2 and 3, too.
bool opt_step(const Tensor& node, Error* err) {
    const bool adamw = node.op == OP_OPT_STEP_ADAMW;
    const Tensor& params = *node.src[adamw ? 4 : 2];
    REQUIRE(is_f32(node) && rows_contiguous(node), "the result must be F32, its rows contiguous");
    REQUIRE(same_place(node, *node.src[0]), "the result must be source 0 itself: its place, type, shape and strides");
    for (int i = 1; i < (adamw ? 4 : 2); ++i) {
        const Tensor& t = *node.src[i];
        REQUIRE(is_f32(t) && same_shape(t, node), "gradient and moments must be F32 and have the shape of the weights");
        REQUIRE(rows_contiguous(t), "rows must be contiguous");
    }
    REQUIRE(is_f32(params) && is_contiguous(params) && n_elements(params) == (adamw ? 7 : 2),
            "the parameters must be seven (AdamW) or two (SGD) contiguous F32");
    REQUIRE(!overlap(node, params), "the parameters must not overlap the weights");
    if (!adamw) return true;
    const Tensor &m = *node.src[2], &v = *node.src[3];
    REQUIRE(is_contiguous(m) && is_contiguous(v), "the moments, which are written too, must be contiguous");
    REQUIRE(!overlap(m, node) && !overlap(v, node) && !overlap(m, v) && !overlap(m, params) && !overlap(v, params),
            "weights, moments and parameters must not overlap");
    return true;
}

bool flash_attn_back(const Tensor& node, Error* err) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2], &grad = *node.src[3];
    const int64_t size = q.ne[0], n_kv = k.ne[1], kv_heads = k.ne[2];
    REQUIRE(is_f32(q) && is_f32(k) && is_f32(v) && is_f32(grad) && is_f32(node), "sources and result must be F32");
    REQUIRE(same_shape(grad, q), "the gradient must have the shape of q");
    REQUIRE(is_shape(k, size, n_kv, kv_heads, q.ne[3]), "k must have rows and sequences like q");
    REQUIRE(is_shape(v, n_kv, size, kv_heads, q.ne[3]), "v must have k's shape transposed");
    REQUIRE(divides(kv_heads, q.ne[2]), "heads of k and v must repeat evenly over those of q");
    REQUIRE(n_kv >= q.ne[1], "k must not have fewer rows than q");
    REQUIRE(rows_contiguous(q) && rows_contiguous(k) && rows_contiguous(v), "rows of q, k and v must be contiguous");
    REQUIRE(is_flag(node.params[0]), "parameter 0 (masked) must be 0 or 1");
    // Each of the three begins at a multiple of 16 bytes.
    const auto padded = [](const Tensor& t) { return (n_elements(t) + 3) / 4 * 4; };
    REQUIRE(work_fits(n_elements(q), n_kv) && work_fits(n_elements(k), 1) && work_fits(n_elements(v), 1),
            "the gradients must not take more than 2^50 operations");
    REQUIRE(is_shape(node, padded(q) + padded(k) + padded(v), 1, 1, 1) && rows_contiguous(node),
            "the result must be a vector of all three gradients");
    return true;
}

constexpr Rule RULES[] = {
    {OP_CROSS_ENTROPY_LOSS, cross_entropy_loss},
    {OP_CROSS_ENTROPY_LOSS_BACK, cross_entropy_loss_back},
    {OP_OPT_STEP_ADAMW, opt_step},
    {OP_OPT_STEP_SGD, opt_step},
    {OP_FLASH_ATTN_BACK, flash_attn_back},
    {OP_SILU_BACK, silu_back},
    {OP_RMS_NORM_BACK, rms_norm_back},
    {OP_SOFT_MAX_BACK, soft_max_back},
    {OP_REPEAT_BACK, repeat_back},
};

}  // namespace

RuleFamily gradient_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
