#include "cpu/pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ggr {

namespace {

// How long a thread spins before it sleeps: about the cost of a sleep and a wake-up, so that spinning never costs more
// than double.
constexpr int64_t SPIN_NS = 40'000;
constexpr int SPIN_BATCH = 32;

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Spin until ready() or the time is over; returns ready().
template <class F>
bool spin(F ready) {
    for (int i = 0; i < SPIN_BATCH; ++i) {
        if (ready()) return true;
        relax();
    }
    const int64_t end = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPIN_BATCH; ++i) {
            if (ready()) return true;
            relax();
        }
    } while (now_ns() < end);
    return ready();
}

}  // namespace

Barrier::Barrier(int count) : count_(count) {}

template <class F>
bool Barrier::wait(F last) {
    const uint32_t epoch = epoch_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
        answer_ = last();
        const bool answer = answer_;
        arrived_.store(0, std::memory_order_relaxed);
        release(epoch);
        return answer;
    }
    if (!spin([&] { return epoch_.load(std::memory_order_acquire) != epoch; })) sleep_until_past(epoch);
    return answer_;  // stable until all have arrived at the next barrier
}

void Barrier::release(uint32_t epoch) {
    epoch_.store(epoch + 1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        const std::lock_guard<std::mutex> lock(mutex_);
        woken_.notify_all();
    }
}

void Barrier::sleep_until_past(uint32_t epoch) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    woken_.wait(lock, [&] { return epoch_.load(std::memory_order_seq_cst) != epoch; });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

void Run::fail(Code code, const char* format, ...) {
    va_list args;
    va_start(args, format);
    failv(code, format, args);
    va_end(args);
}

void Run::failv(Code code, const char* format, va_list args) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!failed.load(std::memory_order_relaxed)) {
        error.failv(code, format, args);
        failed.store(true, std::memory_order_release);
    }
}

bool fail_run(Worker& worker, const Step&, const char* format, ...) {
    va_list args;
    va_start(args, format);
    worker.run->failv(Code::compute, format, args);
    va_end(args);
    return false;
}

bool fail_index(Worker& worker, const Step& step, const Tensor* index, int64_t value, int64_t limit) {
    return fail_run(worker, step, "GRAPH_COMPUTE: tensor '%s': op %s: index %lld in '%s' is out of range (0 .. %lld)",
                    step.dst->name, op_traits(step.dst->op)->name, static_cast<long long>(value), index->name,
                    static_cast<long long>(limit) - 1);
}

Pool::Pool(int n_workers, int64_t graph_timeout_ns)
    : n_workers_(n_workers),
      graph_timeout_ns_(graph_timeout_ns),
      barrier_(n_workers),
      local_(static_cast<size_t>(n_workers)) {
    threads_.emplace_back([this] { lead(); });
    for (int i = 1; i < n_workers_; ++i) threads_.emplace_back([this, i] { follow(i); });
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        work_.notify_all();
    }
    {
        const std::lock_guard<std::mutex> lock(start_mutex_);
        start_.notify_all();
    }
    for (std::thread& t : threads_) t.join();
    for (Scratch& s : local_) munmap(s.data, s.bytes);
    munmap(shared_.data, shared_.bytes);
    munmap(chunks_.data, chunks_.bytes);
}

Queue* Pool::open() {
    Queue* queue = new Queue;
    const std::lock_guard<std::mutex> lock(mutex_);
    queues_.push_back(queue);
    return queue;
}

void Pool::close(Queue* queue) {
    queue->cancelled = true;
    {
        std::unique_lock<std::mutex> lock(mutex_);
        queue->waiting.clear();
        queue->changed.wait(lock, [&] { return !queue->running; });
        queues_.erase(std::find(queues_.begin(), queues_.end(), queue));
    }
    delete queue;
}

uint64_t Pool::submit(Queue* queue, PlanData* plan, Error* err) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (queue->error.code != Code::ok) {
        *err = queue->error;
        return 0;
    }
    queue->waiting.push_back({plan, ++queue->submitted});
    has_work_.store(true, std::memory_order_release);
    work_.notify_one();
    return queue->submitted;
}

WaitResult Pool::wait(Queue* queue, uint64_t number, int64_t timeout_ns, Error* err) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto over = [&] { return queue->completed >= number || queue->error.code != Code::ok; };
    if (!queue->changed.wait_for(lock, std::chrono::nanoseconds(timeout_ns), over)) return WaitResult::timeout;
    if (queue->error.code != Code::ok) {
        *err = queue->error;
        return WaitResult::failed;
    }
    return WaitResult::done;
}

void Pool::cancel(Queue* queue) { queue->cancelled = true; }

bool Pool::next_job(std::unique_lock<std::mutex>& lock, Queue** queue, Queue::Entry* entry) {
    for (;;) {
        if (stop_) return false;
        for (size_t i = 0; i < queues_.size(); ++i) {
            Queue* q = queues_[(turn_ + i) % queues_.size()];
            if (q->waiting.empty()) continue;
            *queue = q;
            *entry = q->waiting.front();
            q->waiting.pop_front();
            q->running = true;
            turn_ = (turn_ + i + 1) % queues_.size();
            return true;
        }
        has_work_.store(false, std::memory_order_relaxed);
        lock.unlock();
        const bool ready =
            spin([&] { return has_work_.load(std::memory_order_acquire) || stop_.load(std::memory_order_relaxed); });
        lock.lock();
        if (!ready) work_.wait(lock, [&] { return has_work_.load(std::memory_order_acquire) || stop_; });
    }
}

bool Pool::reserve(Scratch* s, size_t bytes) {
    if (bytes <= s->bytes) return true;
    bytes = (bytes + 0xffff) & ~size_t{0xffff};
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
    if (s->data != nullptr) munmap(s->data, s->bytes);
    scratch_total_ += bytes - s->bytes;
    *s = {static_cast<uint8_t*>(memory), bytes};
    return true;
}

bool Pool::prepare(const PlanData& plan) {
    for (Scratch& s : local_)
        if (!reserve(&s, plan.local_bytes + SLACK_BYTES)) return false;
    if (!reserve(&shared_, plan.shared_bytes + SLACK_BYTES) || !reserve(&chunks_, plan.steps.size() * sizeof(Chunk)))
        return false;
    Chunk* chunks = reinterpret_cast<Chunk*>(chunks_.data);
    for (size_t i = 0; i < plan.steps.size(); ++i) chunks[i].next.store(0, std::memory_order_relaxed);
    return true;
}

void Pool::lead() {
    std::unique_lock<std::mutex> lock(mutex_);
    Queue* queue;
    Queue::Entry entry;
    while (next_job(lock, &queue, &entry)) {
        if (queue->error.code == Code::ok) {
            lock.unlock();
            run_.plan = entry.plan;
            run_.queue = queue;
            run_.failed = false;
            run_.error.clear();
            run_.deadline_ns = graph_timeout_ns_ > 0 ? now_ns() + graph_timeout_ns_ : 0;
            if (prepare(*entry.plan)) {
                epoch_.fetch_add(1, std::memory_order_seq_cst);
                if (sleepers_.load(std::memory_order_seq_cst) > 0) {
                    const std::lock_guard<std::mutex> start(start_mutex_);
                    start_.notify_all();
                }
                execute(0);
            } else {
                run_.error.fail(Code::memory, "GRAPH_COMPUTE: no memory for %zu bytes of scratch",
                                entry.plan->shared_bytes + entry.plan->local_bytes * static_cast<size_t>(n_workers_));
                run_.failed = true;
            }
            lock.lock();
            if (run_.failed && queue->error.code == Code::ok) queue->error = run_.error;
        }
        queue->completed = entry.number;
        queue->running = false;
        queue->changed.notify_all();
    }
}

void Pool::follow(int index) {
    uint32_t seen = 0;
    for (;;) {
        const auto started = [&] {
            return epoch_.load(std::memory_order_seq_cst) != seen || stop_.load(std::memory_order_relaxed);
        };
        if (!spin(started)) {
            std::unique_lock<std::mutex> lock(start_mutex_);
            sleepers_.fetch_add(1, std::memory_order_seq_cst);
            start_.wait(lock, started);
            sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        }
        if (epoch_.load(std::memory_order_acquire) == seen) return;  // stop
        ++seen;
        execute(index);
    }
}

void Pool::execute(int index) {
    const PlanData& plan = *run_.plan;
    Worker worker = {index, n_workers_, local_[static_cast<size_t>(index)].data, shared_.data, &run_};
    Chunk* chunks = reinterpret_cast<Chunk*>(chunks_.data);
    // Worker 0 watches the clock and the queue's flag; the others see what it found.
    const auto halted = [&] {
        if (index == 0) watch();
        return run_.failed.load(std::memory_order_acquire);
    };
    // Whoever arrives last decides for all whether the run goes on, so that all leave at the same barrier.
    const auto go_on = [&] { return !run_.failed.load(std::memory_order_acquire); };
    for (size_t i = 0; i < plan.steps.size(); ++i) {
        const Step& step = plan.steps[i];
        if (step.barrier && !barrier_.wait(go_on)) return;
        if (step.serial && index != 0) continue;
        while (!halted()) {
            const int64_t begin = chunks[i].next.fetch_add(step.grain, std::memory_order_relaxed);
            if (begin >= step.n_items) break;
            if (!step.fn(step, begin, std::min(begin + step.grain, step.n_items), worker)) break;
        }
    }
    barrier_.wait(go_on);
}

// Turn a cancelled queue or a passed deadline into the run's failure.
void Pool::watch() {
    if (run_.failed.load(std::memory_order_relaxed)) return;
    if (run_.queue->cancelled.load(std::memory_order_relaxed)) {
        run_.fail(Code::cancelled, "GRAPH_COMPUTE: the run was cancelled");
    } else if (run_.deadline_ns != 0 && now_ns() > run_.deadline_ns) {
        run_.fail(Code::timeout, "GRAPH_COMPUTE: the run took longer than the graph timeout (%lld ms)",
                  static_cast<long long>(graph_timeout_ns_ / 1'000'000));
    }
}

}  // namespace ggr
