// Rules of ops that compute each element of the result from the elements at its place.
#include "graph/rules.h"

namespace ggr {

namespace {

constexpr int GLU_SWAPPED = 1;

bool binary(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    REQUIRE(same_shape(a, node), "the result must have the shape of source 0");
    REQUIRE(can_repeat(b, a), "source 1 must repeat evenly into source 0");
    REQUIRE(rows_contiguous(a) && rows_contiguous(node), "rows of source 0 and of the result must be contiguous");
    if (node.op == OP_ADD && is_quantized(a.type)) {
        REQUIRE(is_f32(b) && same_shape(a, b), "what is added to a quantised tensor must be F32 of its shape");
        REQUIRE(rows_contiguous(b), "rows of source 1 must be contiguous");
        REQUIRE(node.type == a.type || is_f32(node), "the result must be F32 or have the type of source 0");
        return true;
    }
    REQUIRE(is_float(a) && is_float(b) && is_float(node), "sources and result must be F32, F16 or BF16");
    return true;
}

bool add_one(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    REQUIRE(same_shape(a, node) && a.type == node.type, "the result must have the shape and type of source 0");
    REQUIRE(is_scalar(b), "source 1 must have one element");
    REQUIRE(is_float_or_quantized(a), "source 0 must hold floats");
    REQUIRE(is_f32(b) || (b.type == a.type && is_float(a)), "source 1 must be F32 or have the type of source 0");
    REQUIRE(rows_evenly_spaced(a) && rows_contiguous(node), "rows must be contiguous, those of source 0 evenly spaced");
    return true;
}

bool add_id(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1], &ids = *node.src[2];
    REQUIRE(is_f32(a) && is_f32(b) && is_f32(node), "sources 0 and 1 and the result must be F32");
    REQUIRE(is_i32(ids), "source 2 (ids) must be I32");
    REQUIRE(same_shape(a, node), "the result must have the shape of source 0");
    REQUIRE(a.ne[0] == b.ne[0], "rows of sources 0 and 1 must have the same length");
    REQUIRE(is_matrix(b) && is_matrix(ids), "sources 1 and 2 must have two dimensions");
    REQUIRE(a.ne[1] == ids.ne[0] && a.ne[2] == ids.ne[1], "source 2 must hold an id for each row of source 0");
    REQUIRE(rows_contiguous(a) && rows_contiguous(b) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

// SQR, SQRT, LOG, SIN, COS and the kinds of UNARY; the parser has mapped the kind.
bool unary(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(is_float(x), "the source must be F32, F16 or BF16");
    REQUIRE(node.type == x.type || is_f32(node), "the result must be F32 or have the type of the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool same_shape_and_type(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(same_shape(x, node) && x.type == node.type, "the result must have the shape and type of the source");
    return true;
}

bool leaky_relu(const Tensor& node, Error* err) {
    if (!same_shape_and_type(node, err)) return false;
    REQUIRE(is_f32_or_f16(node), "the type must be F32 or F16");
    REQUIRE(rows_evenly_spaced(*node.src[0]) && rows_evenly_spaced(node), "rows must be contiguous and evenly spaced");
    return true;
}

bool scale(const Tensor& node, Error* err) {
    if (!same_shape_and_type(node, err)) return false;
    REQUIRE(is_float(node), "the type must be F32, F16 or BF16");
    REQUIRE(rows_evenly_spaced(*node.src[0]) && rows_evenly_spaced(node), "rows must be contiguous and evenly spaced");
    return true;
}

bool clamp(const Tensor& node, Error* err) {
    if (!same_shape_and_type(node, err)) return false;
    REQUIRE(is_f32_or_f16(node), "the type must be F32 or F16");
    REQUIRE(rows_contiguous(*node.src[0]) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool fill(const Tensor& node, Error* err) {
    if (!same_shape_and_type(node, err)) return false;
    REQUIRE(is_f32_or_f16(node), "the type must be F32 or F16");
    REQUIRE(is_contiguous(*node.src[0]) && is_contiguous(node), "source and result must be contiguous");
    return true;
}

bool glu(const Tensor& node, Error* err) {
    const Tensor& a = *node.src[0];
    REQUIRE(is_float(a) && node.type == a.type, "source and result must have one type: F32, F16 or BF16");
    REQUIRE(rows_evenly_spaced(a) && rows_evenly_spaced(node), "rows must be contiguous and evenly spaced");
    REQUIRE(is_flag(node.params[GLU_SWAPPED]), "parameter 1 (swapped) must be 0 or 1");
    if (const Tensor* b = node.src[1]) {
        REQUIRE(same_shape(a, *b) && a.type == b->type, "both sources must have one shape and type");
        REQUIRE(rows_evenly_spaced(*b), "rows of source 1 must be contiguous and evenly spaced");
        REQUIRE(same_shape(a, node), "the result must have the shape of the sources");
    } else {
        REQUIRE(a.ne[0] % 2 == 0, "rows that hold gate and value must have an even length");
        REQUIRE(is_shape(node, a.ne[0] / 2, a.ne[1], a.ne[2], a.ne[3]), "the result must have half of each source row");
    }
    return true;
}

constexpr Rule RULES[] = {
    {OP_ADD, binary},   {OP_SUB, binary},
    {OP_MUL, binary},   {OP_DIV, binary},
    {OP_ADD1, add_one}, {OP_ADD_ID, add_id},
    {OP_SQR, unary},    {OP_SQRT, unary},
    {OP_LOG, unary},    {OP_SIN, unary},
    {OP_COS, unary},    {OP_UNARY, unary},
    {OP_GLU, glu},      {OP_LEAKY_RELU, leaky_relu},
    {OP_SCALE, scale},  {OP_CLAMP, clamp},
    {OP_FILL, fill},
};

}  // namespace

RuleFamily elementwise_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
