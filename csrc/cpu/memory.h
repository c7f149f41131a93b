// How much memory this process may still take.
#pragma once

#include <cstdint>

namespace ggr {

// Bytes of the machine (or of the cgroup, where that is less): in all, and not in use by anybody.
void system_memory(uint64_t* available, uint64_t* total);
// Bytes of this process's anonymous memory that are in RAM.
uint64_t resident_bytes();

}  // namespace ggr
