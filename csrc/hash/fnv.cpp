#include "hash/fnv.h"

namespace ggr {

uint64_t fnv1a_64(const uint8_t* data, size_t size, uint64_t hash) {
    for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * FNV_PRIME;
    return hash;
}

}  // namespace ggr
