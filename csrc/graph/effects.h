// What nodes write besides their results.
#pragma once

#include "core/tensor.h"
#include "spec/tables.h"

namespace ggr {

// Source slots that an op writes, -1 for none: a convolution and a recurrence store the states after each token, a step
// of an optimiser its two moments. Sources that results are views of are OpTraits::writes_into.
struct WrittenSources {
    int slots[2];
};
inline WrittenSources written_sources(const Tensor& node) {
    switch (node.op) {
        case OP_IK_SSM_CONV:
            return {{4, -1}};
        case OP_DELTA_NET:
            return {{6, -1}};
        case OP_OPT_STEP_ADAMW:
            return {{2, 3}};
        default:
            return {{-1, -1}};
    }
}

// Call take(t) with the result and every source that the node writes.
template <class Take>
void for_each_written(const Tensor& node, Take take) {
    if (node.data != nullptr) take(node);
    for (const int slot : written_sources(node).slots)
        if (slot >= 0 && slot < node.n_src && node.src[slot] != nullptr && node.src[slot]->data != nullptr)
            take(*node.src[slot]);
}

}  // namespace ggr
