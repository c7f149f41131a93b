// cuBLASLt as a table of functions, like the driver (driver.h): filled from NVIDIA's wheel at run time, if that is
// installed, and by the emulator of the tests.
//
// Names, arguments and numbers are those of the cuBLASLt API (docs.nvidia.com/cuda/cublas); its handles and
// descriptors are opaque pointers here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/driver.h"

namespace ggr {
namespace cuda {

using BlasStatus = int;
using BlasObject = void*;

// cublasLtMatmulHeuristicResult_t.
struct BlasChoice {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    BlasStatus state;
    float waves;
    int reserved[4];
};

constexpr int BLAS_F32 = 0, BLAS_F16 = 2, BLAS_BF16 = 14;          // cudaDataType
constexpr int BLAS_COMPUTE_F32 = 68;                               // cublasComputeType_t
constexpr int BLAS_TRANSPOSE_A = 3;                                // of a product's descriptor
constexpr int BLAS_BATCH_COUNT = 5, BLAS_BATCH_OFFSET = 6;         // of a layout
constexpr int BLAS_WORKSPACE_BYTES = 1, BLAS_FIRST_ALIGNMENT = 5;  // of a preference: alignments of A, B, C, D
constexpr int32_t BLAS_TRANSPOSED = 1;                             // cublasOperation_t

// X(name, parameters): the order is the order in the table.
#define GGR_CUDA_BLAS(X)                                                                                            \
    X(cublasLtCreate, (BlasObject*))                                                                                \
    X(cublasLtDestroy, (BlasObject))                                                                                \
    X(cublasLtMatmulDescCreate, (BlasObject*, int, int))                                                            \
    X(cublasLtMatmulDescDestroy, (BlasObject))                                                                      \
    X(cublasLtMatmulDescSetAttribute, (BlasObject, int, const void*, size_t))                                       \
    X(cublasLtMatrixLayoutCreate, (BlasObject*, int, uint64_t, uint64_t, int64_t))                                  \
    X(cublasLtMatrixLayoutDestroy, (BlasObject))                                                                    \
    X(cublasLtMatrixLayoutSetAttribute, (BlasObject, int, const void*, size_t))                                     \
    X(cublasLtMatmulPreferenceCreate, (BlasObject*))                                                                \
    X(cublasLtMatmulPreferenceDestroy, (BlasObject))                                                                \
    X(cublasLtMatmulPreferenceSetAttribute, (BlasObject, int, const void*, size_t))                                 \
    X(cublasLtMatmulAlgoGetHeuristic,                                                                               \
      (BlasObject, BlasObject, BlasObject, BlasObject, BlasObject, BlasObject, BlasObject, int, BlasChoice*, int*)) \
    X(cublasLtMatmul,                                                                                               \
      (BlasObject, BlasObject, const void*, const void*, BlasObject, const void*, BlasObject, const void*,          \
       const void*, BlasObject, void*, BlasObject, const uint64_t*, void*, size_t, CUstream))

struct Blas {
#define GGR_MEMBER(name, parameters) BlasStatus(*name) parameters;
    GGR_CUDA_BLAS(GGR_MEMBER)
#undef GGR_MEMBER
};

}  // namespace cuda
}  // namespace ggr
