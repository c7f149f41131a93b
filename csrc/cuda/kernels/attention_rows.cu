// FLASH_ATTN_EXT for few rows, or for types that the tensor cores would round: out = softmax(cap(q k^T * scale) +
// slope * mask) v, in f32. K and V of F16, BF16, F32, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL are turned into f32 as they
// are read.
//
// A block has ROWS rows (all heads that share K and V, if they fit) and a range of positions. Its four warps take 32
// positions in turn: LANES lanes share a position, each has chunks of 8 channels of q and of the result in registers.
// Positions that no row sees are not read. Floor: bytes of K and V over memory bandwidth.
#include "cuda/kernels/attention.cuh"

namespace ggr {
namespace cuda {

constexpr int ROWS_WARPS = 4;

// Reduces N sums over N neighbouring lanes: every exchange halves what a lane holds, lane i ends with sum i in dot[0].
template <int HALF, int N>
GGR_DEVICE void scatter_sums(float (&dot)[N]) {
    if constexpr (HALF > 0) {
        const bool upper = (lane() & HALF) != 0;
        GGR_UNROLL
        for (int i = 0; i < HALF; ++i) {
            const float give = upper ? dot[i] : dot[i + HALF], keep = upper ? dot[i + HALF] : dot[i];
            dot[i] = keep + shuffle_xor(give, HALF);
        }
        scatter_sums<HALF / 2>(dot);
    }
}

template <bool F16>
GGR_DEVICE void load(float (&x)[8], [[maybe_unused]] int32_t type, [[maybe_unused]] bool aligned, const uint8_t* row,
                     int chunk, [[maybe_unused]] int d) {
    if constexpr (F16)
        halves_of(x, load16(row + 16 * chunk));
    else
        load_chunk(x, type, aligned, row, chunk, d);
}
GGR_DEVICE void accumulate(float (&sum)[8], float p, const float (&x)[8]) {
    GGR_UNROLL
    for (int i = 0; i < 8; ++i) sum[i] = fused_add(p, x[i], sum[i]);
}

// F16: K and V are F16 in rows of multiples of 16 bytes. N: chunks a lane.
template <bool F16, int LANES, int N, int ROWS>
GGR_KERNEL GGR_BOUNDS(128, 1) attention_rows(const AttentionArgs a) {
    constexpr int AT_ONCE = WARP / LANES;          // positions that a warp takes in one step
    constexpr int STEPS = F16 ? LANES / ROWS : 1;  // steps reduced together: one where reading a row takes much code
    constexpr int AHEAD = F16 ? 4 : 1;             // rows of V in flight
    const int rows = a.group * a.n_queries, n_tiles = (rows + ROWS - 1) / ROWS;
    const int first_row = block_x() % n_tiles * ROWS, first_head = block_x() / n_tiles * a.group, batch = block_z();
    const int split = block_y(), begin = split * a.split_length;
    const int end = begin + a.split_length < a.n_kv ? begin + a.split_length : a.n_kv;
    const int part = lane() / LANES, own = lane() % LANES;
    const int chunks_k = (a.dk + 7) / 8, chunks_v = (a.dv + 7) / 8;
    const uint8_t* const k = k_head(a, first_head, batch);
    const uint8_t* const v = v_head(a, first_head, batch);
    float* const scores = reinterpret_cast<float*>(dynamic_shared()) + warp_index() * WARP * ROWS;  // [position][row]
    float* const shared = reinterpret_cast<float*>(dynamic_shared()) + ROWS_WARPS * WARP * ROWS;

    float q[ROWS][N][8], sum[ROWS][N][8], top[ROWS], total[ROWS], slope[ROWS];
    int query_of[ROWS], head_of[ROWS];
    const float scale = a.softcap != 0.0f ? a.scale / a.softcap : a.scale;
    GGR_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const int row = first_row + r < rows ? first_row + r : rows - 1;
        query_of[r] = row / a.group;
        head_of[r] = first_head + row % a.group;
        const float* from = reinterpret_cast<const float*>(a.q.data + query_of[r] * a.q.nb[1] + head_of[r] * a.q.nb[2] +
                                                           batch * a.q.nb[3]);
        GGR_UNROLL
        for (int n = 0; n < N; ++n) {
            const int chunk = own + n * LANES;
            GGR_UNROLL
            for (int i = 0; i < 8; ++i) {
                q[r][n][i] = chunk * 8 + i < a.dk ? from[chunk * 8 + i] * scale : 0.0f;
                sum[r][n][i] = 0.0f;
            }
        }
        top[r] = -infinity();
        total[r] = 0.0f;
        slope[r] = alibi_slope(a.max_bias, a.n_heads, head_of[r]);
    }

    for (int first = begin + warp_index() * WARP; first < end; first += ROWS_WARPS * WARP) {
        // Lane i looks after the mask and the weights of position first + i.
        const bool inside = first + lane() < end;
        float mask[ROWS];
        bool live = inside;
        if (a.mask.data != nullptr) {
            live = false;
            GGR_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                mask[r] =
                    inside ? half_to_float(mask_row(a, query_of[r], head_of[r], batch)[first + lane()]) : -infinity();
                live = live || mask[r] != -infinity();
            }
        } else {
            GGR_UNROLL
            for (int r = 0; r < ROWS; ++r) mask[r] = inside ? 0.0f : -infinity();
        }
        if (ballot(live) == 0) continue;

        for (int pass = 0; pass < LANES / STEPS; ++pass) {
            float dot[STEPS * ROWS];
            GGR_UNROLL
            for (int s = 0; s < STEPS; ++s) {
                const int position = first + (pass * STEPS + s) * AT_ONCE + part;
                const uint8_t* row = k + (position < end ? position : end - 1) * a.k.nb[1];
                GGR_UNROLL
                for (int r = 0; r < ROWS; ++r) dot[s * ROWS + r] = 0.0f;
                GGR_UNROLL
                for (int n = 0; n < N; ++n) {
                    if (own + n * LANES >= chunks_k) continue;
                    float x[8];
                    load<F16>(x, a.k_type, a.k_aligned != 0, row, own + n * LANES, a.dk);
                    GGR_UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        GGR_UNROLL
                        for (int i = 0; i < 8; ++i) dot[s * ROWS + r] = fused_add(q[r][n][i], x[i], dot[s * ROWS + r]);
                    }
                }
            }
            if constexpr (F16) {
                scatter_sums<LANES / 2>(dot);
                scores[((pass * STEPS + own / ROWS) * AT_ONCE + part) * ROWS + own % ROWS] = dot[0];
            } else {
                GGR_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    GGR_UNROLL
                    for (int m = LANES / 2; m > 0; m /= 2) dot[r] += shuffle_xor(dot[r], m);
                    if (own == r) scores[(pass * AT_ONCE + part) * ROWS + r] = dot[r];
                }
            }
        }
        sync_warp();
        GGR_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            float s = scores[lane() * ROWS + r];
            if (a.softcap != 0.0f) s = a.softcap * hyperbolic_tangent(s);
            s = mask[r] == -infinity() ? -infinity() : s + slope[r] * mask[r];
            const float higher = largest(top[r], warp_max(s)), base = higher == -infinity() ? 0.0f : higher;
            const float shrink = weight_of(top[r], base), p = weight_of(s, base);
            total[r] = total[r] * shrink + p;
            top[r] = higher;
            GGR_UNROLL
            for (int n = 0; n < N; ++n) {
                GGR_UNROLL
                for (int i = 0; i < 8; ++i) sum[r][n][i] *= shrink;
            }
            scores[lane() * ROWS + r] = p;
        }
        sync_warp();
        for (int s0 = 0; s0 < LANES; s0 += AHEAD) {
            float x[AHEAD][N][8];
            GGR_UNROLL
            for (int s = 0; s < AHEAD; ++s) {
                const int position = first + (s0 + s) * AT_ONCE + part;
                const uint8_t* row = v + (position < end ? position : end - 1) * a.v.nb[1];
                GGR_UNROLL
                for (int n = 0; n < N; ++n)
                    if (own + n * LANES < chunks_v)
                        load<F16>(x[s][n], a.v_type, a.v_aligned != 0, row, own + n * LANES, a.dv);
            }
            GGR_UNROLL
            for (int s = 0; s < AHEAD; ++s) {
                float p[ROWS];
                bool counts = false;
                GGR_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    p[r] = scores[((s0 + s) * AT_ONCE + part) * ROWS + r];
                    counts = counts || p[r] != 0.0f;
                }
                if (!counts) continue;  // what is masked may be NaN
                GGR_UNROLL
                for (int n = 0; n < N; ++n) {
                    if (own + n * LANES >= chunks_v) continue;
                    GGR_UNROLL
                    for (int r = 0; r < ROWS; ++r) accumulate(sum[r][n], p[r], x[s][n]);
                }
            }
        }
        sync_warp();  // before the next positions' scores
    }

    // The warps' results side by side: [warp][row][maximum, sum, values].
    const int width = a.dv + 2;
    GGR_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        float* to = shared + (warp_index() * ROWS + r) * width;
        total[r] = warp_sum(total[r]);
        if (lane() == 0) {
            to[0] = top[r];
            to[1] = total[r];
        }
        GGR_UNROLL
        for (int n = 0; n < N; ++n) {
            const int chunk = own + n * LANES;
            GGR_UNROLL
            for (int i = 0; i < 8; ++i) {
                float x = sum[r][n][i];
                GGR_UNROLL
                for (int m = LANES; m < WARP; m *= 2) x += shuffle_xor(x, m);
                if (part == 0 && chunk * 8 + i < a.dv) to[2 + chunk * 8 + i] = x;
            }
        }
    }
    sync_block();
    for (int r = 0; r < ROWS && first_row + r < rows; ++r) {
        const int query = (first_row + r) / a.group, head = first_head + (first_row + r) % a.group;
        float m = -infinity(), l = 0.0f, weight[ROWS_WARPS];
        GGR_UNROLL
        for (int w = 0; w < ROWS_WARPS; ++w) m = largest(m, shared[(w * ROWS + r) * width]);
        const float base = m == -infinity() ? 0.0f : m;
        GGR_UNROLL
        for (int w = 0; w < ROWS_WARPS; ++w) {
            weight[w] = weight_of(shared[(w * ROWS + r) * width], base);
            l += shared[(w * ROWS + r) * width + 1] * weight[w];
        }
        const bool whole = a.partials == nullptr;
        const float factor = whole ? final_factor(a, head, m, l) : 1.0f;
        float* to = whole ? result_row(a, query, head, batch) : partial_row(a, query, head, batch, split) + 2;
        for (int i = thread_index(); i < a.dv; i += n_threads()) {
            float x = 0.0f;
            GGR_UNROLL
            for (int w = 0; w < ROWS_WARPS; ++w) x += shared[(w * ROWS + r) * width + 2 + i] * weight[w];
            to[i] = x * factor;
        }
        if (!whole && thread_index() == 0) {
            to[-2] = m;
            to[-1] = l;
        }
    }
}

// Joins the splits: a block a row of the result.
GGR_KERNEL GGR_BOUNDS(128, 1) attention_join(const AttentionArgs a) {
    const int query = block_x() % a.n_queries, head = block_x() / a.n_queries, batch = block_y();
    const float* parts = partial_row(a, query, head, batch, 0);
    const int stride = a.dv + 2;
    float m = -infinity(), l = 0.0f;
    for (int s = 0; s < a.n_splits; ++s) m = largest(m, parts[s * stride]);
    const float base = m == -infinity() ? 0.0f : m;
    for (int s = 0; s < a.n_splits; ++s) l += parts[s * stride + 1] * weight_of(parts[s * stride], base);
    const float factor = final_factor(a, head, m, l);
    float* to = result_row(a, query, head, batch);
    for (int i = thread_index(); i < a.dv; i += n_threads()) {
        float x = 0.0f;
        for (int s = 0; s < a.n_splits; ++s) x += parts[s * stride + 2 + i] * weight_of(parts[s * stride], base);
        to[i] = x * factor;
    }
}

}  // namespace cuda
}  // namespace ggr
