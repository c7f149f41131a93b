// Rules of ik_llama.cpp's ops for sparse attention, compressed caches and hyper-connections. Row numbers are checked as
// kernels read them.
#include "graph/rules.h"

namespace ggr {

namespace {

// The outer three dimensions agree.
bool same_rows(const Tensor& a, const Tensor& b) {
    return a.ne[1] == b.ne[1] && a.ne[2] == b.ne[2] && a.ne[3] == b.ne[3];
}

// ---- Elements by index ----

bool gather(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &ids = *node.src[1];
    REQUIRE(block_size(x.type) == 1 && (block_bytes(x.type) == 2 || block_bytes(x.type) == 4),
            "source 0 must have elements of 2 or 4 bytes");
    REQUIRE(node.type == x.type, "the result must have the type of source 0");
    REQUIRE(is_i32(ids), "source 1 (indices) must be I32");
    REQUIRE(same_rows(x, ids), "source 1 must have a list of indices for each row of source 0");
    REQUIRE(same_shape(node, ids), "the result must have an element for each index");
    REQUIRE(rows_contiguous(node), "rows of the result must be contiguous");
    return true;
}

bool blend(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &ids = *node.src[1];
    REQUIRE(is_float(x) && node.type == x.type, "source 0 and the result must have one type: F32, F16 or BF16");
    REQUIRE(same_shape(x, node), "the result must have the shape of source 0");
    REQUIRE(is_i32(ids) || ids.type == TYPE_I64, "source 1 (indices) must be I32 or I64");
    REQUIRE(same_rows(x, ids) && ids.ne[0] <= x.ne[0],
            "source 1 must have a list of indices for each row of source 0, not longer than it");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

// ---- Choice of rows ----

bool indexer_topk(const Tensor& node, Error* err) {
    const Tensor &k = *node.src[0], &q = *node.src[1], &weights = *node.src[2], &mask = *node.src[3];
    REQUIRE(is_float_or_quantized(k), "source 0 (k) must hold floats");
    REQUIRE(is_f32(q) && is_f32(weights) && is_f32_or_f16(mask) && is_i32(node),
            "q and the weights must be F32, the mask F32 or F16, the result I32");
    REQUIRE(is_matrix(k) && q.ne[3] == 1 && q.ne[0] == k.ne[0],
            "source 0 (k) must be a matrix with rows like those of q");
    REQUIRE(is_shape(weights, q.ne[1], q.ne[2], 1, 1), "the weights must be one for each head and token");
    REQUIRE(is_shape(mask, k.ne[1], q.ne[2], 1, 1), "the mask must have the shape of the scores");
    REQUIRE(k.ne[1] <= INT32_MAX, "row numbers must fit in I32");
    REQUIRE(is_shape(node, node.ne[0], q.ne[2], 1, 1) && node.ne[0] <= k.ne[1],
            "the result must have a list for each token, not longer than there are rows");
    REQUIRE(rows_contiguous(q) && rows_contiguous(k) && rows_contiguous(mask) && rows_contiguous(node),
            "rows must be contiguous");
    REQUIRE(node.params[0] == UNARY_RELU, "parameter 0 (kind) must be RELU");
    REQUIRE(work_fits(times(k.ne[1], q.ne[2]), q.ne[0] + 8, q.ne[1] + 8),
            "the scores must not take more than 2^50 operations");
    return true;
}

bool mask_topk(const Tensor& node, Error* err) {
    const Tensor &mask = *node.src[0], &ids = *node.src[1];
    REQUIRE(is_f32_or_f16(mask) && node.type == mask.type, "the mask and the result must have one type: F32 or F16");
    REQUIRE(same_shape(mask, node), "the result must have the shape of the mask");
    REQUIRE(is_i32(ids), "source 1 (row numbers) must be I32");
    REQUIRE(ids.ne[0] <= mask.ne[0] && ids.ne[1] <= mask.ne[1] && ids.ne[2] == mask.ne[2] && ids.ne[3] == mask.ne[3],
            "source 1 must have lists for rows of the mask, not longer than they are");
    REQUIRE(rows_contiguous(mask) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool mask_to_idx(const Tensor& node, Error* err) {
    const Tensor& mask = *node.src[0];
    REQUIRE(is_f32_or_f16(mask) && is_i32(node), "the mask must be F32 or F16, the result I32");
    REQUIRE(same_rows(mask, node) && node.ne[0] <= mask.ne[0],
            "the result must have a list for each row of the mask, not longer than it");
    REQUIRE(mask.ne[0] <= INT32_MAX, "positions must fit in I32");
    REQUIRE(rows_contiguous(mask) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

// ---- Attention over a cache whose rows hold keys and values ----

enum LatentWord { LATENT_SCALE = 0, LATENT_MAX_BIAS = 1, LATENT_DV = 2, LATENT_OFFSET = 3, LATENT_MODE = 4 };

bool prefix_fits(const Tensor& node, const Tensor& k, const Tensor& v, Error* err) {
    REQUIRE(is_f32_or_f16(k) && is_f32_or_f16(v), "sources 2 and 3 (prefix) must be F32 or F16");
    REQUIRE(is_matrix(k) && k.ne[0] == node.src[0]->ne[0], "source 2 must be a matrix with rows like those of q");
    REQUIRE(is_shape(v, k.ne[1], node.ne[0], 1, 1), "source 3 must have a row for each channel of the result");
    REQUIRE(is_contiguous(k) && is_contiguous(v), "sources 2 and 3 (prefix) must be contiguous");
    return true;
}

bool latent_attn(const Tensor& node, Error* err) {
    const Tensor &q = *node.src[0], &cache = *node.src[1], *prefix_k = node.src[2], *prefix_v = node.src[3],
                 *mask = node.src[4], *ids = node.src[5];
    const int64_t dv = node.params[LATENT_DV], offset = node.params[LATENT_OFFSET], tokens = q.ne[1];
    REQUIRE(is_f32(q) && is_f32(node), "source 0 (q) and the result must be F32");
    REQUIRE(is_float_or_quantized(cache), "source 1 (cache) must hold floats");
    REQUIRE(q.ne[3] == 1 && is_matrix(cache) && cache.ne[0] == q.ne[0],
            "source 1 (cache) must be a matrix with rows like those of q");
    REQUIRE(dv > 0 && offset >= 0 && dv + offset <= cache.ne[0],
            "parameters 2 and 3 (dv, offset) must be a part of the cache's rows");
    REQUIRE(is_shape(node, dv, tokens, q.ne[2], 1), "the result must have a row of values for each token and head");
    REQUIRE(rows_contiguous(q) && rows_contiguous(cache) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(param_finite(node, LATENT_SCALE), "parameter 0 (scale) must be finite");
    REQUIRE(param_f32(node, LATENT_MAX_BIAS) == 0, "parameter 1 (max_bias) must be 0");
    REQUIRE(node.params[LATENT_MODE] == (ids != nullptr ? 1 : 0),
            "parameter 4 (mode) must be 1 with a list of rows and 0 without");
    REQUIRE((prefix_k == nullptr) == (prefix_v == nullptr), "sources 2 and 3 (prefix) must come together");
    if (prefix_k != nullptr && !prefix_fits(node, *prefix_k, *prefix_v, err)) return false;
    if (mask != nullptr) {
        REQUIRE(is_f32(*mask) && rows_contiguous(*mask), "the mask must be F32 with contiguous rows");
        REQUIRE(is_shape(*mask, cache.ne[1], mask->ne[1], 1, 1) && mask->ne[1] >= tokens,
                "the mask must have the shape of the scores");
    }
    if (ids != nullptr) {
        REQUIRE(is_i32(*ids) && rows_contiguous(*ids), "source 5 (rows) must be I32 with contiguous rows");
        REQUIRE(is_matrix(*ids) && ids->ne[1] >= tokens, "source 5 (rows) must have a list for each token");
    }
    const int64_t seen = (ids != nullptr ? ids->ne[0] : cache.ne[1]) + (prefix_k != nullptr ? prefix_k->ne[1] : 0);
    REQUIRE(work_fits(times(tokens, q.ne[2]), seen, q.ne[0] + dv),
            "the attention must not take more than 2^50 operations");
    return true;
}

bool ds4_comp(const Tensor& node, Error* err) {
    const Tensor &state = *node.src[0], &score = *node.src[1], &ids = *node.src[2];
    REQUIRE(is_f32(state) && is_f32(score) && is_f32(node), "the state, the scores and the result must be F32");
    REQUIRE(same_shape(state, score) && is_matrix(state), "the state and the scores must be matrices of one shape");
    REQUIRE(is_i32(ids) && is_vector(ids), "source 2 (rows) must be a vector of I32");
    REQUIRE(is_flag(node.params[0]), "parameter 0 (kind) must be 0 or 1");
    const int64_t halves = node.params[0] == 0 ? 2 : 1;
    REQUIRE(state.ne[0] % (32 * halves) == 0, "rows of the state must be a multiple of 32, for kind 0 of 64");
    REQUIRE(is_shape(node, state.ne[0] / halves, node.ne[1], 1, 1),
            "rows of the result must be those of the state, or half");
    REQUIRE(divides(node.ne[1] * halves, ids.ne[0]), "source 2 must list as many rows for each block");
    REQUIRE(rows_contiguous(state) && rows_contiguous(score) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(work_fits(ids.ne[0], node.ne[0], 8), "the means must not take more than 2^50 operations");
    return true;
}

// ---- Streams of hyper-connections ----

enum StreamsWord { STREAMS_N = 0, STREAMS_ROUNDS = 1, STREAMS_EPS = 2, STREAMS_TRANSPOSE = 3 };
constexpr int32_t MOST_STREAMS = 8;  // as in stock

bool rounds_fit(const Tensor& node, int64_t tokens, Error* err) {
    const int64_t n = node.params[STREAMS_N];
    REQUIRE(n > 0 && n <= MOST_STREAMS, "parameter 0 (n) must be 1 to 8");
    REQUIRE(node.params[STREAMS_ROUNDS] > 0, "parameter 1 (rounds) must be positive");
    REQUIRE(param_epsilon(node, STREAMS_EPS), "parameter 2 (eps) must be finite and not negative");
    REQUIRE(work_fits(tokens, node.params[STREAMS_ROUNDS], 8 * n * n),
            "the rounds must not take more than 2^50 operations");
    return true;
}

bool sinkhorn(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int64_t n = node.params[STREAMS_N];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    if (!rounds_fit(node, x.ne[1], err)) return false;
    REQUIRE(is_shape(x, n * n, x.ne[1], 1, 1) && rows_contiguous(x),
            "the source must have a contiguous row of n * n each token");
    REQUIRE(is_shape(node, n, n, x.ne[1], 1) && is_contiguous(node),
            "the result must be contiguous, with an n x n matrix for each token");
    REQUIRE(is_flag(node.params[STREAMS_TRANSPOSE]), "parameter 3 (transpose) must be 0 or 1");
    return true;
}

bool hc_pre(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &scale = *node.src[1], &bias = *node.src[2];
    const int64_t n = node.params[STREAMS_N], width = n * n + 2 * n;
    REQUIRE(is_f32(x) && is_f32(scale) && is_f32(bias) && is_f32(node), "sources and result must be F32");
    if (!rounds_fit(node, x.ne[1], err)) return false;
    REQUIRE(is_shape(x, width, x.ne[1], 1, 1) && rows_contiguous(x),
            "source 0 must have a contiguous row of n * n + 2 n each token");
    REQUIRE(is_shape(scale, 3, 1, 1, 1) && rows_contiguous(scale),
            "source 1 (scale) must be three contiguous elements");
    REQUIRE(is_shape(bias, width, 1, 1, 1) && rows_contiguous(bias),
            "source 2 (bias) must be a contiguous row like those of source 0");
    REQUIRE(is_shape(node, n_elements(x), 1, 1, 1) && rows_contiguous(node),
            "the result must be a vector as long as source 0");
    return true;
}

bool hc_post(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &post = *node.src[1], &residual = *node.src[2], &comb = *node.src[3];
    const int64_t n = post.ne[0], tokens = x.ne[1];
    REQUIRE(is_f32(x) && is_f32(post) && is_f32(residual) && is_f32(comb) && is_f32(node),
            "sources and result must be F32");
    REQUIRE(is_matrix(x), "source 0 must have two dimensions");
    REQUIRE(is_shape(post, n, tokens, 1, 1), "source 1 (post) must have a weight for each stream and token");
    REQUIRE(is_shape(residual, x.ne[0], n, tokens, 1), "source 2 (residual) must have a row for each stream and token");
    REQUIRE(is_shape(comb, n, n, tokens, 1), "source 3 (comb) must have a matrix for each token");
    REQUIRE(same_shape(node, residual), "the result must have the shape of source 2");
    REQUIRE(rows_contiguous(x) && rows_contiguous(residual) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(work_fits(n_elements(node), n + 1), "the sums must not take more than 2^50 operations");
    return true;
}

constexpr Rule RULES[] = {
    {OP_GATHER, gather},
    {OP_BLEND, blend},
    {OP_INDEXER_TOPK, indexer_topk},
    {OP_MASK_TOPK, mask_topk},
    {OP_MASK_TO_IDX, mask_to_idx},
    {OP_LATENT_ATTN, latent_attn},
    {OP_DS4_COMP, ds4_comp},
    {OP_SINKHORN, sinkhorn},
    {OP_HC_PRE, hc_pre},
    {OP_HC_POST, hc_post},
};

}  // namespace

RuleFamily ik_sparse_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
