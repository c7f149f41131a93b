// Arguments of the kernel that arranges elements anew.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

enum ArrangeKind : int32_t {
    ARRANGE_MOVE = 0,  // element for element
    ARRANGE_REPEAT = 1,
    ARRANGE_CONCAT = 2,     // p[0]: the dimension
    ARRANGE_PAD = 3,        // p: padding before dimensions 0 to 3, then 1 for a torus
    ARRANGE_DIAG_MASK = 4,  // columns beyond row + p[0] become `value`
    ARRANGE_TRI = 5,        // p[0]: 1 for a lower triangle; p[1]: its edge
    ARRANGE_DIAG = 6,
    ARRANGE_RANGE = 7,  // value + delta * i
    ARRANGE_FILL = 8,   // `value`, f32 or f16
    ARRANGE_ADD = 9,    // f32: dst += a
};

struct ArrangeArgs {
    View dst, a, b;
    Divisor ne[3];  // of dst
    uint32_t total;
    int32_t kind;
    int32_t size;  // bytes of an element
    int32_t p[5];
    float value, delta;
};

}  // namespace cuda
}  // namespace ggr
