// Panels of quantised rows for AMX: A tiles are 16 columns of activations as they lie in their records, B tiles 16 rows
// of weights as signed bytes, four of k beside each other, so that a row of C holds one column's results for 16 rows of
// weights: a vector that meets the scales of the rows as a vector and the scale of the column as one number.
//
// A tile product takes 16 cycles whatever its K is, up to 64. That much costs 16 x 16 results with K elements, and then
// the vector units have to scale 16 vectors of sums. Two ways to spend less on that:
//
// Scales of 32 or 16 elements in floating point (ScaledTiles): every scale has a tile product (K = 32 or 16) and 16
// times load, convert, multiply, multiply and add: 24 cycles of the two vector units and, with the tile's own rows, 28
// of the two load ports, for 8192 products of 32 elements. vpdpbusd takes 64 and the same scaling.
//
// Integer scales below one in floating point for 256 elements (FactorTiles): weight times integer scale is a number of
// at most 14 bits. Split in a signed byte of 7 bits and a signed byte above it, two tile products with K = 64 take
// the scales along, exactly, and 16 vectors are scaled for 256 elements: 128 cycles of the tile unit for 65536
// products, of the vector units 40, and 64 more where there are minima. Where the number has 8 bits one product does.
//
// These are counts from Intel's tables; nothing here has been measured on a processor with AMX.
#pragma once

#include "cpu/matmul/decoders.h"
#include "cpu/matmul/tile_products.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// 16 floats of each of 16 columns from `offset` bytes in, one column a lane. Records are followed by enough memory.
static inline void gather_floats(const Product& p, int64_t c, int64_t offset, float to[16][VL]) {
    vf x[VL];
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) x[i] = vread<vf>(p.columns[c + i < p.n_columns ? c + i : p.n_columns - 1] + offset);
    transpose_square(x);
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) vstore(to[i], x[i]);
}
// The same of int32.
static inline void gather_ints(const Product& p, int64_t c, int64_t offset, float to[16][VL]) {
    gather_floats(p, c, offset, to);
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) vstore(to[i], __builtin_convertvector(vread<vi>(to[i]), vf));
}
// One float of each.
static inline void gather_float(const Product& p, int64_t c, int64_t offset, float to[VL]) {
    for (int i = 0; i < VL; ++i)
        std::memcpy(to + i, p.columns[c + i < p.n_columns ? c + i : p.n_columns - 1] + offset, 4);
}

// ---- Scales in floating point ----

template <class T>
struct ScaledTiles {
    static constexpr ActFormat FORMAT = T::FORMAT;
    static constexpr int SUB = T::SUB, SUBS = GROUP / SUB, BATCH = 4, TILE_BYTES_B = SUB * TILE_ROWS;
    static constexpr int STEP = T::SMALL ? TILE_STEP : GROUP;

    static void shapes(TileShapes* shapes) {
        for (int t = 0; t < 4; ++t) set_shape(shapes, t, TILE_ROWS, TILE_ROW_BYTES);
        for (int t = 4; t < 6; ++t) set_shape(shapes, t, TILE_ROWS, SUB);
        for (int t = 6; t < 8; ++t) set_shape(shapes, t, SUB / 4, TILE_ROW_BYTES);
    }

    // B tiles: [sub][16 rows].
    static uint8_t* tile_of(TileScratch& s, int64_t sub, int v) { return s.panel + (sub * 2 + v) * TILE_BYTES_B; }

    static inline void unpack_row(const uint8_t* from, int pieces, uint8_t* row, f8 scale[2], f8 minimum[2]) {
        if (pieces == PIECES) {
            bv u[REGISTERS];
            T::unpack(from, u);
#pragma GCC unroll 8
            for (int j = 0; j < REGISTERS; ++j) vwrite(row + j * BW, u[j] - (uint8_t)T::ZERO);
            T::scales(from, scale, minimum);
        } else if constexpr (T::SMALL) {
            for (int i = 0; i < pieces; ++i) {
                vwrite(row + i * QK, T::piece_of(from, i) - (uint8_t)T::ZERO);
                const f8 lanes = T::lanes(from, i);
                if constexpr (SUB == 32) {
                    scale[0][i] = lanes[0];
                } else {
                    scale[i / 4][2 * i % 8] = lanes[0];
                    scale[i / 4][2 * i % 8 + 1] = lanes[4];
                }
                if constexpr (T::MINIMUM) minimum[0][i] = T::minimum_of(from, i);
            }
        }
    }

    static void pack(const Product& p, int64_t row0, int64_t n_rows, int64_t k0, int64_t n, TileScratch& s) {
        for (int v = 0; v * VL < n_rows; ++v)
            for (int64_t g = 0; g < n; g += GROUP) {
                const int pieces = n - g < GROUP ? (int)((n - g) / QK) : PIECES;
                for (int lane = 0; lane < VL; ++lane) {
                    const int row = v * VL + lane;
                    f8 scale[2] = {}, minimum[2] = {};
                    if (row < n_rows) {  // else zeros, times what an earlier row left
                        const uint8_t* from =
                            p.weights + (row0 + row) * p.row_bytes + (k0 + g) / GROUP * T::GROUP_BYTES;
                        prefetch<T::GROUP_BYTES>(from + STEP / GROUP * T::GROUP_BYTES);  // the next slice
                        unpack_row(from, pieces, s.rows[0][lane], scale, minimum);
                    }
                    for (int i = 0; i < SUBS; ++i) {
                        s.scales[g / SUB + i][row] = scale[i / 8][i % 8];
                        if (T::MINIMUM) s.minima[g / SUB + i][row] = minimum[i / 8][i % 8];
                    }
                }
                for (int i = 0; i < pieces * QK; i += TILE_ROW_BYTES) {  // what is beyond the end lands beyond the end
                    vi x[VL];
                    interleave(s.rows[0][0] + i, GROUP, x);
#pragma GCC unroll 16
                    for (int j = 0; j < VL; ++j)
                        vwrite(tile_of(s, (g + i + 4 * j) / SUB, v) + 4 * j % SUB / 4 * TILE_ROW_BYTES, x[j]);
                }
            }
    }

    // Tile products of up to four scales for 16 rows.
    struct Unit {
        int64_t block, batch;
        int v;
    };
    template <int I>
    static inline void dot_sub(const TileColumns& a, int64_t sub, int v, TileScratch& s) {
        tile_zero<I>();
        tile_load<4 + I % 2>(a.at + sub * SUB, a.stride);
        tile_load<6 + I % 2>(tile_of(s, sub, v), TILE_ROW_BYTES);
        tile_dot_bytes<I, 4 + I % 2, 6 + I % 2>();
    }
    static inline void dot_batch(const TileColumns& a, int64_t sub, int64_t count, int v, TileScratch& s, int half) {
        dot_sub<0>(a, sub, v, s);
        if (count > 1) dot_sub<1>(a, sub + 1, v, s);
        if (count > 2) dot_sub<2>(a, sub + 2, v, s);
        if (count > 3) dot_sub<3>(a, sub + 3, v, s);
        tile_store<0>(s.sums[half][0], TILE_ROW_BYTES);
        if (count > 1) tile_store<1>(s.sums[half][1], TILE_ROW_BYTES);
        if (count > 2) tile_store<2>(s.sums[half][2], TILE_ROW_BYTES);
        if (count > 3) tile_store<3>(s.sums[half][3], TILE_ROW_BYTES);
    }

    static inline void scale_sub(const int32_t sums[TILE_ROWS][VL], const TileScratch& s, int64_t sub, int v,
                                 vf acc[TILE_ROWS]) {
        const vf scale = vload(s.scales[sub] + v * VL);
        const float *d = s.column_scales[sub * SUB / QK % 16], *sum = s.column_sums[sub % 16];
        vf minimum = {};
        if (T::MINIMUM) minimum = vload(s.minima[sub] + v * VL);
#pragma GCC unroll 16
        for (int c = 0; c < TILE_ROWS; ++c) {
            const vf x = __builtin_convertvector(vread<vi>(sums[c]), vf) * scale;
            acc[c] += T::SMALL ? x * d[c] : x;
            if (T::MINIMUM) acc[c] += minimum * sum[c];
        }
    }

    static void multiply(const Product& p, int64_t k0, int64_t n, int vectors, const ColumnLayout& l, TileScratch& s) {
        static_assert(!T::MINIMUM || (T::SMALL && SUB == QK), "sums of columns are those of 32");
        const int64_t subs = n / SUB, batches = (subs + BATCH - 1) / BATCH;
        const int64_t blocks = tile_blocks(p.n_columns);
        const auto count = [&](int64_t batch) { return subs - batch * BATCH < BATCH ? subs - batch * BATCH : BATCH; };
        TileColumns a = tile_columns(p, 0, k0, n, s.copied[0]);
        dot_batch(a, 0, count(0), 0, s, 0);
        int half = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t c0 = block * TILE_ROWS;
            if (T::SMALL)
                gather_floats(p, c0, l.scale + 4 * (k0 / QK), s.column_scales);
            else
                gather_float(p, c0, l.scale + 4 * (k0 / GROUP), s.column_scales[0]);
            if (T::MINIMUM) gather_floats(p, c0, l.sum + 4 * (k0 / QK), s.column_sums);
            for (int v = 0; v < vectors; ++v) {
                vf acc[TILE_ROWS];
#pragma GCC unroll 16
                for (int c = 0; c < TILE_ROWS; ++c)
                    acc[c] = T::SMALL && k0 > 0 ? vload(s.results[c0 + c] + v * VL) : vf{};
                for (int64_t batch = 0; batch < batches; ++batch, half ^= 1) {
                    // The tile unit goes on with what comes next while the vector units scale.
                    if (batch + 1 < batches) {
                        dot_batch(a, (batch + 1) * BATCH, count(batch + 1), v, s, half ^ 1);
                    } else if (v + 1 < vectors) {
                        dot_batch(a, 0, count(0), v + 1, s, half ^ 1);
                    } else if (block + 1 < blocks) {
                        a = tile_columns(p, c0 + TILE_ROWS, k0, n, s.copied[0]);
                        dot_batch(a, 0, count(0), 0, s, half ^ 1);
                    }
                    for (int64_t i = 0; i < count(batch); ++i) scale_sub(s.sums[half][i], s, batch * BATCH + i, v, acc);
                }
#pragma GCC unroll 16
                for (int c = 0; c < TILE_ROWS; ++c) {
                    float* to = s.results[c0 + c] + v * VL;
                    if (T::SMALL)
                        vstore(to, acc[c]);
                    else
                        vstore(to, (k0 > 0 ? vload(to) : vf{}) + acc[c] * s.column_scales[0][c]);
                }
            }
        }
    }
};

// ---- Integer scales ----

// How weight times scale becomes bytes: in PARTS, and with which sign. Q2_K: 3 * 15. Q3_K: -4 .. 3 times -32 .. 31,
// which without its sign is a byte.
template <class T>
struct FactorParts {
    static constexpr int PARTS = 2, SIGN = 1;
};
template <>
struct FactorParts<Q2_K> {
    static constexpr int PARTS = 1, SIGN = 1;
};
template <>
struct FactorParts<Q3_K> {
    static constexpr int PARTS = 1, SIGN = -1;
};

template <class T>
struct FactorTiles {
    static constexpr ActFormat FORMAT = T::FORMAT;
    static constexpr int STEP = GROUP, PARTS = FactorParts<T>::PARTS, SIGN = FactorParts<T>::SIGN;
    static constexpr int CHUNKS = GROUP / TILE_ROW_BYTES, SUBS = GROUP / T::SUB;
    static constexpr int TILE_BYTES_B = TILE_ROWS * TILE_ROW_BYTES;

    static void shapes(TileShapes* shapes) {
        for (int t = 0; t < TILE_REGISTERS; ++t) set_shape(shapes, t, TILE_ROWS, TILE_ROW_BYTES);
    }

    // B tiles: [64 of k][16 rows][part].
    static uint8_t* tile_of(TileScratch& s, int chunk, int v, int part) {
        return s.panel + ((chunk * 2 + v) * PARTS + part) * TILE_BYTES_B;
    }

    // Narrow weights are at most 126 and scales signed bytes, so a product is within 127 * 128 + 63.
    static inline void unpack_row(const uint8_t* from, const Factors& f, int lane, TileScratch& s) {
        bv u[REGISTERS];
        T::unpack(from, u);
        const __m512i factors = _mm512_castsi256_si512((__m256i)(SIGN < 0 ? -f.scales : f.scales));
        const __m512i first = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(1), 1);
#pragma GCC unroll 4
        for (int j = 0; j < REGISTERS; ++j)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                const __m256i bytes =
                    h ? _mm512_extracti64x4_epi64((__m512i)u[j], 1) : _mm512_castsi512_si256((__m512i)u[j]);
                const __m512i which = _mm512_add_epi16(first, _mm512_set1_epi16((short)(4 * j + 2 * h)));
                __m512i x = _mm512_sub_epi16(_mm512_cvtepu8_epi16(bytes), _mm512_set1_epi16(T::ZERO));
                x = _mm512_mullo_epi16(x, _mm512_permutexvar_epi16(which, factors));
                const int at = j * BW + h * QK;
                if constexpr (PARTS == 2) {
                    const __m512i high = _mm512_srai_epi16(_mm512_add_epi16(x, _mm512_set1_epi16(64)), 7);
                    vwrite(s.rows[1][lane] + at, _mm512_cvtepi16_epi8(high));
                    x = _mm512_sub_epi16(x, _mm512_slli_epi16(high, 7));
                }
                vwrite(s.rows[0][lane] + at, _mm512_cvtepi16_epi8(x));
            }
    }

    static void pack(const Product& p, int64_t row0, int64_t n_rows, int64_t k0, int64_t, TileScratch& s) {
        for (int v = 0; v * VL < n_rows; ++v) {
            for (int lane = 0; lane < VL; ++lane) {
                const int row = v * VL + lane;
                f4 d = {};
                w16 minima = {};
                if (row < n_rows) {  // else zeros, times what an earlier row left
                    const uint8_t* from = p.weights + (row0 + row) * p.row_bytes + k0 / GROUP * T::GROUP_BYTES;
                    prefetch<T::GROUP_BYTES>(from + T::GROUP_BYTES);  // the next slice
                    const Factors f = T::factors(from);
                    unpack_row(from, f, lane, s);
                    d = f.d;
                    minima = f.minima;
                }
                s.scales[0][row] = d[0] * SIGN;
                if (T::MINIMUM)
                    for (int i = 0; i < SUBS; ++i) s.minima[i][row] = (float)minima[i * 16 / SUBS] * d[1];
            }
            for (int part = 0; part < PARTS; ++part)
                for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                    vi x[VL];
                    interleave(s.rows[part][0] + chunk * TILE_ROW_BYTES, GROUP, x);
#pragma GCC unroll 16
                    for (int j = 0; j < VL; ++j) vwrite(tile_of(s, chunk, v, part) + j * TILE_ROW_BYTES, x[j]);
                }
        }
    }

    // C tiles are numbered by rows and part.
    template <int V>
    static inline void dot_rows_of(int chunk, TileScratch& s, bool odd) {
        constexpr int C = V * PARTS;
        tile_load<6>(tile_of(s, chunk, V, 0), TILE_ROW_BYTES);
        odd ? tile_dot_bytes<C, 5, 6>() : tile_dot_bytes<C, 4, 6>();
        if constexpr (PARTS == 2) {
            tile_load<7>(tile_of(s, chunk, V, 1), TILE_ROW_BYTES);
            odd ? tile_dot_bytes<C + 1, 5, 7>() : tile_dot_bytes<C + 1, 4, 7>();
        }
    }
    static inline void dot_group(const TileColumns& a, int vectors, TileScratch& s, int half) {
        tile_zero<0>();
        tile_zero<1>();
        tile_zero<2>();
        tile_zero<3>();
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const uint8_t* from = a.at + chunk * TILE_ROW_BYTES;
            const bool odd = chunk % 2 != 0;
            odd ? tile_load<5>(from, a.stride) : tile_load<4>(from, a.stride);
            dot_rows_of<0>(chunk, s, odd);
            if (vectors > 1) dot_rows_of<1>(chunk, s, odd);
        }
        tile_store<0>(s.sums[half][0], TILE_ROW_BYTES);
        tile_store<1>(s.sums[half][1], TILE_ROW_BYTES);
        if (PARTS == 2 && vectors > 1) {
            tile_store<2>(s.sums[half][2], TILE_ROW_BYTES);
            tile_store<3>(s.sums[half][3], TILE_ROW_BYTES);
        }
    }

    static inline void scale_rows(const int32_t (*sums)[TILE_ROWS][VL], const TileScratch& s, const float d[VL], int v,
                                  float (*results)[TILE_PANEL], bool first) {
        const vf scale = vload(s.scales[0] + v * VL);
        vf minima[SUBS];
        if (T::MINIMUM)
            for (int i = 0; i < SUBS; ++i) minima[i] = vload(s.minima[i] + v * VL);
#pragma GCC unroll 4
        for (int c = 0; c < TILE_ROWS; ++c) {
            vi sum = vread<vi>(sums[0][c]);
            if (PARTS == 2) sum += vread<vi>(sums[1][c]) << 7;
            vf x = __builtin_convertvector(sum, vf) * scale;
            if (T::MINIMUM)
#pragma GCC unroll 16
                for (int i = 0; i < SUBS; ++i) x += minima[i] * s.column_sums[i][c];
            float* to = results[c] + v * VL;
            vstore(to, (first ? vf{} : vload(to)) + x * d[c]);
        }
    }

    static void multiply(const Product& p, int64_t k0, int64_t n, int vectors, const ColumnLayout& l, TileScratch& s) {
        const int64_t blocks = tile_blocks(p.n_columns);
        dot_group(tile_columns(p, 0, k0, n, s.copied[0]), vectors, s, 0);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t c0 = block * TILE_ROWS;
            const int half = (int)(block % 2);
            // The tile unit goes on with the next columns while the vector units scale.
            if (block + 1 < blocks)
                dot_group(tile_columns(p, c0 + TILE_ROWS, k0, n, s.copied[0]), vectors, s, half ^ 1);
            gather_float(p, c0, l.scale + 4 * (k0 / GROUP), s.column_scales[0]);
            if (T::MINIMUM)
                gather_ints(p, c0, (T::SUB == QK ? l.negative : l.negative16) + 4 * (k0 / T::SUB), s.column_sums);
            for (int v = 0; v < vectors; ++v)
                scale_rows(s.sums[half] + v * PARTS, s, s.column_scales[0], v, s.results + c0, k0 == 0);
        }
    }
};

template <class T>
void many_quantised(const Product& p) {
    if constexpr (T::INTEGER)
        many_tiles<FactorTiles<T>>(p);
    else
        many_tiles<ScaledTiles<T>>(p);
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
