#include "graph/rules.h"

#include "graph/graph.h"
#include "spec/refusals.h"

namespace ggr {

namespace {

// A source that shows the same memory again and again (strides of zero) can pretend to be of any size. Real ones repeat
// a mask or a row; this many elements take seconds.
constexpr int64_t MAX_REPEATED_ELEMENTS = int64_t{1} << 36;

struct Table {
    RuleFn check[OP_COUNT_] = {};
    Table() {
        const RuleFamily families[] = {
            elementwise_rules(), reduction_rules(),    matmul_rules(),      attention_rules(), rows_rules(),
            copy_rules(),        shape_rules(),        convolution_rules(), recurrent_rules(), gradient_rules(),
            ik_rules(),          ik_recurrent_rules(), ik_sparse_rules(),
        };
        for (const RuleFamily& family : families)
            for (size_t i = 0; i < family.count; ++i) check[family.rules[i].op] = family.rules[i].check;
    }
};

// Sources whose contents decide where or how much a kernel reads and writes, or by what it sorts. They must not change
// under a kernel that has just checked them, so a result may not overlap them.
uint32_t steering_sources(int32_t op) {
    switch (op) {
        case OP_GET_ROWS:
        case OP_GET_ROWS_BACK:
        case OP_SET_ROWS:
        case OP_GATHER:
        case OP_BLEND:
        case OP_MASK_TOPK:
            return 1u << 1;
        case OP_ADD_ID:
        case OP_MUL_MAT_ID:
        case OP_DS4_COMP:
            return 1u << 2;
        case OP_MOE_FUSED_UP_GATE:
        case OP_MUL_MULTI_ADD:
        case OP_IK_SSM_CONV:
            return 1u << 3;
        case OP_SSM_SCAN:
        case OP_IK_SSM_SCAN:
            return 1u << 6;
        case OP_FLASH_ATTN_ROWS:
        case OP_LATENT_ATTN:
            return 1u << 5;
        case OP_ARGSORT:
        case OP_ARGSORT_THRESH:
        case OP_TOP_K:
            return 1u << 0;
        default:
            return 0;
    }
}

// Sources that may be interleaved: weights of products, whose rules ask is_weights.
uint32_t weight_sources(int32_t op) {
    switch (op) {
        case OP_MUL_MAT:
        case OP_MUL_MAT_ID:
            return 1u << 0;
        case OP_FUSED_UP_GATE:
        case OP_MOE_FUSED_UP_GATE:
            return 3u << 0;
        default:
            return 0;
    }
}

// Whether a source without elements can stand beside a result with some.
bool may_be_empty(int32_t op, int slot) { return op == OP_CONCAT || (op == OP_SET_ROWS && slot < 2); }

bool check_source(const Tensor& node, int slot, Error* err) {
    const Tensor& s = *node.src[slot];
    REQUIRE(!is_interleaved(s) || (weight_sources(node.op) >> slot & 1) != 0,
            "a tensor of interleaved rows can only be the weights of a product");
    REQUIRE(!is_empty(s) || is_empty(node) || may_be_empty(node.op, slot), "a source must not be empty");
    const int64_t blocks = n_elements(s) / block_size(s.type);
    REQUIRE(n_elements(s) <= MAX_REPEATED_ELEMENTS || blocks <= extent_bytes(s) / block_bytes(s.type),
            "a source that repeats its memory must not have more than 2^36 elements");
    if ((steering_sources(node.op) >> slot & 1) != 0 && !is_empty(node) && !is_empty(s))
        REQUIRE(!overlap(node, s), "the result must not overlap the source that steers the op");
    return true;
}

}  // namespace

bool rule_broken(const Tensor& node, Error* err, const char* rule) {
    return err->fail(Code::graph, "GRAPH_COMPUTE: tensor '%s': op %s: %s", node.name, op_traits(node.op)->name, rule);
}

int64_t times(int64_t a, int64_t b) {
    constexpr int64_t LIMIT = int64_t{1} << 60;
    int64_t product = 0;
    return __builtin_mul_overflow(a, b, &product) || product > LIMIT ? LIMIT : product;
}

bool is_weights(const Tensor& t) {
    if (!is_float(t) && !is_quantized(t.type) && !is_interleaved(t)) return false;
    if (!rows_contiguous(t)) return false;
    if (!is_interleaved(t)) return true;
    // Where matrices begin does not matter; within one, a group begins every row_group rows. Rows without blocks
    // alternate two elements at a time.
    if (block_size(t.type) == 1 && t.ne[0] % 2 != 0) return false;
    return t.ne[1] % type_traits(t.type)->row_group == 0 && t.nb[1] == row_bytes(t.type, t.ne[0]);
}

bool rows_evenly_spaced(const Tensor& t) {
    if (!rows_contiguous(t)) return false;
    // The first dimension of more than one row sets the distance.
    int64_t next = -1;
    for (int i = 1; i < MAX_DIMS; ++i) {
        if (t.ne[i] == 1) continue;
        if (next >= 0 && t.nb[i] != next) return false;
        next = t.nb[i] * t.ne[i];
    }
    return true;
}

bool elements_distinct(const int64_t* ne, const int64_t* nb, int64_t item_bytes) {
    // Insertion sort of at most four dimensions by stride.
    int order[MAX_DIMS], n = 0;
    for (int i = 0; i < MAX_DIMS; ++i) {
        if (ne[i] == 0) return true;
        if (ne[i] == 1) continue;
        int at = n++;
        for (; at > 0 && nb[order[at - 1]] > nb[i]; --at) order[at] = order[at - 1];
        order[at] = i;
    }
    int64_t inside = item_bytes;  // bytes from the first to the last of what lies inside
    for (int i = 0; i < n; ++i) {
        if (nb[order[i]] < inside) return false;
        inside += (ne[order[i]] - 1) * nb[order[i]];
    }
    return true;
}

bool same_place(const Tensor& a, const Tensor& b) {
    return a.data == b.data && a.type == b.type && same_shape(a, b) && a.nb[0] == b.nb[0] && a.nb[1] == b.nb[1] &&
           a.nb[2] == b.nb[2] && a.nb[3] == b.nb[3];
}

bool work_fits(int64_t a, int64_t b, int64_t c, int64_t d) {
    int64_t product = 0;
    return !__builtin_mul_overflow(a, b, &product) && !__builtin_mul_overflow(product, c, &product) &&
           !__builtin_mul_overflow(product, d, &product) && product <= MAX_WORK;
}

bool param_finite(const Tensor& node, int word) { return __builtin_isfinite(param_f32(node, word)); }

bool param_epsilon(const Tensor& node, int word) { return param_finite(node, word) && param_f32(node, word) >= 0; }

// A result may overlap a source in any other way: lying exactly on it is how clients compute in place, and for a
// partial overlap kernels give some values but, as those are only ever values, touch no other memory.
bool check_node(const Tensor& node, Error* err) {
    static const Table table;
    const RuleFn rule = table.check[node.op];
    if (const char* reason = refusal(node.op))
        return err->fail(Code::graph, "GRAPH_COMPUTE: tensor '%s': op %s is never accepted: it %s", node.name,
                         op_traits(node.op)->name, reason);
    if (rule == nullptr)
        return err->fail(Code::unsupported, "GRAPH_COMPUTE: tensor '%s': op %s: no rule for this op yet", node.name,
                         op_traits(node.op)->name);
    REQUIRE(!is_interleaved(node), "the result cannot have interleaved rows");
    // Blocks of a quantised row are adjacent: there the items are whole rows.
    const bool plain = block_size(node.type) == 1;
    const int64_t rows[MAX_DIMS] = {is_empty(node) ? 0 : 1, node.ne[1], node.ne[2], node.ne[3]};
    REQUIRE(elements_distinct(plain ? node.ne : rows, node.nb,
                              plain ? block_bytes(node.type) : row_bytes(node.type, node.ne[0])),
            "the elements of the result must not overlap each other");
    for (int i = 0; i < node.n_src; ++i)
        if (node.src[i] != nullptr && node.src[i] != &node && !check_source(node, i, err)) return false;
    return rule(node, err);
}

}  // namespace ggr
