#include "cpu/level.h"

GGR_KERNELS_BEGIN

void register_glu(OpTable&) {}

GGR_KERNELS_END
