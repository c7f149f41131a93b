// The CPU device's threads: a fixed number of workers that run one plan at a time, and the queues that feed them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/device.h"
#include "cpu/numa.h"
#include "cpu/plan.h"
#include "cpu/waiting.h"

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
    size_t shared_bytes = 0, local_bytes = 0;  // scratch that its plans took at most
    // Of its own life, so that it can be notified without the mutex, which the woken want first.
    std::shared_ptr<std::condition_variable> changed = std::make_shared<std::condition_variable>();
};

// One execution of a plan, shared by the workers.
//
// Workers do not meet at barriers: a segment (the steps between two barriers of the plan) is complete when its items
// are, and then whoever is there goes on. So nobody waits for a worker that the system does not let run, unless it
// holds items, and one that comes late starts where the others are.
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
    // `room`: bytes that scratch may grow by, asked of whenever it has to.
    Pool(int n_workers, int64_t graph_timeout_ns, const Placement& placement, std::function<uint64_t()> room);
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
    struct Scratch {
        uint8_t* data = nullptr;
        size_t bytes = 0;
    };
    // The counters of a run. Side by side: those of a thousand steps are set to zero in less than a microsecond.
    struct Counters {
        std::atomic<int64_t>* next;  // of a step: the first item that nobody has taken
        std::atomic<int64_t>* done;  // of a segment: units that are complete
        std::atomic<int64_t>* lone;  // of a segment: 1 when somebody has taken its serial steps
    };
    // What a thread keeps from wait to wait.
    struct Waits {
        Patience idle, inside;
    };
    void lead();
    void follow(int index);
    bool reserve(Scratch*, size_t bytes);
    bool prepare(const PlanData&);
    std::vector<Scratch> take_spare();
    void give_back(std::unique_lock<std::mutex>& lock);
    void run(Waits& waits);
    bool join();
    void leave();
    void execute(int index, Patience& patience);
    bool work(const PlanData&, uint32_t segment, Worker& worker);
    int64_t part_of(const Step& step, int64_t begin) const;
    int64_t take(const Step& step, uint32_t index, int64_t* end);
    void finish(const PlanData&, uint32_t segment);
    bool halted();
    bool next_job(std::unique_lock<std::mutex>& lock, Patience& patience, Queue** queue, Queue::Entry* entry);

    const int n_workers_;
    const int64_t graph_timeout_ns_;
    const std::function<uint64_t()> room_;
    Run run_;
    Counters counters_ = {};
    std::vector<Scratch> local_;
    Scratch shared_, counter_memory_;
    std::atomic<uint64_t> scratch_total_{0};

    alignas(64) Signal epoch_;     // number of runs that want more than one worker
    alignas(64) Signal gate_;      // OPEN while such a run may be joined, plus the number of followers in it
    alignas(64) Signal progress_;  // segments of the run that are complete; FAILED ends all waits for more

    std::mutex mutex_;
    std::condition_variable work_;
    std::vector<Queue*> queues_;
    bool busy_ = false;   // the leader is in a run
    bool spare_ = false;  // a queue went while it was: there may be scratch that nobody needs
    size_t turn_ = 0;     // the queue to ask first: round robin
    std::atomic<bool> stop_{false};
    std::atomic<bool> has_work_{false};
    std::vector<std::thread> threads_;
};

}  // namespace ggr
