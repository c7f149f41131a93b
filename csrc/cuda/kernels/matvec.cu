// Products of weights with one to eight columns, streaming the weights once.
// Floor: bytes of the weights over memory bandwidth; about 45 instructions for 16 bytes of a four-bit type and a
// column, of the 100 or so that an H100 has time for.
//
// A warp takes VECTOR_ROWS rows, so that a column's activations are loaded once for both; `split` warps of a block may
// share them where rows are few and long. Grid: x blocks of rows, y pairs of a product by id, z matrices.
#include "cuda/kernels/glu.cuh"
#include "cuda/kernels/place.cuh"
#include "cuda/kernels/plain.cuh"
#include "cuda/types/all.cuh"

namespace ggr {
namespace cuda {

constexpr int R = VECTOR_ROWS;

// What a warp works on. Rows and columns beyond the last repeat it, and their sums are not stored.
template <int N>
struct VectorTask {
    const uint8_t* w[R];
    const uint8_t* x[N];
    float* dst[N];
    int row, rows, part;
    int32_t expert;
    bool absent;  // a product by id without a legal id: its result is 0, or nobody reads it
};

template <int N>
GGR_DEVICE VectorTask<N> vector_task(const ProductArgs& a) {
    VectorTask<N> t;
    const int warps = n_threads() / WARP, group = warp_index() / a.split;
    t.part = warp_index() - group * a.split;
    const ProductArgs::Other matrix = matrix_of_block(a);
    t.row = ((block_x() - matrix.first_block) * (warps / a.split) + group) * R;
    t.rows = matrix.m;
    t.expert = 0;
    t.absent = false;
    const uint8_t* w = matrix.w;
    if (a.ids != nullptr) {
        const int pair = block_y(), token = pair / a.slots, slot = pair - token * a.slots;
        int32_t expert = *reinterpret_cast<const int32_t*>(a.ids + slot * a.ids_nb[0] + token * a.ids_nb[1]);
        if (expert < 0 || expert >= a.experts) {
            if (a.absent_is_zero == 0 && block_x() == 0 && thread_index() == 0) fail_index(a.site, expert, a.experts);
            t.absent = true;
            expert = 0;
        }
        t.expert = expert;
        w += expert * a.w_nb[1];
        const Column c = column_of_pair(a, matrix, pair);
        t.x[0] = c.x;
        t.dst[0] = c.dst;
    } else {
        const int w3 = block_z() / a.w_ne2, w2 = block_z() - w3 * a.w_ne2;
        w += w2 * a.w_nb[1] + w3 * a.w_nb[2];
        GGR_UNROLL
        for (int c = 0; c < N; ++c) {
            const Column column = column_of_matrix(a, matrix, c < a.columns ? c : a.columns - 1, w2, w3);
            t.x[c] = column.x;
            t.dst[c] = column.dst;
        }
    }
    GGR_UNROLL
    for (int r = 0; r < R; ++r) t.w[r] = w + (t.row + r < t.rows ? t.row + r : t.rows - 1) * a.w_nb[0];
    return t;
}

// The number of row r of those of a warp: which of its group it is, where rows are interleaved.
template <int N>
GGR_DEVICE int row_number(const VectorTask<N>& t, int r) {
    return t.row + r < t.rows ? t.row + r : t.rows - 1;
}

// Add up the lanes' sums, then those of the warps that share rows: the first of them has all. Every thread of the block
// comes here.
template <int N>
GGR_DEVICE void add_lanes(const ProductArgs& a, const VectorTask<N>& t, float (&sums)[R][N]) {
    GGR_SHARED float shared[VECTOR_THREADS / WARP][R * N];
    GGR_UNROLL
    for (int r = 0; r < R; ++r) {
        GGR_UNROLL
        for (int c = 0; c < N; ++c) sums[r][c] = warp_sum(sums[r][c]);
    }
    if (a.split == 1) return;
    if (lane() == 0) {
        GGR_UNROLL
        for (int i = 0; i < R * N; ++i) shared[warp_index()][i] = sums[i / N][i % N];
    }
    sync_block();
    if (t.part != 0) return;
    for (int s = 1; s < a.split; ++s) {
        GGR_UNROLL
        for (int i = 0; i < R * N; ++i) sums[i / N][i % N] += shared[warp_index() + s][i];
    }
}
template <int N>
GGR_DEVICE void store_sums(const ProductArgs& a, const VectorTask<N>& t, float (&sums)[R][N]) {
    add_lanes(a, t, sums);
    if (t.part != 0 || lane() != 0) return;
    GGR_UNROLL
    for (int c = 0; c < N; ++c) {
        GGR_UNROLL
        for (int r = 0; r < R; ++r) {
            if (c < a.columns && t.row + r < t.rows) t.dst[c][t.row + r] = t.absent ? 0.0f : sums[r][c];
        }
    }
}

GGR_DEVICE int32_t dot16(const uint32_t (&a)[4], const Bytes16& b, int32_t sum) {
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) sum = dot4(a[i], b.word[i], sum);
    return sum;
}

template <class T, int N>
GGR_DEVICE void sum_quantised(const ProductArgs& a, const VectorTask<N>& t, float (&sums)[R][N]) {
    const int units = a.k / (16 * T::PARTS), scales = padded_row(a.k);
    Row rows[R];
    GGR_UNROLL
    for (int r = 0; r < R; ++r) rows[r] = product_row<T>(t.w[r], row_number(t, r), a.w_nb[0]);
    for (int u = t.part * WARP + lane(); u < units; u += a.split * WARP) {
        const int block = u / T::UNITS, unit = u - block * T::UNITS;
        Piece pieces[R][T::PARTS];
        GGR_UNROLL
        for (int r = 0; r < R; ++r) {
            GGR_UNROLL
            for (int p = 0; p < T::PARTS; ++p) pieces[r][p] = piece_of<T>(rows[r], block, unit, p);
        }
        GGR_UNROLL
        for (int c = 0; c < N; ++c) {
            int32_t dots[R] = {};
            GGR_UNROLL
            for (int p = 0; p < T::PARTS; ++p) {
                const int piece = block * (T::ELEMENTS / 16) + T::piece(unit, p);
                const Bytes16 x = load16(t.x[c] + 16 * piece);
                const float* group = reinterpret_cast<const float*>(t.x[c] + scales) + 4 * (piece / 2);
                const bool whole = !T::JOINED || p % 2 == 1;
                GGR_UNROLL
                for (int r = 0; r < R; ++r) {
                    dots[r] = dot16(pieces[r][p].codes, x, dots[r]);
                    if (whole) {
                        sums[r][c] = fused_add(static_cast<float>(dots[r]), pieces[r][p].scale * group[0], sums[r][c]);
                        dots[r] = 0;
                    }
                    if (T::MINIMA) sums[r][c] = fused_add(pieces[r][p].min, group[1 + piece % 2], sums[r][c]);
                }
            }
        }
    }
}

// Plain weights, activations in f32: eight elements a lane at a time where all rows lie at multiples of 16 bytes.
template <class W, int N>
GGR_DEVICE void sum_plain(const ProductArgs& a, const VectorTask<N>& t, float (&sums)[R][N]) {
    constexpr int SIZE = sizeof(typename W::Bits), PER = 16 / SIZE;
    const int start = t.part * WARP + lane(), step = a.split * WARP;
    if (a.packed != 0) {
        for (int i = start; i < a.k / PER; i += step) {
            float w[R][PER];
            GGR_UNROLL
            for (int r = 0; r < R; ++r) {
                const Bytes16 v = load16(t.w[r] + 16 * static_cast<int64_t>(i));
                GGR_UNROLL
                for (int j = 0; j < PER; ++j)
                    w[r][j] = W::get(
                        static_cast<typename W::Bits>(SIZE == 4 ? v.word[j % 4] : v.word[j / 2] >> 16 * (j % 2)));
            }
            GGR_UNROLL
            for (int c = 0; c < N; ++c) {
                GGR_UNROLL
                for (int q = 0; q < PER / 4; ++q) {
                    const Bytes16 v = load16(t.x[c] + 4 * (static_cast<int64_t>(i) * PER + 4 * q));
                    GGR_UNROLL
                    for (int r = 0; r < R; ++r) {
                        GGR_UNROLL
                        for (int j = 0; j < 4; ++j)
                            sums[r][c] = fused_add(w[r][4 * q + j], bits_to_float(v.word[j]), sums[r][c]);
                    }
                }
            }
        }
    } else {
        for (int i = start; i < a.k; i += step) {
            float w[R];
            GGR_UNROLL
            for (int r = 0; r < R; ++r) w[r] = element<W>(t.w[r] + static_cast<int64_t>(i) * SIZE);
            GGR_UNROLL
            for (int c = 0; c < N; ++c) {
                const float x = element<F32>(t.x[c] + 4 * static_cast<int64_t>(i));
                GGR_UNROLL
                for (int r = 0; r < R; ++r) sums[r][c] = fused_add(w[r], x, sums[r][c]);
            }
        }
    }
}

// Plain weights whose rows are interleaved: pairs of elements.
template <class W>
GGR_DEVICE void sum_pairs(const ProductArgs& a, const VectorTask<1>& t, float (&sums)[R][1]) {
    const uint8_t* rows[R];
    GGR_UNROLL
    for (int r = 0; r < R; ++r) rows[r] = W::row(t.w[r], row_number(t, r), a.w_nb[0]);
    for (int i = 2 * (t.part * WARP + lane()); i < a.k; i += 2 * a.split * WARP) {
        const float* x = reinterpret_cast<const float*>(t.x[0]) + i;
        GGR_UNROLL
        for (int r = 0; r < R; ++r) {
            const uint32_t w = W::pair(rows[r], i);
            sums[r][0] = fused_add(bf16_to_float(static_cast<uint16_t>(w)), x[0], sums[r][0]);
            sums[r][0] = fused_add(bf16_to_float(static_cast<uint16_t>(w >> 16)), x[1], sums[r][0]);
        }
    }
}

template <class T, int N>
GGR_KERNEL GGR_BOUNDS(VECTOR_THREADS, 1) vector_quantised(const ProductArgs a) {
    const VectorTask<N> t = vector_task<N>(a);
    float sums[R][N] = {};
    sum_quantised<T>(a, t, sums);
    store_sums(a, t, sums);
}
template <class W, int N>
GGR_KERNEL GGR_BOUNDS(VECTOR_THREADS, 1) vector_plain(const ProductArgs a) {
    const VectorTask<N> t = vector_task<N>(a);
    float sums[R][N] = {};
    if constexpr (W::GROUP == 1)
        sum_plain<W>(a, t, sums);
    else
        sum_pairs<W>(a, t, sums);
    store_sums(a, t, sums);
}

// The two rows of a warp are one of the gate's matrix and the same of up's.
static_assert(R == 2, "gate and up");
GGR_DEVICE VectorTask<1> gated_task(const GatedArgs& g) {
    VectorTask<1> t = vector_task<1>(g.product);
    const int row = t.row / R;
    const int64_t back = (row < g.product.m ? row : g.product.m - 1) -
                         static_cast<int64_t>(t.row < g.product.m ? t.row : g.product.m - 1);
    t.w[0] += back * g.product.w_nb[0];
    t.w[1] = t.w[0] + (g.up - g.product.w);
    t.row = row;
    return t;
}
GGR_DEVICE void store_gated(const GatedArgs& g, const VectorTask<1>& t, float (&sums)[R][1]) {
    add_lanes<1>(g.product, t, sums);
    if (t.part != 0 || lane() != 0 || t.row >= g.product.m) return;
    float gate = sums[0][0], up = sums[1][0];
    if (g.gate_bias != nullptr) gate += reinterpret_cast<const float*>(g.gate_bias + t.expert * g.gate_bias_nb)[t.row];
    if (g.up_bias != nullptr) up += reinterpret_cast<const float*>(g.up_bias + t.expert * g.up_bias_nb)[t.row];
    t.dst[0][t.row] = t.absent ? 0.0f : gated(g.kind, gate, up, g.alpha, g.limit);
}
template <class T>
GGR_KERNEL GGR_BOUNDS(VECTOR_THREADS, 1) gated_quantised(const GatedArgs a) {
    const VectorTask<1> t = gated_task(a);
    float sums[R][1] = {};
    sum_quantised<T>(a.product, t, sums);
    store_gated(a, t, sums);
}
template <class W>
GGR_KERNEL GGR_BOUNDS(VECTOR_THREADS, 1) gated_plain(const GatedArgs a) {
    const VectorTask<1> t = gated_task(a);
    float sums[R][1] = {};
    sum_plain<W>(a.product, t, sums);
    store_gated(a, t, sums);
}

}  // namespace cuda
}  // namespace ggr
