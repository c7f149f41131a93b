#include "cpu/pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace ggr {

namespace {

constexpr uint32_t OPEN = uint32_t{1} << 31;  // of the gate
constexpr uint32_t FAILED = UINT32_MAX;       // of the progress

// Scratch of this size is kept when the session that needed it leaves: the next one finds its pages there.
constexpr size_t KEEP_SCRATCH = size_t{16} << 20;

// Up to here scratch is had in any case: the device keeps so much memory back when it lends buffers, and clients that
// fill it to the brim do not know of scratch. A prompt of 512 tokens takes some 10 MiB, and 1 MiB a thread.
constexpr size_t LEAST_SCRATCH = size_t{64} << 20;

size_t scratch_size(size_t bytes) { return (bytes + SLACK_BYTES + 0xffff) & ~size_t{0xffff}; }

}  // namespace

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

Pool::Pool(int n_workers, int64_t graph_timeout_ns, const Placement& placement, std::function<uint64_t()> room)
    : n_workers_(n_workers),
      graph_timeout_ns_(graph_timeout_ns),
      room_(std::move(room)),
      local_(static_cast<size_t>(n_workers)) {
    const auto start = [&](int index) {
        threads_.emplace_back([this, index, placement] {
            place_thread(placement, index);
            if (index == 0)
                lead();
            else
                follow(index);
        });
    };
    for (int i = 0; i < n_workers_; ++i) start(i);
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        work_.notify_all();
    }
    epoch_.value.fetch_add(1, std::memory_order_seq_cst);
    epoch_.wake();
    for (std::thread& t : threads_) t.join();
    for (Scratch& s : local_) munmap(s.data, s.bytes);
    munmap(shared_.data, shared_.bytes);
    munmap(counter_memory_.data, counter_memory_.bytes);
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
        queue->changed->wait(lock, [&] { return !queue->running; });
        queues_.erase(std::find(queues_.begin(), queues_.end(), queue));
        spare_ = true;
        if (!busy_) give_back(lock);
    }
    delete queue;
}

uint64_t Pool::submit(Queue* queue, PlanData* plan, Error* err) {
    uint64_t number;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (queue->error.code != Code::ok) {
            *err = queue->error;
            return 0;
        }
        number = ++queue->submitted;
        queue->waiting.push_back({plan, number});
        has_work_.store(true, std::memory_order_release);
    }
    work_.notify_one();  // who wakes up wants the lock
    return number;
}

WaitResult Pool::wait(Queue* queue, uint64_t number, int64_t timeout_ns, Error* err) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto over = [&] { return queue->completed >= number || queue->error.code != Code::ok; };
    if (!over() && (timeout_ns == 0 || !queue->changed->wait_for(lock, std::chrono::nanoseconds(timeout_ns), over)))
        return WaitResult::timeout;
    if (queue->error.code != Code::ok) {
        *err = queue->error;
        return WaitResult::failed;
    }
    return WaitResult::done;
}

void Pool::cancel(Queue* queue) { queue->cancelled = true; }

bool Pool::next_job(std::unique_lock<std::mutex>& lock, Patience& patience, Queue** queue, Queue::Entry* entry) {
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
        const bool ready = patience.spin(
            [&] { return has_work_.load(std::memory_order_acquire) || stop_.load(std::memory_order_relaxed); });
        lock.lock();
        if (!ready) work_.wait(lock, [&] { return has_work_.load(std::memory_order_acquire) || stop_; });
    }
}

// Cut out of the pool, while no run is going, what is larger than any queue's plans have asked for.
std::vector<Pool::Scratch> Pool::take_spare() {
    size_t shared = 0, local = 0;
    for (const Queue* q : queues_) {
        shared = std::max(shared, q->shared_bytes);
        local = std::max(local, q->local_bytes);
    }
    std::vector<Scratch> spare;
    const auto cut = [&](Scratch& s, size_t needed, size_t keep) {
        if (s.bytes <= std::max(keep, scratch_size(needed))) return;
        scratch_total_ -= s.bytes;
        spare.push_back(s);
        s = {};
    };
    cut(shared_, shared, KEEP_SCRATCH);
    for (Scratch& s : local_) cut(s, local, KEEP_SCRATCH / local_.size());
    return spare;
}

// One client's large scratch must not stay when it has left. To unmap gigabytes takes long: the lock is free meanwhile.
void Pool::give_back(std::unique_lock<std::mutex>& lock) {
    spare_ = false;
    const std::vector<Scratch> spare = take_spare();
    if (spare.empty()) return;
    lock.unlock();
    for (const Scratch& s : spare) munmap(s.data, s.bytes);
    lock.lock();
}

bool Pool::reserve(Scratch* s, size_t bytes) {
    if (bytes <= s->bytes) return true;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
    if (s->data != nullptr) munmap(s->data, s->bytes);
    scratch_total_ += bytes - s->bytes;
    *s = {static_cast<uint8_t*>(memory), bytes};
    return true;
}

bool Pool::prepare(const PlanData& plan) {
    // Scratch can be far larger than the tensors: sources that repeat a row are converted whole. The system would give
    // it and end the server when it is written to.
    const size_t shared_bytes = scratch_size(plan.shared_bytes), local_bytes = scratch_size(plan.local_bytes);
    size_t more = shared_bytes - std::min(shared_bytes, shared_.bytes);
    for (const Scratch& s : local_) more += local_bytes - std::min(local_bytes, s.bytes);
    if (more > 0 && scratch_bytes() + more > LEAST_SCRATCH && more > room_()) return false;
    for (Scratch& s : local_)
        if (!reserve(&s, local_bytes)) return false;
    const size_t n_steps = plan.steps.size(), n_segments = plan.segments.size();
    const size_t bytes = (n_steps + 2 * n_segments) * sizeof(std::atomic<int64_t>);
    if (!reserve(&shared_, shared_bytes) || !reserve(&counter_memory_, scratch_size(bytes))) return false;
    if (bytes != 0) std::memset(counter_memory_.data, 0, bytes);  // a plan without steps has no counters
    counters_.next = reinterpret_cast<std::atomic<int64_t>*>(counter_memory_.data);
    counters_.done = counters_.next + n_steps;
    counters_.lone = counters_.done + n_segments;
    return true;
}

void Pool::lead() {
    Waits waits;
    std::unique_lock<std::mutex> lock(mutex_);
    Queue* queue;
    Queue::Entry entry;
    while (next_job(lock, waits.idle, &queue, &entry)) {
        if (queue->error.code == Code::ok) {
            busy_ = true;
            queue->shared_bytes = std::max(queue->shared_bytes, entry.plan->shared_bytes);
            queue->local_bytes = std::max(queue->local_bytes, entry.plan->local_bytes);
            lock.unlock();
            run_.plan = entry.plan;
            run_.queue = queue;
            run_.failed = false;
            run_.error.clear();
            run_.deadline_ns = graph_timeout_ns_ > 0 ? now_ns() + graph_timeout_ns_ : 0;
            if (prepare(*entry.plan)) {
                run(waits);
            } else {
                run_.error.fail(Code::memory, "GRAPH_COMPUTE: no memory for %zu bytes of scratch",
                                entry.plan->shared_bytes + entry.plan->local_bytes * static_cast<size_t>(n_workers_));
                run_.failed = true;
            }
            lock.lock();
            busy_ = false;
            if (run_.failed && queue->error.code == Code::ok) queue->error = run_.error;
        }
        queue->completed = entry.number;
        queue->running = false;
        const std::shared_ptr<std::condition_variable> changed = queue->changed;  // the queue may go when unlocked
        lock.unlock();
        changed->notify_all();
        lock.lock();
        if (spare_) give_back(lock);
    }
}

// The leader's part: let the followers in, work, see them out. A plan without anything to share concerns nobody else.
void Pool::run(Waits& waits) {
    progress_.value.store(0, std::memory_order_relaxed);
    const bool shared = run_.plan->shared && n_workers_ > 1;
    if (shared) {
        gate_.value.store(OPEN, std::memory_order_release);
        epoch_.value.fetch_add(1, std::memory_order_seq_cst);
        epoch_.wake();
    }
    execute(0, waits.inside);
    const uint32_t all = static_cast<uint32_t>(run_.plan->segments.size());
    progress_.wait(waits.inside, [&](uint32_t done) { return done >= all; });
    if (!shared) return;
    gate_.value.fetch_and(~OPEN, std::memory_order_seq_cst);
    gate_.wait(waits.inside, [](uint32_t gate) { return gate == 0; });
}

bool Pool::join() {
    uint32_t gate = gate_.value.load(std::memory_order_acquire);
    while ((gate & OPEN) != 0)
        if (gate_.value.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) return true;
    return false;
}

void Pool::leave() {
    if (gate_.value.fetch_sub(1, std::memory_order_seq_cst) == 1) gate_.wake();
}

void Pool::follow(int index) {
    Waits waits;
    uint32_t seen = 0;
    for (;;) {
        seen = epoch_.wait(waits.idle, [&](uint32_t epoch) { return epoch != seen; });
        if (stop_.load(std::memory_order_relaxed)) return;
        if (!join()) continue;
        execute(index, waits.inside);
        leave();
    }
}

void Pool::execute(int index, Patience& patience) {
    const PlanData& plan = *run_.plan;
    Worker worker = {index, n_workers_, local_[static_cast<size_t>(index)].data, shared_.data, &run_};
    const uint32_t all = static_cast<uint32_t>(plan.segments.size());
    for (uint32_t segment = 0; segment < all; ++segment) {
        const uint32_t done = progress_.wait(patience, [&](uint32_t n) { return n >= segment; });
        if (done == FAILED) return;
        segment = done;  // what others have completed meanwhile is past
        if (segment < all && !work(plan, segment, worker)) {
            progress_.value.store(FAILED, std::memory_order_seq_cst);
            progress_.wake();
            return;
        }
    }
}

// How many items are handed out from `begin` on. Tapered, half of an even share of what is left: the more items a
// worker has at once, the longer are its streams, and the fewer the last ones are, the closer together all end.
int64_t Pool::part_of(const Step& step, int64_t begin) const {
    const int64_t left = step.n_items - begin;
    const int64_t part = step.tapered ? std::max(step.grain, left / (2 * n_workers_)) : step.grain;
    return std::min({part, left, step.most});
}

// The next items of step number `index`: from what is returned to *end; none if that is n_items or more.
int64_t Pool::take(const Step& step, uint32_t index, int64_t* end) {
    std::atomic<int64_t>& next = counters_.next[index];
    int64_t begin;
    if (step.tapered) {
        begin = next.load(std::memory_order_relaxed);
        while (begin < step.n_items &&
               !next.compare_exchange_weak(begin, begin + part_of(step, begin), std::memory_order_relaxed)) {
        }
    } else {
        begin = next.fetch_add(step.grain, std::memory_order_relaxed);
    }
    *end = begin < step.n_items ? begin + part_of(step, begin) : begin;
    return begin;
}

// Take items of a segment until none is left. False when the run has failed.
bool Pool::work(const PlanData& plan, uint32_t index, Worker& worker) {
    const Segment& segment = plan.segments[index];
    int64_t units = 0;
    // The serial steps are one unit: they run in order, all on the worker that asks first.
    const bool lone = segment.serial && counters_.lone[index].load(std::memory_order_relaxed) == 0 &&
                      counters_.lone[index].exchange(1, std::memory_order_relaxed) == 0;
    if (lone) units = 1;
    for (uint32_t i = segment.begin; i < segment.end; ++i) {
        const Step& step = plan.steps[i];
        if (step.serial) {
            for (int64_t begin = 0; lone && begin < step.n_items; begin += step.most)
                if (halted() || !step.fn(step, begin, std::min(begin + step.most, step.n_items), worker)) return false;
            continue;
        }
        for (;;) {
            if (halted()) return false;
            int64_t end;
            const int64_t begin = take(step, i, &end);
            if (begin >= step.n_items) break;
            if (!step.fn(step, begin, end, worker)) return false;
            units += end - begin;
        }
    }
    if (units > 0 && counters_.done[index].fetch_add(units, std::memory_order_acq_rel) + units == segment.units)
        finish(plan, index);
    return true;
}

// The segment is complete. Sleepers are woken only for something that they can share in.
void Pool::finish(const PlanData& plan, uint32_t index) {
    uint32_t expected = index;
    if (!progress_.value.compare_exchange_strong(expected, index + 1, std::memory_order_seq_cst)) return;
    if (index + 1 == plan.segments.size() || plan.segments[index + 1].shared) progress_.wake();
}

// Whether the run has failed; a cancelled queue or a passed deadline makes it fail.
bool Pool::halted() {
    if (run_.failed.load(std::memory_order_acquire)) return true;
    if (run_.queue->cancelled.load(std::memory_order_relaxed)) {
        run_.fail(Code::cancelled, "GRAPH_COMPUTE: the run was cancelled");
        return true;
    }
    if (run_.deadline_ns != 0 && now_ns() > run_.deadline_ns) {
        run_.fail(Code::timeout, "GRAPH_COMPUTE: the run took longer than the graph timeout (%lld ms)",
                  static_cast<long long>(graph_timeout_ns_ / 1'000'000));
        return true;
    }
    return false;
}

}  // namespace ggr
