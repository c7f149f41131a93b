// RWKV_WKV6, RWKV_WKV7 and GATED_LINEAR_ATTN: attention whose memory is one matrix a head. All f32 and contiguous. The
// result holds the values of all tokens, then the matrices.
#include "cpu/level.h"
#include "cpu/state.h"

GGR_KERNELS_BEGIN

namespace {

constexpr int64_t COLUMNS = STATE_VECTORS * VL;

// Where an item lies: block `block` of a head of a sequence; its matrix begins at `matrix`, what a token has for the
// head at `at` of the token's row.
struct Place {
    int64_t block, seq, matrix, at;
};
inline Place place_of(int64_t index, int64_t blocks, int64_t n, int64_t heads) {
    const int64_t head = index / blocks % heads, seq = index / (blocks * heads);
    return {index % blocks, seq, (seq * heads + head) * n * n, head * n};
}

enum Kind { WKV6, GATED };

// One token of one head, all pointers at its first element.
struct Token {
    const float *k, *v, *query, *first, *decay;
    float scale;
};

// NV vectors of columns of the matrix; its rows are the channels of k, its columns those of v. WKV6 answers with the
// memory of earlier tokens and this token's weight of its own; the gated form remembers first. Floor: 5 or 3 vector
// operations per VL elements of the state and token.
template <Kind KIND, int NV, bool WHOLE>
inline void walk_columns(const Token& token, const float* from, float* to, float* out, int64_t n, int64_t at,
                         int64_t left) {
    vf sum[NV] = {}, v[NV];
    for (int j = 0; j < NV; ++j) v[j] = load_some<WHOLE>(token.v + at + j * VL, left);
    for (int64_t i = 0; i < n; ++i) {
        const float k = token.k[i], query = token.query[i] * token.scale, decay = token.decay[i];
        for (int j = 0; j < NV; ++j) {
            const int64_t cell = i * n + at + j * VL;
            const vf state = load_some<WHOLE>(from + cell, left), kv = v[j] * k, next = state * decay + kv;
            sum[j] = (KIND == WKV6 ? kv * token.first[i] + state : next) * query + sum[j];
            store_some<WHOLE>(to + cell, next, left);
        }
    }
    for (int j = 0; j < NV; ++j) store_some<WHOLE>(out + at + j * VL, sum[j], left);
}

// Items are blocks of columns.
template <Kind KIND>
bool run_columns(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &first = *step.src[0], &state = *dst.src[KIND == WKV6 ? 5 : 4];
    const int64_t n = first.ne[0], heads = first.ne[1], seqs = state.ne[1], tokens = first.ne[2] / seqs;
    const int64_t blocks = blocks_of(n, COLUMNS);
    float* values = floats(dst);
    float* states = values + n * heads * tokens * seqs;
    Token token;
    token.scale = KIND == GATED ? step.arg.f32[0] : 1.0f;
    for (int64_t index = begin; index < end; ++index) {
        const Place place = place_of(index, blocks, n, heads);
        const float* from = floats(state) + place.matrix;
        float* to = states + place.matrix;
        for (int64_t t = 0; t < tokens; ++t) {
            const int64_t at = (place.seq * tokens + t) * n * heads + place.at;
            token.k = floats(*step.src[0]) + at;
            token.v = floats(*step.src[1]) + at;
            token.query = floats(*step.src[2]) + at;
            token.first = floats(*step.src[3]) + place.at;
            token.decay = floats(*step.src[KIND == WKV6 ? 4 : 3]) + at;
            const int64_t column1 = least((place.block + 1) * COLUMNS, n);
            int64_t column = place.block * COLUMNS;
            if (column + COLUMNS <= column1) {
                walk_columns<KIND, STATE_VECTORS, true>(token, from, to, values + at, n, column, VL);
            } else {
                for (; column < column1; column += VL)
                    walk_columns<KIND, 1, false>(token, from, to, values + at, n, column, column1 - column);
            }
            from = to;
        }
    }
    return true;
}

// Relies on (the same for WKV7): inputs [n, heads, tokens] (the source "first" of WKV6 [n * heads]), the state n * n
// for each head and sequence with the sequences in its dimension 1, which share the tokens evenly; all contiguous.
template <Kind KIND>
bool prepare_columns(PlanBuilder& builder, const Tensor& node) {
    const Tensor &first = *node.src[0], &state = *node.src[KIND == WKV6 ? 5 : 4];
    const int64_t n = first.ne[0], heads = first.ne[1];
    Step& step = builder.add(run_columns<KIND>, node, blocks_of(n, COLUMNS) * heads * state.ne[1],
                             work_of(n_elements(first) * n, KIND == WKV6 ? 5 : 3));
    step.arg.f32[0] = param_f32(node, 0);
    return true;
}

// ---- RWKV_WKV7 ----

// R rows of the matrix, each what it holds for one channel of v: state = state * w + k * v + b * (state . a), out =
// state . r. Floor: 6 vector operations per VL elements of the state and token.
template <int R, bool WHOLE>
inline void wkv7_rows(const float* const* token, const float* from, float* to, const float* v, float* out, int64_t n) {
    const float *r = token[0], *w = token[1], *k = token[2], *a = token[3], *b = token[4];
    vf sum[R] = {};
    for (int64_t i = 0; i < n; i += VL) {
        const vf ask = load_some<WHOLE>(a + i, n - i);
        for (int j = 0; j < R; ++j) sum[j] = load_some<WHOLE>(from + j * n + i, n - i) * ask + sum[j];
    }
    float answer[R];
    for (int j = 0; j < R; ++j) {
        answer[j] = add_lanes(sum[j]);
        sum[j] = vset(0.0f);
    }
    for (int64_t i = 0; i < n; i += VL) {
        const vf vr = load_some<WHOLE>(r + i, n - i), vw = load_some<WHOLE>(w + i, n - i),
                 vk = load_some<WHOLE>(k + i, n - i), vb = load_some<WHOLE>(b + i, n - i);
        for (int j = 0; j < R; ++j) {
            const vf state = load_some<WHOLE>(from + j * n + i, n - i) * vw + vk * v[j] + vb * answer[j];
            store_some<WHOLE>(to + j * n + i, state, n - i);
            sum[j] = state * vr + sum[j];
        }
    }
    for (int j = 0; j < R; ++j) out[j] = add_lanes(sum[j]);
}

// Items are blocks of rows.
template <bool WHOLE>
bool run_wkv7(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &state = *dst.src[6];
    const int64_t n = dst.src[0]->ne[0], heads = dst.src[0]->ne[1], seqs = state.ne[1];
    const int64_t tokens = dst.src[0]->ne[2] / seqs, blocks = blocks_of(n, STATE_BLOCK);
    float* values = floats(dst);
    float* states = values + n * heads * tokens * seqs;
    for (int64_t index = begin; index < end; ++index) {
        const Place place = place_of(index, blocks, n, heads);
        const int64_t row1 = least((place.block + 1) * STATE_BLOCK, n);
        const float* from = floats(state) + place.matrix;
        float* to = states + place.matrix;
        for (int64_t t = 0; t < tokens; ++t) {
            const int64_t at = (place.seq * tokens + t) * n * heads + place.at;
            const float* token[5];
            constexpr int SLOT[5] = {0, 1, 2, 4, 5};  // r w k a b
            for (int i = 0; i < 5; ++i) token[i] = floats(*dst.src[SLOT[i]]) + at;
            const float* v = floats(*dst.src[3]) + at;
            float* out = values + at;
            int64_t row = place.block * STATE_BLOCK;
            for (; row + 4 <= row1; row += 4)
                wkv7_rows<4, WHOLE>(token, from + row * n, to + row * n, v + row, out + row, n);
            for (; row < row1; ++row) wkv7_rows<1, WHOLE>(token, from + row * n, to + row * n, v + row, out + row, n);
            from = to;
        }
    }
    return true;
}

bool prepare_wkv7(PlanBuilder& builder, const Tensor& node) {
    const Tensor &first = *node.src[0], &state = *node.src[6];
    const int64_t n = first.ne[0];
    builder.add(n % VL == 0 ? run_wkv7<true> : run_wkv7<false>, node,
                blocks_of(n, STATE_BLOCK) * first.ne[1] * state.ne[1], work_of(n_elements(first) * n, 6));
    return true;
}

}  // namespace

void register_linear_attention(OpTable& table) {
    table.prepare[OP_RWKV_WKV6] = prepare_columns<WKV6>;
    table.prepare[OP_GATED_LINEAR_ATTN] = prepare_columns<GATED>;
    table.prepare[OP_RWKV_WKV7] = prepare_wkv7;
}

GGR_KERNELS_END
