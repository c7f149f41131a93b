// SSM_CONV and SSM_SCAN: the convolution and the state-space scan of Mamba and Mamba-2; IK_SSM_CONV and IK_SSM_SCAN:
// those of ik_llama.cpp, where a map says to which sequences a token belongs. All f32.
//
// A scan has a row of the state in the registers of a few neighbouring lanes from the first token to the last. Floor:
// bytes of the states for one token; for many, 3 operations (and with a decay for each element an exponential) an
// element and token.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/recurrent.h"

namespace ggr {
namespace cuda {

GGR_DEVICE const float* floats_at(const View& t, int64_t i1, int64_t i2, int64_t i3) {
    return reinterpret_cast<const float*>(row_at(t, i1, i2, i3));
}
GGR_DEVICE float softplus(float x) { return largest(x, 0.0f) + log_1p(exponential(-absolute(x))); }

// ---- SSM_CONV: dst[c, t] = sum over i of x[t + i, c] * kernel[i, c]. Floor: bytes of x and dst ----

// A thread a channel of a token. For few tokens: neighbours read neighbouring rows.
GGR_KERNEL GGR_BOUNDS(128, 1) ssm_conv(const ConvArgs a) {
    const int token = block_x() / a.blocks, channel = block_x() % a.blocks * n_threads() + thread_index();
    if (channel >= a.channels) return;
    const float* x = floats_at(a.x, channel, block_y(), 0) + token;
    const float* kernel = floats_at(a.kernel, channel, 0, 0);
    float sum = 0.0f;
    for (int i = 0; i < a.taps; ++i) sum += x[i] * kernel[i];
    reinterpret_cast<float*>(row_at(a.dst, token, block_y(), 0))[channel] = sum;
}

// A block a tile of channels and tokens: rows of x are read along the tokens, rows of dst written along the channels.
GGR_KERNEL GGR_BOUNDS(256, 1) ssm_conv_tile(const ConvArgs a) {
    float* const tile = reinterpret_cast<float*>(dynamic_shared());
    const int columns = CONV_TILE + a.taps - 1, stride = columns | 1;  // odd: a warp's channels in different banks
    const int first_channel = block_x() % a.blocks * CONV_TILE, first_token = block_x() / a.blocks * CONV_TILE;
    const int all = a.tokens + a.taps - 1 - first_token;
    for (int i = thread_index(); i < CONV_TILE * columns; i += n_threads()) {
        const int channel = i / columns, column = i % columns;
        const bool there = first_channel + channel < a.channels && column < all;
        tile[channel * stride + column] =
            there ? floats_at(a.x, first_channel + channel, block_y(), 0)[first_token + column] : 0.0f;
    }
    sync_block();
    const int channel = first_channel + lane();
    if (channel >= a.channels) return;
    const float* kernel = floats_at(a.kernel, channel, 0, 0);
    for (int t = warp_index(); t < CONV_TILE && first_token + t < a.tokens; t += n_threads() / WARP) {
        float sum = 0.0f;
        for (int i = 0; i < a.taps; ++i) sum += tile[lane() * stride + t + i] * kernel[i];
        reinterpret_cast<float*>(row_at(a.dst, first_token + t, block_y(), 0))[channel] = sum;
    }
}

// ---- Rows of a state in registers: LANES lanes have a row, each PER elements, LANES apart ----

template <int LANES, int PER>
GGR_DEVICE void load_lanes(float (&v)[PER], const float* from, int n) {
    GGR_UNROLL
    for (int j = 0; j < PER; ++j) {
        const int at = thread_index() % LANES + LANES * j;
        v[j] = at < n ? from[at] : 0.0f;
    }
}
template <int LANES, int PER>
GGR_DEVICE void store_lanes(float* to, const float (&v)[PER], int n) {
    GGR_UNROLL
    for (int j = 0; j < PER; ++j) {
        const int at = thread_index() % LANES + LANES * j;
        if (at < n) to[at] = v[j];
    }
}
template <int LANES>
GGR_DEVICE float sum_over_lanes(float v) {
    GGR_UNROLL
    for (int m = LANES / 2; m > 0; m >>= 1) v += shuffle_xor(v, m);
    return v;
}

// What a row needs of a token.
template <int PER>
struct ScanToken {
    float x, dt, b[PER], c[PER];
};

// state = state * decay + b * x * step, y = state . c. BY_ELEMENT: the decay is exp(step * a) for each element (Mamba),
// else one number a head (Mamba-2). Blocks: rows, sequences.
template <int LANES, int PER, bool BY_ELEMENT>
GGR_KERNEL GGR_BOUNDS(128, 1) ssm_scan(const ScanArgs a) {
    const int rows = a.dim * a.heads, sequence = block_y();
    const int wanted = block_x() * (n_threads() / LANES) + thread_index() / LANES;
    const int row = wanted < rows ? wanted : rows - 1, head = row / a.dim, group = head / a.heads_a_group;
    const int32_t id = *reinterpret_cast<const int32_t*>(a.ids.data + sequence * a.ids.nb[0]);
    if (id < 0 || id >= a.stored) {
        if (thread_index() == 0 && block_x() == 0) fail_index(a.site, id, a.stored);
        return;
    }
    float state[PER], rate[BY_ELEMENT ? PER : 1];
    load_lanes<LANES>(state, a.state + (static_cast<int64_t>(id) * rows + row) * a.n, a.n);
    if constexpr (BY_ELEMENT)
        load_lanes<LANES>(rate, a.a + static_cast<int64_t>(head) * a.n, a.n);
    else
        rate[0] = a.a[head];
    const auto load = [&](ScanToken<PER>& token, int t) {
        token.x = floats_at(a.x, 0, t, sequence)[row];
        token.dt = a.dt[(static_cast<int64_t>(sequence) * a.tokens + t) * a.heads + head];
        load_lanes<LANES>(token.b, floats_at(a.b, group, t, sequence), a.n);
        load_lanes<LANES>(token.c, floats_at(a.c, group, t, sequence), a.n);
    };
    ScanToken<PER> token, next;
    if (a.tokens > 0) load(token, 0);
    for (int t = 0; t < a.tokens; ++t) {
        load(next, t + 1 < a.tokens ? t + 1 : t);
        const float step = softplus(token.dt), input = token.x * step;
        const float common = BY_ELEMENT ? 0.0f : exponential(step * rate[0]);
        float sum = 0.0f;
        GGR_UNROLL
        for (int j = 0; j < PER; ++j) {
            const float decay = BY_ELEMENT ? exponential(step * rate[BY_ELEMENT ? j : 0]) : common;
            state[j] = state[j] * decay + token.b[j] * input;
            sum += state[j] * token.c[j];
        }
        sum = sum_over_lanes<LANES>(sum);
        // States of earlier tokens are kept too, the latest first.
        const int slot = a.tokens - 1 - t;
        if (wanted < rows) {
            if (thread_index() % LANES == 0)
                a.values[(static_cast<int64_t>(sequence) * a.tokens + t) * rows + row] = sum;
            if (slot < a.snapshots)
                store_lanes<LANES>(
                    a.states + ((static_cast<int64_t>(slot) * a.sequences + sequence) * rows + row) * a.n, state, a.n);
        }
        token = next;
    }
}

// ---- The map of ik_llama.cpp: a column of I32 for each token. Its first entry is the token's sequence, further ones
// name sequences that get a copy of the new state; the first illegal one ends them. ----

GGR_DEVICE int32_t map_at(const View& map, int i, int token) {
    return *reinterpret_cast<const int32_t*>(map.data + i * map.nb[0] + token * map.nb[1]);
}
GGR_DEVICE bool is_sequence(int32_t id, int n) { return id >= 0 && id < n; }

// One sequence: values, states and the stores of all tokens follow from x and the old state. A thread a channel of a
// token.
GGR_KERNEL GGR_BOUNDS(128, 1) map_conv(const MapConvArgs a) {
    const int blocks = (a.channels + n_threads() - 1) / n_threads();
    const int t = block_x() / blocks, channel = block_x() % blocks * n_threads() + thread_index();
    const int32_t id = map_at(a.map, 0, t);
    if (id != 0) {
        if (channel == 0) fail_index(a.site, id, 1);
        return;
    }
    if (channel >= a.channels) return;
    // The window after token t: its taps are those of tokens t - taps + 1 to t, the first of them from the old state.
    const auto window = [&](int i) {
        const int token = t - a.taps + 1 + i;
        return token >= 0 ? a.x[token * a.x_pitch + channel]
                          : a.state[static_cast<int64_t>(channel) * (a.taps - 1) + a.taps - 1 + token];
    };
    float sum = 0.0f;
    const int64_t place = static_cast<int64_t>(t) * a.channels + channel;
    for (int i = 0; i < a.taps; ++i) {
        const float v = window(i);
        sum += v * a.kernel[static_cast<int64_t>(channel) * a.taps + i];
        if (a.store != nullptr && i > 0) a.store[place * (a.taps - 1) + i - 1] = v;
        if (t == a.tokens - 1) a.states[static_cast<int64_t>(channel) * a.taps + i] = v;
    }
    a.values[place] = sum;
}

// Several: token by token, the windows are the states in the result. A thread a channel.
GGR_KERNEL GGR_BOUNDS(128, 1) map_conv_sequences(const MapConvArgs a) {
    const int channel = block_x() * n_threads() + thread_index();
    if (channel >= a.channels) return;
    const auto window_of = [&](int sequence) {
        return a.states + (static_cast<int64_t>(sequence) * a.channels + channel) * a.taps;
    };
    for (int s = 0; s < a.sequences; ++s) {
        const float* old = a.state + s * a.state_pitch + static_cast<int64_t>(channel) * (a.taps - 1);
        float* window = window_of(s);
        window[0] = 0.0f;
        for (int i = 1; i < a.taps; ++i) window[i] = old[i - 1];
    }
    for (int t = 0; t < a.tokens; ++t) {
        const int32_t id = map_at(a.map, 0, t);
        if (!is_sequence(id, a.sequences)) {
            if (channel == 0) fail_index(a.site, id, a.sequences);
            return;
        }
        float* window = window_of(id);
        float sum = 0.0f;
        for (int i = 0; i < a.taps; ++i) {
            const float v = i + 1 < a.taps ? window[i + 1] : a.x[t * a.x_pitch + channel];
            window[i] = v;
            sum += v * a.kernel[static_cast<int64_t>(channel) * a.taps + i];
        }
        a.values[static_cast<int64_t>(t) * a.channels + channel] = sum;
        for (int other = 1; other < a.sequences; ++other) {
            const int32_t to = map_at(a.map, other, t);
            if (!is_sequence(to, a.sequences)) break;
            if (to == id) continue;
            for (int i = 0; i < a.taps; ++i) window_of(to)[i] = window[i];
        }
    }
}

// Mamba: a row of the state a channel. The present sequence's row is in registers, others lie in the result.
template <int LANES, int PER>
GGR_KERNEL GGR_BOUNDS(128, 1) map_scan(const MapScanArgs a) {
    const int wanted = block_x() * (n_threads() / LANES) + thread_index() / LANES;
    const bool there = wanted < a.channels;
    const int channel = there ? wanted : a.channels - 1;
    const int64_t pitch = static_cast<int64_t>(a.channels) * a.n;
    float* const states = a.states + static_cast<int64_t>(channel) * a.n;
    float state[PER], rate[PER], b[PER], c[PER];
    for (int s = 0; s < a.sequences; ++s) {
        load_lanes<LANES>(state, a.state + s * pitch + static_cast<int64_t>(channel) * a.n, a.n);
        if (there) store_lanes<LANES>(states + s * pitch, state, a.n);
    }
    load_lanes<LANES>(rate, a.a + static_cast<int64_t>(channel) * a.n, a.n);
    int32_t held = a.sequences - 1;
    for (int t = 0; t < a.tokens; ++t) {
        const int32_t id = map_at(a.map, 0, t);
        if (!is_sequence(id, a.sequences)) {
            if (block_x() == 0 && thread_index() == 0) fail_index(a.site, id, a.sequences);
            return;
        }
        if (id != held) {
            if (there) {
                store_lanes<LANES>(states + held * pitch, state, a.n);
                load_lanes<LANES>(state, states + id * pitch, a.n);
            }
            held = id;
        }
        load_lanes<LANES>(b, floats_at(a.b, t, 0, 0), a.n);
        load_lanes<LANES>(c, floats_at(a.c, t, 0, 0), a.n);
        const int64_t place = static_cast<int64_t>(t) * a.channels + channel;
        const float step = softplus(a.dt[place]), input = a.x[place] * step;
        float sum = 0.0f;
        GGR_UNROLL
        for (int j = 0; j < PER; ++j) {
            state[j] = state[j] * exponential(step * rate[j]) + b[j] * input;
            sum += state[j] * c[j];
        }
        sum = sum_over_lanes<LANES>(sum);
        if (there && thread_index() % LANES == 0) a.values[place] = sum;
        for (int other = 1; there && other < a.sequences; ++other) {
            const int32_t to = map_at(a.map, other, t);
            if (!is_sequence(to, a.sequences)) break;
            if (to != id) store_lanes<LANES>(states + to * pitch, state, a.n);
        }
    }
    if (there) store_lanes<LANES>(states + held * pitch, state, a.n);
}

}  // namespace cuda
}  // namespace ggr
