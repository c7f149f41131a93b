// Scores of keys for sparse attention: sum over heads of max(q . k, 0) w. Shared by LIGHTNING_INDEXER and INDEXER_TOPK.
//
// Floor: 2 n_embd operations a head, token and key. KEYS keys are decoded into columns once for several tokens, so that
// the lanes of a vector are keys. Rows of more than LONGEST_PANEL elements, whose panel would not fit the second level
// of caches, are taken one key at a time, with the lanes along the row.
#pragma once

#include "cpu/elementwise.h"
#include "cpu/layout.h"
#include "cpu/quants/dequant.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int64_t KEYS = 64;
constexpr int64_t LONGEST_PANEL = 4096;  // it takes 1 MiB
constexpr int HEADS = 4;
constexpr int VECTORS = VL == 16 ? 4 : 2;

// What a worker needs for rows of `size` elements.
static inline int64_t indexer_bytes(int64_t size) {
    return (size > LONGEST_PANEL ? size : (KEYS + 1) * size) * static_cast<int64_t>(sizeof(float));
}

// The queries and weights of one token.
struct IndexerQuery {
    const uint8_t* q;
    int64_t size, heads, stride;
    const uint8_t* weights;
    int64_t weight_stride;

    const float* row(int64_t h) const { return reinterpret_cast<const float*>(q + h * stride); }
    float weight(int64_t h) const { return *reinterpret_cast<const float*>(weights + h * weight_stride); }
};

// Keys [0, VECTORS * VL) of a panel for one token.
static inline void score_keys(float* score, const float* panel, const IndexerQuery& query) {
    vf total[VECTORS] = {};
    for (int64_t h = 0; h < query.heads; h += HEADS) {
        const int64_t n = least(HEADS, query.heads - h);
        const float* row[HEADS];
        for (int64_t i = 0; i < HEADS; ++i) row[i] = query.row(h + least(i, n - 1));
        // Indexed by constants alone, or it would lie in memory: 102 GFLOP/s a core instead of 63 (Zen 4, AVX-512).
        vf s[HEADS][VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < HEADS; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) s[i][v] = vf{};
        for (int64_t d = 0; d < query.size; ++d) {
            vf k[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) k[v] = vload(panel + d * KEYS + v * VL);
#pragma GCC unroll 4
            for (int i = 0; i < HEADS; ++i)
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) s[i][v] += k[v] * row[i][d];
        }
#pragma GCC unroll 4
        for (int i = 0; i < HEADS; ++i) {
            if (i >= n) break;
            const float weight = query.weight(h + i);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) total[v] += vmax(s[i][v], vf{}) * weight;
        }
    }
    for (int v = 0; v < VECTORS; ++v) vstore(score + v * VL, total[v]);
}

// One long key for one token.
static inline float score_long_key(const float* key, const IndexerQuery& query) {
    float total = 0.0f;
    for (int64_t h = 0; h < query.heads; ++h) {
        const float* row = query.row(h);
        vf sum[4] = {};
        int64_t i = 0;
        for (; i + 4 * VL <= query.size; i += 4 * VL)
            for (int v = 0; v < 4; ++v) sum[v] += vload(key + i + v * VL) * vload(row + i + v * VL);
        float dot = vsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
        for (; i < query.size; ++i) dot += key[i] * row[i];
        total += (dot > 0.0f ? dot : 0.0f) * query.weight(h);
    }
    return total;
}

// Scores of up to KEYS keys, `stride` bytes apart, for n_tokens tokens: take(t, scores) is given those of each.
// query_of(t) are a token's queries. `local` has indexer_bytes.
template <class QueryOf, class Take>
void score_block(uint8_t* local, const uint8_t* keys, int64_t stride, int64_t n_keys, int32_t type, int64_t n_tokens,
                 int64_t size, const QueryOf& query_of, const Take& take) {
    const DequantRow decode = dequant_row_for(type);
    float* const panel = reinterpret_cast<float*>(local);
    float score[KEYS];
    if (size > LONGEST_PANEL) {
        // Each token decodes the keys anew: one pass over a row beside one for each head.
        for (int64_t t = 0; t < n_tokens; ++t) {
            const IndexerQuery query = query_of(t);
            for (int64_t i = 0; i < n_keys; ++i) {
                decode(keys + i * stride, panel, size);
                score[i] = score_long_key(panel, query);
            }
            take(t, score);
        }
        return;
    }
    float* const row = panel + KEYS * size;
    std::memset(panel, 0, static_cast<size_t>(KEYS * size) * sizeof(float));
    for (int64_t i = 0; i < n_keys; ++i) {
        decode(keys + i * stride, row, size);
        for (int64_t d = 0; d < size; ++d) panel[d * KEYS + i] = row[d];
    }
    for (int64_t t = 0; t < n_tokens; ++t) {
        const IndexerQuery query = query_of(t);
        for (int64_t i = 0; i < n_keys; i += VECTORS * VL) score_keys(score + i, panel + i, query);
        take(t, score);
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
