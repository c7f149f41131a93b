// The CPU device: made and destroyed by its owner, used through core/device.h.
#pragma once

#include <cstdint>

#include "core/device.h"
#include "cpu/numa.h"

namespace ggr {

struct CpuShared;  // threads and memory count that several CPU devices share

// Names of the instruction-set levels that this build holds and this machine can run, best first; returns how many.
// `emulated`: instead those for tests, in which software stands for instructions that few machines have.
int cpu_levels(const char** names, int capacity, bool emulated);

// `level`: one of cpu_levels(), or nullptr for the best. nullptr on failure.
CpuShared* cpu_open(int n_threads, const char* level, int64_t graph_timeout_ns, const Placement&, Error*);
const char* cpu_level(const CpuShared*);
void cpu_close(CpuShared*);
Device* cpu_device(CpuShared*, const char* name);
void cpu_free_device(Device*);

}  // namespace ggr
