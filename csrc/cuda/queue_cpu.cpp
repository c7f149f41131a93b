// The thread of a queue: it runs plans that have parts for the CPU, a part after the other.
#include <algorithm>

#include "cuda/queue.h"

namespace ggr {
namespace cuda {

namespace {

// How often a wait for the CPU looks whether the run is still wanted.
constexpr int64_t SLICE_NS = 20'000'000;
constexpr std::chrono::microseconds NAP{50};  // and as long a spin before the first

}  // namespace

void CudaQueue::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        orders_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
        if (stop_) return;
        const Order order = waiting_.front();
        waiting_.pop_front();
        if (error_.code != Code::ok) continue;
        working_ = true;
        lock.unlock();
        Error err = {};
        const bool ok = run(order, &err);
        if (!ok) {  // nobody may find later what this run's kernels found
            Error ignored = {};
            if (context_->enter(&ignored)) gpu_.driver.cuStreamSynchronize(stream_);
            order.plan->faultless(&ignored);
        }
        lock.lock();
        if (!ok || !depart(*order.plan, order.number, &err)) fail(err);
        working_ = false;
        changed_.notify_all();
    }
}

bool CudaQueue::run(const Order& order, Error* err) {
    CudaPlan& plan = *order.plan;
    if (!prepare(plan, order.uploads, err)) return false;
    size_t next = 0;
    for (size_t i = 0; i < plan.data.parts.size(); ++i) {
        const Part& part = plan.data.parts[i];
        if (cancelled_.load(std::memory_order_relaxed))
            return err->fail(Code::cancelled, "GRAPH_COMPUTE: the run was cancelled");
        if (part.on_cpu) {
            gpu_.cpu_nodes += part.end - part.begin;
            if (!run_on_cpu(plan, plan.fallback.parts[next++], err)) return false;
        } else if (!launch_part(plan, i, err)) {
            return false;
        }
    }
    return true;
}

// Wait until what is on the stream is over.
bool CudaQueue::settle_stream(Error* err) {
    const Driver& d = gpu_.driver;
    if (!context_->check(d.cuEventRecord(settled_, stream_), "cuEventRecord", err)) return false;
    const Clock::time_point start = Clock::now();
    for (;;) {
        const CUresult status = d.cuEventQuery(settled_);
        if (status != CUDA_ERROR_NOT_READY) return context_->check(status, "a graph", err);
        if (cancelled_.load(std::memory_order_relaxed))
            return err->fail(Code::cancelled, "GRAPH_COMPUTE: the run was cancelled");
        if (Clock::now() - start > NAP) std::this_thread::sleep_for(NAP);
    }
}

bool CudaQueue::run_on_cpu(CudaPlan& plan, CpuPart& part, Error* err) {
    const Driver& d = gpu_.driver;
    Device* cpu = gpu_.cpu;
    uint8_t* host = plan.fallback.memory.data;
    for (const HostCopy& c : part.in) {
        const CUresult status = d.cuMemcpyDtoHAsync(host + c.offset, c.device, c.bytes, stream_);
        if (!context_->check(status, "cuMemcpyDtoHAsync", err)) return false;
    }
    // A value that an earlier kernel found illegal must not be computed with.
    if (!settle_stream(err) || !plan.faultless(err)) return false;
    if (cpu_queue_ == nullptr) cpu_queue_ = cpu->ops->open_queue(cpu, err);
    if (cpu_queue_ == nullptr) return false;
    const uint64_t number = cpu->ops->submit(cpu, cpu_queue_, part.plan, err);
    if (number == 0) return false;
    for (;;) {
        const WaitResult result = cpu->ops->wait(cpu, cpu_queue_, number, SLICE_NS, err);
        if (result == WaitResult::failed) return false;
        if (result == WaitResult::done) break;
        if (cancelled_.load(std::memory_order_relaxed)) cpu->ops->cancel(cpu, cpu_queue_);
    }
    for (const HostCopy& c : part.out) {
        const CUresult status = d.cuMemcpyHtoDAsync(c.device, host + c.offset, c.bytes, stream_);
        if (!context_->check(status, "cuMemcpyHtoDAsync", err)) return false;
    }
    return true;
}

}  // namespace cuda
}  // namespace ggr
