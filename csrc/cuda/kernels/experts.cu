// Pairs of token and expert sorted by expert, for the tiles of MUL_MAT_ID. One block counts, adds up and places: the
// floor is two reads of the ids; a launch costs more. The order within an expert is open, and no result depends on it.
#include "cuda/kernels/base.cuh"
#include "cuda/kernels/products.h"

namespace ggr {
namespace cuda {

// The expert of a pair; `experts` if it has none and its result is to be 0; -1 if it is to be left out.
GGR_DEVICE int32_t expert_of_pair(const PairArgs& a, int pair, bool report) {
    const int token = pair / a.slots, slot = pair - token * a.slots;
    const int32_t expert = *reinterpret_cast<const int32_t*>(a.ids + slot * a.ids_nb[0] + token * a.ids_nb[1]);
    if (expert >= 0 && expert < a.experts) return expert;
    if (a.absent_is_zero != 0) return a.experts;
    if (report) fail_index(a.site, expert, a.experts);
    return -1;
}

GGR_KERNEL GGR_BOUNDS(1024, 1) sort_pairs(const PairArgs a) {
    GGR_SHARED int32_t count[MAX_EXPERTS + 1];
    GGR_SHARED int32_t next[MAX_EXPERTS + 1];
    GGR_SHARED int32_t first_tile[MAX_EXPERTS + 1];
    GGR_SHARED int32_t tiles_in_use;
    const int n = a.experts + 1;
    for (int i = thread_index(); i < n; i += n_threads()) count[i] = 0;
    sync_block();
    for (int i = thread_index(); i < a.n_pairs; i += n_threads()) {
        const int32_t expert = expert_of_pair(a, i, true);
        if (expert >= 0) atomic_add(&count[expert], 1);
    }
    sync_block();
    if (thread_index() < WARP) {  // a warp adds up, 32 experts at a time
        int32_t pairs = 0, tiles = 0;
        for (int i0 = 0; i0 < n; i0 += WARP) {
            const int i = i0 + lane();
            const int32_t c = i < n ? count[i] : 0, t = (c + a.width - 1) / a.width;
            int32_t pairs_to = c, tiles_to = t;
            GGR_UNROLL
            for (int d = 1; d < WARP; d *= 2) {
                const int32_t p = shuffle_up(pairs_to, d), q = shuffle_up(tiles_to, d);
                if (lane() >= d) {
                    pairs_to += p;
                    tiles_to += q;
                }
            }
            if (i < n) {
                next[i] = pairs + pairs_to - c;
                first_tile[i] = tiles + tiles_to - t;
            }
            pairs += shuffle(pairs_to, WARP - 1);
            tiles += shuffle(tiles_to, WARP - 1);
        }
        if (lane() == 0) tiles_in_use = tiles;
    }
    sync_block();
    for (int i = thread_index(); i < n; i += n_threads()) {
        for (int done = 0, tile = first_tile[i]; done < count[i]; done += a.width, ++tile) {
            a.tiles[3 * tile] = i;
            a.tiles[3 * tile + 1] = next[i] + done;
            a.tiles[3 * tile + 2] = count[i] - done < a.width ? count[i] - done : a.width;
        }
    }
    for (int i = tiles_in_use + thread_index(); i < a.max_tiles; i += n_threads()) a.tiles[3 * i + 2] = 0;
    sync_block();
    for (int i = thread_index(); i < a.n_pairs; i += n_threads()) {
        const int32_t expert = expert_of_pair(a, i, false);
        if (expert >= 0) a.pairs[atomic_add(&next[expert], 1)] = i;
    }
}

}  // namespace cuda
}  // namespace ggr
