// Rules of recurrent layers and of the residual streams of hyper-connections.
#include <initializer_list>

#include "graph/rules.h"

namespace ggr {

namespace {

bool all_f32_contiguous(const Tensor& node) {
    for (int i = 0; i < node.n_src; ++i)
        if (node.src[i] != nullptr && (!is_f32(*node.src[i]) || !is_contiguous(*node.src[i]))) return false;
    return is_f32(node) && is_contiguous(node);
}

// States to keep, the latest first. Clients from before the parameter leave it 0 and mean one.
int64_t snapshots_of(const Tensor& node) { return node.params[0] == 0 ? 1 : node.params[0]; }

bool ssm_conv(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &kernel = *node.src[1];
    REQUIRE(is_f32(x) && is_f32(kernel) && is_f32(node), "sources and result must be F32");
    REQUIRE(x.ne[3] == 1 && is_matrix(kernel), "source 0 must have three dimensions, source 1 two");
    REQUIRE(kernel.ne[0] > 0 && x.ne[0] >= kernel.ne[0] - 1, "source 0 must hold the kernel's state");
    REQUIRE(x.ne[1] == kernel.ne[1], "both sources must have as many rows");
    REQUIRE(is_shape(node, x.ne[1], x.ne[0] - kernel.ne[0] + 1, x.ne[2], 1),
            "the result must have a row for each token");
    REQUIRE(rows_contiguous(x) && x.nb[1] == row_bytes(x.type, x.ne[0]), "rows of source 0 must follow each other");
    REQUIRE(is_contiguous(kernel) && is_contiguous(node), "kernel and result must be contiguous");
    REQUIRE(work_fits(n_elements(node), kernel.ne[0]), "the convolution must not take more than 2^50 operations");
    return true;
}

bool ssm_scan(const Tensor& node, Error* err) {
    const Tensor &s = *node.src[0], &x = *node.src[1], &dt = *node.src[2], &a = *node.src[3], &b = *node.src[4],
                 &c = *node.src[5], &ids = *node.src[6];
    const int64_t d_state = s.ne[0], dim = x.ne[0], heads = x.ne[1], tokens = x.ne[2], seqs = x.ne[3];
    const int64_t snapshots = snapshots_of(node);
    for (int i = 0; i < 6; ++i) REQUIRE(is_f32(*node.src[i]), "sources 0 to 5 must be F32");
    REQUIRE(is_i32(ids) && is_vector(ids) && rows_contiguous(ids), "source 6 (ids) must be a vector of I32");
    REQUIRE(is_contiguous(s) && is_contiguous(dt) && is_contiguous(a), "state, steps and decay must be contiguous");
    for (const Tensor* t : {&x, &b, &c})
        REQUIRE(rows_contiguous(*t) && t->nb[1] == row_bytes(t->type, t->ne[0]),
                "rows of x, b and c must follow each other");
    REQUIRE(s.ne[1] == dim && s.ne[2] == heads, "the state must have a matrix for each head");
    REQUIRE(is_shape(dt, heads, tokens, seqs, 1), "the steps must be one for each head and token");
    REQUIRE(a.ne[1] == heads && is_matrix(a), "the decay must have a row for each head");
    REQUIRE(a.ne[0] == 1 || (a.ne[0] == d_state && snapshots == 1), "a decay row must be one or the state's");
    REQUIRE(same_shape(b, c), "b and c must have one shape");
    REQUIRE(b.ne[0] == d_state && b.ne[2] == tokens && b.ne[3] == seqs,
            "b and c must have a row for each group and token");
    REQUIRE(b.ne[1] > 0 && heads % b.ne[1] == 0, "heads must share groups evenly");
    REQUIRE(ids.ne[0] == seqs, "source 6 must have an id for each sequence");
    REQUIRE(snapshots >= 1, "parameter 0 (snapshots) must be positive");
    int64_t states = d_state * dim;
    REQUIRE(!__builtin_mul_overflow(states, heads, &states) && !__builtin_mul_overflow(states, seqs, &states) &&
                work_fits(states, snapshots) && work_fits(states, tokens),
            "the scan must not take more than 2^50 operations");
    REQUIRE(is_f32(node) && is_contiguous(node) && is_vector(node) && node.ne[0] == n_elements(x) + snapshots * states,
            "the result must be a vector of F32 for values and states");
    return true;
}

// RWKV_WKV6, RWKV_WKV7 and GATED_LINEAR_ATTN: tokens of [size, heads], states of [size, size, heads] each.
bool linear_attention(const Tensor& node, Error* err) {
    const bool wkv6 = node.op == OP_RWKV_WKV6;
    const int last = node.op == OP_GATED_LINEAR_ATTN ? 4 : wkv6 ? 5 : 6;
    const Tensor &first = *node.src[0], &state = *node.src[last];
    const int64_t size = first.ne[0], heads = first.ne[1], tokens = first.ne[2], seqs = state.ne[1];
    REQUIRE(all_f32_contiguous(node), "sources and result must be contiguous F32");
    for (int i = 0; i < last; ++i) {
        if (wkv6 && i == 3)
            REQUIRE(n_elements(*node.src[i]) == size * heads,
                    "source 3 (first) must have an element for each of a token's");
        else
            REQUIRE(same_shape(first, *node.src[i]), "the inputs must have one shape");
    }
    REQUIRE(first.ne[3] == 1 && is_matrix(state), "the inputs must have three dimensions, the state two");
    REQUIRE(seqs > 0 && tokens % seqs == 0, "tokens must be shared evenly by the sequences");
    REQUIRE(work_fits(size, size, heads, seqs) && n_elements(state) == size * size * heads * seqs,
            "the state must have a matrix for each head and sequence");
    REQUIRE(is_shape(node, size * heads, tokens + times(size, seqs), 1, 1), "the result must hold values and states");
    REQUIRE(work_fits(size, size, heads, tokens), "the scan must not take more than 2^50 operations");
    REQUIRE(node.op != OP_GATED_LINEAR_ATTN || param_finite(node, 0), "parameter 0 (scale) must be finite");
    return true;
}

bool gated_delta_net(const Tensor& node, Error* err) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2], &g = *node.src[3], &beta = *node.src[4],
                 &state = *node.src[5];
    const int64_t size = v.ne[0], heads = v.ne[1], tokens = v.ne[2], seqs = v.ne[3];
    const int64_t snapshots = snapshots_of(node);
    for (int i = 0; i < 6; ++i) REQUIRE(is_f32(*node.src[i]), "sources must be F32");
    for (const Tensor* t : {&q, &k}) {
        REQUIRE(rows_contiguous(*t), "rows of q, k and v must be contiguous");
        REQUIRE(t->ne[0] == size && t->ne[2] == tokens, "q, k and v must have rows and tokens alike");
        REQUIRE(divides(t->ne[1], heads) && divides(t->ne[3], seqs),
                "q and k must repeat evenly over heads and sequences");
    }
    REQUIRE(rows_contiguous(v), "rows of q, k and v must be contiguous");
    REQUIRE(is_contiguous(g) && is_contiguous(beta) && is_contiguous(state), "gate, beta and state must be contiguous");
    REQUIRE((g.ne[0] == 1 || g.ne[0] == size) && g.ne[1] == heads && g.ne[2] == tokens && g.ne[3] == seqs,
            "the gate must be one number or one row for each head and token");
    REQUIRE(is_shape(beta, 1, heads, tokens, seqs), "beta must be one number for each head and token");
    // Clients from before snapshots may hold the state in any shape.
    REQUIRE(work_fits(size, size, heads, seqs) &&
                (is_shape(state, size, size, heads, seqs) ||
                 (node.params[0] == 0 && n_elements(state) == size * size * heads * seqs)),
            "the state must have a matrix for each head and sequence");
    REQUIRE(snapshots >= 1 && work_fits(snapshots, size, seqs), "parameter 0 (snapshots) must be positive and fit");
    REQUIRE(work_fits(size, heads) && work_fits(tokens, seqs), "the scan must not take more than 2^50 operations");
    REQUIRE(is_f32(node) && is_contiguous(node) &&
                is_shape(node, size * heads, tokens * seqs + snapshots * size * seqs, 1, 1),
            "the result must be F32 and hold values and states");
    REQUIRE(work_fits(n_elements(v), size), "the scan must not take more than 2^50 operations");
    return true;
}

constexpr int64_t STREAMS = 4;  // of DSV4_HC_COMB, the only count that exists

bool hc_comb(const Tensor& node, Error* err) {
    const Tensor &mixes = *node.src[0], &scale = *node.src[1], &base = *node.src[2];
    const int64_t width = (2 + STREAMS) * STREAMS;
    REQUIRE(is_f32(mixes) && is_f32(scale) && is_f32(base) && is_f32(node), "sources and result must be F32");
    REQUIRE(mixes.ne[0] == width && is_matrix(mixes), "source 0 must have rows of 24");
    REQUIRE(is_vector(scale) && scale.ne[0] >= 3 && rows_contiguous(scale), "source 1 must be a vector of three");
    REQUIRE(is_shape(base, width, 1, 1, 1) && rows_contiguous(base), "source 2 must be a vector of 24");
    REQUIRE(is_shape(node, STREAMS, STREAMS, mixes.ne[1], 1), "the result must have a matrix for each token");
    REQUIRE(rows_contiguous(mixes) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(param_epsilon(node, 0), "parameter 0 (eps) must be finite and not negative");
    REQUIRE(node.params[1] > 0, "parameter 1 (iterations) must be positive");
    REQUIRE(work_fits(n_elements(node), node.params[1]), "the iterations must not take more than 2^50 operations");
    return true;
}

bool hc_pre(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &weights = *node.src[1];
    REQUIRE(is_f32(x) && is_f32(weights) && is_f32(node), "sources and result must be F32");
    REQUIRE(x.ne[1] > 0 && x.ne[3] == 1, "source 0 must have streams and three dimensions");
    REQUIRE(is_flag(node.params[1]), "parameter 1 (gated) must be 0 or 1");
    if (node.params[1] != 0)
        REQUIRE(same_shape(weights, x), "source 1 must have the shape of source 0");
    else
        REQUIRE(is_shape(weights, x.ne[1], x.ne[2], 1, 1), "source 1 must have a weight for each stream and token");
    REQUIRE(is_shape(node, x.ne[0], x.ne[2], 1, 1), "the result must have a row for each token");
    REQUIRE(rows_contiguous(x) && rows_contiguous(weights) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(param_finite(node, 0), "parameter 0 (scale) must be finite");
    return true;
}

bool hc_post(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &residual = *node.src[1], &post = *node.src[2];
    const Tensor* comb = node.src[3];
    const int64_t streams = residual.ne[1], tokens = x.ne[1];
    REQUIRE(is_f32(x) && is_f32(residual) && is_f32(post) && is_f32(node), "sources and result must be F32");
    REQUIRE(is_matrix(x), "source 0 must have two dimensions");
    REQUIRE(streams > 0 && is_shape(residual, x.ne[0], streams, tokens, 1),
            "source 1 must have the streams of each token");
    REQUIRE(is_shape(post, streams, tokens, 1, 1), "source 2 must have a weight for each stream and token");
    REQUIRE(same_shape(residual, node), "the result must have the shape of source 1");
    REQUIRE(rows_contiguous(x) && rows_contiguous(residual) && rows_contiguous(post) && rows_contiguous(node),
            "rows must be contiguous");
    REQUIRE(
        comb == nullptr || (is_f32(*comb) && is_shape(*comb, streams, streams, tokens, 1) && rows_contiguous(*comb)),
        "source 3 must have a matrix of F32 for each token");
    REQUIRE(work_fits(n_elements(node), streams), "the mixture must not take more than 2^50 operations");
    return true;
}

constexpr Rule RULES[] = {
    {OP_SSM_CONV, ssm_conv},
    {OP_SSM_SCAN, ssm_scan},
    {OP_RWKV_WKV6, linear_attention},
    {OP_RWKV_WKV7, linear_attention},
    {OP_GATED_LINEAR_ATTN, linear_attention},
    {OP_GATED_DELTA_NET, gated_delta_net},
    {OP_DSV4_HC_COMB, hc_comb},
    {OP_DSV4_HC_PRE, hc_pre},
    {OP_DSV4_HC_POST, hc_post},
};

}  // namespace

RuleFamily recurrent_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
