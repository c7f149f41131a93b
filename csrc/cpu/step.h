// The contract between kernels and the executor.
//
// A plan is a list of steps. A step is one function over `n_items` independent work items (rows, tiles, ...): the
// executor hands ranges of items to workers, so a kernel never sees threads and never waits. What must be complete
// before a step starts is decided by the plan builder from the byte ranges that steps read and write.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace ggr {

struct Run;

// Kernels include this header at several instruction-set levels: no function here may have external linkage and a body.
struct Worker {
    int index;  // 0 .. count - 1
    int count;
    uint8_t* local;   // this worker's own scratch, 64-byte aligned, as large as PlanBuilder::need_local asked for
    uint8_t* shared;  // scratch of the run; steps address it by offsets from PlanBuilder::scratch
    Run* run;
};

struct Step {
    // Work on items [begin, end). False: a value found at run time is illegal and fail_index (or fail_run) was called.
    using Fn = bool (*)(const Step& step, int64_t begin, int64_t end, Worker& worker);

    Fn fn;
    const Tensor* dst;
    const Tensor* src[5];
    int64_t n_items;
    int64_t grain;      // items handed out at a time
    int64_t most;       // and never more: between two portions a run can be cancelled
    bool tapered;       // hand out more of them first, and `grain` at the end
    bool serial;        // too small to share: one worker runs it, and the other serial steps up to the next barrier
    bool barrier;       // starts when all earlier steps are complete
    int64_t offset[4];  // scratch offsets
    union {             // constants that the family computed when it compiled the step
        int64_t i64[8];
        int32_t i32[16];
        float f32[16];
        const void* ptr[8];
    } arg;
};

// Record that a run found an illegal index `value` (legal: 0 .. limit - 1) in tensor `index` of node `step.dst`.
// Returns false.
bool fail_index(Worker& worker, const Step& step, const Tensor* index, int64_t value, int64_t limit);
// The same with a free text.
bool fail_run(Worker& worker, const Step& step, const char* format, ...) __attribute__((format(printf, 3, 4)));

}  // namespace ggr
