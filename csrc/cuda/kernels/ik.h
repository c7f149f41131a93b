// Arguments of the kernels of ops that only ik_llama.cpp has.
#pragma once

#include "cuda/kernels/elementwise.h"

namespace ggr {
namespace cuda {

// The rows of a token's experts, weighted and added.
struct WeightedSumArgs {
    Operand dst, x;  // [e, tokens], [e, used, tokens]
    View weights;    // [1, used, tokens]
    View scale;      // [experts]; data nullptr: none
    View ids;        // [used, tokens]
    FaultSite site;
    Cut cut;
};

// Each element of dst: n of x, `stride` bytes apart.
struct StridedSumArgs {
    Operand dst, x;
    int64_t n, stride;
    Cut cut;
};

struct HadamardArgs {
    Operand dst, x;
    Divisor runs, ne1, ne2;  // runs of a row
    int32_t n;
    float scale;
};

struct TwoNormsArgs {
    Operand dst, a, b, weight_a, weight_b;
    Divisor ne1, ne2;
    float eps;
};

struct GroupedArgs {
    View dst, x;
    Divisor ne1, ne2;
    int32_t groups, top, best;
};
// Entries of a row, and groups of it, that a warp keeps in shared memory.
constexpr int GROUPED_ENTRIES = 4096, GROUPED_GROUPS = 1024;
// Elements of a run that a block keeps.
constexpr int HADAMARD_MAX = 8192;

}  // namespace cuda
}  // namespace ggr
