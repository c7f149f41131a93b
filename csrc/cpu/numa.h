// Where memory and threads go on a machine with several memory nodes.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"

namespace ggr {

struct Placement {
    std::vector<int> nodes;  // the pages of buffers are dealt out to these in turn; none: as the system likes
    std::vector<std::vector<int>> cpus;  // worker i runs on those of cpus[i % size]; none: anywhere
};

// Whether the system lets this process deal out its memory so.
bool try_placement(const Placement&, Error*);
// Deal out the pages of a mapping that has none yet, whoever touches them first.
void place_memory(const Placement&, void* begin, uint64_t bytes);
// Where the calling thread, which is worker `index`, runs from now on.
void place_thread(const Placement&, int index);

}  // namespace ggr
