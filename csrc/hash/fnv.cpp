#include "hash/fnv.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "levels_config.h"

namespace ggr {

#define GGR_DECLARE_LEVEL(level)                                         \
    namespace level {                                                    \
    size_t fnv_blocks(const uint8_t* data, size_t size, uint64_t* hash); \
    }
GGR_COMPLETE_LEVELS(GGR_DECLARE_LEVEL)
#undef GGR_DECLARE_LEVEL

namespace {

using Blocks = size_t (*)(const uint8_t*, size_t, uint64_t*);

struct Level {
    const char* name;
    bool (*runs)();
    Blocks blocks;
    // Whether a buffer by blocks is as fast as several by interleaved byte loops.
    bool beats_interleaving;
};

bool runs_baseline() { return true; }

#if defined(__x86_64__)
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }
bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

size_t no_blocks(const uint8_t*, size_t, uint64_t*) { return 0; }

constexpr int MAX_LEVELS = 8;
// Byte loops that run at the multiplier's rate: 4 cycles from one product to the next of the same hash.
constexpr int INTERLEAVED = 8;

struct Levels {
    Level rows[MAX_LEVELS];
    int n = 0;

    Levels() {
#define GGR_LEVEL_ROW(level) add({#level, runs_##level, level::fnv_blocks, false});
        GGR_COMPLETE_LEVELS(GGR_LEVEL_ROW)
#undef GGR_LEVEL_ROW
        // Measured in GB/s on one core: eight byte loops in one 3.6, blocks 4.8 with AVX-512, 3.9 with AVX2, 2.0 with
        // SSE4.
        for (int i = 0; i + 1 < n; ++i) rows[i].beats_interleaving = true;
        add({"bytes", runs_baseline, no_blocks, false});
    }
    void add(const Level& level) {
        if (level.runs()) rows[n++] = level;
    }
};

const Levels& levels() {
    static const Levels found;
    return found;
}

uint64_t bytes(const uint8_t* data, size_t size, uint64_t hash) {
    for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * FNV_PRIME;
    return hash;
}

uint64_t by(const Level& level, const uint8_t* data, size_t size, uint64_t hash) {
    const size_t done = level.blocks(data, size, &hash);
    return bytes(data + done, size - done, hash);
}

// The same number of bytes of N jobs.
template <int N>
void step(HashJob* const* jobs, size_t size) {
    const uint8_t* data[N];
    uint64_t hash[N];
    for (int k = 0; k < N; ++k) {
        data[k] = jobs[k]->data;
        hash[k] = jobs[k]->hash;
    }
    for (size_t i = 0; i < size; ++i)
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) hash[k] = (hash[k] ^ data[k][i]) * FNV_PRIME;
    for (int k = 0; k < N; ++k) jobs[k]->hash = hash[k];
}

// Take jobs from a counter that other threads share, until there are none.
void interleave(HashJob* jobs, size_t n_jobs, std::atomic<size_t>* next) {
    HashJob current[INTERLEAVED];  // what is left of each
    HashJob* whole[INTERLEAVED];
    HashJob* lanes[INTERLEAVED];
    for (int k = 0; k < INTERLEAVED; ++k) lanes[k] = &current[k];
    int n = 0;
    for (;;) {
        for (size_t i; n < INTERLEAVED && (i = next->fetch_add(1)) < n_jobs; ++n) {
            *lanes[n] = jobs[i];
            whole[lanes[n] - current] = &jobs[i];
        }
        if (n == 0) return;
        // The shortest of those that run together ends, and the next job takes its place.
        const int together = n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
        size_t size = lanes[0]->size;
        for (int k = 1; k < together; ++k) size = std::min(size, lanes[k]->size);
        switch (together) {
            case 8:
                step<8>(lanes, size);
                break;
            case 4:
                step<4>(lanes, size);
                break;
            case 2:
                step<2>(lanes, size);
                break;
            default:
                lanes[0]->hash = fnv1a_64(lanes[0]->data, size, lanes[0]->hash);
        }
        for (int k = together - 1; k >= 0; --k) {
            lanes[k]->data += size;
            lanes[k]->size -= size;
            if (lanes[k]->size > 0) continue;
            whole[lanes[k] - current]->hash = lanes[k]->hash;
            std::swap(lanes[k], lanes[--n]);
        }
    }
}

}  // namespace

uint64_t fnv1a_64(const uint8_t* data, size_t size, uint64_t hash) { return by(levels().rows[0], data, size, hash); }

void fnv1a_64_many(HashJob* jobs, size_t n_jobs, int n_threads) {
    std::atomic<size_t> next{0};
    auto work = [&] {
        if (!levels().rows[0].beats_interleaving) return interleave(jobs, n_jobs, &next);
        for (size_t i; (i = next.fetch_add(1)) < n_jobs;)
            jobs[i].hash = fnv1a_64(jobs[i].data, jobs[i].size, jobs[i].hash);
    };
    std::vector<std::thread> others;
    const size_t n_workers = std::min(n_jobs, static_cast<size_t>(std::max(n_threads, 1)));
    try {
        while (others.size() + 1 < n_workers) others.emplace_back(work);
    } catch (const std::exception&) {
        // The system gives no more threads: those that there are do it all.
    }
    work();
    for (std::thread& other : others) other.join();
}

int hash_level_names(const char** names, int capacity) {
    const int n = std::min(levels().n, capacity);
    for (int i = 0; i < n; ++i) names[i] = levels().rows[i].name;
    return n;
}

uint64_t fnv1a_64_at(int level, const uint8_t* data, size_t size, uint64_t hash) {
    return by(levels().rows[level], data, size, hash);
}

void fnv1a_64_interleaved(HashJob* jobs, size_t n_jobs) {
    std::atomic<size_t> next{0};
    interleave(jobs, n_jobs, &next);
}

}  // namespace ggr
