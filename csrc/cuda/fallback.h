// Nodes without a kernel: they run on the CPU device, on copies of the memory that they touch.
#pragma once

#include <cstdint>
#include <vector>

#include "core/device.h"
#include "cuda/plan.h"

namespace ggr {
namespace cuda {

struct HostCopy {
    uint64_t device;  // address
    uint64_t offset;  // in the host copy
    uint64_t bytes;
};

// One Part of a plan that runs on the CPU.
struct CpuPart {
    Plan* plan = nullptr;
    std::vector<HostCopy> in, out;
};

struct Fallback {
    std::vector<CpuPart> parts;  // in the order of PlanData::parts
    Buffer memory = {};          // of the CPU device, for one part at a time

    // Compile all CPU parts of `data` for `cpu`.
    bool build(const Graph& graph, const PlanData& data, Device* cpu, Error* err);
    void release(Device* cpu);
};

}  // namespace cuda
}  // namespace ggr
