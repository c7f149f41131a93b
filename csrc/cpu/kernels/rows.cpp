#include "cpu/level.h"

GGR_KERNELS_BEGIN

void register_rows(OpTable&) {}

GGR_KERNELS_END
