// Arguments of the kernels of functions of one element, and of gated ones.
#pragma once

#include "cuda/kernels/elementwise.h"

namespace ggr {
namespace cuda {

// What is computed: kinds of UNARY keep their numbers (below 64), other ops have one of these.
enum FunctionKind : int32_t {
    FUNCTION_SQR = 64,
    FUNCTION_SQRT,
    FUNCTION_LOG,
    FUNCTION_SIN,
    FUNCTION_COS,
    FUNCTION_SCALE,    // p: factor, addend
    FUNCTION_ZERO,     // whatever the element is
    FUNCTION_SOFTCAP,  // p: before, after
    FUNCTION_CLAMP,    // p: least, largest
    FUNCTION_LEAKY_RELU,
};

struct UnaryArgs {
    Operand dst, x;
    Cut cut;
    int32_t kind;
    float p[4];
};

struct GluArgs {
    Operand dst, gate, up;
    Cut cut;
    int32_t kind;
    float alpha, limit;
};

}  // namespace cuda
}  // namespace ggr
