// The two engines of F32, F16 and BF16 weights. Activations are floats that were rounded to the weight's type.
#pragma once

#include "cpu/matmul/product.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

struct WeightF32 {
    static constexpr ActFormat FORMAT = ACT_F32;
    using Element = float;
    static inline vf load(const float* p) { return vload(p); }
    static inline float get(const float* p) { return *p; }
};
struct WeightF16 {
    static constexpr ActFormat FORMAT = ACT_F16;
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_f16(p); }
    static inline float get(const uint16_t* p) { return f16_to_f32(*p); }
};
struct WeightBF16 {
    static constexpr ActFormat FORMAT = ACT_BF16;
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_bf16(p); }
    static inline float get(const uint16_t* p) { return bf16_to_f32(*p); }
};

// The sums of the lanes of four vectors. Short rows (keys of a cache) spend as long here as in their dot products.
static inline void vwrite_sums(float* to, vf a, vf b, vf c, vf d) {
#if defined(__AVX512F__)
    const vf v[4] = {a, b, c, d};
    __m128 quarter[4];
    for (int i = 0; i < 4; ++i) {
        const __m256 half =
            _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]), _mm512_extractf32x8_ps((__m512)v[i], 1));
        quarter[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    _mm_storeu_ps(to, _mm_hadd_ps(_mm_hadd_ps(quarter[0], quarter[1]), _mm_hadd_ps(quarter[2], quarter[3])));
#else
    to[0] = vsum(a);
    to[1] = vsum(b);
    to[2] = vsum(c);
    to[3] = vsum(d);
#endif
}

// Floor: the bytes of the rows over memory bandwidth.
template <class W, int NR, int NC>
static inline void dot_plain(const Product& p, int64_t row, const float* const* columns, float* const* out) {
    vf acc[NR][NC] = {};
    const typename W::Element* w[NR];
    for (int r = 0; r < NR; ++r)
        w[r] = reinterpret_cast<const typename W::Element*>(p.weights + (row + r) * p.row_bytes);
    constexpr int STEP = NR * VL * (int)sizeof(typename W::Element);  // bytes of an iteration
    const uint8_t* next = p.weights + (row + NR) * p.row_bytes;
    int64_t i = 0;
    for (; i + VL <= p.k; i += VL, next += STEP) {
        if (NR > 1) prefetch<STEP>(next);  // a single row the processor follows by itself
        vf a[NC];
#pragma GCC unroll 4
        for (int c = 0; c < NC; ++c) a[c] = vload(columns[c] + i);
#pragma GCC unroll 4
        for (int r = 0; r < NR; ++r) {
            const vf x = W::load(w[r] + i);
#pragma GCC unroll 4
            for (int c = 0; c < NC; ++c) acc[r][c] += x * a[c];
        }
    }
    for (int c = 0; c < NC; ++c) {
        float sums[NR];
        if constexpr (NR == 4) {
            vwrite_sums(sums, acc[0][c], acc[1][c], acc[2][c], acc[3][c]);
        } else {
            for (int r = 0; r < NR; ++r) sums[r] = vsum(acc[r][c]);
        }
        for (int r = 0; r < NR; ++r) {
            for (int64_t j = i; j < p.k; ++j) sums[r] += W::get(w[r] + j) * columns[c][j];
            out[c][row + r] = sums[r];
        }
    }
}

template <class W, int NR, int NC>
static inline void all_rows_plain(const Product& p, int64_t c) {
    const float* columns[NC];
    for (int i = 0; i < NC; ++i) columns[i] = reinterpret_cast<const float*>(p.columns[c + i]);
    int64_t row = 0;
    for (; row + NR <= p.n_rows; row += NR) dot_plain<W, NR, NC>(p, row, columns, p.out + c);
    for (; row < p.n_rows; ++row) dot_plain<W, 1, NC>(p, row, columns, p.out + c);
}

template <class W>
void few_plain(const Product& p) {
    int64_t c = 0;
    for (; c + 4 <= p.n_columns; c += 4) all_rows_plain<W, VL == 16 ? 4 : 2, 4>(p, c);
    if (p.n_columns - c >= 2) {
        all_rows_plain<W, 4, 2>(p, c);
        c += 2;
    }
    if (c == p.n_columns) return;
    if (sizeof(typename W::Element) == 4 && p.k >= 1024)
        all_rows_plain<W, 1, 1>(p, c);
    else
        all_rows_plain<W, 4, 1>(p, c);
}

// Panels: PANEL_ROWS rows as floats, the elements of one k beside each other.
template <class W>
struct PlainPanel {
    static constexpr ActFormat FORMAT = W::FORMAT;
    static constexpr int64_t STEP = 128;
    static constexpr int COLUMNS = FLOAT_COLUMNS;

    static void pack(const Product& p, int64_t k0, int64_t n, uint8_t* panel) {
        float* to = reinterpret_cast<float*>(panel);
        for (int v = 0; v < PANEL_VECTORS; ++v) {
            const typename W::Element* from[VL];  // rows that are not there: the last one again, to lanes never stored
            for (int lane = 0; lane < VL; ++lane) {
                const int64_t row = v * VL + lane < p.n_rows ? v * VL + lane : p.n_rows - 1;
                from[lane] = reinterpret_cast<const typename W::Element*>(p.weights + row * p.row_bytes) + k0;
            }
            int64_t i = 0;
            for (; i + VL <= n; i += VL) {
                vf x[VL];
#pragma GCC unroll 16
                for (int lane = 0; lane < VL; ++lane) {
                    __builtin_prefetch(from[lane] + i + STEP, 0, 2);  // the next slice
                    x[lane] = W::load(from[lane] + i);
                }
                transpose_square(x);
#pragma GCC unroll 16
                for (int j = 0; j < VL; ++j) vstore(to + (i + j) * PANEL_ROWS + v * VL, x[j]);
            }
            for (; i < n; ++i)
                for (int lane = 0; lane < VL; ++lane) to[i * PANEL_ROWS + v * VL + lane] = W::get(from[lane] + i);
        }
    }

    template <int C>
    static void multiply(uint8_t* panel, int64_t k0, int64_t n, const uint8_t* const* columns, const ColumnLayout&,
                         float* tile, bool add) {
        multiply_floats<C>(reinterpret_cast<const float*>(panel), k0, n, columns, tile, add);
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
