// Helpers for the rules of ops. A rule reads as `REQUIRE(condition, "what must hold")`.
//
// A rule may rely on what the parser has checked before: required sources are present and no others, every tensor that
// the node touches lies inside a live buffer of the device (or is empty), extents and element counts stay below 2^62,
// strides of plain types are multiples of the element size, blocks of a quantised row are adjacent, and the stride of a
// dimension of size 1 is its contiguous value.
//
// A tensor may have zeros among its ne: no rule divides by an ne without asking before (`divides` does).
#pragma once

#include <cstddef>

#include "core/status.h"
#include "core/tensor.h"

namespace ggr {

using RuleFn = bool (*)(const Tensor& node, Error* err);

struct Rule {
    int32_t op;
    RuleFn check;
};

// The rules of one family.
struct RuleFamily {
    const Rule* rules;
    size_t count;
};

RuleFamily elementwise_rules();
RuleFamily reduction_rules();
RuleFamily matmul_rules();
RuleFamily attention_rules();
RuleFamily rows_rules();
RuleFamily copy_rules();
RuleFamily shape_rules();
RuleFamily convolution_rules();
RuleFamily recurrent_rules();
RuleFamily ik_recurrent_rules();
RuleFamily gradient_rules();
RuleFamily ik_rules();
RuleFamily ik_sparse_rules();

bool rule_broken(const Tensor& node, Error* err, const char* rule);

#define REQUIRE(condition, rule)                               \
    do {                                                       \
        if (!(condition)) return rule_broken(node, err, rule); \
    } while (0)

// ---- Types ----

static inline bool is_f32(const Tensor& t) { return t.type == TYPE_F32; }
static inline bool is_i32(const Tensor& t) { return t.type == TYPE_I32; }
static inline bool is_float(const Tensor& t) { return t.type == TYPE_F32 || t.type == TYPE_F16 || t.type == TYPE_BF16; }
static inline bool is_f32_or_f16(const Tensor& t) { return t.type == TYPE_F32 || t.type == TYPE_F16; }
// Several rows in one run of memory, none of which can be read alone: a weight of products and nothing else. check_node
// sees to that for all ops.
static inline bool is_interleaved(const Tensor& t) { return type_traits(t.type)->row_group != 1; }
// Rows with a header, which cannot be cut into parts.
static inline bool has_row_header(const Tensor& t) { return type_traits(t.type)->row_meta != 0; }
// Values a matrix, a table of rows or a cache may hold.
static inline bool is_float_or_quantized(const Tensor& t) {
    return is_float(t) || (is_quantized(t.type) && !is_interleaved(t));
}
// Values that the weights of a product may hold, in rows without gaps; rows that are interleaved in whole groups.
bool is_weights(const Tensor& t);

// ---- Shapes ----

static inline bool is_shape(const Tensor& t, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3) {
    return t.ne[0] == ne0 && t.ne[1] == ne1 && t.ne[2] == ne2 && t.ne[3] == ne3;
}
static inline bool is_scalar(const Tensor& t) { return is_shape(t, 1, 1, 1, 1); }
static inline bool is_vector(const Tensor& t) { return t.ne[1] == 1 && t.ne[2] == 1 && t.ne[3] == 1; }
static inline bool is_matrix(const Tensor& t) { return t.ne[2] == 1 && t.ne[3] == 1; }
// part goes into whole without rest; nothing goes into nothing.
static inline bool divides(int64_t part, int64_t whole) { return part == 0 ? whole == 0 : whole % part == 0; }

// Product of sizes of different tensors, which no check of one tensor bounds; stops at 2^60, which no shape reaches.
int64_t times(int64_t a, int64_t b);

// ---- Strides ----

// The rows follow each other at one distance: padded at their ends at most. The rule of ggml_is_contiguous_1.
bool rows_evenly_spaced(const Tensor& t);
// No two elements share a byte, shown by strides that grow past all that lies inside. `nb` of the dimensions may come
// in any order.
bool elements_distinct(const int64_t* ne, const int64_t* nb, int64_t item_bytes);
// The same place, type, shape and strides.
bool same_place(const Tensor& a, const Tensor& b);

// ---- Amounts ----

// What one node may ask for, in element operations: about three hours of a fast core. The largest honest node, the
// attention of a batch of 8192 tokens over a million, needs 2^48.
constexpr int64_t MAX_WORK = int64_t{1} << 50;
// The product of non-negative factors does not exceed MAX_WORK.
bool work_fits(int64_t a, int64_t b, int64_t c = 1, int64_t d = 1);

// ---- Parameters ----

static inline bool is_flag(int32_t word) { return word == 0 || word == 1; }
bool param_finite(const Tensor& node, int word);
// A number that is added to a mean of squares before its root is taken.
bool param_epsilon(const Tensor& node, int word);

}  // namespace ggr
