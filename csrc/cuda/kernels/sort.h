// Arguments of the sorting kernels.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

// Pairs that a block sorts in shared memory.
constexpr int SORT_CHUNK = 4096;

// Pairs are u64: the value's bits as a number of the same order, then the index.
struct SortArgs {
    View x, dst;
    const uint64_t* in;     // pairs, `n` a row; nullptr: made of x
    uint64_t* out;          // the first `keep` pairs of each chunk; nullptr: their indices go to dst
    Divisor ne1, ne2;       // of dst's rows
    Divisor chunks;         // of a row
    int32_t n, size, keep;  // size: a power of two, the pairs of a chunk
    int32_t descending, from_end;
};
GGR_SCRATCH_AT(SortArgs, GGR_AT(SortArgs, in), GGR_AT(SortArgs, out));

// Longest row that is selected as the GNU library does.
constexpr int SELECT_MAX = 1024;

struct SelectArgs {
    View x, dst;
    Divisor ne1, ne2;
    int32_t k;
};

struct MergeArgs {
    View dst;
    const uint64_t* in;  // `total` pairs a row in sorted runs of `width`
    uint64_t* out;       // nullptr: the first `keep` indices go to dst
    Divisor ne1, ne2;
    Divisor blocks;  // of a row
    int32_t total, width, keep;
    int32_t n, from_end;
};
GGR_SCRATCH_AT(MergeArgs, GGR_AT(MergeArgs, in), GGR_AT(MergeArgs, out));

}  // namespace cuda
}  // namespace ggr
