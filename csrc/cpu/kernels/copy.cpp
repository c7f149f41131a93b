#include "cpu/level.h"

GGR_KERNELS_BEGIN

void register_copy(OpTable&) {}

GGR_KERNELS_END
