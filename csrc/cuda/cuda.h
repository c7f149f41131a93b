// CUDA devices: made and destroyed by their owner, used through core/device.h.
#pragma once

#include <cstdint>

#include "core/device.h"
#include "cuda/blas.h"
#include "cuda/driver.h"
#include "cuda/plan.h"

namespace ggr {

struct CudaGpu;  // one GPU, which several logical devices may stand for

// What the owner does for a GPU. Called from any thread, never with a lock held that a call into the device takes,
// except that loads of one GPU come one after the other.
struct CudaOwner {
    // Make kernels callable in the context that is current on this thread: functions[i] for names[i].
    bool (*load)(void* context, const cuda::KernelName* names, uint32_t n, cuda::CUfunction* functions, Error*);
    void (*log)(void* context, const char* line);
    // The functions of cuBLASLt, which are copied, or nullptr. Asked once, when a product first could use them.
    const cuda::Blas* (*blas)(void* context);
    void* context;
};

// Names of the functions of the table Driver, in its order; returns how many there are.
int cuda_driver_functions(const char** names, int capacity);

// The same of the table Blas.
int cuda_blas_functions(const char** names, int capacity);

// `driver` is copied. `cpu`: the device that computes what has no kernel; it must outlive the GPU. nullptr on failure.
CudaGpu* cuda_open(const cuda::Driver* driver, int ordinal, const CudaOwner& owner, Device* cpu,
                   int64_t graph_timeout_ns, Error*);
void cuda_close(CudaGpu*);
// Leave an op to the CPU: to find out whether its kernel is to blame, and for tests. Before the first plan.
void cuda_leave(CudaGpu*, int32_t op);
// How many bytes of copies of weights may stay on the host for nodes that run on the CPU. Before the first plan.
void cuda_keep(CudaGpu*, uint64_t bytes);
Device* cuda_device(CudaGpu*, const char* name, const char* description);
void cuda_free_device(Device*);
const cuda::Hardware* cuda_hardware(const CudaGpu*);

struct CudaCounts {
    uint64_t launches;        // of kernels, those in graphs included
    uint64_t graph_launches;  // of captured graphs
    uint64_t graph_updates;   // of captured graphs whose addresses changed
    uint64_t cpu_nodes;       // that ran on the CPU
    uint64_t products;        // that a library computed, those in graphs included
    uint64_t contexts;        // made so far: more than one after a sticky error
    uint64_t kept_bytes;      // of copies of weights on the host
};
CudaCounts cuda_counts(const CudaGpu*);

// Of one plan: launches, and nodes left to the CPU.
void cuda_plan_counts(const Plan*, uint32_t* launches, uint32_t* cpu_nodes);

// What was left to the CPU when plans were compiled: (text, number of nodes) by index; false beyond the last.
bool cuda_fallback(CudaGpu*, uint32_t index, char* text, uint64_t text_bytes, uint64_t* nodes);
// Kernels that plans asked for, by index; false beyond the last.
bool cuda_asked(const CudaGpu*, uint32_t index, cuda::KernelName*);
// Load kernels ahead of need.
bool cuda_load(CudaGpu*, const cuda::KernelName* names, uint32_t n, Error*);
// Every kernel that any plan may ask for.
void cuda_registry(void* context, cuda::KernelSink);
// A family has kernels for (some types of) this op.
bool cuda_has_op(int32_t op);

}  // namespace ggr
