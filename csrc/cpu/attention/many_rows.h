// Attention of many query rows (prefill, or many heads that share one KV head): lanes are query rows.
//
// Scores are kept transposed, [position][row], so that both products are C[m][row] += a(m, k) * B[k][row] with scalars
// a that are broadcast from K or V as they lie, and softmax runs over vectors without sums across lanes. K and V are
// turned into f32 once a visit. Floor: 2 * (dk + dv) flops for each row and live position, at two FMA vectors a cycle.
#pragma once

#include "cpu/attention/few_rows.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Sums held in registers: MR x NV vectors. 8 x 3 of 32 registers, 4 x 3 of 16; without FMA a product needs one too.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MR = 8, NV = 3;
#elif defined(__AVX2__)
constexpr int MR = 4, NV = 3;
#else
constexpr int MR = 4, NV = 2;
#endif
static_assert(ROW_TILE % (NV * VL) == 0 && KV_TILE % MR == 0, "");

// c[m][0 .. N vectors) (+)= sum over k of a(m, k) * b[k][...] for MR values of m. ALONG: a(m, k) = a[m * lda + k], else
// a[k * lda + m]. Rows of b and c are ROW_TILE apart.
template <int N, bool ALONG, bool ADD>
void multiply_block(float* c, const float* a, int64_t lda, const float* b, int64_t n_k) {
    vf sum[MR][N];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 3
        for (int i = 0; i < N; ++i) sum[m][i] = ADD ? vload(c + m * ROW_TILE + i * VL) : vf{};
    for (int64_t k = 0; k < n_k; ++k) {
        vf row[N];
#pragma GCC unroll 3
        for (int i = 0; i < N; ++i) row[i] = vload(b + k * ROW_TILE + i * VL);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const float x = ALONG ? a[m * lda + k] : a[k * lda + m];
#pragma GCC unroll 3
            for (int i = 0; i < N; ++i) sum[m][i] += row[i] * x;
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 3
        for (int i = 0; i < N; ++i) vstore(c + m * ROW_TILE + i * VL, sum[m][i]);
}

// The same for n_m (rounded up to MR: c and a have room) values of m and n_rows columns.
template <bool ALONG, bool ADD>
void multiply(float* c, const float* a, int64_t lda, const float* b, int64_t n_m, int64_t n_k, int64_t n_rows) {
    for (int64_t m = 0; m < n_m; m += MR) {
        const float* a_m = ALONG ? a + m * lda : a + m;
        for (int64_t i = 0; i < n_rows; i += NV * VL) {
            float* c_m = c + m * ROW_TILE + i;
            const int64_t left = (n_rows - i + VL - 1) / VL;
            if (left >= NV)
                multiply_block<NV, ALONG, ADD>(c_m, a_m, lda, b + i, n_k);
            else if (left == 2)
                multiply_block<2, ALONG, ADD>(c_m, a_m, lda, b + i, n_k);
            else
                multiply_block<1, ALONG, ADD>(c_m, a_m, lda, b + i, n_k);
        }
    }
}

// Scratch of a worker. Sizes in `d` directions are rounded up to MR.
struct ManyRows {
    int64_t ldk, ldv;
    float *q, *out, *scores, *mask, *converted;

    static int64_t bytes(int64_t dk, int64_t dv) {
        dk = round_up(dk, MR), dv = round_up(dv, MR);
        return (ROW_TILE * (dk + dv + 2 * KV_TILE) + KV_TILE * (dk > dv ? dk : dv)) * 4;
    }
    ManyRows(uint8_t* local, int64_t dk, int64_t dv) : ldk(round_up(dk, MR)), ldv(round_up(dv, MR)) {
        q = reinterpret_cast<float*>(local);    // [dk][ROW_TILE]
        out = q + ldk * ROW_TILE;               // [dv][ROW_TILE]
        scores = out + ldv * ROW_TILE;          // [KV_TILE][ROW_TILE]
        mask = scores + KV_TILE * ROW_TILE;     // [ROW_TILE][KV_TILE]
        converted = mask + KV_TILE * ROW_TILE;  // [KV_TILE][ldk or ldv]
    }
};

// scores[j][r] += mask[r][j]: 4 x 4 at a time, since single elements would cost a tenth of the products.
static inline void add_mask(const ManyRows& local, int64_t n_positions, int64_t n_rows) {
    for (int64_t r = 0; r < n_rows; r += 4) {
        for (int64_t j = 0; j < n_positions; j += 4) {
            const float* from = local.mask + r * KV_TILE + j;
            float* to = local.scores + j * ROW_TILE + r;
#if defined(__x86_64__)
            __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + KV_TILE);
            __m128 c = _mm_loadu_ps(from + 2 * KV_TILE), d = _mm_loadu_ps(from + 3 * KV_TILE);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), a));
            _mm_storeu_ps(to + ROW_TILE, _mm_add_ps(_mm_loadu_ps(to + ROW_TILE), b));
            _mm_storeu_ps(to + 2 * ROW_TILE, _mm_add_ps(_mm_loadu_ps(to + 2 * ROW_TILE), c));
            _mm_storeu_ps(to + 3 * ROW_TILE, _mm_add_ps(_mm_loadu_ps(to + 3 * ROW_TILE), d));
#else
            for (int x = 0; x < 4; ++x)
                for (int y = 0; y < 4; ++y) to[x * ROW_TILE + y] += from[y * KV_TILE + x];
#endif
        }
    }
}

static inline void convert_rows(const Visit& visit, const Tensor& t, const uint8_t* head, float* out, int64_t ld) {
    const DequantRow row = dequant_row_for(t.type);
    for (int64_t j = 0; j < visit.n; ++j) row(head + visit.position[j] * t.nb[1], out + j * ld, t.ne[0]);
}

// Turn the scores of the vector of rows that starts at column `i` into weights, with the running maximum and sum;
// earlier results shrink when the maximum grows.
static inline void weigh_column(const Problem& p, const Visit& visit, const ManyRows& local, int64_t i, float* maximum,
                                float* sum) {
    float* scores = local.scores + i;
    const vf old = vload(maximum + i);
    vf top = old;
    for (int64_t j = 0; j < visit.n; ++j) top = vmax(vload(scores + j * ROW_TILE), top);
    const vf base = safe_max(top);
    vf total = {};
    for (int64_t j = 0; j < visit.n; ++j) {
        const vf w = vexp(vload(scores + j * ROW_TILE) - base);
        vstore(scores + j * ROW_TILE, w);
        total += w;
    }
    const vi grown = top > old;
    int32_t lanes[VL], any = 0;
    std::memcpy(lanes, &grown, sizeof lanes);
    for (int lane = 0; lane < VL; ++lane) any |= lanes[lane];
    vf l = vload(sum + i);
    if (any != 0) {
        const vf shrink = vexp(old - base);
        l = l * shrink;
        for (int64_t d = 0; d < p.v.ne[0]; ++d) {
            float* out = local.out + d * ROW_TILE + i;
            vstore(out, vload(out) * shrink);
        }
    }
    vstore(sum + i, l + total);
    vstore(maximum + i, top);
}

static inline void attend_many_rows(const Problem& p, int64_t index, Worker& worker, uint8_t* partials) {
    const int64_t dk = p.k.ne[0], dv = p.v.ne[0];
    Item item(p, index);
    const ManyRows local(worker.local, dk, dv);
    float maximum[ROW_TILE], sum[ROW_TILE] = {};
    for (float& m : maximum) m = MINUS_INF;
    std::memset(local.q, 0, static_cast<size_t>(dk * ROW_TILE) * sizeof(float));
    std::memset(local.out, 0, static_cast<size_t>(local.ldv * ROW_TILE) * sizeof(float));
    std::memset(local.mask, 0, static_cast<size_t>(KV_TILE * ROW_TILE) * sizeof(float));
    for (int64_t r = 0; r < item.n_rows; ++r) {
        const float* from = item.query_row(p, r);
        for (int64_t i = 0; i < dk; ++i) local.q[i * ROW_TILE + r] = from[i] * p.scale;
    }
    Visit visit;
    while (next_visit(p, item, visit)) {
        convert_rows(visit, p.k, item.k, local.converted, local.ldk);
        multiply<true, false>(local.scores, local.converted, local.ldk, local.q, visit.n, dk, item.n_rows);
        if (p.softcap != 0.0f)
            for (int64_t i = 0; i < visit.n * ROW_TILE; i += VL)
                vstore(local.scores + i, soft_cap(vload(local.scores + i), p.softcap));
        if (visit.masked) {
            for (int64_t r = 0; r < item.n_rows; ++r)
                mask_values(visit, item.row_mask[r], item.slope[r], local.mask + r * KV_TILE);
            add_mask(local, visit.n, item.n_rows);
        }
        for (int64_t i = 0; i < item.n_rows; i += VL) weigh_column(p, visit, local, i, maximum, sum);
        convert_rows(visit, p.v, item.v, local.converted, local.ldv);
        multiply<false, true>(local.out, local.converted, local.ldv, local.scores, dv, visit.n, item.n_rows);
    }
    for (int64_t r = 0; r < item.n_rows; ++r) {
        const int64_t query = item.query(p, r), head = item.head(p, r);
        float* to;
        float factor = 1.0f;
        if (p.n_splits == 1) {
            to = p.out_row(query, head, item.batch);
            factor = final_factor(p, head, maximum[r], sum[r]);
        } else {
            to = p.partial(partials, query, head, item.batch, item.split);
            to[0] = maximum[r];
            to[1] = sum[r];
            to += 2;
        }
        for (int64_t i = 0; i < dv; ++i) to[i] = local.out[i * ROW_TILE + r] * factor;
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
