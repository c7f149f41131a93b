// Attention whose memory is one matrix a head: GATED_DELTA_NET and RWKV_WKV7, whose rows hold a channel of the values
// each, RWKV_WKV6, GATED_LINEAR_ATTN and ik_llama.cpp's DELTA_NET, whose columns do. SOLVE_TRI. All f32.
//
// The matrix stays in registers from the first token to the last; what a token brings is loaded while the one before it
// is worked on. Floor: bytes of the matrices for one token; for many, 5 to 7 operations an element and token.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/recurrent.h"

namespace ggr {
namespace cuda {

GGR_DEVICE const float* strip_at(const Strip& s, int token, int head, int sequence) {
    return s.data + token * s.token + head * s.head + sequence * s.sequence;
}

// ---- A warp has some rows of the matrix, a lane every 32nd element of each ----

template <int PER>
GGR_DEVICE void load_row(float (&v)[PER], const float* from, int64_t element, int n) {
    GGR_UNROLL
    for (int j = 0; j < PER; ++j) {
        const int at = lane() + WARP * j;
        v[j] = at < n ? from[at * element] : 0.0f;
    }
}

// Rows of a warp: the more, the fewer loads of the token's vectors; the registers bound it.
template <int PER>
struct RowsOf {
    static constexpr int COUNT = PER <= 4 ? 4 : 2;
};

enum RowKind : int { ROWS_DELTA = 0, ROWS_WKV7 = 1 };

template <int PER, int ROWS, int KIND>
struct RowToken {
    float q[PER], k[PER], decay[PER], extra[KIND == ROWS_WKV7 ? PER : 1], other[KIND == ROWS_WKV7 ? PER : 1];
    float v[ROWS];
};

// ROWS_DELTA: decay the state by exp(decay), ask it for k, correct it towards v by extra (beta), ask it for q.
// ROWS_WKV7: state = state * decay + k * v + other * (state . extra), ask it for q. Blocks: rows, heads, sequences.
template <int PER, int KIND>
GGR_KERNEL GGR_BOUNDS(128, 1) state_rows(const LinearArgs a) {
    constexpr int ROWS = RowsOf<PER>::COUNT;
    constexpr bool WKV7 = KIND == ROWS_WKV7;
    const int head = block_y(), sequence = block_z(), n = a.n;
    const int first = (block_x() * (n_threads() / WARP) + warp_index()) * ROWS;
    const int64_t matrix = (static_cast<int64_t>(sequence) * a.heads + head) * n * n;
    const int64_t snapshot = static_cast<int64_t>(n) * n * a.heads * a.sequences;
    const int q_head = head % a.q_heads, k_head = head % a.k_heads;
    const int q_sequence = sequence / a.q_repeat, k_sequence = sequence / a.k_repeat;
    const auto row_of = [&](int r) { return first + r < n ? first + r : n - 1; };
    float state[ROWS][PER];
    GGR_UNROLL
    for (int r = 0; r < ROWS; ++r) load_row(state[r], a.state + matrix + static_cast<int64_t>(row_of(r)) * n, 1, n);

    const auto load = [&](RowToken<PER, ROWS, KIND>& token, int t) {
        load_row(token.q, strip_at(a.q, t, q_head, q_sequence), a.q.element, n);
        load_row(token.k, strip_at(a.k, t, k_head, k_sequence), a.k.element, n);
        load_row(token.decay, strip_at(a.decay, t, head, sequence), a.decay.element, n);
        if constexpr (WKV7) {
            load_row(token.extra, strip_at(a.extra, t, head, sequence), a.extra.element, n);
            load_row(token.other, strip_at(a.other, t, head, sequence), a.other.element, n);
        } else {
            token.extra[0] = *strip_at(a.extra, t, head, sequence);
        }
        GGR_UNROLL
        for (int r = 0; r < ROWS; ++r) token.v[r] = strip_at(a.v, t, head, sequence)[row_of(r) * a.v.element];
    };
    RowToken<PER, ROWS, KIND> token, next;
    if (a.tokens > 0) load(token, 0);
    for (int t = 0; t < a.tokens; ++t) {
        load(next, t + 1 < a.tokens ? t + 1 : t);
        if constexpr (!WKV7) {
            GGR_UNROLL
            for (int j = 0; j < PER; ++j) token.decay[j] = exponential(token.decay[j]);
        }
        float said[ROWS], answer[ROWS];
        GGR_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            said[r] = 0.0f;
            GGR_UNROLL
            for (int j = 0; j < PER; ++j) {
                if constexpr (!WKV7) state[r][j] *= token.decay[j];
                said[r] += state[r][j] * (WKV7 ? token.extra[WKV7 ? j : 0] : token.k[j]);
            }
        }
        GGR_UNROLL
        for (int r = 0; r < ROWS; ++r) said[r] = warp_sum(said[r]);
        GGR_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float delta = WKV7 ? token.v[r] : (token.v[r] - said[r]) * token.extra[0];
            answer[r] = 0.0f;
            GGR_UNROLL
            for (int j = 0; j < PER; ++j) {
                if constexpr (WKV7)
                    state[r][j] = state[r][j] * token.decay[j] + token.k[j] * delta + token.other[j] * said[r];
                else
                    state[r][j] += token.k[j] * delta;
                answer[r] += state[r][j] * token.q[j];
            }
        }
        GGR_UNROLL
        for (int r = 0; r < ROWS; ++r) answer[r] = warp_sum(answer[r]);
        // States of earlier tokens are kept too, the latest first.
        const int slot = a.tokens - 1 - t;
        float* const out = a.values + ((static_cast<int64_t>(sequence) * a.tokens + t) * a.heads + head) * n;
        GGR_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            if (first + r >= n) continue;
            if (lane() == 0) out[first + r] = answer[r] * a.scale;
            if (slot >= a.snapshots) continue;
            float* const to = a.states + slot * snapshot + matrix + static_cast<int64_t>(first + r) * n;
            GGR_UNROLL
            for (int j = 0; j < PER; ++j)
                if (lane() + WARP * j < n) to[lane() + WARP * j] = state[r][j];
        }
        token = next;
    }
}

// ---- A lane has a column, a warp ROWS rows of 32 columns; the warps of a block together all rows ----

enum ColumnKind : int { COLUMNS_WKV6 = 0, COLUMNS_GATED = 1, COLUMNS_DELTA = 2 };

// Largest number that a state of DELTA_NET holds, and the largest exponent of its decay.
constexpr float STATE_LIMIT = 1e6f, GATE_LIMIT = 50.0f;

// What a token has for each row, in shared memory.
enum Field : int { FIELD_K = 0, FIELD_Q = 1, FIELD_DECAY = 2, FIELD_FOURTH = 3, FIELD_FIFTH = 4 };

// COLUMNS_WKV6: answer with the memory of earlier tokens and this one's weight of its own (extra); COLUMNS_GATED:
// remember first. COLUMNS_DELTA: ask the decayed state for k, correct it towards v by the sigmoid of extra, answer for
// q. Three buffers of inputs and two of sums leave one barrier a token. Blocks: columns, heads, sequences.
template <int ROWS, int KIND>
GGR_KERNEL GGR_BOUNDS(256, 1) state_columns(const LinearArgs a) {
    constexpr int MAX_WARPS = 8, FIELDS = KIND == COLUMNS_DELTA ? 5 : KIND == COLUMNS_WKV6 ? 4 : 3;
    constexpr bool DELTA = KIND == COLUMNS_DELTA;
    GGR_SHARED float inputs[3][FIELDS][MAX_WARPS * ROWS];
    GGR_SHARED float sums[2][DELTA ? 2 : 1][MAX_WARPS][WARP];
    GGR_SHARED float agreements[2][MAX_WARPS];
    const int head = block_y(), sequence = block_z(), n = a.n, n_warps = n_threads() / WARP;
    const int column = block_x() * WARP + lane(), from_column = column < n ? column : n - 1;
    const int first = warp_index() * ROWS, element = thread_index();
    const int64_t matrix = (static_cast<int64_t>(sequence) * a.heads + head) * n * n;
    const int q_head = a.q_repeat > 1 ? head / a.q_repeat : head % a.q_heads;
    float state[ROWS];
    GGR_UNROLL
    for (int i = 0; i < ROWS; ++i)
        state[i] = first + i < n ? a.state[matrix + static_cast<int64_t>(first + i) * n + from_column] : 0.0f;

    // Thread i has element i of the inputs: there are at least as many threads as elements.
    float next[4] = {0.0f, 0.0f, 0.0f, 0.0f}, v = 0.0f, next_v = 0.0f, beta = 0.0f, next_beta = 0.0f;
    const auto load = [&](int t) {
        if (element < n) {
            next[0] = strip_at(a.k, t, q_head, sequence)[element * a.k.element];
            next[1] = strip_at(a.q, t, q_head, sequence)[element * a.q.element];
            next[2] = strip_at(a.decay, t, head, sequence)[element * a.decay.element];
            if constexpr (KIND == COLUMNS_WKV6) next[3] = strip_at(a.extra, t, head, sequence)[element];
        }
        next_v = strip_at(a.v, t, head, sequence)[from_column * a.v.element];
        if constexpr (DELTA) next_beta = *strip_at(a.extra, t, head, sequence);
    };
    const auto keep = [&](int buffer) {
        v = next_v;
        if constexpr (DELTA) beta = 1.0f / (1.0f + exponential(-next_beta));
        if (element >= MAX_WARPS * ROWS) return;
        float(&to)[FIELDS][MAX_WARPS * ROWS] = inputs[buffer];
        if constexpr (DELTA) {
            const float decay = exponential(smallest(next[2], GATE_LIMIT));
            to[FIELD_K][element] = next[0];
            to[FIELD_Q][element] = next[1] * decay;
            to[FIELD_DECAY][element] = decay;
            to[FIELD_FOURTH][element] = next[0] * decay;
            to[FIELD_FIFTH][element] = next[0] * next[1];
        } else {
            to[FIELD_K][element] = next[0];
            to[FIELD_Q][element] = next[1] * a.scale;
            to[FIELD_DECAY][element] = next[2];
            if constexpr (KIND == COLUMNS_WKV6) to[FIELD_FOURTH][element] = next[3];
        }
    };
    if (a.tokens > 0) {
        load(0);
        keep(0);
    }
    sync_block();
    for (int t = 0; t < a.tokens; ++t) {
        const float(&in)[FIELDS][MAX_WARPS * ROWS] = inputs[t % 3];
        const float now = v, correction = beta;
        if (t + 1 < a.tokens) load(t + 1);
        float said = 0.0f, answer = 0.0f, agreement = 0.0f;
        GGR_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const int at = first + i;
            if constexpr (DELTA) {
                said += state[i] * in[FIELD_FOURTH][at];
                answer += state[i] * in[FIELD_Q][at];
                agreement += in[FIELD_FIFTH][at];
            } else {
                const float kv = in[FIELD_K][at] * now, after = state[i] * in[FIELD_DECAY][at] + kv;
                const float seen =
                    KIND == COLUMNS_WKV6 ? kv * in[KIND == COLUMNS_WKV6 ? FIELD_FOURTH : 0][at] + state[i] : after;
                answer += seen * in[FIELD_Q][at];
                state[i] = after;
            }
        }
        sums[t % 2][0][warp_index()][lane()] = answer;
        if constexpr (DELTA) {
            sums[t % 2][DELTA ? 1 : 0][warp_index()][lane()] = said;
            if (lane() == 0) agreements[t % 2][warp_index()] = agreement;
        }
        if (t + 1 < a.tokens) keep((t + 1) % 3);
        sync_block();
        const bool writes = t % n_warps == warp_index();
        if (!DELTA && !writes) continue;
        answer = said = agreement = 0.0f;
        for (int w = 0; w < n_warps; ++w) {
            answer += sums[t % 2][0][w][lane()];
            if constexpr (DELTA) {
                said += sums[t % 2][DELTA ? 1 : 0][w][lane()];
                agreement += agreements[t % 2][w];
            }
        }
        if constexpr (DELTA) {
            const float delta = (now - said) * correction;
            answer = (delta * agreement + answer) * a.scale;
            GGR_UNROLL
            for (int i = 0; i < ROWS; ++i) {
                const float after = delta * in[FIELD_K][first + i] + state[i] * in[FIELD_DECAY][first + i];
                state[i] = largest(-STATE_LIMIT, smallest(STATE_LIMIT, after));
            }
        }
        if (column >= n) continue;
        if (writes) a.values[((static_cast<int64_t>(sequence) * a.tokens + t) * a.heads + head) * n + column] = answer;
        if (!DELTA || a.store == nullptr || t + 1 == a.tokens) continue;
        const int64_t all = static_cast<int64_t>(n) * n * a.heads * a.sequences;
        GGR_UNROLL
        for (int i = 0; i < ROWS; ++i)
            if (first + i < n) a.store[t * all + matrix + static_cast<int64_t>(first + i) * n + column] = state[i];
    }
    if (column >= n || a.tokens == 0) return;
    GGR_UNROLL
    for (int i = 0; i < ROWS; ++i)
        if (first + i < n) a.states[matrix + static_cast<int64_t>(first + i) * n + column] = state[i];
}

// ---- SOLVE_TRI: x_i = (b_i - sum over j < i of a_ij x_j) / a_ii. A warp has 32 columns of one system, whose solution
// so far lies in shared memory. Floor: n / 2 operations an element of x ----

GGR_KERNEL GGR_BOUNDS(32, 1) solve_triangle(const SolveArgs a) {
    float* const solved = reinterpret_cast<float*>(dynamic_shared());
    const int n = a.n, column = block_x() * WARP + lane(), from = column < a.width ? column : a.width - 1;
    const float* const matrix = a.a + static_cast<int64_t>(block_y()) * n * n;
    const int64_t system = static_cast<int64_t>(block_y()) * n * a.width;
    for (int i = 0; i < n; ++i) {
        const float* const row = matrix + static_cast<int64_t>(i) * n;
        float rest = a.b[system + static_cast<int64_t>(i) * a.width + from];
        for (int begin = 0; begin < i; begin += WARP) {
            const float mine = begin + lane() < i ? row[begin + lane()] : 0.0f;
            const int count = i - begin < WARP ? i - begin : WARP;
            for (int j = 0; j < count; ++j) rest -= shuffle(mine, j) * solved[(begin + j) * WARP + lane()];
        }
        const float x = rest / row[i];
        solved[i * WARP + lane()] = x;  // read by this lane alone
        if (column < a.width) a.x[system + static_cast<int64_t>(i) * a.width + column] = x;
    }
}

}  // namespace cuda
}  // namespace ggr
