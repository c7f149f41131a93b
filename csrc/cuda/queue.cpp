// Queues: from a submitted plan to launches on a stream, and to the end of the run.
#include "cuda/queue.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cuda/memory.h"
#include "graph/graph.h"

namespace ggr {
namespace cuda {

namespace {

constexpr unsigned NON_BLOCKING = 1;           // of streams: not ordered with the legacy stream
constexpr unsigned SLEEPING_WITHOUT_TIME = 3;  // of events
constexpr int CAPTURE_RELAXED = 2;             // other threads may allocate meanwhile
// Below it a captured graph saves nothing.
constexpr uint32_t CAPTURED_LAUNCHES = 4;
// A wait spins for some times what going to sleep and waking up takes (about 60 us), then sleeps for a part of the time
// it has waited: a run of 4 ms is noticed about 1 % late.
constexpr std::chrono::microseconds SPIN{200};
constexpr std::chrono::microseconds SHORTEST_SLEEP{10}, LONGEST_SLEEP{1000};
constexpr int SLEEP_PART = 64;
constexpr uint64_t SCRATCH_STEP = uint64_t{1} << 20;

uint64_t fnv(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x100000001b3; }

// Graphs of the same kernels, in the same order, can be made from each other by an update.
uint64_t key_of(const PlanData& data, const Part& part) {
    uint64_t key = fnv(0xcbf29ce484222325, part.end - part.begin);
    for (uint32_t i = part.begin; i < part.end; ++i) key = fnv(key, data.launches[i].kernel);
    return key;
}

}  // namespace

CudaPlan::~CudaPlan() {
    Error ignored = {};
    if (context != nullptr && context->enter(&ignored)) {
        for (const Captured& c : captured)
            if (c.exec != nullptr) context->give_graph(c.key, c.exec);
    }
    if (fault.host != nullptr) context->give_fault(fault);
    if (gpu != nullptr) fallback.release(gpu->cpu);
    free_graph(graph);
}

void CudaPlan::relocate(uint64_t scratch) {
    if (scratch == scratch_at) return;
    for (const uint32_t at : data.relocations) {
        uint64_t word;
        std::memcpy(&word, data.args.data() + at, sizeof word);
        word += scratch - scratch_at;
        std::memcpy(data.args.data() + at, &word, sizeof word);
    }
    scratch_at = scratch;
    for (Captured& c : captured) c.current = false;
}

bool CudaPlan::faultless(Error* err) {
    if (__atomic_load_n(&fault.host->state, __ATOMIC_ACQUIRE) == 0) return true;
    const Fault f = *fault.host;
    std::memset(fault.host, 0, sizeof *fault.host);
    const uint32_t number = static_cast<uint32_t>(f.node);
    const Tensor* node = number < graph->n_nodes ? graph->nodes[number] : nullptr;
    const Tensor* source = node != nullptr && f.source >= 0 && f.source < node->n_src ? node->src[f.source] : nullptr;
    return err->fail(Code::compute, "GRAPH_COMPUTE: tensor '%s': op %s: index %lld in '%s' is out of range (0 .. %lld)",
                     node != nullptr ? node->name : "?", node != nullptr ? op_traits(node->op)->name : "?",
                     static_cast<long long>(f.value), source != nullptr ? source->name : "?",
                     static_cast<long long>(f.limit) - 1);
}

CudaQueue* CudaQueue::open(Gpu& gpu, Error* err) {
    std::shared_ptr<Context> context = gpu.context(err);
    if (context == nullptr || !context->enter(err)) return nullptr;
    std::unique_ptr<CudaQueue> queue(new CudaQueue(gpu, context));
    const Driver& d = gpu.driver;
    if (!context->check(d.cuStreamCreate(&queue->stream_, NON_BLOCKING), "cuStreamCreate", err)) return nullptr;
    return queue.release();
}

CudaQueue::~CudaQueue() {
    cancel();
    if (thread_.joinable()) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            orders_.notify_all();
        }
        thread_.join();
    }
    if (cpu_queue_ != nullptr) gpu_.cpu->ops->close_queue(gpu_.cpu, cpu_queue_);
    const Driver& d = gpu_.driver;
    Error ignored = {};
    const bool alive = context_->enter(&ignored);
    if (alive && stream_ != nullptr) context_->check(d.cuStreamSynchronize(stream_), "a run", &ignored);
    for (const Run& run : flying_) {
        run.plan->faultless(&ignored);  // nobody asks any more
        if (alive) context_->run_ends();
        events_.push_back(run.event);
    }
    if (!alive) return;  // all of it goes with the context
    for (CUevent e : events_) d.cuEventDestroy(e);
    if (stream_ != nullptr) d.cuStreamDestroy(stream_);
    if (scratch_ != 0) d.cuMemFree(scratch_);
}

uint64_t CudaQueue::submit(CudaPlan& plan, Error* err) {
    uint64_t uploads = 0;
    for (Buffer* b : plan.buffers) {
        BufferState& s = state_of(*b);
        forget_ahead(s);
        uploads = std::max(uploads, s.last_write);
    }
    std::vector<uint64_t> versions;
    for (const CpuPart& part : plan.fallback.parts)
        for (const Kept& k : part.kept) versions.push_back(state_of(*k.buffer).version);
    for (Buffer* b : plan.written) ++state_of(*b).version;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_.code != Code::ok) {
        *err = error_;
        return 0;
    }
    const uint64_t number = submitted_ + 1;
    if (completed_ == submitted_) begun_ = Clock::now();
    if (plan.on_cpu() || working_ || !waiting_.empty()) {
        if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
        waiting_.push_back({&plan, number, uploads, std::move(versions)});
        orders_.notify_one();
    } else {
        bool ok = prepare(plan, uploads, err);
        for (size_t i = 0; ok && i < plan.data.parts.size(); ++i) ok = launch_part(plan, i, err);
        if (!ok || !depart(plan, number, err)) {
            fail(*err);
            return 0;
        }
    }
    submitted_ = number;
    return number;
}

// Make the queue ready for a run: scratch in place, uploads before it.
bool CudaQueue::prepare(CudaPlan& plan, uint64_t uploads, Error* err) {
    if (plan.context != context_)
        return err->fail(Code::device, "GRAPH_COMPUTE: the graph was made before an error of CUDA device %d",
                         gpu_.ordinal);
    if (!context_->enter(err) || !reserve(plan.data.scratch_bytes + plan.data.workspace_bytes, err)) return false;
    plan.relocate(scratch_);
    ++plan.runs;
    gpu_.launches += plan.data.launches.size() - plan.library_launches;
    gpu_.products += plan.library_launches;
    return context_->staging().order(uploads, stream_, err);
}

bool CudaQueue::reserve(uint64_t bytes, Error* err) {
    if (bytes == 0) return true;
    bytes += SLACK_BYTES;
    if (bytes <= scratch_bytes_) return true;
    bytes = (bytes + SCRATCH_STEP - 1) / SCRATCH_STEP * SCRATCH_STEP;
    const Driver& d = gpu_.driver;
    if (scratch_ != 0) {
        if (!context_->check(d.cuStreamSynchronize(stream_), "a run", err)) return false;
        d.cuMemFree(scratch_);
        scratch_ = scratch_bytes_ = 0;
    }
    if (!context_->allocate(bytes, "GRAPH_COMPUTE: scratch", &scratch_, err)) return false;
    scratch_bytes_ = bytes;
    return true;
}

bool CudaQueue::launch_part(CudaPlan& plan, size_t index, Error* err) {
    const Part& part = plan.data.parts[index];
    if (part.end - part.begin < CAPTURED_LAUNCHES || !context_->captures()) return launch_all(plan, part, err);
    if (plan.captured.empty()) plan.captured.resize(plan.data.parts.size());
    CudaPlan::Captured& c = plan.captured[index];
    if (c.exec == nullptr) {
        c.key = key_of(plan.data, part);
        c.exec = context_->take_graph(c.key);
        c.current = false;
    }
    // The first run of kernels that no graph is there for goes out directly: many plans are run once only. So does one
    // with products of the library, which loads its kernels then: not a thing to do in a capture.
    if (plan.runs < 2 && (c.exec == nullptr || plan.library_launches != 0)) return launch_all(plan, part, err);
    return launch_captured(plan, index, c, err);
}

bool CudaQueue::launch_all(CudaPlan& plan, const Part& part, Error* err) {
    const Driver& d = gpu_.driver;
    for (uint32_t i = part.begin; i < part.end; ++i) {
        const Launch& l = plan.data.launches[i];
        if (l.kernel == BY_LIBRARY) {
            if (!launch_product(plan, l, err)) return false;
            continue;
        }
        void* args[] = {plan.data.args.data() + l.args};
        const CUresult status = d.cuLaunchKernel(plan.functions[i], l.grid.x, l.grid.y, l.grid.z, l.threads, 1, 1,
                                                 l.shared_bytes, stream_, args, nullptr);
        if (status == CUDA_SUCCESS) continue;
        const Tensor& node = *plan.graph->nodes[l.node];
        char what[256];
        std::snprintf(what, sizeof what, "op %s, tensor '%.63s': launch of %.100s", op_traits(node.op)->name, node.name,
                      gpu_.kernels.row(l.kernel).expression.c_str());
        return context_->check(status, what, err);
    }
    return true;
}

bool CudaQueue::launch_product(CudaPlan& plan, const Launch& l, Error* err) {
    LibraryProduct product;
    std::memcpy(&product, plan.data.args.data() + l.args, sizeof product);
    const BlasStatus status = context_->library()->run(*plan.products[l.grid.x], product,
                                                       scratch_ + plan.data.scratch_bytes, WORKSPACE_BYTES, stream_);
    if (status == 0) return true;
    const Tensor& node = *plan.graph->nodes[l.node];
    return err->fail(Code::device, "CUDA device %d: op %s, tensor '%.63s': cublasLtMatmul failed with status %d",
                     gpu_.ordinal, op_traits(node.op)->name, node.name, status);
}

// One graph launch in place of many: the graph is captured from the launches, and one of the same kernels is updated.
bool CudaQueue::launch_captured(CudaPlan& plan, size_t index, CudaPlan::Captured& c, Error* err) {
    const Driver& d = gpu_.driver;
    const Part& part = plan.data.parts[index];
    if (!c.current) {
        if (d.cuStreamBeginCapture(stream_, CAPTURE_RELAXED) != CUDA_SUCCESS) {
            context_->no_captures();
            return launch_all(plan, part, err);
        }
        const bool launched = launch_all(plan, part, err);
        CUgraph graph = nullptr;
        const CUresult ended = d.cuStreamEndCapture(stream_, &graph);
        if (!launched) {
            if (graph != nullptr) d.cuGraphDestroy(graph);
            return false;
        }
        if (ended != CUDA_SUCCESS) return without_graph(plan, part, ended, "cuStreamEndCapture", err);
        uint64_t result[8] = {};  // CUgraphExecUpdateResultInfo, and room
        if (c.exec != nullptr) {
            if (d.cuGraphExecUpdate(c.exec, graph, result) == CUDA_SUCCESS) {
                ++gpu_.graph_updates;
            } else {
                d.cuGraphExecDestroy(c.exec);
                c.exec = nullptr;
            }
        }
        CUresult made = CUDA_SUCCESS;
        if (c.exec == nullptr) made = d.cuGraphInstantiateWithFlags(&c.exec, graph, 0);
        d.cuGraphDestroy(graph);
        if (made != CUDA_SUCCESS) {
            c.exec = nullptr;
            return without_graph(plan, part, made, "cuGraphInstantiateWithFlags", err);
        }
        c.current = true;
    }
    ++gpu_.graph_launches;
    return context_->check(d.cuGraphLaunch(c.exec, stream_), "cuGraphLaunch", err);
}

// No graph could be made, for want of memory say: the launches go out one by one, unless the context is lost.
bool CudaQueue::without_graph(CudaPlan& plan, const Part& part, CUresult status, const char* what, Error* err) {
    context_->check(status, what, err);
    if (context_->dead()) return false;
    err->clear();
    if (status != CUDA_ERROR_OUT_OF_MEMORY) context_->no_captures();
    return launch_all(plan, part, err);
}

bool CudaQueue::depart(CudaPlan& plan, uint64_t number, Error* err) {
    const Driver& d = gpu_.driver;
    CUevent event = nullptr;
    if (!events_.empty()) {
        event = events_.back();
        events_.pop_back();
    } else if (!context_->check(d.cuEventCreate(&event, SLEEPING_WITHOUT_TIME), "cuEventCreate", err)) {
        return false;
    }
    flying_.push_back({&plan, number, event});
    context_->run_begins();
    return context_->check(d.cuEventRecord(event, stream_), "cuEventRecord", err);
}

void CudaQueue::fail(const Error& err) {
    if (error_.code == Code::ok) error_ = err;
    changed_.notify_all();
}

// Take in the runs that are over.
void CudaQueue::land() {
    Error err = {};
    while (!flying_.empty()) {
        const Run run = flying_.front();
        const CUresult status = gpu_.driver.cuEventQuery(run.event);
        if (status == CUDA_ERROR_NOT_READY) return;
        flying_.pop_front();
        context_->run_ends();
        events_.push_back(run.event);
        completed_ = run.number;
        begun_ = Clock::now();
        const bool ran = context_->check(status, "a graph", &err);
        if (!run.plan->faultless(&err) || !ran) fail(err);
    }
}

WaitResult CudaQueue::wait(uint64_t number, int64_t timeout_ns, Error* err) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (error_.code == Code::ok && completed_ >= number && flying_.empty()) return WaitResult::done;
    const Clock::time_point start = Clock::now(), end = start + std::chrono::nanoseconds(timeout_ns);
    if (error_.code == Code::ok && !context_->enter(err)) fail(*err);
    for (;;) {
        if (error_.code == Code::ok) land();
        if (completed_ < number && error_.code == Code::ok) {
            Error stopped = {};
            if (halted(&stopped)) fail(stopped);
        }
        if (error_.code != Code::ok) {
            *err = error_;
            return WaitResult::failed;
        }
        if (completed_ >= number) return WaitResult::done;
        const Clock::time_point now = Clock::now();
        if (now >= end) return WaitResult::timeout;
        if (flying_.empty()) {  // the thread is at it
            changed_.wait_until(lock, std::min(end, now + std::chrono::milliseconds(50)));
            continue;
        }
        if (now - start < SPIN) continue;
        const auto nap = std::clamp<Clock::duration>((now - start) / SLEEP_PART, SHORTEST_SLEEP, LONGEST_SLEEP);
        changed_.wait_until(lock, std::min(end, now + nap));
    }
}

// The run must not go on: it was cancelled, or takes too long. With the mutex held, or from the thread, whose order is
// then the oldest run.
bool CudaQueue::halted(Error* err) {
    if (cancelled_.load(std::memory_order_relaxed)) {
        err->fail(Code::cancelled, "GRAPH_COMPUTE: the run was cancelled");
        return true;
    }
    const std::chrono::nanoseconds limit(gpu_.graph_timeout_ns);
    if (limit.count() > 0 && Clock::now() - begun_ > limit) {
        err->fail(Code::timeout, "GRAPH_COMPUTE: the run took longer than the graph timeout (%lld ms)",
                  static_cast<long long>(gpu_.graph_timeout_ns / 1'000'000));
        return true;
    }
    return false;
}

void CudaQueue::cancel() {
    cancelled_ = true;
    const std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
}

}  // namespace cuda
}  // namespace ggr
