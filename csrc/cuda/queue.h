// Plans in their runnable form, and the queues that run them: one stream a queue.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/device.h"
#include "cuda/context.h"
#include "cuda/fallback.h"
#include "cuda/gpu.h"
#include "cuda/plan.h"

namespace ggr {
namespace cuda {

// A ggr::Plan * is one of these.
struct CudaPlan {
    std::shared_ptr<Context> context;
    Gpu* gpu = nullptr;
    Graph* graph = nullptr;
    PlanData data;
    std::vector<CUfunction> functions;  // of the launches; nullptr where the library computes
    std::vector<std::shared_ptr<const Library::Prepared>> products;
    size_t library_launches = 0;
    std::vector<Buffer*> buffers;  // that the graph names
    std::vector<Buffer*> written;  // those that it writes
    Fallback fallback;
    Context::FaultWord fault;

    // ---- of the queue that runs it ----
    uint64_t scratch_at = 0;  // where the relocated words of args say that scratch lies
    uint64_t runs = 0;
    struct Captured {
        CUgraphExec exec = nullptr;
        uint64_t key = 0;      // of its kernels
        bool current = false;  // made with the args as they are
    };
    std::vector<Captured> captured;  // of the parts

    ~CudaPlan();
    bool on_cpu() const { return !fallback.parts.empty(); }
    // Move the addresses of scratch in args.
    void relocate(uint64_t scratch);
    // After a run: the illegal value that it found, if any, as an Error. The word is free again.
    bool faultless(Error* err);
};

// A ggr::Queue * is one of these. Plans without a part for the CPU are launched by the caller; the others, and what
// comes behind them, by a thread of the queue.
class CudaQueue {
  public:
    static CudaQueue* open(Gpu& gpu, Error* err);
    ~CudaQueue();
    CudaQueue(const CudaQueue&) = delete;
    CudaQueue& operator=(const CudaQueue&) = delete;

    uint64_t submit(CudaPlan& plan, Error* err);
    WaitResult wait(uint64_t number, int64_t timeout_ns, Error* err);
    void cancel();

  private:
    using Clock = std::chrono::steady_clock;
    struct Order {  // to the thread
        CudaPlan* plan;
        uint64_t number;
        uint64_t uploads;                // that come before it
        std::vector<uint64_t> versions;  // of the buffers of what the parts keep, one after the other
    };
    struct Run {  // on its way on the stream
        CudaPlan* plan;
        uint64_t number;
        CUevent event;
    };

    CudaQueue(Gpu& gpu, std::shared_ptr<Context> context) : gpu_(gpu), context_(std::move(context)) {}
    bool prepare(CudaPlan& plan, uint64_t uploads, Error* err);
    bool reserve(uint64_t bytes, Error* err);
    bool launch_part(CudaPlan& plan, size_t part, Error* err);
    bool launch_all(CudaPlan& plan, const Part& part, Error* err);
    bool launch_product(CudaPlan& plan, const Launch& launch, Error* err);
    bool launch_captured(CudaPlan& plan, size_t part, CudaPlan::Captured& captured, Error* err);
    bool without_graph(CudaPlan& plan, const Part& part, CUresult status, const char* what, Error* err);
    bool depart(CudaPlan& plan, uint64_t number, Error* err);  // with mutex_ held
    void land();                                               // with mutex_ held
    void fail(const Error& err);                               // with mutex_ held

    void work();
    bool run(const Order& order, Error* err);
    bool run_on_cpu(CudaPlan& plan, CpuPart& part, const uint64_t* versions, Error* err);
    bool fetch(const std::vector<HostCopy>& copies, uint8_t* host, Error* err);
    bool store(const std::vector<HostCopy>& copies, const uint8_t* host, Error* err);
    bool await(CUevent event, Error* err);
    bool halted(Error* err);

    Gpu& gpu_;
    const std::shared_ptr<Context> context_;
    CUstream stream_ = nullptr;
    CUdeviceptr scratch_ = 0;
    uint64_t scratch_bytes_ = 0;
    Queue* cpu_queue_ = nullptr;

    std::mutex mutex_;  // of what follows
    std::condition_variable changed_, orders_;
    std::deque<Order> waiting_;
    bool working_ = false;  // the thread has an order
    std::deque<Run> flying_;
    std::vector<CUevent> events_;  // not in use
    uint64_t submitted_ = 0, completed_ = 0;
    Clock::time_point begun_;  // when the oldest run that is not over was alone at the front
    Error error_ = {};
    bool stop_ = false;
    std::atomic<bool> cancelled_{false};
    std::thread thread_;
};

}  // namespace cuda
}  // namespace ggr
