// The device interface: a table of functions that a device implements, so that the session, which calls them without
// the GIL, needs to link none of them. Plain C layout: a device may be written in Cython.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"

namespace ggr {

struct Device;
struct Graph;
struct Plan;
struct Queue;

// Memory on a device, owned by one session.
struct Buffer {
    uint64_t handle;  // the random token that names it on the wire
    uint64_t base;    // the virtual address that the client computes with
    uint64_t size;    // bytes the client may use; SLACK_BYTES more lie behind them
    uint8_t* data;    // the device's address of the first byte
    Device* device;
    uint64_t last_use;  // number of the last run on the session's queue that touches it
    void* state;        // the device's own
};

// Kernels may read this far past the end of a buffer.
constexpr uint64_t SLACK_BYTES = BUFFER_SLACK;

enum class WaitResult : int32_t { done = 0, timeout = 1, failed = 2 };

struct DeviceOps {
    // map() returns the buffer's own memory, all that was asked for, for as long as the buffer lives; unmap() does
    // nothing. Then memory may be filled while other parts of the buffer are in use.
    bool direct;

    // Reserve size bytes; fills data, size, device and state of `out`. Contents are undefined (but nobody else's).
    bool (*alloc)(Device*, uint64_t size, Buffer* out, Error*);
    void (*release)(Device*, Buffer*);

    // Give the caller host memory that stands for a part of [offset, offset + length): returns its address and in
    // *mapped how many bytes (1..length) it covers. `write`: the caller will overwrite all of them; unmap then takes
    // them over.
    uint8_t* (*map)(Device*, Buffer*, uint64_t offset, uint64_t length, bool write, uint64_t* mapped, Error*);
    bool (*unmap)(Device*, Buffer*, uint8_t* host, uint64_t offset, uint64_t mapped, bool write, Error*);
    // Much of [offset, offset + length) will be written soon: an occasion to get its memory ready, without waiting for
    // it.
    void (*expect)(Device*, Buffer*, uint64_t offset, uint64_t length);
    bool (*fill)(Device*, Buffer*, uint64_t offset, uint64_t length, uint8_t value, Error*);
    bool (*copy)(Device*, const Buffer* src, uint64_t src_offset, Buffer* dst, uint64_t dst_offset, uint64_t length,
                 Error*);

    // Take over the graph (also on failure) and make it runnable.
    Plan* (*compile)(Device*, Graph*, Error*);
    void (*free_plan)(Device*, Plan*);
    uint64_t (*plan_bytes)(const Plan*);

    // A session's own line of work on the device: runs in order, fair beside other queues.
    Queue* (*open_queue)(Device*, Error*);
    void (*close_queue)(Device*, Queue*);  // cancels what is left and waits for it
    // Start a run; its number (1, 2, ...) is the fence. 0 on failure. The plan must live until the run is over.
    uint64_t (*submit)(Device*, Queue*, Plan*, Error*);
    WaitResult (*wait)(Device*, Queue*, uint64_t number, int64_t timeout_ns, Error*);
    void (*cancel)(Device*, Queue*);  // stop at the next step boundary; the queue stays failed

    void (*memory)(Device*, uint64_t* free_bytes, uint64_t* total_bytes);
};

struct Device {
    const DeviceOps* ops;
    const char* name;
    const char* description;
    uint64_t alignment;
    uint64_t max_size;
};

}  // namespace ggr
