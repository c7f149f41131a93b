// Buffers of a CUDA device and what moves their contents: the memory part of its DeviceOps.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <utility>

#include "core/device.h"
#include "cuda/context.h"
#include "cuda/fallback.h"

namespace ggr {
namespace cuda {

// Buffer::state. One session uses it, a command at a time.
struct BufferState {
    std::shared_ptr<Context> context;
    uint64_t last_write = 0;  // number of the last upload (or fill, copy) to it
    uint64_t version = 1;     // of the contents: raised by whatever writes them
    std::map<std::pair<uint64_t, uint64_t>, std::weak_ptr<KeptRange>> kept;  // copies on the host: begin and end
    size_t sweep_at = 1024;                                                  // so many of them, and those gone go
    Chunk* mapped = nullptr;                                                 // that the caller of map() holds
    std::deque<Chunk*> ahead;     // downloads under way of what a reader will want next
    uint64_t next = 0;            // where the first of them begins
    uint64_t asked = 0, end = 0;  // up to where downloads were started, and what the reader wants in all
};

inline BufferState& state_of(const Buffer& b) { return *static_cast<BufferState*>(b.state); }
// What was read ahead is old: the memory is about to be written.
void forget_ahead(BufferState& s);

bool alloc(Device*, uint64_t size, Buffer* out, Error*);
void release(Device*, Buffer*);
uint8_t* map(Device*, Buffer*, uint64_t offset, uint64_t length, bool write, uint64_t* mapped, Error*);
bool unmap(Device*, Buffer*, uint8_t* host, uint64_t offset, uint64_t mapped, bool write, Error*);
void expect(Device*, Buffer*, uint64_t offset, uint64_t length);
bool fill(Device*, Buffer*, uint64_t offset, uint64_t length, uint8_t value, Error*);
bool copy(Device*, const Buffer* src, uint64_t src_offset, Buffer* dst, uint64_t dst_offset, uint64_t length, Error*);
void memory(Device*, uint64_t* free_bytes, uint64_t* total_bytes);

}  // namespace cuda
}  // namespace ggr
