// Collects the families of one level.
#include "cpu/ik_families.h"
#if defined(GGR_AMX)
#include "cpu/matmul/tile_check.h"
#endif

GGR_KERNELS_BEGIN

#if defined(GGR_PARTIAL_LEVEL)  // those with engines of products; the others are another level's
#define GGR_OWN_FAMILIES(X) X(matmul) X(gated)
#else
#define GGR_OWN_FAMILIES(X) GGR_FAMILIES(X) GGR_IK_FAMILIES(X)
#endif

void register_all(OpTable& table) {
#define GGR_REGISTER(name) register_##name(table);
    GGR_OWN_FAMILIES(GGR_REGISTER)
#undef GGR_REGISTER
}

GGR_KERNELS_END
