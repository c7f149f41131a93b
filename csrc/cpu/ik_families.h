// The entries of the families that only ik_llama.cpp's clients reach, beside those of level.h.
#pragma once

#include "cpu/level.h"

#define GGR_IK_FAMILIES(X) \
    X(ik_choice)           \
    X(ik_streams)          \
    X(ik_latent)           \
    X(rope_cached)

GGR_KERNELS_BEGIN
#define GGR_DECLARE(name) void register_##name(OpTable& table);
GGR_IK_FAMILIES(GGR_DECLARE)
#undef GGR_DECLARE
GGR_KERNELS_END
