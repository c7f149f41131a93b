// The two engines of quantised types, over any decoder.
#pragma once

#include "cpu/matmul/decoders.h"
#include "cpu/matmul/product.h"
#include "cpu/matmul/stream.h"

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
            // In the order of memory, as far ahead as one block of rows.
            prefetch<T::GROUP_BYTES>(w + NR * p.row_bytes + (g * NR + r) * T::GROUP_BYTES);
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

template <class T>
void few_quantised(const Product& p) {
    const ColumnLayout l = column_layout(T::FORMAT, p.k);
    int64_t c = 0;
    for (; c + 4 <= p.n_columns; c += 4) all_rows<T, 2, 4>(p, l, c);
    if (p.n_columns - c >= 2) {
        all_rows<T, 2, 2>(p, l, c);
        c += 2;
    }
    if (c == p.n_columns) return;
    if constexpr (Streamed<T>::EXISTS)
        if (stream_rows<T>(p, l, c)) return;
    all_rows<T, 4, 1>(p, l, c);
}

// Panels: PANEL_ROWS rows as bytes, four of k beside each other for every row, so that lanes are rows and one broadcast
// of four activations meets all of them. Floor on AVX-512: one vpdpbusd for 16 rows by 4 of k by a column, and a
// conversion and two multiplications per 32 of k: 80 % of the dot products' rate.
template <class T>
struct QuantPanel {
    static constexpr ActFormat FORMAT = T::FORMAT;
    static constexpr int64_t STEP = 512;
    static constexpr int SUBS = GROUP / T::SUB;

    static inline float* scales_of(uint8_t* panel) { return reinterpret_cast<float*>(panel + PANEL_BYTES); }
    static inline float* minima_of(uint8_t* panel) {
        return reinterpret_cast<float*>(panel + PANEL_BYTES + SCALE_BYTES);
    }

    static void pack(const Product& p, int64_t k0, int64_t n, uint8_t* panel) {
        uint8_t* rows = panel + PANEL_BYTES + 2 * SCALE_BYTES;
        float *scales = scales_of(panel), *minima = minima_of(panel);
        for (int v = 0; v < PANEL_VECTORS; ++v) {
            for (int64_t g = 0; g < n; g += GROUP) {
                const int pieces = n - g < GROUP ? (int)((n - g) / QK) : PIECES;
                for (int lane = 0; lane < VL; ++lane) {
                    const int64_t row = v * VL + lane;
                    float* s_to = scales + (g / T::SUB * PANEL_VECTORS + v) * VL + lane;
                    float* m_to = minima + (g / T::SUB * PANEL_VECTORS + v) * VL + lane;
                    if (row >= p.n_rows) {
                        for (int i = 0; i < SUBS; ++i) s_to[i * PANEL_ROWS] = m_to[i * PANEL_ROWS] = 0.0f;
                        continue;
                    }
                    const uint8_t* from = p.weights + row * p.row_bytes + (k0 + g) / GROUP * T::GROUP_BYTES;
                    prefetch<T::GROUP_BYTES>(from + STEP / GROUP * T::GROUP_BYTES);  // the next slice
                    unpack_row(from, pieces, rows + lane * GROUP, s_to, m_to);
                }
                transpose(rows, 8 * pieces, panel + g * PANEL_ROWS + v * VL * 4);
            }
        }
    }

    static inline void unpack_row(const uint8_t* from, int pieces, uint8_t* row, float* s_to, float* m_to) {
        f8 s[2] = {}, m[2] = {};
        if (pieces == PIECES) {
            bv u[REGISTERS];
            T::unpack(from, u);
            for (int j = 0; j < REGISTERS; ++j) vwrite(row + j * BW, u[j]);
            T::scales(from, s, m);
        } else if constexpr (T::SMALL) {
            for (int i = 0; i < pieces; ++i) {
                vwrite(row + i * QK, T::piece_of(from, i));
                const f8 lanes = T::lanes(from, i);
                if constexpr (T::SUB == 32) {
                    s[0][i] = lanes[0];
                } else {
                    s[i / 4][2 * i % 8] = lanes[0];
                    s[i / 4][2 * i % 8 + 1] = lanes[4];
                }
                if constexpr (T::MINIMUM) m[0][i] = T::minimum_of(from, i);
            }
        }
        for (int i = 0; i < SUBS; ++i) {
            s_to[i * PANEL_ROWS] = s[i / 8][i % 8];
            if (T::MINIMUM) m_to[i * PANEL_ROWS] = m[i / 8][i % 8];
        }
    }

    // rows[VL][GROUP] bytes to n fours[VL], PANEL_ROWS * 4 bytes from one to the next. n is a multiple of 8.
    static inline void transpose(const uint8_t* rows, int n, uint8_t* to) {
        constexpr int PITCH = PANEL_ROWS * 4;
        for (int i = 0; i < n; i += VL) {  // beyond n: what an earlier group left in `rows`, not stored
            vi x[VL];
#pragma GCC unroll 16
            for (int lane = 0; lane < VL; ++lane) x[lane] = vread<vi>(rows + lane * GROUP + i * 4);
            transpose_square(x);
            const int count = n - i < VL ? n - i : VL;
            if (count == VL) {
#pragma GCC unroll 16
                for (int j = 0; j < VL; ++j) vwrite(to + (i + j) * PITCH, x[j]);
            } else {
#pragma GCC unroll 16
                for (int j = 0; j < VL; ++j)
                    if (j < count) vwrite(to + (i + j) * PITCH, x[j]);
            }
        }
    }

    // Dot products of SUB elements, from the zero points' part on. The records of small blocks have sums of 32 only.
    static inline void dots(const uint8_t* fours, const uint8_t* const* columns, int64_t k, int64_t negative,
                            int64_t sub, vi acc[PANEL_VECTORS][TILE_COLUMNS]) {
#pragma GCC unroll 8
        for (int c = 0; c < TILE_COLUMNS; ++c) {
            vi start = {};
            if constexpr (T::SMALL && T::SUB == 16) {
                for (int i = 0; i < T::SUB; i += 4)
                    start -= dot_lanes<false>(vi{}, bl{} + (uint8_t)T::ZERO,
                                              load_four(reinterpret_cast<const int8_t*>(columns[c] + k + i)));
            } else if (T::ZERO != 0) {
                int32_t sum;
                std::memcpy(&sum, columns[c] + negative + 4 * sub, 4);
                start = vset_i(sum) * T::ZERO;
            }
#pragma GCC unroll 2
            for (int v = 0; v < PANEL_VECTORS; ++v) acc[v][c] = start;
        }
#pragma GCC unroll 8
        for (int i = 0; i < T::SUB / 4; ++i) {
            bl w[PANEL_VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < PANEL_VECTORS; ++v) w[v] = vread<bl>(fours + (i * PANEL_VECTORS + v) * VL * 4);
#pragma GCC unroll 8
            for (int c = 0; c < TILE_COLUMNS; ++c) {
                const vi a = load_four(reinterpret_cast<const int8_t*>(columns[c] + k + 4 * i));
#pragma GCC unroll 2
                for (int v = 0; v < PANEL_VECTORS; ++v) acc[v][c] = dot_lanes<T::WIDE>(acc[v][c], w[v], a);
            }
        }
    }

    static inline float element(const uint8_t* column, int64_t offset, int64_t index) {
        float x;
        std::memcpy(&x, column + offset + 4 * index, 4);
        return x;
    }

    static void multiply(uint8_t* panel, int64_t k0, int64_t n, const uint8_t* const* columns, const ColumnLayout& l,
                         float* tile, bool add) {
        const float *scales = scales_of(panel), *minima = minima_of(panel);
        constexpr int64_t SPAN = T::SMALL ? STEP : GROUP;  // elements that are summed in registers
        for (int64_t g = 0; g < n; g += SPAN) {
            vf sum[PANEL_VECTORS][TILE_COLUMNS] = {};
            const int64_t end = g + SPAN < n ? g + SPAN : n;
            for (int64_t i = g; i < end; i += T::SUB) {
                const int64_t sub = (k0 + i) / T::SUB;
                vi acc[PANEL_VECTORS][TILE_COLUMNS];
                dots(panel + i * PANEL_ROWS, columns, k0 + i, T::SUB == 32 ? l.negative : l.negative16, sub, acc);
#pragma GCC unroll 2
                for (int v = 0; v < PANEL_VECTORS; ++v) {
                    const vf s = vload(scales + (i / T::SUB * PANEL_VECTORS + v) * VL);
                    vf m = {};
                    if (T::MINIMUM) m = vload(minima + (i / T::SUB * PANEL_VECTORS + v) * VL);
#pragma GCC unroll 8
                    for (int c = 0; c < TILE_COLUMNS; ++c) {
                        vf x = __builtin_convertvector(acc[v][c], vf) * s;
                        if (T::SMALL) x *= element(columns[c], l.scale, (k0 + i) / QK);
                        sum[v][c] += x;
                        if (T::MINIMUM) sum[v][c] += m * element(columns[c], T::SUB == 32 ? l.sum : l.sum16, sub);
                    }
                }
            }
#pragma GCC unroll 8
            for (int c = 0; c < TILE_COLUMNS; ++c)
#pragma GCC unroll 2
                for (int v = 0; v < PANEL_VECTORS; ++v) {
                    float* to = tile + c * PANEL_ROWS + v * VL;
                    const vf before = add || g > 0 ? vload(to) : vf{};
                    const float d = T::SMALL ? 1.0f : element(columns[c], l.scale, (k0 + g) / GROUP);
                    vstore(to, before + sum[v][c] * d);
                }
        }
    }
};

// Measured: with AVX-512 panels of six columns take as long as streaming four, else panels of four less.
constexpr int64_t FEW_QUANTISED = GGR_VNNI ? 4 : 3;
// Streaming adds Q8_0 blocks up in the order of stock's dot product, panels do not, and a bit in the last place of q or
// k is enough for another rounding to int8 or half further on: replayed prompts of 16 tokens are up to 1e-3 off in
// logits with panels and none with streaming. Measured on one thread at 4096 x 4096, 8 columns take as long as in
// panels, 16 take 1.4 times as long with AVX-512 and as long without.
constexpr int64_t FEW_WIDE_BLOCKS = 16;

template <class T>
static inline void fill_engine(Engine* engine) {
    *engine = {T::FORMAT, T::SMALL && T::WIDE ? FEW_WIDE_BLOCKS : FEW_QUANTISED, few_quantised<T>, many<QuantPanel<T>>};
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
