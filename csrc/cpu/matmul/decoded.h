// The engine of types that have a decoder to f32 and nothing else: slices of rows are decoded into the worker's
// scratch, once for all columns, and multiplied with activations in f32.
#pragma once

#include "cpu/matmul/product.h"
#include "cpu/quants/ik.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int64_t FEW_DECODED = 16;       // measured: panels pay from about so many columns on
constexpr int64_t DECODED_FLOATS = 8192;  // of decoded rows: 32 KiB
constexpr int64_t DECODED_STEP = 256;     // elements of a panel's slice: the largest block
constexpr int64_t LARGEST_GROUP = 16;
static_assert(PANEL_ROWS * DECODED_STEP <= DECODED_FLOATS && LARGEST_GROUP * DECODED_STEP <= DECODED_FLOATS, "");

// NR decoded rows with NC columns; onto what is there unless `first`.
template <int NR, int NC>
static inline void dot_decoded(const float* rows, int64_t ld, int64_t n, const float* const* columns, float* const* out,
                               int64_t row, bool first) {
    vf acc[NR][NC] = {};
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf a[NC];
#pragma GCC unroll 4
        for (int c = 0; c < NC; ++c) a[c] = vload(columns[c] + i);
#pragma GCC unroll 4
        for (int r = 0; r < NR; ++r) {
            const vf x = vload(rows + r * ld + i);
#pragma GCC unroll 4
            for (int c = 0; c < NC; ++c) acc[r][c] += x * a[c];
        }
    }
    for (int c = 0; c < NC; ++c)
        for (int r = 0; r < NR; ++r) {
            float sum = vsum(acc[r][c]);
            for (int64_t j = i; j < n; ++j) sum += rows[r * ld + j] * columns[c][j];
            out[c][row + r] = first ? sum : out[c][row + r] + sum;
        }
}

template <int NC>
static inline void dot_decoded_rows(const float* rows, int64_t ld, int64_t n_rows, int64_t k0, int64_t n,
                                    const uint8_t* const* records, float* const* out, int64_t row) {
    const float* columns[NC];
    for (int c = 0; c < NC; ++c) columns[c] = reinterpret_cast<const float*>(records[c]) + k0;
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) dot_decoded<4, NC>(rows + r * ld, ld, n, columns, out, row + r, k0 == 0);
    for (; r < n_rows; ++r) dot_decoded<1, NC>(rows + r * ld, ld, n, columns, out, row + r, k0 == 0);
}

// Rows are decoded a group at a time, four if they are not interleaved. Floor: the decoder; the multiplications are two
// loads and a fused multiply-add for VL elements, and come from the first-level cache.
static void few_decoded_by(const Product& p, int64_t group, DecodeRows decode) {
    float* rows = reinterpret_cast<float*>(p.local);
    const int64_t at_once = group == 1 ? 4 : group;
    const int64_t slice = DECODED_FLOATS / 2 / at_once;  // half of the first-level cache; the rest is for columns
    for (int64_t row = 0; row < p.n_rows; row += at_once) {
        const int64_t n_rows = p.n_rows - row < at_once ? p.n_rows - row : at_once;
        for (int64_t k0 = 0; k0 < p.k; k0 += slice) {
            const int64_t n = p.k - k0 < slice ? p.k - k0 : slice;
            for (int64_t r = 0; r < n_rows; r += group)
                decode(p.weights + (row + r) * p.row_bytes, k0, n, rows + r * slice, slice);
            int64_t c = 0;
            for (; c + 4 <= p.n_columns; c += 4)
                dot_decoded_rows<4>(rows, slice, n_rows, k0, n, p.columns + c, p.out + c, row);
            for (; c < p.n_columns; ++c) dot_decoded_rows<1>(rows, slice, n_rows, k0, n, p.columns + c, p.out + c, row);
        }
    }
}

// One panel: rows [row, row + PANEL_ROWS) of p.
static void decoded_panel(const Product& p, int64_t row, int64_t group, DecodeRows decode) {
    float* tile = reinterpret_cast<float*>(p.local);
    float* panel = tile + BLOCK_PANELS * TILE_BYTES / 4;
    float* decoded = panel + PANEL_ROWS * DECODED_STEP;
    const uint8_t** columns = reinterpret_cast<const uint8_t**>(decoded + DECODED_FLOATS);
    const int64_t padded = (p.n_columns + FLOAT_COLUMNS - 1) / FLOAT_COLUMNS * FLOAT_COLUMNS;
    for (int64_t c = 0; c < padded; ++c) columns[c] = p.columns[c < p.n_columns ? c : p.n_columns - 1];
    const int64_t n_rows = p.n_rows - row < PANEL_ROWS ? p.n_rows - row : PANEL_ROWS;
    const int64_t start = row / group * group;  // a panel can be half of a group
    for (int64_t k0 = 0; k0 < p.k; k0 += DECODED_STEP) {
        const int64_t n = p.k - k0 < DECODED_STEP ? p.k - k0 : DECODED_STEP;
        for (int64_t r = start; r < row + n_rows; r += group)
            decode(p.weights + r * p.row_bytes, k0, n, decoded + (r - start) * DECODED_STEP, DECODED_STEP);
        // Rows that are not there keep what was there: their lanes are never stored.
        for (int v = 0; v < PANEL_VECTORS; ++v)
            for (int64_t i = 0; i < n; i += VL) {
                vf x[VL];
#pragma GCC unroll 16
                for (int lane = 0; lane < VL; ++lane)
                    x[lane] = vload(decoded + (row - start + v * VL + lane) * DECODED_STEP + i);
                transpose_square(x);
#pragma GCC unroll 16
                for (int j = 0; j < VL; ++j) vstore(panel + (i + j) * PANEL_ROWS + v * VL, x[j]);
            }
        for (int64_t c = 0; c < padded; c += FLOAT_COLUMNS)
            multiply_floats<FLOAT_COLUMNS>(panel, k0, n, columns + c, tile + c * PANEL_ROWS, k0 > 0);
    }
    for (int64_t c = 0; c < p.n_columns; ++c)
        for (int64_t r = 0; r < n_rows; ++r) p.out[c][row + r] = tile[c * PANEL_ROWS + r];
}

static void many_decoded_by(const Product& p, int64_t group, DecodeRows decode) {
    for (int64_t row = 0; row < p.n_rows; row += PANEL_ROWS) decoded_panel(p, row, group, decode);
}

template <DecodeRows DECODE, int64_t GROUP_ROWS>
void few_decoded(const Product& p) {
    few_decoded_by(p, GROUP_ROWS, DECODE);
}
template <DecodeRows DECODE, int64_t GROUP_ROWS>
void many_decoded(const Product& p) {
    many_decoded_by(p, GROUP_ROWS, DECODE);
}

// For a type by its decoder, the floats of its activations and the rows of a group.
template <DecodeRows DECODE, int64_t GROUP_ROWS = 1>
static inline bool fill_decoded(Engine* engine, ActFormat format) {
    *engine = {format, FEW_DECODED, few_decoded<DECODE, GROUP_ROWS>, many_decoded<DECODE, GROUP_ROWS>, GROUP_ROWS};
    return true;
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
