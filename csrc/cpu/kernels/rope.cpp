#include "cpu/level.h"

GGR_KERNELS_BEGIN

void register_rope(OpTable&) {}

GGR_KERNELS_END
