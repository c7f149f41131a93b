// Rules of ops that work along whole rows: norms, sums, sorting.
#include "graph/rules.h"

namespace ggr {

namespace {

bool norm(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(rows_contiguous(node), "rows of the result must be contiguous");
    // NORM and L2_NORM take permuted sources.
    REQUIRE(node.op != OP_RMS_NORM || rows_contiguous(x), "rows of the source must be contiguous");
    REQUIRE(param_epsilon(node, 0), "parameter 0 (eps) must be finite and not negative");
    return true;
}

bool group_norm(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(param_epsilon(node, 1), "parameter 1 (eps) must be finite and not negative");
    // Channels go to groups in equal shares, rounded up; the last group takes what is left.
    const int64_t groups = node.params[0], channels = x.ne[2];
    REQUIRE(groups > 0 && (channels == 0 || groups <= channels), "parameter 0 (groups) must be 1 to the channels");
    const int64_t share = (channels + groups - 1) / groups;
    REQUIRE(channels == 0 || (groups - 1) * share < channels, "each group must have a channel");
    return true;
}

bool sum(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_float(x) && node.type == x.type, "source and result must have one type: F32, F16 or BF16");
    REQUIRE(is_scalar(node), "the result must have one element");
    REQUIRE(rows_contiguous(x), "rows of the source must be contiguous");
    return true;
}

// SUM_ROWS and MEAN.
bool sum_rows(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(is_shape(node, 1, x.ne[1], x.ne[2], x.ne[3]), "the result must have one element for each row");
    REQUIRE(rows_contiguous(x), "rows of the source must be contiguous");
    return true;
}

bool cumsum(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool argmax(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_i32(node), "the source must be F32, the result I32");
    REQUIRE(is_matrix(x), "the source must have two dimensions");
    REQUIRE(x.ne[0] <= INT32_MAX, "positions must fit in I32");
    REQUIRE(is_shape(node, x.ne[1], 1, 1, 1), "the result must have one element for each row");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool count_equal(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    REQUIRE(is_i32(a) && is_i32(b), "both sources must be I32");
    REQUIRE(same_shape(a, b), "both sources must have one shape");
    REQUIRE(node.type == TYPE_I64 && is_scalar(node), "the result must be one I64");
    return true;
}

bool sorting(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_i32(node), "the source must be F32, the result I32");
    REQUIRE(x.ne[0] <= INT32_MAX, "positions must fit in I32");
    REQUIRE(node.ne[1] == x.ne[1] && node.ne[2] == x.ne[2] && node.ne[3] == x.ne[3],
            "the result must have a row for each row of the source");
    // Sources may be permuted: kernels read the keys of a row by their stride.
    REQUIRE(rows_contiguous(node), "rows of the result must be contiguous");
    if (node.op == OP_ARGSORT) {
        REQUIRE(node.ne[0] == x.ne[0], "the result must have the shape of the source");
        REQUIRE(is_flag(node.params[0]), "parameter 0 (order) must be 0 (ascending) or 1 (descending)");
    } else if (node.op == OP_ARGSORT_THRESH) {
        REQUIRE(node.ne[0] == x.ne[0], "the result must have the shape of the source");
        REQUIRE(node.params[0] >= 0, "parameter 0 (min_entries) must not be negative");
        REQUIRE(param_finite(node, 1), "parameter 1 (threshold) must be finite");
    } else {
        REQUIRE(node.ne[0] <= x.ne[0], "no more elements can be asked for than a row has");
    }
    return true;
}

constexpr Rule RULES[] = {
    {OP_NORM, norm},
    {OP_RMS_NORM, norm},
    {OP_L2_NORM, norm},
    {OP_GROUP_NORM, group_norm},
    {OP_SUM, sum},
    {OP_SUM_ROWS, sum_rows},
    {OP_MEAN, sum_rows},
    {OP_CUMSUM, cumsum},
    {OP_ARGMAX, argmax},
    {OP_COUNT_EQUAL, count_equal},
    {OP_ARGSORT, sorting},
    {OP_TOP_K, sorting},
    {OP_ARGSORT_THRESH, sorting},
};

}  // namespace

RuleFamily reduction_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
