// The product of some rows of weights with some columns of activations: the interface between the engines, which know
// one type each, and the ops, which know tensors.
#pragma once

#include "cpu/matmul/columns.h"
#include "cpu/simd.h"

namespace ggr {
namespace GGR_LEVEL {

// out[c][r] = sum over i < k of weights[r][i] * columns[c][i].
struct Product {
    const uint8_t* weights;
    int64_t row_bytes;  // from row to row
    int64_t n_rows;
    int64_t k;
    const uint8_t* const* columns;  // records of columns.h
    float* const* out;              // where row 0 of each column goes
    int64_t n_columns;
    uint8_t* local;  // LOCAL_BYTES of scratch
};

struct Engine {
    ActFormat format;
    int64_t few_columns;             // up to so many columns `few` is the faster one
    void (*few)(const Product& p);   // streams rows; any number of columns
    void (*many)(const Product& p);  // unpacks panels; at most most_rows(engine) rows and MAX_COLUMNS columns
    int64_t group = 1;               // rows that are interleaved: products start at and end with a whole group
    int64_t panels = 1;              // that `many` takes at a time
};

// Fill the engine of a weight type; false if there is none. One function a file of engines.
bool float_engine(int32_t type, Engine* engine);
bool small_engine(int32_t type, Engine* engine);
bool super_engine(int32_t type, Engine* engine);
bool grid_engine(int32_t type, Engine* engine);
bool ik_engine(int32_t type, Engine* engine);
// Any of them.
bool find_engine(int32_t type, Engine* engine);

namespace {

// The register tile of panel products: PANEL_VECTORS vectors of VL rows, an accumulator for each and a column. Of
// floats so many columns that all multiply-adds in flight have accumulators of their own.
#if defined(__AVX512F__)
constexpr int PANEL_VECTORS = 2, QUANT_COLUMNS = 6, FLOAT_COLUMNS = 6;
#elif defined(__AVX2__)
constexpr int PANEL_VECTORS = 2, QUANT_COLUMNS = 4, FLOAT_COLUMNS = 6;
#else
constexpr int PANEL_VECTORS = 2, QUANT_COLUMNS = 2, FLOAT_COLUMNS = 4;
#endif
constexpr int NARROW = QUANT_COLUMNS < 4 ? QUANT_COLUMNS : 4;  // columns of the tiles that make up a rest
constexpr int PANEL_ROWS = PANEL_VECTORS * VL;
constexpr int64_t MAX_COLUMNS = 512;  // of a panel product: its results wait in 64 KiB (AVX-512) of the L2 cache
// Panels that meet a slice of the columns while the second-level cache has it: their results take 256 KiB of it beside
// the 350 KiB of 512 columns. Measured with rows of 5632: F16 5 to 9 % faster than one panel at a time, Q4_K 0 to 7 %.
constexpr int64_t BLOCK_PANELS = VL == 16 ? 4 : 8;
constexpr int64_t PADDED_COLUMNS = MAX_COLUMNS + 16;  // and the next tile's, to be prefetched

// Scratch of a panel product: results, one slice of the panel, its scales and minima, rows on their way into it,
// pointers to the columns.
constexpr int64_t TILE_BYTES = PADDED_COLUMNS * PANEL_ROWS * 4;
constexpr int64_t PANEL_BYTES = 512 * PANEL_ROWS;  // 512 of k as bytes, 128 as floats
constexpr int GROUP_FACTORS = 26;                  // scales and minima of 256 elements of a row
constexpr int64_t FACTOR_BYTES = 2 * GROUP_FACTORS * PANEL_ROWS * 4;
constexpr int64_t ROWS_BYTES = VL * 256;
// Or (decoded.h): results, decoded rows on their way, the panel as floats.
constexpr int64_t DECODED_BYTES = 32768 + 1024 * PANEL_ROWS;
constexpr int64_t LOCAL_BYTES = BLOCK_PANELS * TILE_BYTES + DECODED_BYTES + PADDED_COLUMNS * 8;
static_assert(PANEL_BYTES + FACTOR_BYTES + ROWS_BYTES <= DECODED_BYTES, "the layouts share the scratch");

// Rows of a block of rows for `many`: the least that make sense, and the most.
static inline int64_t panel_rows(const Engine& engine) { return engine.group > PANEL_ROWS ? engine.group : PANEL_ROWS; }
static inline int64_t most_rows(const Engine& engine) { return panel_rows(engine) * engine.panels; }

// Ask for bytes that are needed soon. Several rows in flight are several short streams, which the processor's own
// prefetching does not follow: without this, rows come at a third of the memory's bandwidth. To the second level: it
// has more lines on their way than the first.
template <int BYTES>
static inline void prefetch(const uint8_t* p) {
#pragma GCC unroll 8
    for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Exchange rows and columns of VL vectors of VL lanes: log2(VL) rounds of exchanging squares. N: of so many, within
// each N lanes.
template <int S, int N = VL, class V>
static inline void exchange(V* x) {
    vi low = {}, high = {};
#pragma GCC unroll 16
    for (int l = 0; l < VL; ++l) {
        low[l] = l & S ? VL + l - S : l;
        high[l] = l & S ? VL + l : l + S;
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
        if (i & S) continue;
        const V a = x[i], b = x[i + S];
        x[i] = __builtin_shuffle(a, b, low);
        x[i + S] = __builtin_shuffle(a, b, high);
    }
}
template <class V>
static inline void transpose_square(V x[VL]) {
    if constexpr (VL > 8) exchange<8>(x);
    if constexpr (VL > 4) exchange<4>(x);
    exchange<2>(x);
    exchange<1>(x);
}

// Columns in tiles of `columns` (6, 4 or 2), and those behind them in tiles of NARROW: as few too many as can be.
struct Tiles {
    int64_t wide, narrow;
};
static inline Tiles tiles_of(int64_t n, int columns) {
    if (columns == NARROW) return {(n + NARROW - 1) / NARROW * NARROW, 0};
    const int64_t narrow = n % columns == 0 || n % columns == 5 ? 0 : n > 6 && n % columns <= 2 ? 2 * NARROW : NARROW;
    return {narrow == 0  ? (n + columns - 1) / columns * columns
            : n < narrow ? 0
                         : (n - narrow + columns - 1) / columns * columns,
            narrow};
}

// A slice of a panel of floats with C columns. Floor: one fused multiply-add for VL rows by one of k by a
// column.
template <int C>
static inline void multiply_floats(const float* panel, int64_t k0, int64_t n, const uint8_t* const* columns,
                                   float* tile, bool add) {
    const float* a[C];
    vf sum[PANEL_VECTORS][C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        a[c] = reinterpret_cast<const float*>(columns[c]) + k0;
#pragma GCC unroll 2
        for (int v = 0; v < PANEL_VECTORS; ++v) sum[v][c] = add ? vload(tile + c * PANEL_ROWS + v * VL) : vf{};
    }
    for (int64_t i = 0; i < n; ++i) {
        vf x[PANEL_VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < PANEL_VECTORS; ++v) x[v] = vload(panel + i * PANEL_ROWS + v * VL);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
            for (int v = 0; v < PANEL_VECTORS; ++v) sum[v][c] += x[v] * a[c][i];
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
        for (int v = 0; v < PANEL_VECTORS; ++v) vstore(tile + c * PANEL_ROWS + v * VL, sum[v][c]);
}

// C columns of a tile to their places. What is written is asked for a tile ahead: it lies in a page a column.
template <int C>
static inline void write_tile(const float* tile, float* const* out, int64_t row, int64_t n_rows, int64_t n_columns) {
    for (int64_t c = 0; c < C && c < n_columns; ++c) {
        const float* from = tile + c * PANEL_ROWS;
        float* to = out[c] + row;
        if (n_rows == PANEL_ROWS) {
            if (c + C < n_columns)
                for (int i = 0; i < PANEL_ROWS; i += 16) __builtin_prefetch(out[C + c] + row + i, 1, 3);
            for (int v = 0; v < PANEL_VECTORS; ++v) vstore(to + v * VL, vload(from + v * VL));
        } else {
            for (int64_t r = 0; r < n_rows; ++r) to[r] = from[r];
        }
    }
}

// The loop that all panel products share. P: STEP elements of k at a time,
//   pack(p, k0, n, panel)                              a slice of the panel
//   multiply<C>(panel, k0, n, columns, layout, tile, add)  C columns with it; to the tile, or onto it
template <class P>
void many(const Product& p) {
    uint8_t* panel = p.local + BLOCK_PANELS * TILE_BYTES;
    const uint8_t** columns = reinterpret_cast<const uint8_t**>(panel + PANEL_BYTES + FACTOR_BYTES + ROWS_BYTES);
    const Tiles tiles = tiles_of(p.n_columns, P::COLUMNS);
    const int64_t padded = tiles.wide + tiles.narrow;
    for (int64_t c = 0; c < padded; ++c) columns[c] = p.columns[c < p.n_columns ? c : p.n_columns - 1];
    for (int64_t c = 0; c < P::COLUMNS; ++c) columns[padded + c] = columns[padded - 1];
    const ColumnLayout layout = column_layout(P::FORMAT, p.k);
    Product part = p;
    for (int64_t k0 = 0; k0 < p.k; k0 += P::STEP) {
        const int64_t n = p.k - k0 < P::STEP ? p.k - k0 : P::STEP;
        const bool last = k0 + n == p.k;
        float* tile = reinterpret_cast<float*>(p.local);
        for (int64_t row = 0; row < p.n_rows; row += PANEL_ROWS, tile += padded * PANEL_ROWS) {
            part.weights = p.weights + row * p.row_bytes;
            part.n_rows = p.n_rows - row < PANEL_ROWS ? p.n_rows - row : PANEL_ROWS;
            P::pack(part, k0, n, panel);
            for (int64_t c = 0; c < tiles.wide; c += P::COLUMNS) {
                float* sums = tile + c * PANEL_ROWS;
                P::template multiply<P::COLUMNS>(panel, k0, n, columns + c, layout, sums, k0 > 0);
                if (last) write_tile<P::COLUMNS>(sums, p.out + c, row, part.n_rows, p.n_columns - c);
            }
            for (int64_t c = tiles.wide; c < padded; c += NARROW) {
                float* sums = tile + c * PANEL_ROWS;
                P::template multiply<NARROW>(panel, k0, n, columns + c, layout, sums, k0 > 0);
                if (last) write_tile<NARROW>(sums, p.out + c, row, part.n_rows, p.n_columns - c);
            }
        }
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
