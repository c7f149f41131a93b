// The emulated driver: functions of the CUDA Driver API over the emulator, and how tests set it up.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct GgrDriverSetup {
    int32_t devices;
    int32_t capability;     // 75 for sm_75
    uint64_t memory_bytes;  // of each device
    // 0: what is put on a stream is done at once. 1: it is done when somebody waits for it, so that results which are
    // read too early, and staging memory that is used again too early, show.
    int32_t lazy;
    int32_t queries;  // how often an event that is not done is "not ready" before it is done by being asked for
    int32_t l2_bytes;
};
// Forgets everything. Nothing of before may be used any more.
void ggr_driver_setup(const GgrDriverSetup*);
// The address of a function of the table by its name there, or nullptr.
void* ggr_driver_function(const char* name);
// The same of what stands for cuBLASLt.
void* ggr_blas_function(const char* name);
// From the call after the next `after` calls of a function on, `times` of them return `code`; sticky: and so does
// everything in the context from then on.
void ggr_driver_inject(const char* function, int after, int times, int code, int sticky);
// What was used wrongly (text, one line each) since the last call; "" if nothing was.
const char* ggr_driver_misuse(void);
// The next kernel that ran, as "file expression", one line each, since the last call.
const char* ggr_driver_ran(void);
struct GgrDriverCounts {
    uint64_t launches, graph_launches, contexts, streams, events, modules, graphs, allocations, pinned;
    uint64_t bytes[8];    // allocated of each device
    uint64_t peers;       // contexts whose memory another one's copies read directly
    uint64_t downloaded;  // bytes copied to the host so far
};
void ggr_driver_counts(GgrDriverCounts*);

}  // extern "C"
