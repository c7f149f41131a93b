// FNV-1a, 64 bits: the name of a tensor's bytes in the cache.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ggr {

constexpr uint64_t FNV_OFFSET = 0xcbf29ce484222325ull;
constexpr uint64_t FNV_PRIME = 0x100000001b3ull;

// Go on hashing from `hash` (FNV_OFFSET at the start).
uint64_t fnv1a_64(const uint8_t* data, size_t size, uint64_t hash);

}  // namespace ggr
