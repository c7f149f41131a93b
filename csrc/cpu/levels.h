// The instruction-set levels of this build and their kernels.
#pragma once

#include "cpu/plan.h"

namespace ggr {

// Those to choose from, best first, or (emulated) those that only tests ask for.
int level_names(const char** names, int capacity, bool emulated);
// nullptr: not built, or this machine lacks it. name == nullptr: the best.
const OpTable* level_table(const char* name);

}  // namespace ggr
