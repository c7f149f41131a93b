// A CUDA context of a GPU and what lives in it. After an error that leaves it useless ("sticky") its users fail one by
// one; the last destroys it, and the next session gets a new one.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/status.h"
#include "cuda/args.h"
#include "cuda/driver.h"
#include "cuda/library.h"
#include "cuda/staging.h"

namespace ggr {
namespace cuda {

struct Gpu;

class Context {
  public:
    static std::shared_ptr<Context> open(Gpu& gpu, Error* err);
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    const Driver& driver() const { return driver_; }
    CUcontext handle() const { return handle_; }
    bool dead() const { return dead_.load(std::memory_order_relaxed); }
    Staging& staging() { return staging_; }

    // Make it the calling thread's; fails when it is dead.
    bool enter(Error* err);
    // Turn a status of the driver into an Error. `what` did it.
    bool check(CUresult status, const char* what, Error* err);

    // Device memory; false with Code::memory when there is not enough.
    bool allocate(uint64_t bytes, const char* what, CUdeviceptr* out, Error* err);

    // Free device memory: at once if no run is under way, for to free waits for all of them; else when the last one is
    // over, or when an allocation needs it.
    void give_memory(CUdeviceptr memory, uint64_t bytes);
    uint64_t given_bytes() const { return given_bytes_.load(std::memory_order_relaxed); }
    void run_begins() { ++runs_; }
    void run_ends() {
        if (--runs_ == 0) free_given();
    }

    // A word that kernels report faults in. The plan that takes it gives it back.
    struct FaultWord {
        Fault* host = nullptr;
        Fault* device = nullptr;
    };
    bool take_fault(FaultWord* out, Error* err);
    void give_fault(FaultWord word);

    // The functions of kernels by number, loaded where they are not yet. `shared_bytes`: what the launch asks for.
    bool load(const std::vector<std::pair<uint32_t, uint32_t>>& kernels_and_shared, Error* err);
    CUfunction function(uint32_t kernel) const;

    // Captured graphs of plans that are gone, for plans of the same kernels.
    CUgraphExec take_graph(uint64_t key);
    void give_graph(uint64_t key, CUgraphExec graph);
    bool captures() const { return captures_.load(std::memory_order_relaxed); }
    void no_captures() { captures_ = false; }

    // Let copies to this context's memory read `source`'s over the link between the GPUs, where there is one: else they
    // go through the host. The context is current.
    void reach(const Context& source);
    // cuBLASLt in this context, or nullptr; looked for at the first call.
    Library* library();

    Gpu& gpu() { return gpu_; }

  private:
    Context(Gpu& gpu, CUcontext handle);
    bool free_given();  // false if there was nothing

    struct Loaded {
        CUfunction function = nullptr;
        uint32_t shared_bytes = 0;  // that it was allowed
    };

    Gpu& gpu_;
    const Driver& driver_;
    const CUcontext handle_;
    const uint64_t number_;  // of all contexts of this process
    std::atomic<bool> dead_{false};
    std::atomic<bool> captures_{true};
    std::atomic<int64_t> runs_{0};
    std::atomic<uint64_t> given_bytes_{0};
    Staging staging_;
    std::mutex fault_mutex_, load_mutex_, graph_mutex_, reach_mutex_, given_mutex_;
    mutable std::mutex function_mutex_;
    std::once_flag library_once_;
    std::unique_ptr<Library> library_;
    std::vector<FaultWord> faults_;
    std::vector<void*> fault_blocks_;
    std::vector<Loaded> functions_;
    std::vector<std::pair<uint64_t, CUgraphExec>> graphs_;
    std::vector<uint64_t> reached_;                        // numbers of contexts
    std::vector<std::pair<CUdeviceptr, uint64_t>> given_;  // and bytes
};

}  // namespace cuda
}  // namespace ggr
