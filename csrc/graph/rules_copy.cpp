// Rules of ops that copy elements: between types and layouts, repeated, joined, into a region.
#include "graph/rules.h"

namespace ggr {

namespace {

bool is_plain_copy_type(int32_t type) {
    return type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16 || type == TYPE_I32;
}

// Which types a copy converts between; the same type goes always.
bool converts(int32_t from, int32_t to) {
    if (from == to) return true;
    if (is_quantized(from)) return to == TYPE_F32;
    if (from == TYPE_I32 || to == TYPE_I32) return from == TYPE_F32 || to == TYPE_F32;
    return is_plain_copy_type(from) && (is_plain_copy_type(to) || is_quantized(to));
}

// Rows with headers go whole.
bool rows_may_differ(const Tensor& x, const Tensor& node) {
    return x.ne[0] == node.ne[0] || (!has_row_header(x) && !has_row_header(node));
}

bool dup(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(rows_may_differ(x, node), "rows with a header must have the length of the result's");
    REQUIRE(x.type == node.type, "the result must have the type of the source");
    REQUIRE(n_elements(x) == n_elements(node), "the result must have as many elements as the source");
    return true;
}

bool cpy(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &into = *node.src[1];
    REQUIRE(&into == &node || same_place(node, into),
            "the result must be source 1 itself: its place, type, shape and strides");
    REQUIRE(n_elements(x) == n_elements(node), "the result must have as many elements as source 0");
    REQUIRE(rows_may_differ(x, node), "rows with a header must have the length of the other side's");
    REQUIRE(converts(x.type, node.type), "no copy converts between these types");
    REQUIRE(!is_quantized(node.type) || is_quantized(x.type) || x.ne[0] % block_size(node.type) == 0,
            "rows of source 0 must fill whole blocks of the result");
    return true;
}

bool repeat(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_plain_copy_type(x.type) || x.type == TYPE_I16, "the source must be F32, F16, BF16, I32 or I16");
    REQUIRE(x.type == node.type, "the result must have the type of the source");
    REQUIRE(can_repeat(x, node), "the source must repeat evenly into the result");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool concat(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    const int32_t dim = node.params[0];
    REQUIRE(dim >= 0 && dim < MAX_DIMS, "parameter 0 (dim) must be 0 to 3");
    REQUIRE(a.type == b.type && a.type == node.type, "sources and result must have one type");
    for (int i = 0; i < MAX_DIMS; ++i) {
        if (i == dim)
            REQUIRE(node.ne[i] == a.ne[i] + b.ne[i], "the result must hold both sources along the joined dimension");
        else
            REQUIRE(node.ne[i] == a.ne[i] && node.ne[i] == b.ne[i], "other dimensions must be those of both sources");
    }
    return true;
}

enum RegionWord { REGION_OFFSET = 3, REGION_INPLACE = 4 };

// ACC and SET: source 1 goes into a region of the result, which otherwise equals source 0.
bool region(const Tensor& node, Error* err) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    REQUIRE(is_f32(a) || (node.op == OP_SET && is_i32(a)), "the type must be F32, or I32 for SET");
    REQUIRE(b.type == a.type && node.type == a.type, "sources and result must have one type");
    REQUIRE(same_shape(a, node), "the result must have the shape of source 0");
    REQUIRE(is_contiguous(a) && is_contiguous(node), "source 0 and the result must be contiguous");
    REQUIRE(rows_contiguous(b), "rows of source 1 must be contiguous");
    REQUIRE(n_elements(b) <= n_elements(a), "source 1 must not be larger than source 0");
    REQUIRE(is_flag(node.params[REGION_INPLACE]), "parameter 4 (inplace) must be 0 or 1");
    REQUIRE(node.params[REGION_INPLACE] == 0 || same_place(a, node), "an in-place result must lie on source 0");
    const int64_t item = block_bytes(a.type);
    int64_t nb[MAX_DIMS] = {item, 0, 0, 0}, end = 0;
    for (int i = 0; i < REGION_INPLACE; ++i)
        REQUIRE(node.params[i] >= 0 && node.params[i] % item == 0,
                "strides and offset of the region must be multiples of the element size and not negative");
    for (int i = 1; i < MAX_DIMS; ++i) nb[i] = node.params[i - 1];
    if (is_empty(b)) return true;
    end = node.params[REGION_OFFSET] + item;
    for (int i = 0; i < MAX_DIMS; ++i) {
        int64_t span = 0;
        REQUIRE(!__builtin_mul_overflow(b.ne[i] - 1, nb[i], &span) && !__builtin_add_overflow(end, span, &end),
                "the region must lie inside the result");
    }
    REQUIRE(end <= extent_bytes(node), "the region must lie inside the result");
    REQUIRE(elements_distinct(b.ne, nb, item), "the elements of the region must not overlap each other");
    return true;
}

constexpr Rule RULES[] = {
    {OP_DUP, dup},       {OP_CONT, dup},   {OP_CPY, cpy},    {OP_REPEAT, repeat},
    {OP_CONCAT, concat}, {OP_ACC, region}, {OP_SET, region},
};

}  // namespace

RuleFamily copy_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
