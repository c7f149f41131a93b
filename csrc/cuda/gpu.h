// One GPU: what outlives its contexts, and what the logical devices on it share.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "cuda/context.h"
#include "cuda/cuda.h"
#include "cuda/kernel_table.h"
#include "cuda/plan.h"

namespace ggr {
namespace cuda {

struct Gpu {
    Driver driver;
    CUdevice ordinal;
    CudaOwner owner;
    Device* cpu;
    int64_t graph_timeout_ns;
    Hardware hardware;
    OpTable ops;
    KernelTable kernels;
    const DeviceOps* ops_of = nullptr;    // of its devices
    uint64_t keep_at_most = 0;            // bytes of copies on the host
    std::atomic<uint64_t> kept_bytes{0};  // of them there are

    std::mutex mutex;  // of what follows
    std::shared_ptr<Context> current;
    std::map<std::string, uint64_t> fallbacks;  // what was left to the CPU: nodes compiled

    std::atomic<uint64_t> launches{0}, graph_launches{0}, graph_updates{0}, cpu_nodes{0}, products{0}, contexts{0};

    std::once_flag asked_for_blas;
    Blas blas = {};
    bool has_blas = false;

    // The context for new work: a new one if the last is dead. nullptr on failure.
    std::shared_ptr<Context> context(Error* err);
};

}  // namespace cuda

struct CudaGpu : cuda::Gpu {};

namespace cuda {

struct CudaDevice {
    Device device;  // first: a Device * is a CudaDevice *
    Gpu* gpu;
    std::string name, description;
};
inline Gpu& gpu_of(Device* d) { return *reinterpret_cast<CudaDevice*>(d)->gpu; }

}  // namespace cuda
}  // namespace ggr
