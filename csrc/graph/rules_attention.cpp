// Rules of attention: softmax, rotary positions, fused attention, masks.
#include "graph/rope.h"
#include "graph/rules.h"

namespace ggr {

namespace {

// Mask of scores [n_kv, n_tokens, n_head, n_seq]: rows may go on past n_tokens, heads and sequences repeat.
bool mask_fits(const Tensor& node, const Tensor& mask, int64_t n_kv, int64_t n_tokens, int64_t heads, int64_t sequences,
               Error* err) {
    REQUIRE(rows_contiguous(mask), "rows of the mask must be contiguous");
    REQUIRE(mask.ne[0] == n_kv, "rows of the mask must have the length of the scores");
    REQUIRE(mask.ne[1] >= n_tokens, "the mask must have a row for each token");
    REQUIRE(divides(mask.ne[2], heads) && divides(mask.ne[3], sequences),
            "the mask must repeat evenly over heads and sequences");
    return true;
}

bool sinks_fit(const Tensor& node, const Tensor& sinks, int64_t heads, Error* err) {
    REQUIRE(is_f32(sinks) && is_shape(sinks, heads, 1, 1, 1) && rows_contiguous(sinks),
            "sinks must be contiguous F32, one for each head");
    return true;
}

bool soft_max(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source 0 and the result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of source 0");
    REQUIRE(is_contiguous(x) && is_contiguous(node), "source 0 and the result must be contiguous");
    REQUIRE(param_finite(node, 0), "parameter 0 (scale) must be finite");
    REQUIRE(param_epsilon(node, 1), "parameter 1 (max_bias) must be finite and not negative");
    const Tensor* mask = node.src[1];
    REQUIRE(mask != nullptr || param_f32(node, 1) == 0, "a bias by position must come with a mask");
    if (mask != nullptr) {
        REQUIRE(is_f32_or_f16(*mask), "the mask must be F16 or F32");
        if (!mask_fits(node, *mask, x.ne[0], x.ne[1], x.ne[2], x.ne[3], err)) return false;
    }
    return node.src[2] == nullptr || sinks_fit(node, *node.src[2], x.ne[2], err);
}

bool flash_attn_ext(const Tensor& node, Error* err) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2];
    REQUIRE(is_f32(q) && is_f32(node), "source 0 (q) and the result must be F32");
    REQUIRE(is_float_or_quantized(k) && is_float_or_quantized(v), "sources 1 and 2 (k, v) must hold floats");
    REQUIRE(q.ne[0] == k.ne[0], "rows of q and k must have the same length");
    REQUIRE(k.ne[1] == v.ne[1], "k and v must have as many rows");
    REQUIRE(divides(k.ne[2], q.ne[2]) && divides(v.ne[2], q.ne[2]),
            "heads of k and v must repeat evenly over those of q");
    REQUIRE(q.ne[3] == k.ne[3] && q.ne[3] == v.ne[3], "q, k and v must have as many sequences");
    REQUIRE(is_shape(node, v.ne[0], q.ne[2], q.ne[1], q.ne[3]),
            "the result must have a row of v for each head and token");
    REQUIRE(rows_contiguous(q) && rows_contiguous(k) && rows_contiguous(v), "rows must be contiguous");
    REQUIRE(is_contiguous(node), "the result must be contiguous");
    REQUIRE(param_finite(node, 0), "parameter 0 (scale) must be finite");
    REQUIRE(param_epsilon(node, 1), "parameter 1 (max_bias) must be finite and not negative");
    REQUIRE(param_finite(node, 2), "parameter 2 (logit_softcap) must be finite");
    REQUIRE(node.params[4] >= 0, "parameter 4 (n_kv_max) must not be negative");
    const Tensor* mask = node.src[3];
    REQUIRE(mask != nullptr || param_f32(node, 1) == 0, "a bias by position must come with a mask");
    if (mask != nullptr) {
        REQUIRE(mask->type == TYPE_F16, "the mask must be F16");
        if (!mask_fits(node, *mask, k.ne[1], q.ne[1], q.ne[2], q.ne[3], err)) return false;
    }
    REQUIRE(work_fits(q.ne[1] * q.ne[2], q.ne[3], k.ne[1], k.ne[0] + v.ne[0]),
            "the attention must not take more than 2^50 operations");
    return node.src[4] == nullptr || sinks_fit(node, *node.src[4], q.ne[2], err);
}

bool flash_attn_rows(const Tensor& node, Error* err) {
    if (!flash_attn_ext(node, err)) return false;
    const Tensor &q = *node.src[0], &rows = *node.src[5];
    REQUIRE(is_i32(rows) && rows_contiguous(rows), "source 5 (rows) must be I32 with contiguous rows");
    REQUIRE(rows.ne[1] >= q.ne[1], "source 5 (rows) must have a list for each token");
    return true;
}

bool rope(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &pos = *node.src[1];
    const int32_t n_dims = node.params[ROPE_N_DIMS], mode = node.params[ROPE_MODE], n_offs = node.params[ROPE_N_OFFS];
    REQUIRE(is_f32_or_f16(x) && node.type == x.type, "source 0 and the result must have one type: F32 or F16");
    REQUIRE(same_shape(x, node), "the result must have the shape of source 0");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(
        mode == ROPE_NORMAL || mode == ROPE_NEOX || mode == ROPE_MROPE || mode == ROPE_VISION || mode == ROPE_IMROPE,
        "parameter 2 (mode) must be a known way to rotate");
    REQUIRE(n_dims > 0 && n_dims % 2 == 0 && n_dims <= x.ne[0],
            "parameter 1 (n_dims) must be even, positive and not above the length of a row");
    const bool sections = rope_has_streams(node);
    REQUIRE(is_i32(pos) && is_vector(pos) && rows_contiguous(pos), "source 1 (positions) must be a vector of I32");
    REQUIRE(pos.ne[0] == (sections ? ROPE_STREAMS : 1) * x.ne[2], "source 1 must have the positions of each token");
    if (mode == ROPE_VISION)
        REQUIRE(n_dims == x.ne[0] / 2 && n_offs == 0, "a vision rotation must take the whole row");
    else
        REQUIRE(n_offs >= 0 && n_offs % 2 == 0 && n_offs <= x.ne[0] - n_dims,
                "parameter 15 (n_offs) must be even and leave room for the rotated part");
    if (sections) {
        int64_t sum = 0;
        for (int i = 0; i < ROPE_STREAMS; ++i) {
            const int32_t section = node.params[ROPE_SECTIONS + i];
            REQUIRE(section >= 0, "parameters 11 to 14 (sections) must not be negative");
            sum += section;
        }
        REQUIRE(sum > node.params[ROPE_SECTIONS + 3], "one of the first three sections must not be empty");
        REQUIRE(sum <= x.ne[0], "the sections must fit in a row");
    }
    REQUIRE(node.params[ROPE_N_CTX_ORIG] >= 0, "parameter 4 (n_ctx_orig) must not be negative");
    for (int word = ROPE_FREQ_BASE; word < ROPE_SECTIONS; ++word)
        REQUIRE(param_finite(node, word), "parameters 5 to 10 must be finite");
    REQUIRE(param_f32(node, ROPE_FREQ_BASE) > 0, "parameter 5 (freq_base) must be positive");
    if (const Tensor* factors = node.src[2])
        REQUIRE(
            is_f32(*factors) && is_vector(*factors) && rows_contiguous(*factors) && factors->ne[0] >= rope_pairs(node),
            "source 2 (frequency factors) must be a vector of F32, one for each pair");
    return true;
}

bool rope_cache(const Tensor& node, Error* err) {
    const Tensor &pos = *node.src[0], *factors = node.src[1];
    const int32_t n_dims = node.params[ROPE_N_DIMS], mode = node.params[ROPE_MODE];
    REQUIRE(is_i32(pos) && is_vector(pos) && rows_contiguous(pos), "source 0 (positions) must be a vector of I32");
    REQUIRE(is_f32(node) && rows_contiguous(node) && is_shape(node, node.ne[0], pos.ne[0], 1, 1) && node.ne[0] % 2 == 0,
            "the result must be F32 with a contiguous row of pairs for each token");
    REQUIRE(mode == ROPE_NORMAL || mode == ROPE_NEOX, "parameter 2 (mode) must be NORMAL or NEOX");
    REQUIRE(n_dims > 0 && n_dims % 2 == 0 && n_dims <= node.ne[0],
            "parameter 1 (n_dims) must be even, positive and not above the length of a row");
    REQUIRE(node.params[ROPE_N_CTX_ORIG] >= 0, "parameter 4 (n_ctx_orig) must not be negative");
    for (int word = ROPE_FREQ_BASE; word < ROPE_SECTIONS; ++word)
        REQUIRE(param_finite(node, word), "parameters 5 to 10 must be finite");
    REQUIRE(param_f32(node, ROPE_FREQ_BASE) > 0, "parameter 5 (freq_base) must be positive");
    REQUIRE(factors == nullptr ||
                (is_f32(*factors) && is_vector(*factors) && rows_contiguous(*factors) && factors->ne[0] >= n_dims / 2),
            "source 1 (frequency factors) must be a vector of F32, one for each pair");
    return true;
}

enum RopeFastWord { FAST_N_DIMS = 0, FAST_MODE = 1 };

bool rope_fast(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &cache = *node.src[1];
    const int32_t n_dims = node.params[FAST_N_DIMS], mode = node.params[FAST_MODE];
    REQUIRE(is_f32(x) && is_f32(cache) && is_f32(node), "sources and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of source 0");
    REQUIRE(rows_contiguous(x) && rows_contiguous(cache) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(mode == ROPE_NORMAL || mode == ROPE_NEOX, "parameter 1 (mode) must be NORMAL or NEOX");
    REQUIRE(n_dims > 0 && n_dims % 2 == 0 && n_dims <= x.ne[0],
            "parameter 0 (n_dims) must be even, positive and not above the length of a row");
    REQUIRE(is_matrix(cache) && cache.ne[0] >= x.ne[0] && cache.ne[1] >= x.ne[2],
            "source 1 (cache) must have a row for each token, not shorter than those of source 0");
    return true;
}

bool diag_mask(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(same_place(x, node) || (is_contiguous(x) && is_contiguous(node)),
            "source and result must be contiguous or the same");
    REQUIRE(node.params[0] >= 0, "parameter 0 (n_past) must not be negative");
    return true;
}

bool lightning_indexer(const Tensor& node, Error* err) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &weights = *node.src[2], &mask = *node.src[3];
    REQUIRE(is_f32(q) && is_f32(weights) && is_f32(node), "q, the weights and the result must be F32");
    REQUIRE(is_float_or_quantized(k), "source 1 (k) must hold floats");
    REQUIRE(mask.type == TYPE_F16, "the mask must be F16");
    REQUIRE(q.ne[0] == k.ne[0], "rows of q and k must have the same length");
    REQUIRE(k.ne[1] == 1 && weights.ne[2] == 1 && mask.ne[2] == 1, "k, the weights and the mask must have no heads");
    REQUIRE(weights.ne[0] == q.ne[1] && weights.ne[1] == q.ne[2], "the weights must be one for each head and token");
    REQUIRE(mask.ne[0] == k.ne[2] && mask.ne[1] == q.ne[2], "the mask must have the shape of the scores");
    REQUIRE(q.ne[3] == k.ne[3] && q.ne[3] == weights.ne[3], "q, k and the weights must have as many sequences");
    REQUIRE(divides(mask.ne[3], weights.ne[3]), "the mask must repeat evenly over sequences");
    REQUIRE(is_shape(node, k.ne[2], q.ne[2], 1, q.ne[3]), "the result must have a row of scores for each token");
    REQUIRE(rows_contiguous(q) && rows_contiguous(k) && rows_contiguous(weights) && rows_contiguous(mask) &&
                rows_contiguous(node),
            "rows must be contiguous");
    REQUIRE(work_fits(n_elements(node), q.ne[0], q.ne[1]), "the scores must not take more than 2^50 operations");
    return true;
}

constexpr Rule RULES[] = {
    {OP_SOFT_MAX, soft_max},
    {OP_FLASH_ATTN_EXT, flash_attn_ext},
    {OP_FLASH_ATTN_ROWS, flash_attn_rows},
    {OP_ROPE_CACHE, rope_cache},
    {OP_ROPE_FAST, rope_fast},
    {OP_ROPE, rope},
    {OP_ROPE_BACK, rope},
    {OP_DIAG_MASK_INF, diag_mask},
    {OP_DIAG_MASK_ZERO, diag_mask},
    {OP_LIGHTNING_INDEXER, lightning_indexer},
};

}  // namespace

RuleFamily attention_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
