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
    static inline void store(float* p, vf v) { vstore(p, v); }
    static inline float get(const float* p) { return *p; }
    static inline void put(float* p, float x) { *p = x; }
};
struct WeightF16 {
    static constexpr ActFormat FORMAT = ACT_F16;
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_f16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_f16(p, v); }
    static inline float get(const uint16_t* p) { return f16_to_f32(*p); }
    static inline void put(uint16_t* p, float x) { *p = f32_to_f16(x); }
};
struct WeightBF16 {
    static constexpr ActFormat FORMAT = ACT_BF16;
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_bf16(p); }
    // Of what is rounded already.
    static inline void store(uint16_t* p, vf v) {
        typedef uint16_t vh __attribute__((vector_size(VL * 2)));
        const vh h = __builtin_convertvector((vu)v >> 16, vh);
        std::memcpy(p, &h, sizeof h);
    }
    static inline float get(const uint16_t* p) { return bf16_to_f32(*p); }
    static inline void put(uint16_t* p, float x) { *p = f32_to_bf16(x); }
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

// NR rows, `apart` rows from one to the next, with NC columns. C: what the columns' elements are. Floor: the bytes of
// the rows over memory bandwidth, or (from four columns on) a multiply-add for VL elements of each column.
template <class W, class C, int NR, int NC>
static inline void dot_plain(const Product& p, int64_t row, int64_t apart, const typename C::Element* const* columns,
                             float* const* out) {
    vf acc[NR][NC] = {};
    const typename W::Element* w[NR];
    for (int r = 0; r < NR; ++r)
        w[r] = reinterpret_cast<const typename W::Element*>(p.weights + (row + r * apart) * p.row_bytes);
    constexpr int STEP = NR * VL * (int)sizeof(typename W::Element);  // bytes of an iteration
    const uint8_t* next = p.weights + (row + NR) * p.row_bytes;
    int64_t i = 0;
#pragma GCC unroll 2
    for (; i + VL <= p.k; i += VL, next += STEP) {
        if (NR > 1 && NC > 1) prefetch<STEP>(next);
        vf a[NC];
#pragma GCC unroll 4
        for (int c = 0; c < NC; ++c) a[c] = C::load(columns[c] + i);
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
            for (int64_t j = i; j < p.k; ++j) sums[r] += W::get(w[r] + j) * C::get(columns[c] + j);
            out[c][row + r * apart] = sums[r];
        }
    }
}

// Several columns: neighbouring rows, prefetched in the order of memory. (Streams as below took 1.0 to 1.4 times as
// long.)
template <class W, int NR, int NC>
static inline void all_rows_plain(const Product& p, int64_t c) {
    const float* columns[NC];
    for (int i = 0; i < NC; ++i) columns[i] = reinterpret_cast<const float*>(p.columns[c + i]);
    int64_t row = 0;
    for (; row + NR <= p.n_rows; row += NR) dot_plain<W, WeightF32, NR, NC>(p, row, 1, columns, p.out + c);
    for (; row < p.n_rows; ++row) dot_plain<W, WeightF32, 1, NC>(p, row, 1, columns, p.out + c);
}

// One column: the rows in STREAMS parts that are read side by side. The processor's own prefetching runs further ahead
// of several long streams than of one, and follows neighbouring rows as little as software does. Measured on a core of
// Zen 4, F16, rows of 2048, GB/s, where reading alone reaches 30: one stream 22, four neighbouring rows with software
// prefetching 24, two, three, four and six streams 30 to 31, eight 27.
constexpr int STREAMS = 4;

template <class W, class C>
static inline void stream_plain(const Product& p, int64_t c, const typename C::Element* column) {
    const int64_t apart = p.n_rows / STREAMS;
    int64_t row = 0;
    for (; row < apart; ++row) dot_plain<W, C, STREAMS, 1>(p, row, apart, &column, p.out + c);
    for (row *= STREAMS; row < p.n_rows; ++row) dot_plain<W, C, 1, 1>(p, row, 0, &column, p.out + c);
}

// A longer column (bytes) leaves the first-level cache while the rows pass through it. It loses nothing as the halves
// that it was rounded to: rows of 5632 go at 23 GB/s with floats, 28 with halves, 20 before.
constexpr int64_t LONG_COLUMN = 12288;

template <class W>
static inline void column_plain(const Product& p, int64_t c) {
    const float* from = reinterpret_cast<const float*>(p.columns[c]);
    if constexpr (sizeof(typename W::Element) == 2 && VL > 4) {
        if (p.k * 4 > LONG_COLUMN && p.k * 2 <= LOCAL_BYTES) {
            typename W::Element* column = reinterpret_cast<typename W::Element*>(p.local);
            int64_t i = 0;
            for (; i + VL <= p.k; i += VL) W::store(column + i, vload(from + i));
            for (; i < p.k; ++i) W::put(column + i, from[i]);
            stream_plain<W, W>(p, c, column);
            return;
        }
    }
    stream_plain<W, WeightF32>(p, c, from);
}

template <class W>
void few_plain(const Product& p) {
    int64_t c = 0;
    for (; c + 4 <= p.n_columns; c += 4) all_rows_plain<W, VL == 16 ? 4 : 2, 4>(p, c);
    if (p.n_columns - c >= 2) {
        all_rows_plain<W, 4, 2>(p, c);
        c += 2;
    }
    if (c < p.n_columns) column_plain<W>(p, c);
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
