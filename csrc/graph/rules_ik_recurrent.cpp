// Rules of the recurrent ops that ik_llama.cpp has in a form of its own.
#include "graph/rules.h"

namespace ggr {

namespace {

// The map of sequences: a column for each token.
bool is_map(const Tensor& map, int64_t sequences, int64_t tokens) {
    return is_i32(map) && is_shape(map, sequences, tokens, 1, 1);
}

// A source that the op writes states to: nothing else may lie in it twice.
bool is_store(const Tensor& t, int64_t elements) { return is_f32(t) && is_contiguous(t) && n_elements(t) >= elements; }

bool ssm_conv(const Tensor& node, Error* err) {
    const Tensor &state = *node.src[0], &x = *node.src[1], &kernel = *node.src[2], &map = *node.src[3];
    const Tensor* store = node.src[4];
    const int64_t taps = kernel.ne[0], channels = kernel.ne[1], tokens = x.ne[1], sequences = state.ne[2];
    REQUIRE(is_f32(state) && is_f32(x) && is_f32(kernel) && is_f32(node), "sources 0 to 2 and result must be F32");
    REQUIRE(is_matrix(kernel) && is_contiguous(kernel), "source 2 (kernel) must be contiguous, of two dimensions");
    REQUIRE(taps > 0 && is_shape(state, taps - 1, channels, sequences, 1),
            "source 0 (state) must hold the kernel's state of each channel and sequence");
    REQUIRE(rows_contiguous(state) && state.nb[1] == row_bytes(state.type, state.ne[0]),
            "rows of source 0 must follow each other");
    REQUIRE(is_shape(x, channels, tokens, 1, 1) && rows_contiguous(x), "source 1 must have a row for each token");
    REQUIRE(is_map(map, sequences, tokens), "source 3 must be an I32 map of sequences for each token");
    REQUIRE(store == nullptr || sequences == 1, "states can be stored for one sequence only");
    REQUIRE(work_fits(taps, channels, sequences) && work_fits(taps, channels, tokens, sequences),
            "the convolution must not take more than 2^50 operations");
    REQUIRE(store == nullptr || is_store(*store, (taps - 1) * channels * tokens),
            "source 4 must have room for the states of all tokens");
    REQUIRE(is_contiguous(node) && is_vector(node) && node.ne[0] == channels * tokens + taps * channels * sequences,
            "the result must be a vector for values and states");
    return true;
}

bool ssm_scan(const Tensor& node, Error* err) {
    const Tensor &state = *node.src[0], &x = *node.src[1], &dt = *node.src[2], &a = *node.src[3], &b = *node.src[4],
                 &c = *node.src[5];
    const int64_t size = state.ne[0], channels = state.ne[1], sequences = state.ne[2], tokens = x.ne[1];
    for (int i = 0; i < 6; ++i) REQUIRE(is_f32(*node.src[i]), "sources 0 to 5 must be F32");
    REQUIRE(state.ne[3] == 1, "the state must have three dimensions");
    REQUIRE(is_contiguous(state) && is_contiguous(x) && is_contiguous(dt) && is_contiguous(a),
            "state, x, steps and decay must be contiguous");
    REQUIRE(is_shape(x, channels, tokens, 1, 1) && same_shape(x, dt), "x and steps must have a row for each token");
    REQUIRE(is_shape(a, size, channels, 1, 1), "the decay must have a row for each channel");
    REQUIRE(is_shape(b, size, tokens, 1, 1) && same_shape(b, c), "b and c must have a row for each token");
    REQUIRE(rows_contiguous(b) && rows_contiguous(c), "rows of b and c must be contiguous");
    REQUIRE(is_map(*node.src[6], sequences, tokens), "source 6 must be an I32 map of sequences for each token");
    REQUIRE(work_fits(size, channels, tokens, sequences), "the scan must not take more than 2^50 operations");
    REQUIRE(is_f32(node) && is_contiguous(node) && is_vector(node) && node.ne[0] == n_elements(x) + n_elements(state),
            "the result must be a vector of F32 for values and states");
    return true;
}

bool delta_net(const Tensor& node, Error* err) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2], &g = *node.src[3], &beta = *node.src[4],
                 &state = *node.src[5];
    const Tensor* store = node.src[6];
    const int64_t size = q.ne[0], tokens = q.ne[1], heads = v.ne[2], seqs = q.ne[3];
    for (int i = 0; i < 6; ++i) REQUIRE(is_f32(*node.src[i]), "sources must be F32");
    REQUIRE(is_contiguous(q) && is_contiguous(k) && is_contiguous(state), "q, k and state must be contiguous");
    REQUIRE(same_shape(q, k), "q and k must have one shape");
    REQUIRE(is_shape(v, size, tokens, heads, seqs) && rows_contiguous(v), "q, k and v must have rows and tokens alike");
    REQUIRE(q.ne[2] > 0 && heads % q.ne[2] == 0, "heads of v must share those of q and k evenly");
    REQUIRE(is_shape(g, tokens, 1, heads, seqs) || is_shape(g, tokens, size, heads, seqs),
            "the gate must be one number or one for each channel, for each head and token");
    REQUIRE(is_shape(beta, 1, tokens, heads, seqs), "beta must be one number for each head and token");
    REQUIRE(work_fits(size, size, heads, seqs) && work_fits(n_elements(v), size),
            "the scan must not take more than 2^50 operations");
    REQUIRE(is_shape(state, size, size * heads, 1, seqs), "the state must have a matrix for each head and sequence");
    REQUIRE(store == nullptr || is_store(*store, (tokens - 1) * n_elements(state)),
            "source 6 must have room for the states of all tokens but the last");
    REQUIRE(is_flag(node.params[0]), "parameter 0 (repeat) must be 0 or 1");
    REQUIRE(is_f32(node) && is_contiguous(node) && is_vector(node) && node.ne[0] == n_elements(v) + n_elements(state),
            "the result must be a vector of F32 for values and states");
    return true;
}

constexpr Rule RULES[] = {
    {OP_IK_SSM_CONV, ssm_conv},
    {OP_IK_SSM_SCAN, ssm_scan},
    {OP_DELTA_NET, delta_net},
};

}  // namespace

RuleFamily ik_recurrent_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
