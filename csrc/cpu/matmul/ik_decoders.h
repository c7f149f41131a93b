// Decoders of ik_llama.cpp's types of plain rows (quants/ik_k.h, quants/ik_trellis.h, quants/ik_small.h).
#pragma once

#include "cpu/matmul/quantised.h"
#include "cpu/quants/ik_small.h"
#include "cpu/quants/ik_trellis.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// 256 bytes from 16 vectors of them.
static inline void join_all(const b16 v[16], bv u[REGISTERS]) {
#pragma GCC unroll 4
    for (int i = 0; i < PIECES; i += 2)
        join32(u + i * QK / BW, join16(v[2 * i], v[2 * i + 1]), join16(v[2 * i + 2], v[2 * i + 3]));
}

// By look-up, with integer scales: element i is scale * (code + BELOW) + scale * (move - BELOW), a minimum.
//
// With BELOW = 128 products of neighbours saturate at 16 bits, which costs about a hundredth of a product of normal
// activations. Stock's kernels compute these types like that, with AVX-512 and for less than SATURATED columns, and
// clients' results are compared with theirs.
template <class R>
struct Grids : Super<R::BYTES, R::SUB, 0, false, true> {
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        i8x16 v[16];
        R::codes(p, v);
        b16 raised[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) raised[i] = (b16)v[i] + (uint8_t)R::BELOW;
        join_all(raised, u);
    }
    static inline Factors factors(const uint8_t* p) {
        b16 scales = (b16)R::scales(p), moves = (b16)R::moves(p);
        if constexpr (R::SUB == 32) {
            const b16 twice = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7};
            scales = __builtin_shuffle(scales, twice);
            moves = __builtin_shuffle(moves, twice);
        }
        const w16 s = widen_signed(scales);
        const float d = R::d(p);
        return {s, s * (R::BELOW - widen_signed(moves)), f4{d, d}};
    }
    static inline void scales(const uint8_t* p, f8* s, f8* m) {
        float scale[16], move[16];
        scale_16(R::scales(p), vset(R::d(p)), scale);
        scale_16(R::moves(p), vset(1.0f), move);
        for (int i = 0; i < GROUP / R::SUB; i += 8) {
            s[i / 8] = vread<f8>(scale + i);
            m[i / 8] = s[i / 8] * (vread<f8>(move + i) - (float)R::BELOW);
        }
    }
};
constexpr int64_t SATURATED = 32;

// The same as signed bytes: exact.
template <class R>
struct WideGrids : Super<R::BYTES, R::SUB, WIDE_ZERO, true, false> {
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
        i8x16 v[16];
        R::codes(p, v);
        const i8x16 moves = (i8x16)((b16)R::moves(p) + (uint8_t)WIDE_ZERO);
        b16 raised[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) raised[i] = (b16)v[i] + (b16)spread_byte(moves, i * 16 / R::SUB);
        join_all(raised, u);
    }
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        float scale[16];
        scale_16(R::scales(p), vset(R::d(p)), scale);
        for (int i = 0; i < GROUP / R::SUB; i += 8) s[i / 8] = vread<f8>(scale + i);
    }
};

// Trellis types: activations are quantised in blocks of 32.
template <class R>
struct Trellis {
    static constexpr ActFormat FORMAT = ACT_Q8_0;
    static constexpr int GROUP_BYTES = R::BYTES, SUB = 32, ZERO = WIDE_ZERO;
    static constexpr bool WIDE = true, MINIMUM = false, SMALL = true, INTEGER = false;
    static constexpr int MOST = 255;

    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) { WideGrids<R>::unpack(p, u); }
    static inline void scales(const uint8_t* p, f8* s, f8*) { WideGrids<R>::scales(p, s, nullptr); }
    // For rows that end within a group, which these types do not have.
    static inline b32 piece_of(const uint8_t* p, int i) {
        bv u[REGISTERS];
        unpack(p, u);
        return vread<b32>(reinterpret_cast<const uint8_t*>(u) + i * QK);
    }
    static inline f8 lanes(const uint8_t* p, int i) {
        f8 s;
        scales(p, &s, nullptr);
        return f8{} + s[i];
    }
};

struct Q6_0 : Small<Q6_0, Q6_0_BYTES, ACT_Q8_0, 32, false, false> {
    static inline b32 piece(const uint8_t* p) {
        b16 first, second;
        codes_of_q6_0(p, &first, &second);
        return join16(first, second);
    }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) { join32(out, piece(p), piece(q)); }
};

struct Q8_KV : Small<Q8_KV, QK, ACT_Q8_0, WIDE_ZERO, true, false> {
    static inline b32 piece(const uint8_t* p) { return vread<b32>(p) ^ (uint8_t)WIDE_ZERO; }
    static inline void pair(bv* out, const uint8_t* p, const uint8_t* q) { join32(out, piece(p), piece(q)); }
    static inline float scale(const uint8_t*) { return 1.0f; }
    static inline void scales(const uint8_t*, f8* s, f8*) { s[0] = f8{} + 1.0f; }
};

// ---- Rows with a header ----

// R: HEADER and row_scale. The engines of the blocks behind it, then all results times the scale of their row.
template <class R>
static inline void multiply_results(const Product& p) {
    for (int64_t r = 0; r < p.n_rows; ++r) {
        const float d = product_scale<R>(p.weights + r * p.row_bytes);
        for (int64_t c = 0; c < p.n_columns; ++c) p.out[c][r] *= d;
    }
}
template <class R, void (*ENGINE)(const Product&)>
void behind_headers(const Product& p) {
    if constexpr (R::HEADER == 0) {
        ENGINE(p);
    } else {
        Product blocks = p;
        blocks.weights += R::HEADER;
        ENGINE(blocks);
        multiply_results<R>(p);
    }
}

template <class R>
static inline bool fill_grids(Engine* engine) {
    engine->format = ACT_Q8_K;
    engine->few = behind_headers<R, few_quantised<Grids<R>>>;
    if constexpr (R::BELOW == 128) {
        engine->few_columns = SATURATED - 1;
        engine->many = behind_headers<R, many_quantised<WideGrids<R>>>;
    } else {
        engine->few_columns = FEW_QUANTISED;
        engine->many = behind_headers<R, many_quantised<Grids<R>>>;
    }
    return true;
}
template <class T, class R>
static inline bool fill_behind_headers(Engine* engine) {
    *engine = {T::FORMAT, FEW_QUANTISED, behind_headers<R, few_quantised<T>>, behind_headers<R, many_quantised<T>>};
    return true;
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
