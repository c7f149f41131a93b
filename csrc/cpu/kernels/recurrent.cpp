// SSM_CONV: a short convolution over the tokens of each channel. SSM_SCAN: the state-space scans of Mamba (a decay for
// each element of the state) and Mamba-2 (one a head). GATED_DELTA_NET: linear attention that corrects what its state
// says of a key. All f32.
#include "cpu/level.h"
#include "cpu/state.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

// ---- SSM_CONV ----

// dst[c, t] = sum over i of x[t + i, c] * kernel[i, c]. The tokens of a channel are adjacent in x, the channels of a
// token in dst: results are made a channel at a time and turned through a tile. Floor: bytes of x and dst.
constexpr int64_t CONV_TOKENS = 64;

bool run_ssm_conv(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0], &kernel = *step.src[1];
    const int64_t taps = kernel.ne[0], channels = dst.ne[0], tokens = dst.ne[1];
    const int64_t channel_blocks = blocks_of(channels, STATE_BLOCK), token_blocks = blocks_of(tokens, CONV_TOKENS);
    float tile[STATE_BLOCK][CONV_TOKENS];
    for (int64_t index = begin; index < end; ++index) {
        const int64_t c0 = index % channel_blocks * STATE_BLOCK,
                      t0 = index / channel_blocks % token_blocks * CONV_TOKENS;
        const int64_t seq = index / (channel_blocks * token_blocks);
        const int64_t nc = least(channels - c0, STATE_BLOCK), nt = least(tokens - t0, CONV_TOKENS);
        for (int64_t c = 0; c < nc; ++c) {
            const float* px = floats(x, c0 + c, seq) + t0;
            const float* pk = floats(kernel, c0 + c);
            int64_t t = 0;
            for (; t + VL <= nt; t += VL) {
                vf sum = {};
                for (int64_t i = 0; i < taps; ++i) sum = vload(px + t + i) * pk[i] + sum;
                vstore(tile[c] + t, sum);
            }
            for (; t < nt; ++t) {
                float sum = 0.0f;
                for (int64_t i = 0; i < taps; ++i) sum += px[t + i] * pk[i];
                tile[c][t] = sum;
            }
        }
        for (int64_t t = 0; t < nt; ++t) {
            float* out = floats(dst, t0 + t, seq) + c0;
            for (int64_t c = 0; c < nc; ++c) out[c] = tile[c][t];
        }
    }
    return true;
}

// Relies on: x [tokens + taps - 1, channels, sequences] with adjacent rows, kernel [taps, channels] and dst
// [channels, tokens, sequences] contiguous.
bool prepare_ssm_conv(PlanBuilder& builder, const Tensor& node) {
    const int64_t items = blocks_of(node.ne[0], STATE_BLOCK) * blocks_of(node.ne[1], CONV_TOKENS) * node.ne[2];
    builder.add(run_ssm_conv, node, items, n_elements(node) * (node.src[1]->ne[0] + 2));
    return true;
}

// ---- SSM_SCAN ----

// What R rows of the state need for one token. BY_ELEMENT: `decay` is exp(step * a) for each element, else one number.
template <int R>
struct ScanRows {
    const float *from, *b[R], *c[R], *a[R];
    float *to, decay[R], step[R], input[R], y[R];
};

// state = state * decay + b * input, y = state . c. Floor: 3 vector operations (Mamba-2), or those of an exponential
// and 3, per VL elements of the state and token.
template <int R, bool BY_ELEMENT, bool WHOLE>
inline void scan_rows(ScanRows<R>& rows, int64_t n) {
    vf sum[R] = {};
    for (int64_t i = 0; i < n; i += VL) {
        for (int r = 0; r < R; ++r) {
            const vf old = load_some<WHOLE>(rows.from + r * n + i, n - i);
            const vf decay =
                BY_ELEMENT ? vexp(load_some<WHOLE>(rows.a[r] + i, n - i) * rows.step[r]) : vset(rows.decay[r]);
            const vf state = old * decay + load_some<WHOLE>(rows.b[r] + i, n - i) * rows.input[r];
            store_some<WHOLE>(rows.to + r * n + i, state, n - i);
            sum[r] = state * load_some<WHOLE>(rows.c[r] + i, n - i) + sum[r];
        }
    }
    for (int r = 0; r < R; ++r) rows.y[r] = add_lanes(sum[r]);
}

// An item's token: its rows begin at `row`, `count` of them; heads' steps and decays lie in `steps` and `decays`.
template <int R, bool BY_ELEMENT, bool WHOLE>
inline void scan_token(const Step& step, const float* from, float* to, float* y, const float* x, const float* steps,
                       const float* decays, int64_t row, int64_t head0, int64_t token, int64_t seq) {
    const Tensor &s = *step.src[0], &a = *step.src[3], &b = *step.src[4], &c = *step.dst->src[5];
    const int64_t n = s.ne[0], dim = s.ne[1], heads_a_group = s.ne[2] / b.ne[1];
    ScanRows<R> rows;
    rows.from = from + row * n;
    rows.to = to + row * n;
    for (int r = 0; r < R; ++r) {
        const int64_t head = (row + r) / dim, group = head / heads_a_group;
        rows.b[r] = floats(b, group, token, seq);
        rows.c[r] = floats(c, group, token, seq);
        rows.a[r] = floats(a, head);
        rows.step[r] = steps[head - head0];
        rows.decay[r] = decays[head - head0];
        rows.input[r] = x[row + r] * steps[head - head0];
    }
    scan_rows<R, BY_ELEMENT, WHOLE>(rows, n);
    for (int r = 0; r < R; ++r) y[row + r] = rows.y[r];
}

// Items are blocks of state rows, which may belong to several heads (Mamba has a head for each channel).
template <bool BY_ELEMENT, bool WHOLE>
bool run_ssm_scan(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &s = *step.src[0], &x = *step.src[1], &dt = *step.src[2], &a = *step.src[3];
    const Tensor& ids = *dst.src[6];
    const int64_t n = s.ne[0], dim = s.ne[1], rows = dim * s.ne[2], tokens = x.ne[2], seqs = x.ne[3];
    const int64_t blocks = blocks_of(rows, STATE_BLOCK), snapshots = step.arg.i64[0];
    float* values = reinterpret_cast<float*>(dst.data);
    float* states = values + rows * tokens * seqs;
    float steps[STATE_BLOCK + VL], decays[STATE_BLOCK + VL];
    for (int64_t index = begin; index < end; ++index) {
        const int64_t row0 = index % blocks * STATE_BLOCK, row1 = least(row0 + STATE_BLOCK, rows), seq = index / blocks;
        const int64_t head0 = row0 / dim, heads = (row1 - 1) / dim + 1 - head0;
        int32_t id;
        std::memcpy(&id, ids.data + seq * ids.nb[0], sizeof id);
        if (id < 0 || id >= s.ne[3]) return fail_index(worker, step, &ids, id, s.ne[3]);
        float* to = states + seq * rows * n;
        const float* from = floats(s, 0, 0, id);
        for (int64_t t = 0; t < tokens; ++t) {
            const float* px = floats(x, 0, t, seq);
            float* y = values + (seq * tokens + t) * rows;
            for (int64_t h = 0; h < heads; h += VL) {
                const vf soft = vsoftplus(load_some<false>(floats(dt, t, seq) + head0 + h, heads - h));
                vstore(steps + h, soft);
                if (!BY_ELEMENT) {
                    const vf rate = load_some<false>(floats(a) + head0 + h, heads - h);
                    vstore(decays + h, vexp(soft * rate));
                }
            }
            int64_t row = row0;
            for (; row + 4 <= row1; row += 4)
                scan_token<4, BY_ELEMENT, WHOLE>(step, from, to, y, px, steps, decays, row, head0, t, seq);
            for (; row < row1; ++row)
                scan_token<1, BY_ELEMENT, WHOLE>(step, from, to, y, px, steps, decays, row, head0, t, seq);
            // States of earlier tokens are kept too, the latest first.
            const int64_t slot = tokens - 1 - t;
            if (slot > 0 && slot < snapshots)
                std::memcpy(states + (slot * seqs + seq) * rows * n + row0 * n, to + row0 * n,
                            static_cast<size_t>((row1 - row0) * n) * sizeof(float));
            from = to;
        }
    }
    return true;
}

// Relies on: state [n, dim, heads, stored], dt [heads, tokens, seqs], a [1 or n, heads] contiguous; x [dim, heads,
// tokens, seqs] and b, c [n, groups, tokens, seqs] with the rows of a token adjacent; ids I32 [seqs]; dst contiguous.
bool prepare_ssm_scan(PlanBuilder& builder, const Tensor& node) {
    const Tensor &s = *node.src[0], &x = *node.src[1];
    const bool by_element = node.src[3]->ne[0] != 1, whole = s.ne[0] % VL == 0;
    const int64_t rows = s.ne[1] * s.ne[2];
    const auto fn = by_element ? (whole ? run_ssm_scan<true, true> : run_ssm_scan<true, false>)
                               : (whole ? run_ssm_scan<false, true> : run_ssm_scan<false, false>);
    Step& step = builder.add(fn, node, blocks_of(rows, STATE_BLOCK) * x.ne[3],
                             work_of(n_elements(x) * s.ne[0], by_element ? 25 : 4));
    step.arg.i64[0] = node.params[0];
    return true;
}

// ---- GATED_DELTA_NET ----

// One token of one head.
struct DeltaToken {
    const float *q, *k, *decays;  // decays: one for each channel of k
    float decay, beta, scale;
};

// R state rows, each all that the state holds for one channel of the values: decay them, ask them for k, correct them
// towards v, ask them for q. Floor: 7 vector operations per VL elements of the state and token.
template <int R, bool BY_CHANNEL, bool WHOLE>
inline void delta_rows(const DeltaToken& token, const float* from, float* to, const float* v, float* out, int64_t n) {
    vf sum[R] = {};
    for (int64_t i = 0; i < n; i += VL) {
        const vf k = load_some<WHOLE>(token.k + i, n - i);
        const vf decay = BY_CHANNEL ? load_some<WHOLE>(token.decays + i, n - i) : vset(token.decay);
        for (int r = 0; r < R; ++r) {
            const vf state = load_some<WHOLE>(from + r * n + i, n - i) * decay;
            store_some<WHOLE>(to + r * n + i, state, n - i);
            sum[r] = state * k + sum[r];
        }
    }
    float delta[R];
    for (int r = 0; r < R; ++r) {
        delta[r] = (v[r] - add_lanes(sum[r])) * token.beta;
        sum[r] = vset(0.0f);
    }
    for (int64_t i = 0; i < n; i += VL) {
        const vf k = load_some<WHOLE>(token.k + i, n - i), q = load_some<WHOLE>(token.q + i, n - i);
        for (int r = 0; r < R; ++r) {
            const vf state = k * delta[r] + load_some<WHOLE>(to + r * n + i, n - i);
            store_some<WHOLE>(to + r * n + i, state, n - i);
            sum[r] = state * q + sum[r];
        }
    }
    for (int r = 0; r < R; ++r) out[r] = add_lanes(sum[r]) * token.scale;
}

// Items are blocks of rows of a head's state.
template <bool BY_CHANNEL, bool WHOLE>
bool run_gated_delta_net(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &q = *step.src[0], &k = *step.src[1], &v = *step.src[2], &g = *step.src[3];
    const Tensor &beta = *step.src[4], &state = *dst.src[5];
    const int64_t n = v.ne[0], heads = v.ne[1], tokens = v.ne[2], seqs = v.ne[3];
    const int64_t blocks = blocks_of(n, STATE_BLOCK), snapshots = step.arg.i64[0];
    float* values = reinterpret_cast<float*>(dst.data);
    float* states = values + n * heads * tokens * seqs;
    float* decays = reinterpret_cast<float*>(worker.local);
    DeltaToken token;
    token.decays = decays;
    token.scale = 1.0f / __builtin_sqrtf(static_cast<float>(n));
    for (int64_t index = begin; index < end; ++index) {
        const int64_t row0 = index % blocks * STATE_BLOCK, row1 = least(row0 + STATE_BLOCK, n);
        const int64_t head = index / blocks % heads, seq = index / (blocks * heads);
        const int64_t matrix = (seq * heads + head) * n * n;
        const float* from = floats(state) + matrix;
        float* to = states + matrix;
        for (int64_t t = 0; t < tokens; ++t) {
            token.q = floats(q, head % q.ne[1], t, seq / (seqs / q.ne[3]));
            token.k = floats(k, head % k.ne[1], t, seq / (seqs / k.ne[3]));
            token.beta = number(beta, head, t, seq);
            const float* pg = floats(g, head, t, seq);
            if (BY_CHANNEL) {
                for (int64_t i = 0; i < n; i += VL)
                    store_some<WHOLE>(decays + i, vexp(load_some<WHOLE>(pg + i, n - i)), n - i);
            } else {
                token.decay = __builtin_expf(*pg);
            }
            const float* pv = floats(v, head, t, seq);
            float* out = values + ((seq * tokens + t) * heads + head) * n;
            int64_t row = row0;
            for (; row + 4 <= row1; row += 4)
                delta_rows<4, BY_CHANNEL, WHOLE>(token, from + row * n, to + row * n, pv + row, out + row, n);
            for (; row < row1; ++row)
                delta_rows<1, BY_CHANNEL, WHOLE>(token, from + row * n, to + row * n, pv + row, out + row, n);
            // States of earlier tokens are kept too, the latest first.
            const int64_t slot = tokens - 1 - t;
            if (slot > 0 && slot < snapshots)
                std::memcpy(states + slot * n * n * heads * seqs + matrix + row0 * n, to + row0 * n,
                            static_cast<size_t>((row1 - row0) * n) * sizeof(float));
            from = to;
        }
    }
    return true;
}

// Relies on: v [n, heads, tokens, seqs], q and k the same but that heads and sequences may repeat, rows contiguous;
// g [1 or n, heads, tokens, seqs], beta [1, heads, tokens, seqs], the state (n * n for each head and sequence) and dst
// contiguous.
bool prepare_gated_delta_net(PlanBuilder& builder, const Tensor& node) {
    const Tensor& v = *node.src[2];
    const bool by_channel = node.src[3]->ne[0] != 1, whole = v.ne[0] % VL == 0;
    const auto fn = by_channel ? (whole ? run_gated_delta_net<true, true> : run_gated_delta_net<true, false>)
                               : (whole ? run_gated_delta_net<false, true> : run_gated_delta_net<false, false>);
    if (by_channel) builder.need_local(v.ne[0] * static_cast<int64_t>(sizeof(float)));
    Step& step =
        builder.add(fn, node, blocks_of(v.ne[0], STATE_BLOCK) * v.ne[1] * v.ne[3], work_of(n_elements(v) * v.ne[0], 7));
    step.arg.i64[0] = node.params[0];
    return true;
}

}  // namespace

void register_recurrent(OpTable& table) {
    table.prepare[OP_SSM_CONV] = prepare_ssm_conv;
    table.prepare[OP_SSM_SCAN] = prepare_ssm_scan;
    table.prepare[OP_GATED_DELTA_NET] = prepare_gated_delta_net;
}

GGR_KERNELS_END
