// Waiting for a number to change: spin while that pays, then sleep in the kernel.
//
// Spinning is right only as long as the thread that is waited for runs on another core. Beside other busy processes it
// may not: then the spinner keeps it, or those processes, from running. So every thread learns from its own waits.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ggr {

inline int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// How long one thread spins at one kind of wait.
class Patience {
  public:
    // True as soon as ready() is, false when it was not within the time that waits of late make worth while.
    template <class F>
    bool spin(F ready) {
        for (int i = 0; i < BATCH; ++i) {
            if (ready()) return true;
            relax();
        }
        const bool probe = ++waits_ % PROBE_EVERY == 0;
        const int64_t start = now_ns(), end = start + (probe ? LONGEST_NS : budget_ns_);
        do {
            for (int i = 0; i < BATCH; ++i) {
                if (ready()) {
                    if (now_ns() - start > SHORTEST_NS) budget_ns_ = LONGEST_NS;
                    return true;
                }
                relax();
            }
        } while (now_ns() < end);
        budget_ns_ = budget_ns_ / 2 > SHORTEST_NS ? budget_ns_ / 2 : SHORTEST_NS;
        return ready();
    }

  private:
    static constexpr int BATCH = 32;
    // About the cost of a sleep and a wake-up, so that spinning never costs more than double.
    static constexpr int64_t LONGEST_NS = 40'000;
    static constexpr int64_t SHORTEST_NS = 2'000;
    static constexpr uint32_t PROBE_EVERY = 64;
    int64_t budget_ns_ = LONGEST_NS;
    uint32_t waits_ = 0;
};

// A number that threads wait for. Those who change it call wake() when a sleeper may now go on.
class Signal {
  public:
    std::atomic<uint32_t> value{0};

    // Wait until ready(value) holds; returns the value for which it did.
    template <class F>
    uint32_t wait(Patience& patience, F ready) {
        uint32_t seen = 0;
        const auto look = [&] {
            seen = value.load(std::memory_order_acquire);
            return ready(seen);
        };
        if (patience.spin(look)) return seen;
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        for (;;) {
            seen = value.load(std::memory_order_seq_cst);
            if (ready(seen)) break;
            syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
        }
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        return seen;
    }

    // The change must come first, in sequentially consistent order.
    void wake() {
        if (sleepers_.load(std::memory_order_seq_cst) > 0)
            syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    }

  private:
    alignas(64) std::atomic<int> sleepers_{0};
};

}  // namespace ggr
