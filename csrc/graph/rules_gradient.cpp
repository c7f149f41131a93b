// Rules of the gradients that stand among the ops of inference graphs' clients. Losses and optimisers have no rule and
// so are refused, as are the gradients of convolutions and of fused attention.
#include "graph/rules.h"

namespace ggr {

namespace {

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

constexpr Rule RULES[] = {
    {OP_SILU_BACK, silu_back},
    {OP_RMS_NORM_BACK, rms_norm_back},
    {OP_SOFT_MAX_BACK, soft_max_back},
    {OP_REPEAT_BACK, repeat_back},
};

}  // namespace

RuleFamily gradient_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
