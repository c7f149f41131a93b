// FNV-1a, 64 bits: the name of a tensor's bytes in the cache.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ggr {

constexpr uint64_t FNV_OFFSET = 0xcbf29ce484222325ull;
constexpr uint64_t FNV_PRIME = 0x100000001b3ull;

// Go on hashing from `hash` (FNV_OFFSET at the start), by the best level that the processor runs.
uint64_t fnv1a_64(const uint8_t* data, size_t size, uint64_t hash);

struct HashJob {
    const uint8_t* data;
    size_t size;
    uint64_t hash;  // where to go on from; replaced by the result
};

// Several buffers, in at most n_threads threads. A job is never divided.
void fnv1a_64_many(HashJob* jobs, size_t n_jobs, int n_threads);

// The same by a level's own code, for tests and measurements. Levels are numbered from 0, the best; the last is the
// plain byte loop.
int hash_level_names(const char** names, int capacity);
uint64_t fnv1a_64_at(int level, const uint8_t* data, size_t size, uint64_t hash);
// Byte loops of up to eight jobs in one.
void fnv1a_64_interleaved(HashJob* jobs, size_t n_jobs);

}  // namespace ggr
