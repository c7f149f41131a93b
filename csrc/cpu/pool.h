// The CPU device's threads: a fixed number of workers that run one plan at a time, and the queues that feed them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "core/device.h"
#include "cpu/plan.h"

namespace ggr {

// A session's line of work. All fields but the flag are guarded by Pool::mutex_.
struct Queue {
    struct Entry {
        PlanData* plan;
        uint64_t number;
    };
    std::deque<Entry> waiting;
    uint64_t submitted = 0;
    uint64_t completed = 0;
    Error error = {};                    // first failure; the queue takes no more work after it
    std::atomic<bool> cancelled{false};  // read by workers while they run
    bool running = false;
    std::condition_variable changed;
};

class Barrier {
  public:
    explicit Barrier(int count);
    // Wait for all; `last` is called once, by whoever arrives last, before the others go on; its answer is returned to
    // all.
    template <class F>
    bool wait(F last);

  private:
    void sleep_until_past(uint32_t epoch);
    void release(uint32_t epoch);

    const int count_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    std::atomic<int> sleepers_{0};
    bool answer_ = true;
    std::mutex mutex_;
    std::condition_variable woken_;
};

// One execution of a plan, shared by the workers.
struct Run {
    const PlanData* plan = nullptr;
    Queue* queue = nullptr;
    std::atomic<bool> failed{false};
    std::mutex mutex;  // of error
    Error error = {};
    int64_t deadline_ns = 0;  // 0: none
    // Record the first failure; the run ends at the next chunk.
    void fail(Code code, const char* format, ...) __attribute__((format(printf, 3, 4)));
    void failv(Code code, const char* format, va_list args) __attribute__((format(printf, 3, 0)));
};

class Pool {
  public:
    Pool(int n_workers, int64_t graph_timeout_ns);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return n_workers_; }
    Queue* open();
    void close(Queue*);
    uint64_t submit(Queue*, PlanData*, Error*);
    WaitResult wait(Queue*, uint64_t number, int64_t timeout_ns, Error*);
    void cancel(Queue*);
    uint64_t scratch_bytes() const { return scratch_total_.load(std::memory_order_relaxed); }

  private:
    struct Chunk {
        alignas(64) std::atomic<int64_t> next;
    };
    struct Scratch {
        uint8_t* data = nullptr;
        size_t bytes = 0;
    };
    void lead();
    void follow(int index);
    bool reserve(Scratch*, size_t bytes);
    bool prepare(const PlanData&);
    void execute(int index);
    void watch();
    bool next_job(std::unique_lock<std::mutex>& lock, Queue** queue, Queue::Entry* entry);

    const int n_workers_;
    const int64_t graph_timeout_ns_;
    Barrier barrier_;
    Run run_;
    std::vector<Scratch> local_;
    Scratch shared_, chunks_;
    std::atomic<uint64_t> scratch_total_{0};

    // Start of a run: the leader raises the epoch, followers spin a little on it, then sleep.
    std::atomic<uint32_t> epoch_{0};
    std::atomic<int> sleepers_{0};
    std::mutex start_mutex_;
    std::condition_variable start_;

    std::mutex mutex_;
    std::condition_variable work_;
    std::vector<Queue*> queues_;
    size_t turn_ = 0;  // the queue to ask first: round robin
    std::atomic<bool> stop_{false};
    std::atomic<bool> has_work_{false};
    std::vector<std::thread> threads_;
};

}  // namespace ggr
