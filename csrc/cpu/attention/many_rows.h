// Attention of many query rows (prefill, or many heads that share one KV head): lanes are query rows.
//
// Scores are kept transposed, [position][row], so that both products are C[m][row] += a(m, k) * B[k][row] with scalars
// a that are broadcast from K or V as they lie, and softmax runs over vectors without sums across lanes. K and V are
// turned into f32 once a visit, for all parts of the item: with one part of 48 rows that, and bringing them from the
// third level of caches, took a sixth of the time. Floor: 2 * (dk + dv) flops for each row and live position.
#pragma once

#include "cpu/attention/few_rows.h"
#include "cpu/matmul/product.h"  // transpose_square
#include "cpu/vmath.h"

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

    static int64_t bytes(int64_t dk, int64_t dv, int64_t parts) {
        dk = round_up(dk, MR), dv = round_up(dv, MR);
        return (parts * ROW_TILE * (dk + dv + KV_TILE) + KV_TILE * ROW_TILE + KV_TILE * (dk > dv ? dk : dv)) * 4;
    }
    ManyRows(uint8_t* local, int64_t dk, int64_t dv, int64_t parts) : ldk(round_up(dk, MR)), ldv(round_up(dv, MR)) {
        q = reinterpret_cast<float*>(local);         // [part][dk][ROW_TILE]
        out = q + parts * ldk * ROW_TILE;            // [part][dv][ROW_TILE]
        scores = out + parts * ldv * ROW_TILE;       // [part][KV_TILE][ROW_TILE]
        mask = scores + parts * KV_TILE * ROW_TILE;  // [ROW_TILE][KV_TILE]
        converted = mask + KV_TILE * ROW_TILE;       // [KV_TILE][ldk or ldv]
    }
    // The same of one part.
    ManyRows part(int64_t index) const {
        ManyRows one = *this;
        one.q += index * ldk * ROW_TILE;
        one.out += index * ldv * ROW_TILE;
        one.scores += index * KV_TILE * ROW_TILE;
        return one;
    }
};

// q[i][r] = from(r)[i] * factor for rows [0, n_rows) and elements [0, d); the rows above are zero. from(r) is a row.
template <class From>
void gather_rows(float* q, int64_t n_rows, int64_t d, float factor, const From& from) {
    for (int64_t r = 0; r < ROW_TILE; r += VL) {
        const int64_t n = n_rows - r < VL ? n_rows - r : VL;
        const float* rows[VL];
        for (int64_t lane = 0; lane < n; ++lane) rows[lane] = from(r + lane);
        int64_t i = 0;
        for (; i + VL <= d; i += VL) {
            vf x[VL];
            for (int64_t lane = 0; lane < VL; ++lane) x[lane] = lane < n ? vload(rows[lane] + i) * factor : vf{};
            transpose_square(x);
            for (int64_t lane = 0; lane < VL; ++lane) vstore(q + (i + lane) * ROW_TILE + r, x[lane]);
        }
        for (; i < d; ++i)
            for (int64_t lane = 0; lane < VL; ++lane)
                q[i * ROW_TILE + r + lane] = lane < n ? rows[lane][i] * factor : 0.0f;
    }
}

// to[r][i] = out[i][r] * factor[r].
static inline void scatter_rows(const float* out, int64_t n_rows, int64_t d, const float* factor, float* const* to) {
    for (int64_t r = 0; r < n_rows; r += VL) {
        const int64_t n = n_rows - r < VL ? n_rows - r : VL;
        int64_t i = 0;
        for (; i + VL <= d; i += VL) {
            vf x[VL];
            for (int64_t lane = 0; lane < VL; ++lane) x[lane] = vload(out + (i + lane) * ROW_TILE + r);
            transpose_square(x);
            for (int64_t lane = 0; lane < n; ++lane) vstore(to[r + lane] + i, x[lane] * factor[r + lane]);
        }
        for (; i < d; ++i)
            for (int64_t lane = 0; lane < n; ++lane) to[r + lane][i] = out[i * ROW_TILE + r + lane] * factor[r + lane];
    }
}

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

// The masks of a part's rows at the positions of a visit; false: no row sees any of them.
static inline bool part_masks(const Item& item, const Visit& visit, int64_t first, int64_t n_rows, float* mask) {
    vf top = vf{} + MINUS_INF;
    for (int64_t r = 0; r < n_rows; ++r) {
        float* row = mask + r * KV_TILE;
        mask_values(visit, item.row_mask[first + r], item.slope[first + r], row);
        for (int64_t j = visit.n; j < round_up(visit.n, VL); ++j) row[j] = MINUS_INF;
        for (int64_t j = 0; j < visit.n; j += VL) top = vmax(vload(row + j), top);
    }
    return vany(top != MINUS_INF);
}

// Turn the rows of a visit into f32, and ask for the rows at the same places of `next` (a token apart in a cache, which
// hardware prefetchers do not follow), `skip` positions further on.
static inline void convert_rows(const Visit& visit, const Tensor& t, const uint8_t* head, float* out, int64_t ld,
                                const Tensor& next, const uint8_t* next_head, int64_t skip) {
    const DequantRow row = dequant_row_for(t.type);
    const int64_t bytes = row_bytes(next.type, next.ne[0]);
    for (int64_t j = 0; j < visit.n; ++j) {
        row(head + visit.position[j] * t.nb[1], out + j * ld, t.ne[0]);
        const uintptr_t from = reinterpret_cast<uintptr_t>(next_head) +
                               static_cast<uintptr_t>(visit.position[j] + skip) * static_cast<uintptr_t>(next.nb[1]);
        for (int64_t i = 0; i < bytes; i += 64)
            __builtin_prefetch(reinterpret_cast<const void*>(from + static_cast<uintptr_t>(i)), 0, 2);
    }
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
    vf l = vload(sum + i);
    if (vany(top > old)) {
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
    const int64_t dk = p.k.ne[0], dv = p.v.ne[0], parts = p.tile / ROW_TILE;
    // Of a causal mask the last rows see the most: they come first, so that the workers end together.
    Item item(p, p.n_items() - 1 - index);
    const ManyRows local(worker.local, dk, dv, parts);
    const int64_t n_parts = (item.n_rows + ROW_TILE - 1) / ROW_TILE;
    const auto rows_of = [&](int64_t part) {
        return item.n_rows - part * ROW_TILE < ROW_TILE ? item.n_rows - part * ROW_TILE : ROW_TILE;
    };
    float maximum[MAX_ROWS], sum[MAX_ROWS] = {};
    for (float& m : maximum) m = MINUS_INF;
    std::memset(local.out, 0, static_cast<size_t>(n_parts * local.ldv * ROW_TILE) * sizeof(float));
    std::memset(local.mask, 0, static_cast<size_t>(KV_TILE * ROW_TILE) * sizeof(float));
    for (int64_t part = 0; part < n_parts; ++part)
        gather_rows(local.part(part).q, rows_of(part), dk, p.scale,
                    [&](int64_t r) { return item.query_row(p, part * ROW_TILE + r); });
    Visit visit;
    while (next_visit(p, item, visit)) {
        convert_rows(visit, p.k, item.k, local.converted, local.ldk, p.v, item.v, 0);
        bool live[MAX_PARTS] = {};
        for (int64_t part = 0; part < n_parts; ++part) {
            const int64_t first = part * ROW_TILE, n_rows = rows_of(part);
            const ManyRows mine = local.part(part);
            if (visit.masked && !part_masks(item, visit, first, n_rows, mine.mask)) continue;
            live[part] = true;
            multiply<true, false>(mine.scores, mine.converted, mine.ldk, mine.q, visit.n, dk, n_rows);
            if (p.softcap != 0.0f)
                for (int64_t i = 0; i < visit.n * ROW_TILE; i += VL)
                    vstore(mine.scores + i, soft_cap(vload(mine.scores + i), p.softcap));
            if (visit.masked) add_mask(mine, visit.n, n_rows);
            for (int64_t i = 0; i < n_rows; i += VL) weigh_column(p, visit, mine, i, maximum + first, sum + first);
        }
        convert_rows(visit, p.v, item.v, local.converted, local.ldv, p.k, item.k, KV_TILE);
        for (int64_t part = 0; part < n_parts; ++part) {
            const ManyRows mine = local.part(part);
            if (live[part])
                multiply<false, true>(mine.out, mine.converted, mine.ldv, mine.scores, dv, visit.n, rows_of(part));
        }
    }
    for (int64_t part = 0; part < n_parts; ++part) {
        float* to[ROW_TILE];
        float factor[ROW_TILE];
        for (int64_t r = 0; r < rows_of(part); ++r) {
            const int64_t row = part * ROW_TILE + r, query = item.query(p, row), head = item.head(p, row);
            if (p.n_splits == 1) {
                to[r] = p.out_row(query, head, item.batch);
                factor[r] = final_factor(p, head, maximum[row], sum[row]);
            } else {
                float* partial = p.partial(partials, query, head, item.batch, item.split);
                partial[0] = maximum[row];
                partial[1] = sum[row];
                to[r] = partial + 2;
                factor[r] = 1.0f;
            }
        }
        scatter_rows(local.part(part).out, rows_of(part), dv, factor, to);
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
