// Panels of BF16 and F16 weights for AMX. C tiles gather the whole sum over a slice of k in f32, so there is nothing to
// scale. Floor: a tile product of 16 cycles for 16 rows x 16 columns x 32 of k, one for BF16.
//
// A half has 11 bits, a bf16 has 8: weights and activations of F16 are split in a bf16 of their upper bits and one of
// the rest, both exact, and of the four products the three larger are computed; what is left out is at most 2^-18 of a
// product. 48 cycles for what takes fused multiply-adds of f32 256. (Infinity times anything is NaN here.)
//
// Where the records of activations have these parts: columns.h.
#pragma once

#include "cpu/matmul/plain.h"
#include "cpu/matmul/tile_products.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

template <class W>
struct PlainTiles {
    static constexpr ActFormat FORMAT = W::FORMAT;
    static constexpr int PARTS = FORMAT == ACT_F16 ? 2 : 1;
    static constexpr int CHUNK_ELEMENTS = TILE_ROW_BYTES / 2, TILE_BYTES_B = TILE_ROWS * TILE_ROW_BYTES;
    static constexpr int STEP = TILE_STEP / 2 / PARTS;  // so that the panel's slice is 16 KiB
    static_assert(FORMAT == ACT_F16 || FORMAT == ACT_BF16, "16 bits");

    static void shapes(TileShapes* shapes) {
        for (int t = 0; t < TILE_REGISTERS; ++t) set_shape(shapes, t, TILE_ROWS, TILE_ROW_BYTES);
    }

    // B tiles: [32 of k][16 rows][part].
    static uint8_t* tile_of(TileScratch& s, int64_t chunk, int v, int part) {
        return s.panel + ((chunk * 2 + v) * PARTS + part) * TILE_BYTES_B;
    }

    static void pack(const Product& p, int64_t row0, int64_t n_rows, int64_t k0, int64_t n, TileScratch& s) {
        for (int v = 0; v * VL < n_rows; ++v)
            for (int64_t i = 0; i < n; i += CHUNK_ELEMENTS) {
                const __mmask32 there = n - i < CHUNK_ELEMENTS ? (__mmask32)((1u << (n - i)) - 1) : ~__mmask32{0};
                for (int lane = 0; lane < VL; ++lane) {  // rows that are not there: the last one again
                    const int64_t row = row0 + (v * VL + lane < n_rows ? v * VL + lane : n_rows - 1);
                    const uint16_t* from = reinterpret_cast<const uint16_t*>(p.weights + row * p.row_bytes) + k0 + i;
                    __builtin_prefetch(from + STEP, 0, 2);  // the next slice
                    const __m512i bits = _mm512_maskz_loadu_epi16(there, from);
                    if constexpr (PARTS == 1) {
                        std::memcpy(s.rows[0][lane], &bits, sizeof bits);
                    } else {
                        const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
                        split_in_bf16(low, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1)), s.rows[0][lane],
                                      s.rows[1][lane]);
                    }
                }
                for (int part = 0; part < PARTS; ++part) {
                    vi x[VL];
                    interleave(s.rows[part][0], sizeof s.rows[part][0], x);
                    uint8_t* to = tile_of(s, i / CHUNK_ELEMENTS, v, part);
#pragma GCC unroll 16
                    for (int j = 0; j < VL; ++j) std::memcpy(to + j * TILE_ROW_BYTES, x + j, sizeof x[j]);
                }
            }
    }

    // C tiles: 2 * block + v. One of 32 of k.
    template <int BLOCK, int V>
    static inline void dot_rows_of(int64_t chunk, TileScratch& s) {
        constexpr int C = 2 * BLOCK + V;
        if constexpr (PARTS == 1) {
            if (BLOCK == 0) tile_load<6 + V>(tile_of(s, chunk, V, 0), TILE_ROW_BYTES);
            tile_dot_bf16<C, 4 + BLOCK, 6 + V>();
        } else {
            tile_load<6>(tile_of(s, chunk, V, 0), TILE_ROW_BYTES);
            tile_dot_bf16<C, 4, 6>();
            tile_dot_bf16<C, 5, 6>();
            tile_load<7>(tile_of(s, chunk, V, 1), TILE_ROW_BYTES);
            tile_dot_bf16<C, 4, 7>();
        }
    }
    template <int BLOCK>
    static inline void dot_columns(const TileColumns a[PARTS], int64_t chunk, int vectors, TileScratch& s) {
        const int64_t at = chunk * TILE_ROW_BYTES;
        if constexpr (PARTS == 1) {
            tile_load<4 + BLOCK>(a[0].at + at, a[0].stride);
        } else {
            tile_load<4>(a[0].at + at, a[0].stride);
            tile_load<5>(a[1].at + at, a[1].stride);
        }
        dot_rows_of<BLOCK, 0>(chunk, s);
        if (vectors > 1) dot_rows_of<BLOCK, 1>(chunk, s);
    }

    template <int BLOCK>
    static inline void load_results(float (*results)[TILE_PANEL], bool first, int vectors) {
        constexpr int64_t PITCH = TILE_PANEL * 4;
        first ? tile_zero<2 * BLOCK>() : tile_load<2 * BLOCK>(results[0], PITCH);
        if (vectors > 1) first ? tile_zero<2 * BLOCK + 1>() : tile_load<2 * BLOCK + 1>(results[0] + VL, PITCH);
    }
    template <int BLOCK>
    static inline void store_results(float (*results)[TILE_PANEL], int vectors) {
        constexpr int64_t PITCH = TILE_PANEL * 4;
        tile_store<2 * BLOCK>(results[0], PITCH);
        if (vectors > 1) tile_store<2 * BLOCK + 1>(results[0] + VL, PITCH);
    }

    // The parts of 16 columns.
    static inline void columns_of(const Product& p, int64_t c, int64_t k0, int64_t n, const ColumnLayout& l,
                                  TileCopies copied, TileColumns a[PARTS]) {
        const int64_t bytes = (n + CHUNK_ELEMENTS - 1) / CHUNK_ELEMENTS * TILE_ROW_BYTES;
        a[0] = tile_columns(p, c, l.high + 2 * k0, bytes, copied);
        if (PARTS == 2) {  // both lie evenly or none does, and half of the copy is free
            a[PARTS - 1] = tile_columns(p, c, l.low + 2 * k0, bytes, copied, TILE_STEP / 2);
        }
    }

    static void multiply(const Product& p, int64_t k0, int64_t n, int vectors, const ColumnLayout& l, TileScratch& s) {
        const int64_t blocks = tile_blocks(p.n_columns), chunks = (n + CHUNK_ELEMENTS - 1) / CHUNK_ELEMENTS;
        const bool first = k0 == 0;
        for (int64_t block = 0; block < blocks; block += 2) {
            float(*results)[TILE_PANEL] = s.results + block * TILE_ROWS;
            const bool two = block + 1 < blocks;
            TileColumns a[PARTS], b[PARTS];
            columns_of(p, block * TILE_ROWS, k0, n, l, s.copied[0], a);
            load_results<0>(results, first, vectors);
            if (two) {
                columns_of(p, (block + 1) * TILE_ROWS, k0, n, l, s.copied[1], b);
                load_results<1>(results + TILE_ROWS, first, vectors);
            }
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                dot_columns<0>(a, chunk, vectors, s);
                if (two) dot_columns<1>(b, chunk, vectors, s);
            }
            store_results<0>(results, vectors);
            if (two) store_results<1>(results + TILE_ROWS, vectors);
        }
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
