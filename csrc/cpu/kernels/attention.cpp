#include "cpu/level.h"

GGR_KERNELS_BEGIN

void register_attention(OpTable&) {}

GGR_KERNELS_END
