// What products by AMX share. A tiles are 16 columns of activations as they lie in their records, B tiles 16 rows of
// weights, the four bytes of k that go together beside each other. A row of C holds one column's results for 16 rows.
#pragma once

#include "cpu/matmul/product.h"
#include "cpu/matmul/tiles.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int TILE_PANEL = 32;  // rows of weights of a panel
constexpr int TILE_STEP = 512;  // bytes of k of a panel's slice, at most
static_assert(VL == TILE_ROWS && MAX_COLUMNS % TILE_ROWS == 0, "a row of C is a vector");

// Estimated: 16 columns at least are computed, as long as 3 take by vpdpbusd, and a panel is unpacked and interleaved
// first.
constexpr int64_t FEW_TILES = 8;

using TileCopies = uint8_t[TILE_ROWS][TILE_STEP + 64];
// A worker's scratch.
struct TileScratch {
    float results[MAX_COLUMNS][TILE_PANEL];
    int32_t sums[2][4][TILE_ROWS][VL];         // C tiles: four are computed while four are scaled
    uint8_t panel[TILE_STEP * TILE_PANEL];     // B tiles
    float scales[TILE_STEP / 16][TILE_PANEL];  // of the rows
    float minima[TILE_STEP / 16][TILE_PANEL];  //
    uint8_t rows[2][TILE_ROWS][256];           // on their way into tiles, in one part or two
    TileCopies copied[2];                      // columns that do not lie evenly
    float column_scales[16][VL], column_sums[16][VL];
};
static_assert(sizeof(TileScratch) <= LOCAL_BYTES, "a worker has no more");

static inline int64_t tile_blocks(int64_t n_columns) { return (n_columns + TILE_ROWS - 1) / TILE_ROWS; }

// The A operand of 16 columns from column c on: `n` bytes (whole pieces of 32) from `offset` on, copied to `place` in
// their rows if they must be. Columns that are not there repeat the last one.
struct TileColumns {
    const uint8_t* at;
    int64_t stride;
};
static inline TileColumns tile_columns(const Product& p, int64_t c, int64_t offset, int64_t n, TileCopies copied,
                                       int64_t place = 0) {
    const uint8_t* const* columns = p.columns + c;
    if (c + TILE_ROWS <= p.n_columns) {
        const int64_t stride = columns[1] - columns[0];
        bool even = true;
        for (int i = 2; i < TILE_ROWS; ++i) even = even && columns[i] - columns[i - 1] == stride;
        if (even) return {columns[0] + offset, stride};
    }
    for (int i = 0; i < TILE_ROWS; ++i) {
        const uint8_t* from = p.columns[c + i < p.n_columns ? c + i : p.n_columns - 1] + offset;
        for (int64_t j = 0; j < n; j += 32) std::memcpy(copied[i] + place + j, from + j, 32);
    }
    return {copied[0] + place, (int64_t)sizeof copied[0]};
}

// 64 bytes of each of 16 rows as the 16 rows of a B tile.
static inline void interleave(const uint8_t* rows, int64_t row_bytes, vi x[VL]) {
#pragma GCC unroll 16
    for (int lane = 0; lane < VL; ++lane) std::memcpy(x + lane, rows + lane * row_bytes, sizeof x[lane]);
    transpose_square(x);
}

// P: shapes, STEP, FORMAT, pack, multiply. Tiles are configured here, since a worker that waits must hold none: the
// system saves them at every switch.
template <class P>
void many_tiles(const Product& p) {
    TileScratch& s = *reinterpret_cast<TileScratch*>(p.local);
    TileShapes shapes = {};
    shapes.palette = 1;
    P::shapes(&shapes);
    tile_configure(shapes);
    const ColumnLayout layout = column_layout(P::FORMAT, p.k);
    for (int64_t row = 0; row < p.n_rows; row += TILE_PANEL) {
        const int64_t n_rows = p.n_rows - row < TILE_PANEL ? p.n_rows - row : TILE_PANEL;
        for (int64_t k0 = 0; k0 < p.k; k0 += P::STEP) {
            const int64_t n = p.k - k0 < P::STEP ? p.k - k0 : P::STEP;
            P::pack(p, row, n_rows, k0, n, s);
            P::multiply(p, k0, n, (int)((n_rows + VL - 1) / VL), layout, s);
        }
        for (int64_t c = 0; c < p.n_columns; ++c) {
            float* to = p.out[c] + row;
            if (n_rows == TILE_PANEL) {
                for (int i = 0; i < TILE_PANEL; i += VL) vstore(to + i, vload(s.results[c] + i));
            } else {
                for (int64_t r = 0; r < n_rows; ++r) to[r] = s.results[c][r];
            }
        }
    }
    tile_release();
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
