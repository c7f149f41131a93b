// Every kernel file is compiled once per instruction-set level with GGR_LEVEL set to the level's name. All it defines
// lies in ggr::<level>, and all but the family's entry in an unnamed namespace there, so that no symbol can be shared
// between levels.
#pragma once

#ifndef GGR_LEVEL
#error "kernel files are compiled per level: set GGR_LEVEL"
#endif

#include "cpu/plan.h"

#define GGR_KERNELS_BEGIN \
    namespace ggr {       \
    namespace GGR_LEVEL {
#define GGR_KERNELS_END \
    }                   \
    }

// The entries of all families, one a line; each fills its ops' rows.
#define GGR_FAMILIES(X) \
    X(binary)           \
    X(unary)            \
    X(glu)              \
    X(norm)             \
    X(softmax)          \
    X(rope)             \
    X(reduce)           \
    X(sort)             \
    X(shape)            \
    X(copy)             \
    X(rows)             \
    X(matmul)           \
    X(gated)            \
    X(ik)               \
    X(attention)        \
    X(recurrent)        \
    X(linear_attention) \
    X(triangle)         \
    X(ik_recurrent)     \
    X(gradient)         \
    X(training)         \
    X(outer_product)    \
    X(convolution)      \
    X(im2col)           \
    X(pooling)          \
    X(image)            \
    X(window)           \
    X(indexer)

GGR_KERNELS_BEGIN
#define GGR_DECLARE(name) void register_##name(OpTable& table);
GGR_FAMILIES(GGR_DECLARE)
#undef GGR_DECLARE
GGR_KERNELS_END
