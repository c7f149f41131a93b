// Collects the families of one level.
#include "cpu/level.h"

GGR_KERNELS_BEGIN

void register_all(OpTable& table) {
#define GGR_REGISTER(name) register_##name(table);
    GGR_FAMILIES(GGR_REGISTER)
#undef GGR_REGISTER
}

GGR_KERNELS_END
