// Rules of ops that move rows by index. The indices themselves are checked as kernels read them.
#include "graph/rules.h"

namespace ggr {

namespace {

bool get_rows(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &ids = *node.src[1];
    REQUIRE(is_i32(ids), "source 1 (indices) must be I32");
    REQUIRE(is_float_or_quantized(a) || is_i32(a), "source 0 must hold floats or I32");
    // ik_llama.cpp also fetches rows as they are.
    const bool as_is = (node.flags & FLAG_ABSENT_ROWS_ARE_ZERO) != 0 && node.type == a.type;
    REQUIRE(as_is || node.type == (is_i32(a) ? TYPE_I32 : TYPE_F32), "the result must be F32, or I32 if source 0 is");
    REQUIRE(a.ne[2] == ids.ne[1] && a.ne[3] == ids.ne[2] && ids.ne[3] == 1,
            "source 1 must have a list of indices for each matrix of source 0");
    REQUIRE(is_shape(node, a.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]), "the result must have a row for each index");
    REQUIRE(rows_contiguous(a) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool set_rows(const Tensor& node, Error* err) {
    const Tensor &values = *node.src[0], &ids = *node.src[1], &into = *node.src[2];
    REQUIRE(is_f32_or_f16(values), "source 0 (values) must be F32 or F16");
    REQUIRE(is_i32(ids) || ids.type == TYPE_I64, "source 1 (indices) must be I32 or I64");
    REQUIRE(is_float_or_quantized(into), "source 2 must hold floats");
    REQUIRE(same_place(node, into), "the result must be source 2 itself: its place, type, shape and strides");
    REQUIRE(into.ne[0] == values.ne[0] && into.ne[2] == values.ne[2] && into.ne[3] == values.ne[3],
            "source 2 must have rows and matrices like source 0");
    REQUIRE(ids.ne[0] == values.ne[1] && ids.ne[3] == 1, "source 1 must have an index for each row of source 0");
    REQUIRE(divides(ids.ne[1], values.ne[2]) && divides(ids.ne[2], values.ne[3]),
            "lists of indices must repeat evenly over the matrices of source 0");
    REQUIRE(rows_contiguous(values) && rows_contiguous(into), "rows must be contiguous");
    return true;
}

bool get_rows_back(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &ids = *node.src[1];
    REQUIRE(is_f32_or_f16(a) && is_f32(node), "source 0 must be F32 or F16, the result F32");
    REQUIRE(is_i32(ids) && is_vector(ids) && rows_contiguous(ids), "source 1 (indices) must be a vector of I32");
    REQUIRE(is_matrix(a) && is_matrix(node), "source 0 and the result must have two dimensions");
    REQUIRE(a.ne[0] == node.ne[0], "rows of source 0 and of the result must have the same length");
    REQUIRE(a.ne[1] == ids.ne[0], "source 1 must have an index for each row of source 0");
    REQUIRE(rows_contiguous(a) && is_contiguous(node), "rows must be contiguous, the result wholly");
    return true;
}

constexpr Rule RULES[] = {{OP_GET_ROWS, get_rows}, {OP_SET_ROWS, set_rows}, {OP_GET_ROWS_BACK, get_rows_back}};

}  // namespace

RuleFamily rows_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
