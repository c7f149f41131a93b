// Panel products of quantised weights: PANEL_ROWS rows as bytes, four of k beside each other for every row, so that
// lanes are rows and one broadcast of four activations meets all of them.
//
// Floors, instructions on the multiplying pipes for VL rows, 256 of k and a column (there are 64 dot products):
//   vpdpbusd: 64, 8 (or 16) to scale the sums of 32 (or 16), 4 (or 8) for minima, 3 at the end.
//   Without:  pairs of products in 16 bits are added up in 16 bits while they fit (RUN fours), then multiplied with the
//             scale in 16 bits: 64 + 64 / RUN, and as many additions on any pipe.
#pragma once

#include "cpu/matmul/decoders.h"
#include "cpu/matmul/product.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

#if !GGR_DPBUSD && defined(__SSSE3__)
constexpr bool PAIRS = true;
#if defined(__AVX2__)
typedef __m256i pv;
#define GGR_PAIRS(op, ...) _mm256_##op(__VA_ARGS__)
#else
typedef __m128i pv;
#define GGR_PAIRS(op, ...) _mm_##op(__VA_ARGS__)
#endif
// Sums of neighbours in 16 bits.
static inline pv pair_products(bl u, vi a) { return GGR_PAIRS(maddubs_epi16, (pv)u, (pv)a); }
static inline pv add_pairs(pv x, pv y) { return GGR_PAIRS(add_epi16, x, y); }
static inline vi multiply_lanes(pv x, vi y) { return (vi)GGR_PAIRS(madd_epi16, x, (pv)y); }
#else
constexpr bool PAIRS = false;
#endif

// Keep GCC from adding integers in a tree, which takes three times the registers.
template <class V>
static inline void in_order([[maybe_unused]] V& sum) {
#if defined(__x86_64__)
    __asm__("" : "+x"(sum));
#endif
}

// acc + products of two int16 in each lane.
static inline vi dot_short_lanes(vi acc, vi x, vi y) {
#if GGR_VNNI
    return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)x, (__m512i)y);
#elif defined(__AVX2__)
    return acc + (vi)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#elif defined(__SSSE3__)
    return acc + (vi)_mm_madd_epi16((__m128i)x, (__m128i)y);
#else
    return acc + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

template <class T>
struct QuantPanel {
    static constexpr ActFormat FORMAT = T::FORMAT;
    static constexpr int64_t STEP = 512;
    static constexpr int COLUMNS = QUANT_COLUMNS;
    static constexpr int SUBS = GROUP / T::SUB;
    static constexpr int FOURS = T::SUB / 4;
    static constexpr bool SHORT_SCALES = T::INTEGER && PAIRS;  // pairs of int16, else floats
    // Without vpdpbusd the zero points of integer types are minima.
    static constexpr bool ZERO_MINIMA = SHORT_SCALES && T::ZERO != 0;
    static constexpr int STARTED = ZERO_MINIMA ? 0 : T::ZERO;  // zero point at the start of the sums
    // Fours whose pairs of products can be added in 16 bits.
    static constexpr int FIT = 32767 / (2 * 127 * T::MOST);
    static constexpr int RUN = FIT >= FOURS ? FOURS : FIT >= 4 ? 4 : FIT >= 2 ? 2 : 1;

    // The factors of a group, vectors of VL rows: scales, minima (floats, or two int16 of neighbouring sums), what both
    // are to be multiplied with if they are integers.
    static constexpr int MINIMA = !T::MINIMUM && !ZERO_MINIMA ? 0 : T::INTEGER ? SUBS / 2 : SUBS;
    static constexpr int D = SUBS + MINIMA, FACTORS = D + (T::INTEGER ? 2 : 0);
    static constexpr int WORDS = MINIMA > 0 || (!T::INTEGER && SUBS == 16) ? 16 : 8;  // of a row's factors
    static_assert(FACTORS <= GROUP_FACTORS, "their room in scratch");

    static inline uint8_t* factor(uint8_t* panel, int64_t group, int i, int v) {
        return panel + PANEL_BYTES + ((group * GROUP_FACTORS + i) * PANEL_VECTORS + v) * VL * 4;
    }

    static void pack(const Product& p, int64_t k0, int64_t n, uint8_t* panel) {
        uint8_t* rows = panel + PANEL_BYTES + FACTOR_BYTES;
        for (int v = 0; v < PANEL_VECTORS; ++v)
            for (int64_t g = 0; g < n; g += GROUP) {
                const int pieces = n - g < GROUP ? (int)((n - g) / QK) : PIECES;
                uint8_t raw[VL][64];  // factors of each row
                float d[2][VL];
                for (int lane = 0; lane < VL; ++lane) {
                    if (v * VL + lane >= p.n_rows) {
                        std::memset(raw[lane], 0, sizeof raw[lane]);
                        d[0][lane] = d[1][lane] = 0.0f;
                        continue;
                    }
                    const uint8_t* from = p.weights + (v * VL + lane) * p.row_bytes + (k0 + g) / GROUP * T::GROUP_BYTES;
                    prefetch<T::GROUP_BYTES>(from + STEP / GROUP * T::GROUP_BYTES);  // the next slice
                    if (pieces == PIECES) {
                        bv u[REGISTERS];
                        T::unpack(from, u);
                        for (int j = 0; j < REGISTERS; ++j) vwrite(rows + lane * GROUP + j * BW, u[j]);
                    }
                    if constexpr (T::INTEGER) {
                        const Factors f = T::factors(from);
                        vwrite(raw[lane], f.scales);
                        vwrite(raw[lane] + 32, ZERO_MINIMA ? f.scales * T::ZERO : f.minima);
                        d[0][lane] = f.d[0];
                        d[1][lane] = f.d[ZERO_MINIMA ? 0 : 1];
                    } else {
                        f8 x[2] = {};
                        if (pieces == PIECES)
                            T::scales(from, x, x + 1);
                        else
                            unpack_end(from, pieces, rows + lane * GROUP, x);
                        vwrite(raw[lane], x[0]);
                        vwrite(raw[lane] + 32, x[1]);
                    }
                }
                transpose(rows, 8 * pieces, panel + g * PANEL_ROWS + v * VL * 4);
                pack_factors(raw, d, panel, g / GROUP, v);
            }
    }

    // The end of a row within a group.
    static inline void unpack_end(const uint8_t* from, int pieces, uint8_t* row, f8 x[2]) {
        if constexpr (T::SMALL)
            for (int i = 0; i < pieces; ++i) {
                vwrite(row + i * QK, T::piece_of(from, i));
                const f8 lanes = T::lanes(from, i);
                if constexpr (T::SUB == 32) {
                    x[0][i] = lanes[0];
                } else {
                    x[i / 4][2 * i % 8] = lanes[0];
                    x[i / 4][2 * i % 8 + 1] = lanes[4];
                }
                if constexpr (T::MINIMUM) x[1][i] = T::minimum_of(from, i);
            }
    }

    static inline void pack_factors(const uint8_t (*raw)[64], const float (*d)[VL], uint8_t* panel, int64_t g, int v) {
        vi x[16];
        if constexpr (VL == 16 && WORDS == 8) {  // row i + 8 beside row i: three rounds of four exchanges
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const b32 low = vread<b32>(raw[i]), high = vread<b32>(raw[i + 8]);
                vwrite(reinterpret_cast<uint8_t*>(x + i), low);
                vwrite(reinterpret_cast<uint8_t*>(x + i) + 32, high);
            }
            exchange<4, 8>(x);
            exchange<2, 8>(x);
            exchange<1, 8>(x);
        } else {
#pragma GCC unroll 4
            for (int i = 0; i < WORDS; i += VL) {
#pragma GCC unroll 16
                for (int lane = 0; lane < VL; ++lane) x[i + lane] = vread<vi>(raw[lane] + i * 4);
                transpose_square(x + i);
            }
        }
        if constexpr (T::INTEGER) {
#pragma GCC unroll 16
            for (int i = 0; i < SUBS; ++i) {
                const vi two = x[T::SUB == 32 ? i : i / 2];
                const vi one = T::SUB == 32 || i % 2 == 0 ? two << 16 >> 16 : two >> 16;
                if (SHORT_SCALES)
                    vwrite(factor(panel, g, i, v), (one & 0xffff) | one << 16);
                else
                    vwrite(factor(panel, g, i, v), to_float(one));
            }
#pragma GCC unroll 8
            for (int i = 0; i < MINIMA; ++i) {
                const vi pair = T::SUB == 32 ? (x[8 + 2 * i] & 0xffff) | x[(9 + 2 * i) % 16] << 16 : x[8 + i];
                vwrite(factor(panel, g, SUBS + i, v), pair);
            }
            vwrite(factor(panel, g, D, v), vload(d[0]));
            vwrite(factor(panel, g, D + 1, v), vload(d[1]));
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < SUBS + MINIMA; ++i) vwrite(factor(panel, g, i, v), x[i]);
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

    template <int C>
    using Sums = vi[PANEL_VECTORS][C];

    // What the zero point takes from a sum of the sub-block `sub`. The records of small blocks have sums of 32 only.
    static inline vi start_of(const uint8_t* column, const ColumnLayout& l, int64_t k, int64_t sub) {
        vi start = {};
        if constexpr (STARTED != 0 && T::SMALL && T::SUB == 16) {
            for (int i = 0; i < T::SUB; i += 4)
                start -= dot_lanes<false>(vi{}, bl{} + (uint8_t)T::ZERO,
                                          load_four(reinterpret_cast<const int8_t*>(column + k + i)));
        } else if constexpr (STARTED != 0) {
            start = word(column, T::SUB == 32 ? l.negative : l.negative16, sub) * STARTED;
        }
        return start;
    }

#if !GGR_DPBUSD && defined(__SSSE3__)
    // Add the dot products of SUB elements, times `scales` (pairs of int16) where these are integers.
    template <int C>
    static inline void add_dots(const uint8_t* fours, const uint8_t* const* columns, int64_t k,
                                const vi scales[PANEL_VECTORS], Sums<C>& acc) {
#pragma GCC unroll 4
        for (int begin = 0; begin < FOURS; begin += RUN) {
            pv sum[PANEL_VECTORS][C];
#pragma GCC unroll 8
            for (int i = begin; i < begin + RUN; ++i) {
                bl w[PANEL_VECTORS];
#pragma GCC unroll 2
                for (int v = 0; v < PANEL_VECTORS; ++v) w[v] = vread<bl>(fours + (i * PANEL_VECTORS + v) * VL * 4);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) {
                    const vi a = load_four(reinterpret_cast<const int8_t*>(columns[c] + k + 4 * i));
#pragma GCC unroll 2
                    for (int v = 0; v < PANEL_VECTORS; ++v) {
                        const pv pairs = pair_products(w[v], a);
                        sum[v][c] = i == begin ? pairs : add_pairs(sum[v][c], pairs);
                        in_order(sum[v][c]);
                    }
                }
            }
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
                for (int v = 0; v < PANEL_VECTORS; ++v) acc[v][c] += multiply_lanes(sum[v][c], scales[v]);
        }
    }
#endif

    // Dot products of SUB elements onto acc.
    template <int C>
    static inline void dots(const uint8_t* fours, const uint8_t* const* columns, int64_t k, Sums<C>& acc) {
#if !GGR_DPBUSD && defined(__SSSE3__)
        if constexpr (!T::WIDE) {
            vi ones[PANEL_VECTORS];
            for (int v = 0; v < PANEL_VECTORS; ++v) ones[v] = vi{} + 0x10001;
            add_dots<C>(fours, columns, k, ones, acc);
            return;
        }
#endif
#pragma GCC unroll 8
        for (int i = 0; i < FOURS; ++i) {
            bl w[PANEL_VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < PANEL_VECTORS; ++v) w[v] = vread<bl>(fours + (i * PANEL_VECTORS + v) * VL * 4);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const vi a = load_four(reinterpret_cast<const int8_t*>(columns[c] + k + 4 * i));
#pragma GCC unroll 2
                for (int v = 0; v < PANEL_VECTORS; ++v) {
                    acc[v][c] = dot_lanes<T::WIDE>(acc[v][c], w[v], a);
                    if (PAIRS) in_order(acc[v][c]);
                }
            }
        }
    }

    static inline float element(const uint8_t* column, int64_t offset, int64_t index) {
        float x;
        std::memcpy(&x, column + offset + 4 * index, 4);
        return x;
    }
    static inline vi word(const uint8_t* column, int64_t offset, int64_t index) {
        return load_four(reinterpret_cast<const int8_t*>(column + offset + 4 * index));
    }

    template <int C>
    static void multiply(uint8_t* panel, int64_t k0, int64_t n, const uint8_t* const* columns, const ColumnLayout& l,
                         float* tile, bool add) {
        constexpr int64_t SPAN = T::SMALL ? STEP : GROUP;  // elements that are summed in registers
        for (int64_t g = 0; g < n; g += SPAN) {
            vf sum[PANEL_VECTORS][C];
            if constexpr (SHORT_SCALES)
                sum_integers<C>(panel, k0, g, columns, l, sum);
            else
                sum_floats<C>(panel, k0, g, g + SPAN < n ? g + SPAN : n, columns, l, sum);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
                for (int v = 0; v < PANEL_VECTORS; ++v) {
                    float* to = tile + c * PANEL_ROWS + v * VL;
                    const vf before = add || g > 0 ? vload(to) : vf{};
                    const float d = T::SMALL ? 1.0f : element(columns[c], l.scale, (k0 + g) / GROUP);
                    vstore(to, before + sum[v][c] * d);
                }
        }
    }

    // The next tile's columns are not where the processor's own prefetching looks: each is 512 bytes of its own page.
    template <int C>
    static inline void prefetch_columns(const uint8_t* const* columns, int64_t k) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) __builtin_prefetch(columns[C + c] + k, 0, 3);
    }

    template <int C>
    static inline void sum_floats(uint8_t* panel, int64_t k0, int64_t begin, int64_t end, const uint8_t* const* columns,
                                  const ColumnLayout& l, vf sum[PANEL_VECTORS][C]) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
            for (int v = 0; v < PANEL_VECTORS; ++v) sum[v][c] = vf{};
        for (int64_t i = begin; i < end; i += T::SUB) {
            const int64_t group = i / GROUP, sub = (k0 + i) / T::SUB;
            const int within = (int)(i % GROUP) / T::SUB;
            if (i % 64 == 0) prefetch_columns<C>(columns, k0 + i);
            Sums<C> acc;
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const vi start = start_of(columns[c], l, k0 + i, sub);
#pragma GCC unroll 2
                for (int v = 0; v < PANEL_VECTORS; ++v) acc[v][c] = start;
            }
            dots<C>(panel + i * PANEL_ROWS, columns, k0 + i, acc);
#pragma GCC unroll 2
            for (int v = 0; v < PANEL_VECTORS; ++v) {
                const vf s = vread<vf>(factor(panel, group, within, v));
                vf m = {};
                if (T::MINIMUM && !T::INTEGER) m = vread<vf>(factor(panel, group, SUBS + within, v));
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) {
                    vf x = to_float(acc[v][c]) * s;
                    if (T::SMALL) x *= element(columns[c], l.scale, (k0 + i) / QK);
                    sum[v][c] += x;
                    if (T::MINIMUM && !T::INTEGER) sum[v][c] += m * element(columns[c], l.sum, sub);
                }
            }
        }
        if constexpr (T::INTEGER) {
#pragma GCC unroll 2
            for (int v = 0; v < PANEL_VECTORS; ++v) {
                const vf d = vread<vf>(factor(panel, begin / GROUP, D, v));
                const vf dmin = vread<vf>(factor(panel, begin / GROUP, D + 1, v));
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) {
                    sum[v][c] *= d;
                    if (MINIMA == 0) continue;
                    sum[v][c] -= to_float(minima(panel, begin / GROUP, v, columns[c], l, k0 + begin)) * dmin;
                }
            }
        }
    }

    // Integer minima of a group times sums of activations.
    static inline vi minima(uint8_t* panel, int64_t group, int v, const uint8_t* column, const ColumnLayout& l,
                            int64_t k) {
        vi sum = {};
#pragma GCC unroll 8
        for (int i = 0; i < MINIMA; ++i)
            sum = dot_short_lanes(sum, vread<vi>(factor(panel, group, SUBS + i, v)),
                                  word(column, T::SUB == 32 ? l.short32 : l.short16, k / (2 * T::SUB) + i));
        return sum;
    }

    template <int C>
    static inline void sum_integers(uint8_t* panel, int64_t k0, int64_t begin, const uint8_t* const* columns,
                                    const ColumnLayout& l, vf sum[PANEL_VECTORS][C]) {
#if !GGR_DPBUSD && defined(__SSSE3__)
        const int64_t group = begin / GROUP;
        Sums<C> acc = {};
#pragma GCC unroll 1
        for (int i = 0; i < GROUP; i += T::SUB) {
            if (i % 64 == 0) prefetch_columns<C>(columns, k0 + begin + i);
            vi scales[PANEL_VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < PANEL_VECTORS; ++v) scales[v] = vread<vi>(factor(panel, group, i / T::SUB, v));
            add_dots<C>(panel + (begin + i) * PANEL_ROWS, columns, k0 + begin + i, scales, acc);
        }
#pragma GCC unroll 2
        for (int v = 0; v < PANEL_VECTORS; ++v) {
            const vf d = vread<vf>(factor(panel, group, D, v)), dmin = vread<vf>(factor(panel, group, D + 1, v));
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                sum[v][c] = to_float(acc[v][c]) * d;
                if (MINIMA == 0) continue;
                sum[v][c] -= to_float(minima(panel, group, v, columns[c], l, k0 + begin)) * dmin;
            }
        }
#endif
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
