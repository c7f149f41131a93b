// Products of weights with many columns by tensor cores: tiles of TILE_ROWS rows by 32, 64 or 128 columns, 32 elements
// a step, two steps in shared memory. Sums in f32.
//
// F16 weights and quantised ones (as halves: 11 bits hold every code, and the rounding of the scaled value is a tenth
// of what activations of 8 bits would lose) meet activations in half with a scale a row; BF16 weights meet bf16. Floor:
// 2 m n k operations over the rate of the tensor cores (mma.sync reaches about 60 % of a Hopper's); unpacking is 60
// instructions for 16 elements, against 8 products of 16 x 8 x 16 a warp for the same elements and 128 columns.
#include "cuda/kernels/plain.cuh"
#include "cuda/kernels/tiles.cuh"
#include "cuda/types/all.cuh"

namespace ggr {
namespace cuda {

constexpr int STEP = 32, PITCH = 40;  // halves of a row in shared memory: 8 rows at 80 bytes meet all banks once

// What is multiplied and how its rows get into shared memory, 16 elements a thread: `fetch` early, `put` late.
template <class T>
struct QuantisedRows {
    static constexpr bool BRAIN = false;
    using Fetched = Piece;
    GGR_DEVICE Row row(const uint8_t* at, int index, int64_t stride) { return product_row<T>(at, index, stride); }
    GGR_DEVICE Piece fetch(const Row& row, int k0, int side, int, bool, uint16_t*) {
        const int piece = k0 / 16 + side, block = piece / (T::ELEMENTS / 16), i = piece - block * (T::ELEMENTS / 16);
        return piece_of<T>(row, block, T::unit_of(i), T::part_of(i));
    }
    GGR_DEVICE void put(const Piece& piece, bool, uint16_t* to) {
        float v[16];
        piece_values(piece, v);
        GGR_UNROLL
        for (int h = 0; h < 2; ++h) {
            Bytes16 packed;
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) packed.word[i] = pack_halves(v[8 * h + 2 * i], v[8 * h + 2 * i + 1]);
            *reinterpret_cast<Bytes16*>(to + 8 * h) = packed;
        }
    }
};

// Halves or bf16, copied as they are: asynchronously if packed, else element by element up to the row's end.
template <bool BRAIN_>
struct PlainRows {
    static constexpr bool BRAIN = BRAIN_;
    struct Fetched {
        Bytes16 halves[2];
    };
    GGR_DEVICE const uint8_t* row(const uint8_t* at, int, int64_t) { return at; }
    GGR_DEVICE Fetched fetch(const uint8_t* row, int k0, int side, int k, bool packed, uint16_t* to) {
        Fetched f = {};
        const int first = k0 + 16 * side;
        if (packed) {
            GGR_UNROLL
            for (int h = 0; h < 2; ++h)
                copy16_async(to + 8 * h, row + 2 * static_cast<int64_t>(first + 8 * h), first + 8 * h < k);
        } else {
            const uint16_t* from = reinterpret_cast<const uint16_t*>(row);
            GGR_UNROLL
            for (int i = 0; i < 16; ++i) {
                const uint32_t v = first + i < k ? from[first + i] : 0;
                f.halves[i / 8].word[i % 8 / 2] |= v << 16 * (i % 2);
            }
        }
        return f;
    }
    GGR_DEVICE void put(const Fetched& f, bool packed, uint16_t* to) {
        if (packed) return;
        GGR_UNROLL
        for (int h = 0; h < 2; ++h) *reinterpret_cast<Bytes16*>(to + 8 * h) = f.halves[h];
    }
};

// Pairs of bf16, one row's after the other's.
struct InterleavedRows {
    static constexpr bool BRAIN = true;
    using Fetched = PlainRows<true>::Fetched;
    GGR_DEVICE const uint8_t* row(const uint8_t* at, int index, int64_t stride) {
        return BF16_R16::row(at, index, stride);
    }
    GGR_DEVICE Fetched fetch(const uint8_t* row, int k0, int side, int k, bool, uint16_t*) {
        Fetched f = {};
        const int first = k0 + 16 * side;
        GGR_UNROLL
        for (int i = 0; i < 8; ++i)
            if (first + 2 * i < k) f.halves[i / 4].word[i % 4] = BF16_R16::pair(row, first + 2 * i);
        return f;
    }
    GGR_DEVICE void put(const Fetched& f, bool, uint16_t* to) { PlainRows<true>::put(f, false, to); }
};

template <bool BRAIN>
GGR_DEVICE void mma_of(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (BRAIN)
        mma_bf16(d, a, b);
    else
        mma_f16(d, a, b);
}

// Warps: N / 32 along the columns, the others of the 8 along the rows. N: 32, 64 or 128.
template <class Rows, int N>
GGR_KERNEL GGR_BOUNDS(TILE_THREADS, 2) tiles(const ProductArgs a) {
    constexpr int WARPS_N = N / 32, WARPS_M = 8 / WARPS_N;
    constexpr int WM = TILE_ROWS / WARPS_M, WN = N / WARPS_N, MM = WM / 16, NN = WN / 8;
    GGR_SHARED uint16_t shared_w[2][TILE_ROWS][PITCH];
    GGR_SHARED uint16_t shared_x[2][N][PITCH];
    GGR_SHARED const uint8_t* column_x[N];
    GGR_SHARED float* column_dst[N];

    const TileColumns t = tile_columns(a, N);
    if (t.count <= 0) return;
    const int thread = thread_index(), row0 = (block_x() - t.matrix.first_block) * TILE_ROWS, rows = t.matrix.m;
    for (int c = thread; c < N; c += TILE_THREADS) {
        const Column column = column_of_tile(a, t, c < t.count ? c : t.count - 1);
        column_x[c] = column.x;
        column_dst[c] = column.dst;
    }
    sync_block();

    // Loading: 16 elements of a row of weights, up to two times 8 of a column, each thread.
    const int w_row = thread / 2, w_side = thread % 2;
    const int w_index = row0 + w_row < rows ? row0 + w_row : rows - 1;
    const uint8_t* const w = t.w + w_index * a.w_nb[0];
    const auto from = Rows::row(w, w_index, a.w_nb[0]);
    const bool packed = a.packed != 0;
    const int steps = t.empty ? 0 : (a.k + STEP - 1) / STEP;
    constexpr int X_LOADS = N > TILE_THREADS / 4 ? N * 4 / TILE_THREADS : 1;
    const auto fetch_x = [&](int step, int buffer) {
        GGR_UNROLL
        for (int i = 0; i < X_LOADS; ++i) {
            const int n = thread / 4 + i * (TILE_THREADS / 4);
            if (n < N)
                copy16_async(&shared_x[buffer][n][thread % 4 * 8], column_x[n] + step * (2 * STEP) + thread % 4 * 16,
                             n < t.count);
        }
    };

    float sums[MM][NN][4] = {};
    const int m0 = warp_index() / WARPS_N * WM, n0 = warp_index() % WARPS_N * WN;
    if (steps > 0) {
        fetch_x(0, 0);
        uint16_t* to = &shared_w[0][w_row][16 * w_side];
        const typename Rows::Fetched f = Rows::fetch(from, 0, w_side, a.k, packed, to);
        copies_commit();
        Rows::put(f, packed, to);
    }
    for (int step = 0; step < steps; ++step) {
        const int now = step & 1, next = now ^ 1;
        copies_wait<0>();
        sync_block();
        typename Rows::Fetched f = {};
        uint16_t* const to = &shared_w[next][w_row][16 * w_side];
        if (step + 1 < steps) {
            fetch_x(step + 1, next);
            f = Rows::fetch(from, (step + 1) * STEP, w_side, a.k, packed, to);
        }
        copies_commit();
        GGR_UNROLL
        for (int k = 0; k < STEP; k += 16) {
            uint32_t x[NN][2];
            GGR_UNROLL
            for (int n = 0; n < NN; n += 2) {
                uint32_t four[4];
                load_matrices(four, &shared_x[now][n0 + 8 * n + lane() / 16 * 8 + lane() % 8][k + lane() / 8 % 2 * 8]);
                x[n][0] = four[0];
                x[n][1] = four[1];
                x[n + 1][0] = four[2];
                x[n + 1][1] = four[3];
            }
            GGR_UNROLL
            for (int m = 0; m < MM; ++m) {
                uint32_t four[4];
                load_matrices(four, &shared_w[now][m0 + 16 * m + lane() % 16][k + lane() / 16 * 8]);
                GGR_UNROLL
                for (int n = 0; n < NN; ++n) mma_of<Rows::BRAIN>(sums[m][n], four, x[n]);
            }
        }
        if (step + 1 < steps) Rows::put(f, packed, to);
    }

    // Element i of a lane: row lane / 4 (+ 8), column 2 (lane % 4) (+ 1).
    const int64_t scale_at = 2 * padded_row(a.k);
    GGR_UNROLL
    for (int n = 0; n < NN; ++n) {
        GGR_UNROLL
        for (int odd = 0; odd < 2; ++odd) {
            const int c = n0 + 8 * n + 2 * (lane() % 4) + odd;
            if (c >= t.count) continue;
            const float scale = Rows::BRAIN ? 1.0f : *reinterpret_cast<const float*>(column_x[c] + scale_at);
            float* const dst = column_dst[c];
            GGR_UNROLL
            for (int m = 0; m < MM; ++m) {
                const int row = row0 + m0 + 16 * m + lane() / 4;
                if (row < rows) dst[row] = sums[m][n][odd] * scale;
                if (row + 8 < rows) dst[row + 8] = sums[m][n][2 + odd] * scale;
            }
        }
    }
}

// Weights in plain types, all in f32: tiles of 64 x 64, 16 sums a thread. Floor: m n k multiply-adds over the rate of
// the f32 units. For F32 weights, and for BF16 where the tensor cores do not know it.
template <class W>
GGR_KERNEL GGR_BOUNDS(256, 1) tiles_plain(const ProductArgs a) {
    constexpr int K = 16;
    GGR_SHARED float shared_w[K][PLAIN_TILE + 4];
    GGR_SHARED float shared_x[K][PLAIN_TILE + 4];
    GGR_SHARED const uint8_t* column_x[PLAIN_TILE];
    GGR_SHARED float* column_dst[PLAIN_TILE];
    const TileColumns t = tile_columns(a, PLAIN_TILE);
    if (t.count <= 0) return;
    const int thread = thread_index(), row0 = (block_x() - t.matrix.first_block) * PLAIN_TILE;
    const int rows = t.matrix.m;
    if (thread < PLAIN_TILE) {
        const Column column = column_of_tile(a, t, thread < t.count ? thread : t.count - 1);
        column_x[thread] = column.x;
        column_dst[thread] = column.dst;
    }
    sync_block();
    const int tx = thread % 16, ty = thread / 16;  // rows 4 tx, columns 4 ty
    // Loading: element tx of four rows and four columns, a step ahead in registers.
    const int k = t.empty ? 0 : a.k;
    float next_w[4], next_x[4];
    const auto fetch = [&](int e) {
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            const int line = ty + 16 * i, row = row0 + line < rows ? row0 + line : rows - 1;
            const int64_t at = static_cast<int64_t>(e) * static_cast<int64_t>(sizeof(typename W::Bits));
            next_w[i] = e < k ? element<W>(t.w + row * a.w_nb[0] + at) : 0.0f;
            next_x[i] = e < k ? element<F32>(column_x[line] + 4 * static_cast<int64_t>(e)) : 0.0f;
        }
    };
    float sums[4][4] = {};
    fetch(tx);
    for (int k0 = 0; k0 < k; k0 += K) {
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            shared_w[tx][ty + 16 * i] = next_w[i];
            shared_x[tx][ty + 16 * i] = next_x[i];
        }
        sync_block();
        fetch(k0 + K + tx);
        GGR_UNROLL
        for (int e = 0; e < K; ++e) {
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) {
                GGR_UNROLL
                for (int j = 0; j < 4; ++j)
                    sums[i][j] = fused_add(shared_w[e][4 * tx + j], shared_x[e][4 * ty + i], sums[i][j]);
            }
        }
        sync_block();
    }
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) {
        if (4 * ty + i >= t.count) continue;
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) {
            const int row = row0 + 4 * tx + j;
            if (row < rows) column_dst[4 * ty + i][row] = sums[i][j];
        }
    }
}

}  // namespace cuda
}  // namespace ggr
