// A norm, its factor and its addend, as models write them: nodes that a device may compute a row at a time.
#pragma once

#include "graph/graph.h"

namespace ggr {

struct NormChain {
    const Tensor *norm, *factor, *addend;  // addend: nullptr for none
    const Tensor* last;                    // whose result is stored
    uint32_t nodes;                        // 0: no chain begins here
};

// The chain that begins with the norm at nodes[i]: it times whole rows of f32, maybe plus whole rows. `may_skip` tells
// of an intermediate that nobody but the chain reads.
NormChain norm_chain(const Graph& graph, uint32_t i, bool (*may_skip)(const void* context, const Tensor&),
                     const void* context);

}  // namespace ggr
