// Products of quantised weights with many columns in integers: the codes of the weights as signed bytes, activations in
// blocks of 32 with a scale (ACTIVATION_Q8), tensor cores for m16n8k32. Tiles of TILE_ROWS rows by 32, 64 or 128
// columns, 64 elements a step, two steps in shared memory.
//
// Floor: 2 m n k operations over the rate of the tensor cores for bytes, and beside it the f32 units: every product of
// 16 x 8 x 32 leaves 4 integers a lane, each of which takes a conversion, a product of two scales and a multiply-add
// (and one more where the type has minima), 12 to 16 instructions a warp where the tensor cores of a GeForce take 16
// cycles and those of a Hopper 4. So bytes are worth it where halves with sums in f32 run at a quarter of their rate or
// less (7.5, 8.6, 8.9, 12.0); on 8.0, 9.0 and 10.0 the tiles of halves take no longer.
//
// A block of 128 columns has 64 sums a thread (128 registers, so two blocks a multiprocessor; up to 96 bytes are
// spilled once a step) and 44 to 48 KB of shared memory, one of 64 columns 116 to 128 registers and 31 to 35 KB;
// unpacking is about 30 instructions for 16 elements, an eighth of what the sums of 128 columns take.
#include "cuda/kernels/tiles.cuh"
#include "cuda/types/all.cuh"

namespace ggr {
namespace cuda {

constexpr int STEP = 64, GROUPS = STEP / 32;  // elements and blocks of activations a step

// What a row of weights has for each group of 32: its codes, SCALES scales (one, or one for each 16) and MINIMA minima.
template <class T>
struct Integers {
    static constexpr int SCALES = 1, MINIMA = T::MINIMA ? 1 : 0;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) { return T::load(block, unit, part); }
};
template <>
struct Integers<Q6_K> {
    static constexpr int SCALES = 2, MINIMA = 0;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) { return Q6_K::load(block, unit, part); }
};
// Codes of two and three bits times the scale of their 16 still fit a byte: one scale for all.
template <>
struct Integers<Q2_K> {
    static constexpr int SCALES = 1, MINIMA = 2;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) { return Q2_K::load_scaled(block, unit, part); }
};
template <>
struct Integers<Q3_K> {
    static constexpr int SCALES = 1, MINIMA = 0;
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) { return Q3_K::load_scaled(block, unit, part); }
};

template <class T>
struct Group {
    static constexpr int SCALES = Integers<T>::SCALES, MINIMA = Integers<T>::MINIMA, FACTORS = SCALES + MINIMA;
    Bytes16 codes[2];
    float factors[FACTORS];

    GGR_DEVICE Group load(const uint8_t* row, int number) {
        constexpr int PIECES = T::ELEMENTS / 16;
        const int block = 2 * number / PIECES;
        Group g;
        GGR_UNROLL
        for (int h = 0; h < 2; ++h) {
            const int i = 2 * number + h - block * PIECES;
            const Piece p =
                Integers<T>::load(row + static_cast<int64_t>(block) * T::BYTES, T::unit_of(i), T::part_of(i));
            GGR_UNROLL
            for (int w = 0; w < 4; ++w) g.codes[h].word[w] = p.codes[w];
            if (h < SCALES) g.factors[h < SCALES ? h : 0] = p.scale;
            if (h < MINIMA) g.factors[h < MINIMA ? SCALES + h : 0] = p.min;
        }
        return g;
    }
};

// Where 16 bytes of a row of 64 lie: eight rows at the same 16 meet all banks once.
GGR_DEVICE int chunk_at(int row, int chunk) { return 16 * (chunk ^ (row >> 1 & 3)); }

// Warps: N / 32 along the columns, the others of the 8 along the rows. N: 32, 64 or 128.
template <class T, int N>
GGR_KERNEL GGR_BOUNDS(TILE_THREADS, 2) tiles_q8(const ProductArgs a) {
    constexpr int WARPS_N = N / 32, WARPS_M = 8 / WARPS_N;
    constexpr int WM = TILE_ROWS / WARPS_M, WN = N / WARPS_N, MM = WM / 16, NN = WN / 8;
    using G = Group<T>;
    GGR_SHARED uint8_t shared_w[2][TILE_ROWS][STEP];
    GGR_SHARED uint8_t shared_x[2][N][STEP];
    GGR_SHARED float shared_factors[2][GROUPS][G::FACTORS][TILE_ROWS];
    GGR_SHARED float shared_scales[2][GROUPS][N][4];
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

    // Loading: a group of a row of weights each thread; 16 bytes of codes or the scales of a group of a column, up to
    // three times.
    const int groups = a.k / 32, steps = t.empty ? 0 : (groups + GROUPS - 1) / GROUPS;
    const int w_row = thread / GROUPS, w_side = thread % GROUPS;
    const uint8_t* const w = t.w + (row0 + w_row < rows ? row0 + w_row : rows - 1) * a.w_nb[0];
    const auto fetch_w = [&](int step) {
        const int group = step * GROUPS + w_side;
        return group < groups ? G::load(w, group) : G{};
    };
    const auto put_w = [&](const G& g, int buffer) {
        GGR_UNROLL
        for (int h = 0; h < 2; ++h)
            *reinterpret_cast<Bytes16*>(&shared_w[buffer][w_row][chunk_at(w_row, 2 * w_side + h)]) = g.codes[h];
        GGR_UNROLL
        for (int f = 0; f < G::FACTORS; ++f) shared_factors[buffer][w_side][f][w_row] = g.factors[f];
    };
    const auto fetch_x = [&](int step, int buffer) {
        constexpr int CODES = N * STEP / 16, ALL = CODES + N * GROUPS;
        GGR_UNROLL
        for (int i0 = 0; i0 < ALL; i0 += TILE_THREADS) {
            const int i = i0 + thread;
            if (i >= ALL) break;
            const bool codes = i < CODES;
            const int n = codes ? i / (STEP / 16) : (i - CODES) / GROUPS;
            const int at = codes ? i % (STEP / 16) : (i - CODES) % GROUPS;
            const int group = step * GROUPS + (codes ? at / 2 : at);
            const uint8_t* from = column_x[n] + (codes ? step * STEP + 16 * at : 32 * groups + 16 * group);
            void* to = codes ? static_cast<void*>(&shared_x[buffer][n][chunk_at(n, at)])
                             : static_cast<void*>(&shared_scales[buffer][at][n][0]);
            copy16_async(to, from, n < t.count && group < groups);
        }
    };

    float sums[MM][NN][4] = {};
    const int m0 = warp_index() / WARPS_N * WM, n0 = warp_index() % WARPS_N * WN;
    if (steps > 0) {
        fetch_x(0, 0);
        copies_commit();
        put_w(fetch_w(0), 0);
    }
    for (int step = 0; step < steps; ++step) {
        const int now = step & 1, next = now ^ 1;
        copies_wait<0>();
        sync_block();
        // The weights are unpacked at once: kept until behind the products they would take registers from the sums, and
        // while this block waits for them the other one of the multiprocessor has its products.
        if (step + 1 < steps) {
            fetch_x(step + 1, next);
            put_w(fetch_w(step + 1), next);
        }
        copies_commit();
        GGR_ROLLED
        for (int g = 0; g < GROUPS; ++g) {
            uint32_t x[NN][2];
            GGR_UNROLL
            for (int n = 0; n < NN; n += 2) {
                const int column = n0 + 8 * n + lane() / 16 * 8 + lane() % 8;
                uint32_t four[4];
                load_matrices(four, &shared_x[now][column][chunk_at(column, 2 * g + lane() / 8 % 2)]);
                x[n][0] = four[0];
                x[n][1] = four[1];
                x[n + 1][0] = four[2];
                x[n + 1][1] = four[3];
            }
            // Of the lane's columns 2 (lane % 4) and the next of each eight: the scale, and the sums that minima take.
            float scale[NN][2], total[NN][2][2];
            GGR_UNROLL
            for (int n = 0; n < NN; ++n) {
                GGR_UNROLL
                for (int odd = 0; odd < 2; ++odd) {
                    const float* s = shared_scales[now][g][n0 + 8 * n + 2 * (lane() % 4) + odd];
                    scale[n][odd] = s[0];
                    if constexpr (G::MINIMA == 1) total[n][odd][0] = s[1] + s[2];
                    if constexpr (G::MINIMA == 2) {
                        total[n][odd][0] = s[1];
                        total[n][odd][1] = s[2];
                    }
                }
            }
            GGR_UNROLL
            for (int m = 0; m < MM; ++m) {
                const int row = m0 + 16 * m + lane() % 16;
                uint32_t four[4];
                load_matrices(four, &shared_w[now][row][chunk_at(row, 2 * g + lane() / 16)]);
                float factors[G::FACTORS][2];  // of rows lane / 4 and that + 8
                GGR_UNROLL
                for (int f = 0; f < G::FACTORS; ++f) {
                    GGR_UNROLL
                    for (int h = 0; h < 2; ++h)
                        factors[f][h] = shared_factors[now][g][f][m0 + 16 * m + lane() / 4 + 8 * h];
                }
                GGR_UNROLL
                for (int n = 0; n < NN; ++n) {
                    int32_t dots[G::SCALES][4] = {};
                    if constexpr (G::SCALES == 1) {
                        mma_s8(dots[0], four, x[n]);
                    } else {
                        const uint32_t first[2] = {four[0], four[1]}, second[2] = {four[2], four[3]};
                        mma_s8(dots[0], first, x[n][0]);
                        mma_s8(dots[1], second, x[n][1]);
                    }
                    GGR_UNROLL
                    for (int i = 0; i < 4; ++i) {
                        const int h = i / 2, odd = i % 2;
                        float& sum = sums[m][n][i];
                        if constexpr (G::SCALES == 1) {
                            sum = fused_add(static_cast<float>(dots[0][i]), factors[0][h] * scale[n][odd], sum);
                        } else {
                            const float v = fused_add(static_cast<float>(dots[1][i]), factors[1][h],
                                                      static_cast<float>(dots[0][i]) * factors[0][h]);
                            sum = fused_add(v, scale[n][odd], sum);
                        }
                        GGR_UNROLL
                        for (int f = 0; f < G::MINIMA; ++f)
                            sum = fused_add(factors[G::SCALES + f][h], total[n][odd][f], sum);
                    }
                }
            }
        }
    }

    // Element i of a lane: row lane / 4 (+ 8), column 2 (lane % 4) (+ 1).
    GGR_UNROLL
    for (int n = 0; n < NN; ++n) {
        GGR_UNROLL
        for (int odd = 0; odd < 2; ++odd) {
            const int c = n0 + 8 * n + 2 * (lane() % 4) + odd;
            if (c >= t.count) continue;
            float* const dst = column_dst[c];
            GGR_UNROLL
            for (int m = 0; m < MM; ++m) {
                const int row = row0 + m0 + 16 * m + lane() / 4;
                if (row < rows) dst[row] = sums[m][n][odd];
                if (row + 8 < rows) dst[row + 8] = sums[m][n][2 + odd];
            }
        }
    }
}

}  // namespace cuda
}  // namespace ggr
