// The families of kernels: each file of this folder defines one and names it here.
#pragma once

#include "cuda/plan.h"

namespace ggr {
namespace cuda {

// Steps that a thread may take one after the other: some ten seconds. Nothing can stop a kernel, and what waits for the
// whole GPU, of other sessions too, would wait for it. The CPU device, which can be stopped, takes what is longer.
constexpr int64_t MAX_STEPS = int64_t{1} << 24;

extern const Family ELEMENTWISE;
extern const Family UNARY;
extern const Family NORM;
extern const Family MATMUL;
extern const Family GATED;
extern const Family IK;
extern const Family ROWS;
extern const Family COPY;
extern const Family SOFTMAX;
extern const Family ROPE;
extern const Family ATTENTION;
extern const Family SORT;
extern const Family SHAPE;
extern const Family REDUCE;
extern const Family RECURRENT;

}  // namespace cuda
}  // namespace ggr
