// Arguments of the norm kernels.
#pragma once

#include "cuda/kernels/elementwise.h"

namespace ggr {
namespace cuda {

enum NormKind : int32_t { NORM_CENTRED = 0, NORM_ROOT_MEAN_SQUARE = 1, NORM_LENGTH = 2 };

struct NormArgs {
    Operand dst, x;
    Operand factor, addend;              // data nullptr: none; repeated to dst's rows
    Divisor ne1, ne2;                    // of dst
    Divisor factor_ne[3], addend_ne[3];  // dimensions 1 to 3
    uint32_t rows;
    int32_t kind;
    float eps;
};

struct GroupNormArgs {
    View dst, x;
    int32_t n_groups, size;  // channels a group; the last has what is left
    float eps;
};

}  // namespace cuda
}  // namespace ggr
