// Between the emulator's files: the block that runs, and what each of its threads last did to shared memory.
#pragma once

#include <cstdint>
#include <cstdio>
#include <vector>

#include "runtime.h"

namespace emulator {

enum class State : uint8_t { ready, at_barrier, at_warp_barrier, at_exchange, done };

struct Copy {
    uint8_t* to;
    const uint8_t* from;  // nullptr: zeros
};
struct Fibre {
    void* stack_pointer;
    uint8_t* stack;  // its lowest byte that may be used
    int32_t index;
    State state;
    const char* file;  // where it waits
    int line;
    const char* what;
    GgrCompute compute;
    const void* in;
    void* out;
    std::vector<std::vector<Copy>> groups;  // asynchronous copies, the last group not yet committed
};
constexpr size_t STACK_BYTES = 128 << 10;

struct Block {
    const GgrLaunch* launch;
    Fibre* fibres;
    int64_t left;    // accesses that may still be made
    int64_t budget;  // at the start; -1: any number
    Fibre* running;  // nullptr outside kernels
    int32_t threads, at[3];
    uint32_t epoch;           // barriers of the block passed; never the same twice in a process
    uint32_t warp_epoch[32];  // barriers of each warp
    uint8_t* dynamic_shared;
    size_t dynamic_bytes;
    alignas(16) uint8_t args[4096];  // the launch's, which kernels may read
};
extern Block block;

constexpr size_t MAX_DYNAMIC_SHARED = 228 << 10;

[[noreturn]] void stop_over_budget();
void start_memory_of_launch();
void start_memory_of_block();
// The thread touches shared memory: is that ordered after what others did to it?
enum class Access { read, write, atomic, copy_starts, copy_ends };
bool touch_shared(uintptr_t at, size_t bytes, Access access);

}  // namespace emulator
