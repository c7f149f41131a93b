// ik_llama.cpp gives some ops that it shares with llama.cpp other parameters; here they get the common meaning.
#pragma once

#include "core/status.h"
#include "core/tensor.h"

namespace ggr {

// Rewrite the op and parameters of a tensor whose sources are resolved. False when they cannot be understood.
bool apply_ik_meaning(Tensor* t, Error* err);

}  // namespace ggr
