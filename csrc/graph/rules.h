// Helpers for the rules of ops. A rule reads as `REQUIRE(condition, "what must hold")`.
#pragma once

#include "core/status.h"
#include "core/tensor.h"

namespace ggr {

using RuleFn = bool (*)(const Tensor& node, Error* err);

bool rule_broken(const Tensor& node, Error* err, const char* rule);

#define REQUIRE(condition, rule)                               \
    do {                                                       \
        if (!(condition)) return rule_broken(node, err, rule); \
    } while (0)

}  // namespace ggr
