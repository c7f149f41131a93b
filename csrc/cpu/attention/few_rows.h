// Attention of few query rows (decode): K and V are streamed once, each vector of them converted in registers and used
// for all rows of a block. Floor: bytes of the live K and V rows over memory bandwidth.
#pragma once

#include "cpu/attention/half_sums.h"
#include "cpu/attention/problem.h"
#include "cpu/quants/dequant.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Rows of a block: RB x 4 sums and the operands must fit the registers.
#if defined(__AVX512F__)
constexpr int RB = 4;
#else
constexpr int RB = 2;
#endif
constexpr int KB = 4;  // K rows and V vectors of a block

// Sums over the lanes of four vectors.
static inline void vsum4(vf a, vf b, vf c, vf d, float* out) {
#if defined(__AVX512F__)
    // Within each 128-bit part: a, b, c, d beside each other after two rounds of interleaving and adding.
    const __m512 x = (__m512)a, y = (__m512)b, z = (__m512)c, w = (__m512)d;
    const __m512d xy = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    const __m512d zw = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(z, w), _mm512_unpackhi_ps(z, w));
    const __m512 parts = _mm512_add_ps((__m512)_mm512_unpacklo_pd(xy, zw), (__m512)_mm512_unpackhi_pd(xy, zw));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(parts), _mm512_extractf32x8_ps(parts, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
    const __m256 ab = _mm256_hadd_ps((__m256)a, (__m256)b), cd = _mm256_hadd_ps((__m256)c, (__m256)d);
    const __m256 parts = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(parts), _mm256_extractf128_ps(parts, 1)));
#elif defined(__x86_64__)
    _mm_storeu_ps(out, _mm_hadd_ps(_mm_hadd_ps((__m128)a, (__m128)b), _mm_hadd_ps((__m128)c, (__m128)d)));
#elif defined(__aarch64__)
    vst1q_f32(out, vpaddq_f32(vpaddq_f32((float32x4_t)a, (float32x4_t)b), vpaddq_f32((float32x4_t)c, (float32x4_t)d)));
#else
    out[0] = vsum(a), out[1] = vsum(b), out[2] = vsum(c), out[3] = vsum(d);
#endif
}

// Largest lane; lanes are no NaN (vmax passes those over).
static inline float largest_lane(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    return vmax_of(v);
#endif
}

// Ask for the lines of a row that is needed soon: the rows of one head lie a token apart in a cache, which hardware
// prefetchers do not follow. Any address may be asked for.
static inline void prefetch_row(uintptr_t row, int64_t bytes) {
    constexpr int64_t LINE = 64;
    for (int64_t i = 0; i < bytes; i += LINE)
        __builtin_prefetch(reinterpret_cast<const void*>(row + static_cast<uintptr_t>(i)), 0, 2);
}

// Rows to ask for while others are worked on.
struct Ahead {
    const uintptr_t* rows = nullptr;
    int64_t bytes = 0;
};

// scores[r][0 .. 3] = q[r] . k[0 .. 3], R rows. q is padded with zeros to whole vectors, the rows of K are not.
template <class F, int R>
void dots(const float* q, int64_t ldq, const uint8_t* const* k, int64_t d, float* scores) {
    using E = typename F::Element;
    vf sum[R][KB];  // cleared one by one: compilers clear a whole array in memory
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < KB; ++j) sum[r][j] = vf{};
    int64_t i = 0;
    for (; i + VL <= d; i += VL) {
        vf key[KB];
#pragma GCC unroll 4
        for (int j = 0; j < KB; ++j) key[j] = F::load(reinterpret_cast<const E*>(k[j]) + i);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const vf x = vload(q + r * ldq + i);
#pragma GCC unroll 4
            for (int j = 0; j < KB; ++j) sum[r][j] += x * key[j];
        }
    }
    if (i < d) {
        for (int j = 0; j < KB; ++j) {
            const vf key = load_tail<F>(reinterpret_cast<const E*>(k[j]) + i, d - i);
            for (int r = 0; r < R; ++r) sum[r][j] += vload(q + r * ldq + i) * key;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) vsum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], scores + r * KV_TILE);
}

// out[r][0 .. B vectors) += sum over j of weights[r][j] * v[j][...], R rows. Half sums shrink and round on the way.
template <class F, int R, int B, bool HALF>
void mix(float* out, int64_t ldo, const float* weights, const Rises& rises, const uint8_t* const* v, int64_t n,
         int64_t column, const Ahead& ahead) {
    using E = typename F::Element;
    vf sum[R][B];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) sum[r][b] = vload(out + r * ldo + b * VL);
    for (int64_t j = 0; j < n; ++j) {
        const E* row = reinterpret_cast<const E*>(v[j]) + column;
        if (ahead.bytes > 0) prefetch_row(ahead.rows[j], ahead.bytes);
        if (HALF && (rises.at >> j & 1) != 0) {
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int b = 0; b < B; ++b) sum[r][b] = round_f16(sum[r][b] * rises.shrink[r * KV_TILE + j]);
        }
        vf value[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) value[b] = F::load(row + b * VL);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const float w = weights[r * KV_TILE + j];
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) {
                sum[r][b] += value[b] * w;
                if (HALF) sum[r][b] = round_sum(sum[r][b]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) vstore(out + r * ldo + b * VL, sum[r][b]);
}

// Scores of R rows for all positions of a visit.
template <class F, int R>
void score_rows(const float* q, int64_t ldq, const uint8_t* const* k, int64_t n, int64_t d, float* scores,
                const Ahead& ahead) {
    for (int64_t j = 0; j < n; j += KB) {
        if (ahead.bytes > 0)
            for (int64_t i = j; i < j + KB && i < n; ++i) prefetch_row(ahead.rows[i], ahead.bytes);
        dots<F, R>(q, ldq, k + j, d, scores + j);
    }
}

template <class F, int R, bool HALF>
void mix_rows(float* out, int64_t ldo, const float* weights, const Rises& rises, const uint8_t* const* v, int64_t n,
              int64_t d, Ahead ahead) {
    constexpr int WIDE = R == 1 ? 2 * KB : KB;  // one row alone needs more sums to hide the latency of adding
    int64_t i = 0;
    for (; i + WIDE * VL <= d; i += WIDE * VL) {
        mix<F, R, WIDE, HALF>(out + i, ldo, weights, rises, v, n, i, ahead);
        ahead = {};
    }
    for (; i + VL <= d; i += VL) mix<F, R, 1, HALF>(out + i, ldo, weights, rises, v, n, i, {});
    if (i == d) return;
    for (int64_t j = 0; j < n; ++j) {
        const vf value = load_tail<F>(reinterpret_cast<const typename F::Element*>(v[j]) + i, d - i);
        for (int r = 0; r < R; ++r) {
            vf sum = vload(out + r * ldo + i);
            if (HALF && (rises.at >> j & 1) != 0) sum = round_f16(sum * rises.shrink[r * KV_TILE + j]);
            sum += value * weights[r * KV_TILE + j];
            vstore(out + r * ldo + i, HALF ? round_sum(sum) : sum);
        }
    }
}

using ScoreRows = void (*)(const float*, int64_t, const uint8_t* const*, int64_t, int64_t, float*, const Ahead&);
using MixRows = void (*)(float*, int64_t, const float*, const Rises&, const uint8_t* const*, int64_t, int64_t, Ahead);

// How rows of K or V are read: directly in a plain type, or turned into f32 first.
template <class F>
static constexpr ScoreRows SCORE[RB] = {
    score_rows<F, 1>,
    score_rows<F, 2>,
#if defined(__AVX512F__)
    score_rows<F, 3>,
    score_rows<F, 4>,
#endif
};
template <class F, bool HALF = false>
static constexpr MixRows MIX[RB] = {
    mix_rows<F, 1, HALF>,
    mix_rows<F, 2, HALF>,
#if defined(__AVX512F__)
    mix_rows<F, 3, HALF>,
    mix_rows<F, 4, HALF>,
#endif
};
static inline const ScoreRows* score_for(int32_t type) {
    return type == TYPE_F16 ? SCORE<RowF16> : type == TYPE_BF16 ? SCORE<RowBF16> : SCORE<RowF32>;
}
static inline const MixRows* mix_for(int32_t type, bool half_sums) {
    if (half_sums) return MIX<RowF16, true>;
    return type == TYPE_F16 ? MIX<RowF16> : type == TYPE_BF16 ? MIX<RowBF16> : MIX<RowF32>;
}

// Pointers to the rows of a visit, followed by KB - 1 repetitions of the last; quantised rows become f32 in
// `converted`.
static inline void visit_rows(const Visit& visit, const Tensor& t, const uint8_t* head, float* converted,
                              const uint8_t** rows) {
    const DequantRow dequant = is_quantized(t.type) ? dequant_row_for(t.type) : nullptr;
    for (int64_t j = 0; j < visit.n; ++j) {
        rows[j] = head + visit.position[j] * t.nb[1];
        if (dequant != nullptr) {
            dequant(rows[j], converted + j * t.ne[0], t.ne[0]);
            rows[j] = reinterpret_cast<const uint8_t*>(converted + j * t.ne[0]);
        }
    }
    for (int64_t j = visit.n; j < visit.n + KB - 1; ++j) rows[j] = rows[visit.n - 1];
}

struct FewRows {
    int64_t ldq, ldo;
    float *q, *out, *converted;

    static int64_t bytes(int64_t dk, int64_t dv) {
        return (FEW_ROWS * (round_up(dk, VL) + round_up(dv, VL)) + KV_TILE * (dk > dv ? dk : dv)) * 4;
    }
    FewRows(uint8_t* local, int64_t dk, int64_t dv) : ldq(round_up(dk, VL)), ldo(round_up(dv, VL)) {
        q = reinterpret_cast<float*>(local);
        out = q + FEW_ROWS * ldq;
        converted = out + FEW_ROWS * ldo;
    }
};

// Turn products of q and k into scores, lanes past the visit's end into -inf; return the largest.
static inline float finish_scores(const Problem& p, const Item& item, const Visit& visit, int64_t r, float* scores) {
    float mask[KV_TILE];
    if (visit.masked) mask_values(visit, item.row_mask[r], item.slope[r], mask);
    for (int64_t j = visit.n; j < round_up(visit.n, VL); ++j) scores[j] = mask[j] = 0.0f;
    vf top = vf{} + MINUS_INF;
    for (int64_t j = 0; j < visit.n; j += VL) {
        vf s = vload(scores + j) * p.scale;
        if (p.softcap != 0.0f) s = soft_cap(s, p.softcap);
        if (visit.masked) s += vload(mask + j);
        if (j + VL > visit.n) {
            vstore(scores + j, s);
            s = load_tail<RowF32>(scores + j, visit.n - j, MINUS_INF);
        }
        vstore(scores + j, s);
        top = vmax(s, top);
    }
    return largest_lane(top);
}

// Turn scores into weights, with the running maximum and sum; earlier results shrink when the maximum grows.
static inline void weigh_row(const Visit& visit, float visit_top, float* scores, float* maximum, vf* sum, float* out,
                             int64_t ldo) {
    const float old = *maximum;
    const float m = visit_top > old ? visit_top : old, base = m == MINUS_INF ? 0.0f : m;
    vf total = {};
    for (int64_t j = 0; j < visit.n; j += VL) {
        const vf w = vexp(vload(scores + j) - base);
        vstore(scores + j, w);
        total += w;
    }
    if (m > old) {
        const float shrink = __builtin_expf(old - base);
        *sum = *sum * shrink;
        *maximum = m;
        for (int64_t i = 0; i < ldo; i += VL) vstore(out + i, vload(out + i) * shrink);
    }
    *sum += total;
}

static inline void attend_few_rows(const Problem& p, int64_t index, Worker& worker, uint8_t* partials) {
    const int64_t dk = p.k.ne[0], dv = p.v.ne[0];
    Item item(p, index);
    const FewRows local(worker.local, dk, dv);
    float maximum[FEW_ROWS], scores[FEW_ROWS * KV_TILE], shrink[FEW_ROWS * KV_TILE];
    vf sum[FEW_ROWS] = {};  // by lanes
    const uint8_t* rows[KV_TILE + KB];
    for (int64_t r = 0; r < item.n_rows; ++r) {
        const float* from = item.query_row(p, r);
        float* q = local.q + r * local.ldq;
        for (int64_t i = 0; i < local.ldq; ++i) q[i] = i < dk ? from[i] : 0.0f;
        if (p.half_sums && p.k.type == TYPE_F16)
            for (int64_t i = 0; i < local.ldq; i += VL) vstore(q + i, round_f16(vload(q + i)));
        maximum[r] = MINUS_INF;
    }
    std::memset(local.out, 0, static_cast<size_t>(item.n_rows * local.ldo) * sizeof(float));
    const ScoreRows* score = score_for(p.k.type);
    const MixRows* mixer = mix_for(p.v.type, p.half_sums);
    // While K is worked on, the V rows of the same positions are asked for; while V is, the K rows a visit further on
    // (where they will be if all are live).
    uintptr_t coming[KV_TILE];
    const int64_t bytes_k = row_bytes(p.k.type, dk), bytes_v = row_bytes(p.v.type, dv);
    const auto come = [&](const Visit& visit, const Tensor& t, const uint8_t* head, int64_t skip) {
        for (int64_t j = 0; j < visit.n; ++j)
            coming[j] = reinterpret_cast<uintptr_t>(head) +
                        static_cast<uintptr_t>(visit.position[j] + skip) * static_cast<uintptr_t>(t.nb[1]);
    };
    Visit visit;
    while (next_visit(p, item, visit)) {
        visit_rows(visit, p.k, item.k, local.converted, rows);
        come(visit, p.v, item.v, 0);
        for (int64_t r = 0; r < item.n_rows; r += RB) {
            const int64_t n = item.n_rows - r < RB ? item.n_rows - r : RB;
            score[n - 1](local.q + r * local.ldq, local.ldq, rows, visit.n, dk, scores + r * KV_TILE,
                         r == 0 ? Ahead{coming, bytes_v} : Ahead{});
        }
        uint64_t rises = 0;
        for (int64_t r = 0; r < item.n_rows; ++r) {
            float* row = scores + r * KV_TILE;
            const float top = finish_scores(p, item, visit, r, row);
            if (p.half_sums && top > maximum[r])
                rises |= weigh_in_order(visit, row, maximum + r, sum + r, shrink + r * KV_TILE);
            else {
                for (int64_t j = 0; p.half_sums && j < KV_TILE; ++j) shrink[r * KV_TILE + j] = 1.0f;
                weigh_row(visit, top, row, maximum + r, sum + r, local.out + r * local.ldo, local.ldo);
            }
        }
        visit_rows(visit, p.v, item.v, local.converted, rows);
        come(visit, p.k, item.k, KV_TILE);
        for (int64_t r = 0; r < item.n_rows; r += RB) {
            const int64_t n = item.n_rows - r < RB ? item.n_rows - r : RB;
            mixer[n - 1](local.out + r * local.ldo, local.ldo, scores + r * KV_TILE, {rises, shrink + r * KV_TILE},
                         rows, visit.n, dv, r == 0 ? Ahead{coming, bytes_k} : Ahead{});
        }
    }
    for (int64_t r = 0; r < item.n_rows; ++r) {
        const int64_t query = item.query(p, r), head = item.head(p, r);
        const float* from = local.out + r * local.ldo;
        if (p.n_splits == 1) {
            const float factor = final_factor(p, head, maximum[r], vsum(sum[r]));
            float* to = p.out_row(query, head, item.batch);
            for (int64_t i = 0; i < dv; ++i) to[i] = from[i] * factor;
        } else {
            float* to = p.partial(partials, query, head, item.batch, item.split);
            to[0] = maximum[r];
            to[1] = vsum(sum[r]);
            std::memcpy(to + 2, from, static_cast<size_t>(dv) * sizeof(float));
        }
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
