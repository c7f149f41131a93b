// Arguments of the kernels that reduce rows or whole tensors.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

struct RowReduceArgs {
    View dst, x;
    Divisor ne1, ne2;  // of x's rows
    uint32_t rows;
    int32_t mean;
};

// Parts of a tensor, one a block, then their total.
struct TotalArgs {
    View dst, a, b;
    double* parts;
    Divisor ne[3];  // of a
    int64_t elements;
    int32_t type;
    int32_t n_parts;
};
GGR_SCRATCH_AT(TotalArgs, GGR_AT(TotalArgs, parts));

}  // namespace cuda
}  // namespace ggr
