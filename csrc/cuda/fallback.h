// Nodes without a kernel: they run on the CPU device, on copies of the memory that they touch. What the graph does not
// write (weights) is copied once, and again when its buffer has been written.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
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

// A copy that stays: a range of a buffer, for all plans that read it. All of a GPU are bounded together.
struct KeptRange {
    // nullptr if there is no room. `total`: bytes that are kept by now.
    static std::shared_ptr<KeptRange> make(uint64_t device, uint64_t bytes, std::atomic<uint64_t>& total,
                                           uint64_t most);
    ~KeptRange();

    uint64_t device, bytes;
    uint8_t* host;         // at the same place modulo the alignment of what lies in it
    uint64_t version = 0;  // of the buffer when it was copied; 0: never
    void* memory;
    std::atomic<uint64_t>& total;
};
struct Kept {
    std::shared_ptr<KeptRange> range;
    Buffer* buffer;
};

// One Part of a plan that runs on the CPU.
struct CpuPart {
    Plan* plan = nullptr;
    std::vector<HostCopy> in, out;
    std::vector<Kept> kept;
};

struct Gpu;

struct Fallback {
    std::vector<CpuPart> parts;  // in the order of PlanData::parts
    Buffer memory = {};          // of the CPU device, for one part at a time

    // Compile all CPU parts of `data` for the GPU's CPU device. `written`: the buffers that the graph writes.
    bool build(const Graph& graph, const PlanData& data, Gpu& gpu, const std::vector<Buffer*>& written, Error* err);
    void release(Device* cpu);
};

}  // namespace cuda
}  // namespace ggr
