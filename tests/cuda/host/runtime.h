// What the emulator's library offers to kernels that were compiled for the host, and to the emulated driver.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// What the running thread of a kernel may know of itself; the same for all its life.
#define GGR_FIXED __attribute__((const))
int ggr_index(void) GGR_FIXED;
int ggr_threads(void) GGR_FIXED;
int ggr_block(int axis) GGR_FIXED;
int ggr_grid(int axis) GGR_FIXED;
uint8_t* ggr_dynamic_shared(void) GGR_FIXED;

// End the launch with this message; does not return.
[[noreturn]] void ggr_fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void ggr_sync_block(const char* file, int line);
void ggr_sync_warp(const char* file, int line);
// All 32 threads of a warp hand in `in` and get `out`: who comes last calls `compute` for all.
using GgrCompute = void (*)(const void* const* in, void* const* out);
void ggr_exchange(const char* what, GgrCompute compute, const void* in, void* out, const char* file, int line);

// Checks of an address outside what the compiler instruments.
void ggr_check_read(const void* p, size_t bytes);
void ggr_check_global(const char* what, const void* p, size_t bytes);  // aligned, and no shared memory
void ggr_check_shared(const char* what, const void* p, size_t bytes);  // aligned, and shared memory
float ggr_atomic_add_f32(float* p, float v);
int32_t ggr_atomic_add_i32(int32_t* p, int32_t v);
int32_t ggr_atomic_swap_i32(int32_t* p, int32_t old, int32_t v);
void ggr_copy_async(void* shared, const void* from, bool valid);
void ggr_copies_commit(void);
void ggr_copies_wait(int pending);

struct GgrKernel {
    const char* name;
    void (*enter)(const void* args);
    size_t args_bytes;
    int max_threads;  // of a block: the kernel's launch bound
};
// What a library of kernels exports as `ggr_kernels`.
struct GgrKernels {
    const GgrKernel* kernels;
    size_t count;
    const uint8_t* shared_begin;  // its static shared memory
    const uint8_t* shared_end;
};

// ---- For who starts kernels; one launch runs at a time, others wait ----
struct GgrLaunch {
    const GgrKernels* library;
    const GgrKernel* kernel;
    uint32_t grid[3];
    uint32_t threads;
    uint32_t shared_bytes;
    const void* args;
    int owner;  // whose device memory it may use; 0: anybody's
};
// 0, or -1 with the message in ggr_failure().
int ggr_launch(const GgrLaunch* launch);
const char* ggr_failure(void);
void ggr_set_failure(const char* text);

enum GgrOrder { GGR_FORWARD = 0, GGR_REVERSE = 1, GGR_RANDOM = 2 };
// In which order blocks, warps and the threads of a warp get their turn. Random: from the seed and the number of the
// launch.
void ggr_set_order(int order, uint64_t seed);

// How many accesses to memory the launches from now on may make in all (-1: any number). What goes beyond is not done,
// and does not count as a failure: ggr_over_budget() tells.
void ggr_set_budget(int64_t accesses);
int ggr_over_budget(void);

// Memory that kernels may use. Addresses are never used again. `slack`: bytes behind it that may be read.
enum GgrKind { GGR_DEVICE_MEMORY = 0, GGR_HOST_MEMORY = 1 };
void* ggr_alloc(size_t bytes, size_t slack, int kind, int owner);
int ggr_free(void* p);  // -1 if it is no start of an allocation
// The allocation that holds all of [p, p + bytes): its owner, or -1.
int ggr_owner(const void* p, size_t bytes, int kind);

}  // extern "C"
