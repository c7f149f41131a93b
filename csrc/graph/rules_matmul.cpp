// Rules of matrix products.
#include "graph/rules.h"

namespace ggr {

namespace {

bool mul_mat(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    REQUIRE(is_weights(a), "source 0 must hold floats in rows without gaps, interleaved rows in whole groups");
    REQUIRE(is_float(b), "source 1 must be F32, F16 or BF16");
    REQUIRE(is_f32(node), "the result must be F32");
    REQUIRE(a.ne[0] == b.ne[0], "rows of both sources must have the same length");
    REQUIRE(divides(a.ne[2], b.ne[2]) && divides(a.ne[3], b.ne[3]),
            "matrices of source 0 must repeat evenly over those of source 1");
    REQUIRE(is_shape(node, a.ne[1], b.ne[1], b.ne[2], b.ne[3]),
            "the result must have a column for each row of source 0 and a row for each row of source 1");
    // Activations may be permuted: they are converted row by row before the product.
    REQUIRE(rows_contiguous(node), "rows of the result must be contiguous");
    REQUIRE(work_fits(n_elements(node), a.ne[0]), "the product must not take more than 2^50 operations");
    return true;
}

bool mul_mat_id(const Tensor& node, Error* err) {
    const Tensor &as = *node.src[0], &b = *node.src[1], &ids = *node.src[2];
    REQUIRE(is_weights(as), "source 0 must hold floats in rows without gaps, interleaved rows in whole groups");
    REQUIRE(is_f32(b) && is_f32(node), "source 1 and the result must be F32");
    REQUIRE(is_i32(ids), "source 2 (ids) must be I32");
    REQUIRE(as.ne[3] == 1 && b.ne[3] == 1, "sources 0 and 1 must have three dimensions");
    REQUIRE(is_matrix(ids), "source 2 (ids) must have two dimensions");
    REQUIRE(as.ne[0] == b.ne[0], "rows of sources 0 and 1 must have the same length");
    REQUIRE(ids.ne[1] == b.ne[2], "source 2 must have a list of ids for each token of source 1");
    REQUIRE(divides(b.ne[1], ids.ne[0]), "rows of source 1 must repeat evenly over the ids of a token");
    REQUIRE(is_shape(node, as.ne[1], ids.ne[0], b.ne[2], 1), "the result must have a row for each id");
    REQUIRE(rows_contiguous(b) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(as.ne[2] <= INT32_MAX, "ids must fit in I32");
    REQUIRE(work_fits(n_elements(node), as.ne[0]), "the product must not take more than 2^50 operations");
    return true;
}

bool out_prod(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    REQUIRE(is_f32(a) || a.type == TYPE_F16 || is_quantized(a.type), "source 0 must be F32, F16 or quantised");
    REQUIRE(is_f32(b) && is_f32(node), "source 1 and the result must be F32");
    REQUIRE(a.ne[1] == b.ne[1], "both sources must have as many rows");
    REQUIRE(divides(a.ne[2], b.ne[2]) && divides(a.ne[3], b.ne[3]),
            "matrices of source 0 must repeat evenly over those of source 1");
    REQUIRE(is_f32(a) || (a.ne[2] == b.ne[2] && a.ne[3] == b.ne[3]), "only an F32 source 0 may repeat");
    REQUIRE(is_shape(node, a.ne[0], b.ne[0], b.ne[2], b.ne[3]), "the result must have the rows' lengths as its shape");
    REQUIRE(rows_contiguous(a) && rows_contiguous(node), "rows of source 0 and of the result must be contiguous");
    REQUIRE(work_fits(n_elements(node), a.ne[1]), "the product must not take more than 2^50 operations");
    return true;
}

bool solve_tri(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    REQUIRE(is_f32(a) && is_f32(b) && is_f32(node), "sources and result must be F32");
    REQUIRE(a.ne[0] == a.ne[1], "source 0 must be square");
    REQUIRE(a.ne[1] == b.ne[1] && a.ne[2] == b.ne[2] && a.ne[3] == b.ne[3], "source 1 must fit source 0");
    REQUIRE(same_shape(b, node), "the result must have the shape of source 1");
    REQUIRE(is_contiguous(a) && is_contiguous(b) && is_contiguous(node), "sources and result must be contiguous");
    REQUIRE(work_fits(n_elements(node), a.ne[0]), "the solution must not take more than 2^50 operations");
    return true;
}

constexpr Rule RULES[] = {
    {OP_MUL_MAT, mul_mat}, {OP_MUL_MAT_ID, mul_mat_id}, {OP_OUT_PROD, out_prod}, {OP_SOLVE_TRI, solve_tri}};

}  // namespace

RuleFamily matmul_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
