#include "cpu/level.h"

GGR_KERNELS_BEGIN

void register_unary(OpTable&) {}

GGR_KERNELS_END
