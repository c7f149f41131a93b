// The two engines of quantised types, over any decoder.
#pragma once

#include "cpu/matmul/panel.h"
#include "cpu/matmul/stream.h"
#if defined(GGR_AMX)
#include "cpu/matmul/tile_quantised.h"
#endif

namespace ggr {
namespace GGR_LEVEL {
namespace {

static inline f8 column_part(const uint8_t* column, int64_t offset, int64_t index) {
    return vread<f8>(column + offset + 4 * index);
}

// One group of a row with a column. `start` is what the zero point takes from each lane.
template <class T>
static inline void dot_group(fv& acc, f8& extra, const uint8_t* column, const ColumnLayout& l, int64_t g,
                             const bv u[REGISTERS], const bv a[REGISTERS], const iv start[REGISTERS], const f8 s[2],
                             const f8 m[2]) {
    f8 both[2] = {};
    if constexpr (T::SMALL) {
        const f8 d = column_part(column, l.scale, g * PIECES);
        if constexpr (T::SUB == 32) {
            both[0] = s[0] * d;
        } else {
            both[0] = s[0] * __builtin_shuffle(d, i8x{0, 0, 1, 1, 2, 2, 3, 3});
            both[1] = s[1] * __builtin_shuffle(d, i8x{4, 4, 5, 5, 6, 6, 7, 7});
        }
        if (T::MINIMUM) extra += m[0] * column_part(column, l.sum, g * PIECES);
    } else {
        static_assert(!T::MINIMUM, "super-blocks with minima have integer factors");
        float d;
        std::memcpy(&d, column + l.scale + 4 * g, 4);
        both[0] = s[0] * d;
        if (T::SUB == 16) both[1] = s[1] * d;
    }
#pragma GCC unroll 8
    for (int j = 0; j < REGISTERS; ++j)
        acc += __builtin_convertvector(dot<T::WIDE>(start[j], u[j], a[j]), fv) * spread<T::SUB>(both, j);
}
// The same with integer scales: the sum over the group is exact, and scaled once.
template <class T>
static inline void dot_group(fv& acc, f8& extra, const uint8_t* column, const ColumnLayout& l, int64_t g,
                             const bv u[REGISTERS], const bv a[REGISTERS], const Factors& f) {
    float d;
    std::memcpy(&d, column + l.scale + 4 * g, 4);
    const f4 factor = f.d * d;
    const w16 sums = vread<w16>(column + l.short16 + g * 32);
    iv sum = {};
    if (T::ZERO != 0) sum = start_from(multiply_pairs(f.scales, sums) * -T::ZERO);
#pragma GCC unroll 8
    for (int j = 0; j < REGISTERS; ++j) sum = dot_scaled(sum, u[j], a[j], f.scales, j);
    acc += __builtin_convertvector(sum, fv) * factor[0];
    if (T::MINIMUM) extra -= __builtin_convertvector(multiply_pairs(f.minima, sums), f8) * factor[1];
}

// NR rows with NC columns, each byte of the weights read once. Floor: the bytes of the rows over memory bandwidth; on
// AVX-512 256 elements cost about 4 to 8 instructions on 64 bytes each for unpacking, multiplying and scaling: 18
// cycles for the 144 bytes of Q4_K.
template <class T, int NR, int NC>
static inline void dot_rows(const Product& p, int64_t row, const ColumnLayout& l, const uint8_t* const* columns,
                            float* const* out) {
    fv acc[NR][NC] = {};
    f8 extra[NR][NC] = {};  // minima, and what is beyond the last group
    const uint8_t* w = p.weights + row * p.row_bytes;
    const int64_t groups = p.k / GROUP;
    for (int64_t g = 0; g < groups; ++g) {
        bv a[NC][REGISTERS];
        iv start[NC][REGISTERS] = {};
#pragma GCC unroll 4
        for (int c = 0; c < NC; ++c)
#pragma GCC unroll 8
            for (int j = 0; j < REGISTERS; ++j) {
                a[c][j] = vread<bv>(columns[c] + g * GROUP + j * BW);
                if (T::ZERO != 0 && !T::INTEGER) start[c][j] -= dot<false>(iv{}, bv{} + (uint8_t)T::ZERO, a[c][j]);
            }
#pragma GCC unroll 4
        for (int r = 0; r < NR; ++r) {
            const uint8_t* group = w + r * p.row_bytes + g * T::GROUP_BYTES;
            // In the order of memory, as far ahead as one block of rows. A single row the processor follows by itself.
            if (NR > 1) prefetch<T::GROUP_BYTES>(w + NR * p.row_bytes + (g * NR + r) * T::GROUP_BYTES);
            bv u[REGISTERS];
            T::unpack(group, u);
            if constexpr (T::INTEGER) {
                const Factors f = T::factors(group);
#pragma GCC unroll 4
                for (int c = 0; c < NC; ++c) dot_group<T>(acc[r][c], extra[r][c], columns[c], l, g, u, a[c], f);
            } else {
                f8 s[2] = {}, m[2] = {};
                T::scales(group, s, m);
#pragma GCC unroll 4
                for (int c = 0; c < NC; ++c)
                    dot_group<T>(acc[r][c], extra[r][c], columns[c], l, g, u, a[c], start[c], s, m);
            }
        }
    }
    if constexpr (T::SMALL) {
        for (int64_t b = groups * PIECES; b < p.k / QK; ++b)
            for (int r = 0; r < NR; ++r) {
                const uint8_t* group = w + r * p.row_bytes + groups * T::GROUP_BYTES;
                const int i = (int)(b - groups * PIECES);
                const b32 u = T::piece_of(group, i);
                for (int c = 0; c < NC; ++c) {
                    const b32 a = vread<b32>(columns[c] + b * QK);
                    float d;
                    std::memcpy(&d, columns[c] + l.scale + 4 * b, 4);
                    i8x start = {};
                    if (T::ZERO != 0) start -= dot32<false>(i8x{}, b32{} + (uint8_t)T::ZERO, a);
                    extra[r][c] += __builtin_convertvector(dot32<T::WIDE>(start, u, a), f8) * (T::lanes(group, i) * d);
                    if constexpr (T::MINIMUM) {
                        float sum;
                        std::memcpy(&sum, columns[c] + l.sum + 4 * b, 4);
                        extra[r][c][0] += T::minimum_of(group, i) * sum;
                    }
                }
            }
    }
    for (int c = 0; c < NC; ++c)
        for (int r = 0; r < NR; ++r) out[c][row + r] = sum8(fold8(acc[r][c]) + extra[r][c]);
}

template <class T, int NR, int NC>
static inline void all_rows(const Product& p, const ColumnLayout& l, int64_t c) {
    int64_t row = 0;
    for (; row + NR <= p.n_rows; row += NR) dot_rows<T, NR, NC>(p, row, l, p.columns + c, p.out + c);
    for (; row < p.n_rows; ++row) dot_rows<T, 1, NC>(p, row, l, p.columns + c, p.out + c);
}

template <class T, int NR, int NC>
static inline void rows_with(const Product& p, const ColumnLayout& l, int64_t c) {
    if constexpr (NC <= Streamed<T>::COLUMNS)
        if (stream_rows<T, NC>(p, l, c)) return;
    all_rows<T, NR, NC>(p, l, c);
}

template <class T>
void few_quantised(const Product& p) {
    const ColumnLayout l = column_layout(T::FORMAT, p.k);
    int64_t c = 0;
    for (; c + 4 <= p.n_columns; c += 4) rows_with<T, 2, 4>(p, l, c);
    if (p.n_columns - c >= 2) {
        rows_with<T, 2, 2>(p, l, c);
        c += 2;
    }
    // Super-blocks: several rows at a time gain less than one forward stream of memory.
    if (c < p.n_columns) rows_with<T, T::SMALL ? 4 : 1, 1>(p, l, c);
}

// Measured: with AVX-512 panels of six columns take as long as streaming four, else panels of four less.
#if defined(GGR_AMX)
constexpr int64_t FEW_QUANTISED = FEW_TILES;
#else
constexpr int64_t FEW_QUANTISED = GGR_VNNI ? 4 : 3;
template <class T>
void many_quantised(const Product& p) {
    many<QuantPanel<T> >(p);
}
#endif
// Streaming adds Q8_0 blocks up in the order of stock's dot product, panels do not, and a bit in the last place of q or
// k is enough for another rounding to int8 or half further on: replayed prompts of 16 tokens are up to 1e-3 off in
// logits with panels and none with streaming. Measured on one thread at 4096 x 4096, 8 columns take as long as in
// panels, 16 take 1.4 times as long with AVX-512 and as long without.
constexpr int64_t FEW_WIDE_BLOCKS = 16;

template <class T>
static inline void fill_engine(Engine* engine) {
    *engine = {
        T::FORMAT,   T::SMALL && T::WIDE ? FEW_WIDE_BLOCKS : FEW_QUANTISED, few_quantised<T>, many_quantised<T>, 1,
        BLOCK_PANELS};
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
