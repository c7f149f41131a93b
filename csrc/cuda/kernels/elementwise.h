// Arguments of the element-wise kernels.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

// Numbers of the types that element-wise kernels read and write (those of spec/ids.h, which NVRTC cannot include).
constexpr int32_t ELEMENT_F32 = 0, ELEMENT_F16 = 1, ELEMENT_BF16 = 30;

struct Operand {
    View t;
    int32_t type;
    int32_t packed;  // four elements of a row, from a multiple of four on, are one aligned word of 8 or 16 bytes
};

// How the threads of a launch share a result: four neighbouring elements of a row (a quad) each.
struct Cut {
    Divisor quads;  // of a row
    Divisor ne1, ne2;
    uint32_t total;
};

enum BinaryOp : int32_t { BINARY_ADD = 0, BINARY_SUB = 1, BINARY_MUL = 2, BINARY_DIV = 3 };

struct BinaryArgs {
    Operand dst, a, b;
    Divisor b_ne[4];  // b is repeated to dst's shape
    Cut cut;
    int32_t op;
};

struct AddIdArgs {
    Operand dst, a, b;
    View ids;
    FaultSite site;
    Cut cut;
};

}  // namespace cuda
}  // namespace ggr
