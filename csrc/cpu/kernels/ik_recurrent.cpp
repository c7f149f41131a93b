// Recurrent ops as ik_llama.cpp has them: IK_SSM_CONV and IK_SSM_SCAN keep the states of all sequences in the result,
// behind the values, and a map says which sequences a token belongs to; DELTA_NET has the channels of the values
// adjacent in its state. All f32.
#include "cpu/level.h"
#include "cpu/state.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

// ---- The map: a column of I32 for each token. Its first entry is the token's sequence, further ones name sequences
// that get a copy of the new state; the first illegal one ends them. ----

struct Map {
    const uint8_t* token;
    int64_t stride, sequences;

    Map(const Tensor& map, int64_t t) : token(map.data + t * map.nb[1]), stride(map.nb[0]), sequences(map.ne[0]) {}
    int64_t at(int64_t i) const {
        int32_t id;
        std::memcpy(&id, token + i * stride, sizeof id);
        return id;
    }
    bool legal(int64_t id) const { return id >= 0 && id < sequences; }
};

// What copies take for `channels` channels of states of `n` elements each, where every token names all sequences.
inline int64_t work_of_copies(int64_t tokens, int64_t sequences, int64_t channels, int64_t n) {
    return tokens * (sequences - 1) * (channels * n + blocks_of(channels, STATE_BLOCK) * 32);
}

// Copy `bytes` at `offset` of the state of sequence `from`, states `pitch` bytes apart, to the further sequences.
inline void copy_states(const Map& map, uint8_t* states, int64_t pitch, int64_t from, int64_t offset, int64_t bytes) {
    for (int64_t i = 1; i < map.sequences; ++i) {
        const int64_t to = map.at(i);
        if (!map.legal(to)) return;
        if (to != from)
            std::memcpy(states + to * pitch + offset, states + from * pitch + offset, static_cast<size_t>(bytes));
    }
}

// ---- IK_SSM_CONV ----

// More taps than any model has; beyond, the states in the result serve as the window.
constexpr int64_t MAX_TAPS = 64;

// One sequence: the window of STATE_BLOCK channels is turned so that channels are adjacent, as they are in x and the
// values. The window is a ring. Floor: bytes of x and the values; at 4 taps a vector operation a tap hides behind them.
struct Window {
    float past[MAX_TAPS][STATE_BLOCK], kernel[MAX_TAPS][STATE_BLOCK];
};

void convolve(const Step& step, Window& w, int64_t c0, int64_t count) {
    const Tensor &dst = *step.dst, &state = *step.src[0], &x = *step.src[1], &kernel = *step.src[2];
    const Tensor* store = step.src[4];
    const int64_t taps = kernel.ne[0], channels = kernel.ne[1], tokens = x.ne[1];
    for (int64_t i = 0; i < taps; ++i) {
        for (int64_t c = 0; c < STATE_BLOCK; ++c) {
            w.kernel[i][c] = c < count ? floats(kernel, c0 + c)[i] : 0.0f;
            w.past[i][c] = c < count && i > 0 ? floats(state, c0 + c)[i - 1] : 0.0f;
        }
    }
    int64_t oldest = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        std::memcpy(w.past[oldest], floats(x, t) + c0, static_cast<size_t>(count) * sizeof(float));
        oldest = oldest + 1 < taps ? oldest + 1 : 0;
        float* y = floats(dst) + t * channels + c0;
        for (int64_t c = 0; c < count; c += VL) {
            vf sum = {};
            for (int64_t i = 0, at = oldest; i < taps; ++i, at = at + 1 < taps ? at + 1 : 0)
                sum = vload(w.past[at] + c) * vload(w.kernel[i] + c) + sum;
            store_some<false>(y + c, sum, count - c);
        }
        if (store == nullptr) continue;
        for (int64_t c = 0; c < count; ++c)
            for (int64_t i = 1; i < taps; ++i)
                floats(*store)[(t * channels + c0 + c) * (taps - 1) + i - 1] = w.past[(oldest + i) % taps][c];
    }
    for (int64_t c = 0; c < count; ++c)
        for (int64_t i = 0; i < taps; ++i)
            floats(dst)[tokens * channels + (c0 + c) * taps + i] = w.past[(oldest + i) % taps][c];
}

// Any number of sequences: the windows are the states in the result. False: the map names no sequence.
bool convolve_sequences(const Step& step, Worker& worker, int64_t c0, int64_t count) {
    const Tensor &dst = *step.dst, &state = *step.src[0], &x = *step.src[1], &kernel = *step.src[2];
    const Tensor *map = step.src[3], *store = step.src[4];
    const int64_t taps = kernel.ne[0], channels = kernel.ne[1], tokens = x.ne[1], sequences = state.ne[2];
    float* states = floats(dst) + tokens * channels;
    for (int64_t s = 0; s < sequences; ++s) {
        for (int64_t c = c0; c < c0 + count; ++c) {
            float* window = states + (s * channels + c) * taps;
            window[0] = 0.0f;
            for (int64_t i = 1; i < taps; ++i) window[i] = floats(state, c, s)[i - 1];
        }
    }
    for (int64_t t = 0; t < tokens; ++t) {
        const Map token(*map, t);
        const int64_t sequence = token.at(0);
        if (!token.legal(sequence)) return fail_index(worker, step, map, sequence, sequences);
        for (int64_t c = c0; c < c0 + count; ++c) {
            float* window = states + (sequence * channels + c) * taps;
            std::memmove(window, window + 1, static_cast<size_t>(taps - 1) * sizeof(float));
            window[taps - 1] = floats(x, t)[c];
            float sum = 0.0f;
            for (int64_t i = 0; i < taps; ++i) sum += window[i] * floats(kernel, c)[i];
            floats(dst)[t * channels + c] = sum;
            if (store != nullptr)
                std::memcpy(floats(*store) + (t * channels + c) * (taps - 1), window + 1,
                            static_cast<size_t>(taps - 1) * sizeof(float));
        }
        copy_states(token, reinterpret_cast<uint8_t*>(states), channels * taps * static_cast<int64_t>(sizeof(float)),
                    sequence, c0 * taps * static_cast<int64_t>(sizeof(float)),
                    count * taps * static_cast<int64_t>(sizeof(float)));
    }
    return true;
}

// Items are blocks of channels.
bool run_ssm_conv(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &state = *step.src[0], &map = *step.src[3];
    const int64_t taps = step.src[2]->ne[0], channels = step.src[2]->ne[1];
    for (int64_t index = begin; index < end; ++index) {
        const int64_t c0 = index * STATE_BLOCK, count = least(channels - c0, STATE_BLOCK);
        if (state.ne[2] > 1 || taps > MAX_TAPS) {
            if (!convolve_sequences(step, worker, c0, count)) return false;
            continue;
        }
        for (int64_t t = 0; t < map.ne[1]; ++t) {
            const int64_t sequence = Map(map, t).at(0);
            if (sequence != 0) return fail_index(worker, step, &map, sequence, 1);
        }
        convolve(step, *reinterpret_cast<Window*>(worker.local), c0, count);
    }
    return true;
}

// Relies on: state [taps - 1, channels, sequences] with adjacent rows, x [channels, tokens] with contiguous rows,
// kernel [taps, channels] and dst contiguous, map I32 [sequences, tokens], the store contiguous and large enough.
bool prepare_ssm_conv(PlanBuilder& builder, const Tensor& node) {
    const Tensor &state = *node.src[0], &x = *node.src[1], &kernel = *node.src[2];
    builder.need_local(sizeof(Window));
    const int64_t copies = work_of_copies(x.ne[1], state.ne[2], x.ne[0], kernel.ne[0]);
    builder.add(run_ssm_conv, node, blocks_of(kernel.ne[1], STATE_BLOCK), n_elements(x) * (kernel.ne[0] + 2) + copies);
    if (node.src[4] != nullptr) builder.writes(*node.src[4]);
    return true;
}

// ---- IK_SSM_SCAN ----

// Mamba: state = state * exp(step * a) + b * x * step, y = state . c for each channel. Floor: an exponential and 3
// vector operations per VL elements of the state and token.
template <bool WHOLE>
inline float scan_channel(const float* from, float* to, const float* a, const float* b, const float* c, float step,
                          float x, int64_t n) {
    vf sum = {};
    for (int64_t i = 0; i < n; i += VL) {
        const vf decay = vexp(load_some<WHOLE>(a + i, n - i) * step);
        const vf state = load_some<WHOLE>(from + i, n - i) * decay + load_some<WHOLE>(b + i, n - i) * (x * step);
        store_some<WHOLE>(to + i, state, n - i);
        sum = state * load_some<WHOLE>(c + i, n - i) + sum;
    }
    return add_lanes(sum);
}

// Items are blocks of channels.
template <bool WHOLE>
bool run_ssm_scan(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &s = *step.src[0], &x = *step.src[1], &dt = *step.src[2], &a = *step.src[3];
    const Tensor &b = *step.src[4], &c = *dst.src[5], &map = *dst.src[6];
    const int64_t n = s.ne[0], channels = s.ne[1], sequences = s.ne[2], tokens = x.ne[1];
    float* states = floats(dst) + tokens * channels;
    float steps[STATE_BLOCK];
    for (int64_t index = begin; index < end; ++index) {
        const int64_t c0 = index * STATE_BLOCK, count = least(channels - c0, STATE_BLOCK);
        const size_t bytes = static_cast<size_t>(count * n) * sizeof(float);
        // A client may have the result begin anywhere in the state.
        for (int64_t q = 0; q < sequences; ++q) std::memmove(states + (q * channels + c0) * n, floats(s, c0, q), bytes);
        for (int64_t t = 0; t < tokens; ++t) {
            const Map token(map, t);
            const int64_t sequence = token.at(0);
            if (!token.legal(sequence)) return fail_index(worker, step, &map, sequence, sequences);
            for (int64_t i = 0; i < count; i += VL)
                store_some<false>(steps + i, vsoftplus(load_some<false>(floats(dt, t) + c0 + i, count - i)), count - i);
            for (int64_t i = 0; i < count; ++i) {
                float* state = states + (sequence * channels + c0 + i) * n;
                floats(dst)[t * channels + c0 + i] = scan_channel<WHOLE>(
                    state, state, floats(a, c0 + i), floats(b, t), floats(c, t), steps[i], floats(x, t)[c0 + i], n);
            }
            copy_states(token, reinterpret_cast<uint8_t*>(states), channels * n * static_cast<int64_t>(sizeof(float)),
                        sequence, c0 * n * static_cast<int64_t>(sizeof(float)), static_cast<int64_t>(bytes));
        }
    }
    return true;
}

// Relies on: state [n, channels, sequences], x and dt [channels, tokens], a [n, channels] and dst contiguous, b and c
// [n, tokens] with contiguous rows, map I32 [sequences, tokens].
bool prepare_ssm_scan(PlanBuilder& builder, const Tensor& node) {
    const Tensor &s = *node.src[0], &x = *node.src[1];
    builder.add(s.ne[0] % VL == 0 ? run_ssm_scan<true> : run_ssm_scan<false>, node, blocks_of(s.ne[1], STATE_BLOCK),
                work_of(n_elements(x) * s.ne[0], 25) + work_of_copies(x.ne[1], s.ne[2], x.ne[0], s.ne[0]));
    return true;
}

// ---- DELTA_NET ----

constexpr int64_t COLUMNS = STATE_VECTORS * VL;
constexpr float STATE_LIMIT = 1e6f;
constexpr float GATE_LIMIT = 50.0f;

// One token of one head. `asked_k` and `asked_q` are k and q as the state before this token is asked: with the decay of
// each channel, or plain where one `decay` is common.
struct DeltaToken {
    const float *k, *v, *asked_k, *asked_q, *decays;
    float decay, beta, agreement, scale;  // agreement: scaled product of k and q
};

// NV vectors of columns of the state, whose rows are the channels of k. Floor: 6 vector operations per VL elements of
// the state and token.
template <int NV, bool BY_CHANNEL, bool WHOLE>
inline void delta_columns(const DeltaToken& token, const float* from, float* to, float* out, int64_t n, int64_t at,
                          int64_t left) {
    vf said[NV] = {}, answer[NV] = {};
    for (int64_t i = 0; i < n; ++i) {
        for (int j = 0; j < NV; ++j) {
            const vf state = load_some<WHOLE>(from + i * n + at + j * VL, left);
            said[j] = state * token.asked_k[i] + said[j];
            answer[j] = state * token.asked_q[i] + answer[j];
        }
    }
    const float beta_decay = BY_CHANNEL ? token.beta : token.beta * token.decay;
    const float scale = BY_CHANNEL ? token.scale : token.decay * token.scale;
    for (int j = 0; j < NV; ++j) {
        said[j] = load_some<WHOLE>(token.v + at + j * VL, left) * token.beta - said[j] * beta_decay;
        store_some<WHOLE>(out + at + j * VL, said[j] * token.agreement + answer[j] * scale, left);
    }
    const vf high = vset(STATE_LIMIT), low = vset(-STATE_LIMIT);
    for (int64_t i = 0; i < n; ++i) {
        const float k = token.k[i], decay = BY_CHANNEL ? token.decays[i] : token.decay;
        for (int j = 0; j < NV; ++j) {
            const int64_t cell = i * n + at + j * VL;
            const vf state = said[j] * k + load_some<WHOLE>(from + cell, left) * decay;
            store_some<WHOLE>(to + cell, vmax(low, vmin(high, state)), left);
        }
    }
}

// Items are blocks of columns of a head's state.
template <bool BY_CHANNEL>
bool run_delta_net(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &q = *step.src[0], &k = *step.src[1], &v = *step.src[2], &g = *step.src[3];
    const Tensor &beta = *step.src[4], &state = *dst.src[5], *store = dst.src[6];
    const int64_t n = q.ne[0], tokens = q.ne[1], heads = v.ne[2], seqs = q.ne[3], repeat = heads / q.ne[2];
    const int64_t blocks = blocks_of(n, COLUMNS);
    float* states = floats(dst) + n * heads * tokens * seqs;
    float *decays = reinterpret_cast<float*>(worker.local), *asked_k = decays + n, *asked_q = asked_k + n;
    DeltaToken token;
    token.decays = decays;
    token.scale = 1.0f / __builtin_sqrtf(static_cast<float>(n));
    for (int64_t index = begin; index < end; ++index) {
        const int64_t head = index / blocks % heads, seq = index / (blocks * heads);
        const int64_t column0 = index % blocks * COLUMNS, column1 = least(column0 + COLUMNS, n);
        const int64_t key_head = step.arg.i64[0] == 0 ? head / repeat : head % q.ne[2];
        const int64_t matrix = (seq * heads + head) * n * n;
        const float* from = floats(state) + matrix;
        float* to = states + matrix;
        for (int64_t t = 0; t < tokens; ++t) {
            const float *pq = floats(q, t, key_head, seq), *pk = floats(k, t, key_head, seq);
            token.k = pk;
            token.v = floats(v, t, head, seq);
            token.beta = 1.0f / (1.0f + __builtin_expf(-number(beta, t, head, seq)));
            const uint8_t* pg = g.data + t * g.nb[0] + head * g.nb[2] + seq * g.nb[3];
            vf product = {};
            for (int64_t i = 0; i < n; i += VL)
                product = load_some<false>(pk + i, n - i) * load_some<false>(pq + i, n - i) + product;
            token.agreement = add_lanes(product) * token.scale;
            if (BY_CHANNEL) {
                for (int64_t i = 0; i < n; ++i) std::memcpy(decays + i, pg + i * g.nb[1], sizeof(float));
                for (int64_t i = 0; i < n; i += VL) {
                    const vf decay = vexp(vmin(load_some<false>(decays + i, n - i), vset(GATE_LIMIT)));
                    store_some<false>(decays + i, decay, n - i);
                    store_some<false>(asked_k + i, load_some<false>(pk + i, n - i) * decay, n - i);
                    store_some<false>(asked_q + i, load_some<false>(pq + i, n - i) * decay, n - i);
                }
            } else {
                float gate;
                std::memcpy(&gate, pg, sizeof gate);
                token.decay = __builtin_expf(gate < GATE_LIMIT ? gate : GATE_LIMIT);
            }
            token.asked_k = BY_CHANNEL ? asked_k : pk;
            token.asked_q = BY_CHANNEL ? asked_q : pq;
            float* out = floats(dst) + ((seq * tokens + t) * heads + head) * n;
            if (column0 + COLUMNS <= column1) {
                delta_columns<STATE_VECTORS, BY_CHANNEL, true>(token, from, to, out, n, column0, VL);
            } else {
                for (int64_t column = column0; column < column1; column += VL)
                    delta_columns<1, BY_CHANNEL, false>(token, from, to, out, n, column, column1 - column);
            }
            from = to;
            if (store == nullptr || t + 1 == tokens) continue;
            for (int64_t i = 0; i < n; ++i)
                std::memcpy(floats(*store) + t * n * n * heads * seqs + matrix + i * n + column0, to + i * n + column0,
                            static_cast<size_t>(column1 - column0) * sizeof(float));
        }
    }
    return true;
}

// Relies on: q and k [n, tokens, key heads, seqs] and the state (n * n for each head and sequence) contiguous, v [n,
// tokens, heads, seqs] with contiguous rows, g [tokens, 1 or n, heads, seqs], beta [1, tokens, heads, seqs], dst
// contiguous, the store contiguous with room for the states after all tokens but the last.
bool prepare_delta_net(PlanBuilder& builder, const Tensor& node) {
    const Tensor &q = *node.src[0], &v = *node.src[2];
    const int64_t n = q.ne[0];
    const bool by_channel = node.src[3]->ne[1] != 1;
    if (by_channel) builder.need_local(3 * n * static_cast<int64_t>(sizeof(float)));
    Step& step = builder.add(by_channel ? run_delta_net<true> : run_delta_net<false>, node,
                             blocks_of(n, COLUMNS) * v.ne[2] * v.ne[3], work_of(n_elements(v) * n, 6));
    step.arg.i64[0] = node.params[0];
    if (node.src[6] != nullptr) builder.writes(*node.src[6]);
    return true;
}

}  // namespace

void register_ik_recurrent(OpTable& table) {
    table.prepare[OP_IK_SSM_CONV] = prepare_ssm_conv;
    table.prepare[OP_IK_SSM_SCAN] = prepare_ssm_scan;
    table.prepare[OP_DELTA_NET] = prepare_delta_net;
}

GGR_KERNELS_END
