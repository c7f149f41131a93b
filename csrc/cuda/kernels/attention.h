// Arguments of the kernels of fused attention.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

// Positions whose mask is judged together, for blocks of so many queries.
constexpr int MASK_KEYS = 64, MASK_QUERIES = 16;

// What a block of queries sees of MASK_KEYS positions.
struct MaskTile {
    uint32_t live[2];  // bit i: some query sees position i
    uint32_t plain;    // all values are zero
    uint32_t unused;
};

// Rows are the (query, head) pairs of the heads that share K and V, the heads of a query side by side.
struct AttentionArgs {
    View dst, q, k, v, mask;  // mask.data nullptr: none
    const float* sinks;       // by head; nullptr: none
    float* partials;          // [batch][head][query][split][maximum, sum, dv values], or nullptr: one split
    const MaskTile* tiles;    // [mask batch][mask head][block of queries][MASK_KEYS positions]
    int32_t k_type, v_type;
    int32_t k_aligned, v_aligned;  // rows begin at multiples of 16 bytes
    int32_t v_in_k;                // V is the first dv channels of K
    int32_t mask_aligned;          // rows of the mask begin at multiples of 4 bytes
    int32_t group, heads_a_k, heads_a_v;
    int32_t n_heads, n_queries, n_kv, dk, dv;
    int32_t n_splits, split_length;
    float scale, max_bias, softcap;
};
GGR_SCRATCH_AT(AttentionArgs, GGR_AT(AttentionArgs, partials), GGR_AT(AttentionArgs, tiles));

struct MaskTilesArgs {
    View mask;
    MaskTile* out;
    int32_t n_queries, n_kv;
};
GGR_SCRATCH_AT(MaskTilesArgs, GGR_AT(MaskTilesArgs, out));

}  // namespace cuda
}  // namespace ggr
