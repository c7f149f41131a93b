// The CUDA driver as a table of functions: filled from cuda-python at run time (cuGetProcAddress), so that nothing here
// is compiled or linked against CUDA, and by the emulator of the tests, which runs kernels on the host.
//
// Names, arguments and status codes are those of the CUDA Driver API (docs.nvidia.com/cuda/cuda-driver-api), with the
// suffixes of its ABI (_v2, ...) left out. Instantiation goes by the name that has one form only: cuGraphInstantiate is
// what headers rename, and asked for by that name a driver may give the form of CUDA 11, which takes five arguments.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ggr {
namespace cuda {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = uint64_t;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphExec = struct CUgraphExec_st*;

constexpr CUresult CUDA_SUCCESS = 0;
constexpr CUresult CUDA_ERROR_OUT_OF_MEMORY = 2;
constexpr CUresult CUDA_ERROR_NOT_READY = 600;

// X(name, parameters): the order is the order in the table.
#define GGR_CUDA_DRIVER(X)                                                                                          \
    X(cuGetErrorName, (CUresult, const char**))                                                                     \
    X(cuGetErrorString, (CUresult, const char**))                                                                   \
    X(cuDeviceGetAttribute, (int*, int, CUdevice))                                                                  \
    X(cuDeviceTotalMem, (size_t*, CUdevice))                                                                        \
    X(cuCtxCreate, (CUcontext*, unsigned, CUdevice))                                                                \
    X(cuCtxDestroy, (CUcontext))                                                                                    \
    X(cuDeviceCanAccessPeer, (int*, CUdevice, CUdevice))                                                            \
    X(cuCtxEnablePeerAccess, (CUcontext, unsigned))                                                                 \
    X(cuCtxSetCurrent, (CUcontext))                                                                                 \
    X(cuMemGetInfo, (size_t*, size_t*))                                                                             \
    X(cuMemAlloc, (CUdeviceptr*, size_t))                                                                           \
    X(cuMemFree, (CUdeviceptr))                                                                                     \
    X(cuMemHostAlloc, (void**, size_t, unsigned))                                                                   \
    X(cuMemHostGetDevicePointer, (CUdeviceptr*, void*, unsigned))                                                   \
    X(cuMemFreeHost, (void*))                                                                                       \
    X(cuMemcpyHtoDAsync, (CUdeviceptr, const void*, size_t, CUstream))                                              \
    X(cuMemcpyDtoHAsync, (void*, CUdeviceptr, size_t, CUstream))                                                    \
    X(cuMemcpyDtoDAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                              \
    X(cuMemcpyPeerAsync, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream))                        \
    X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                              \
    X(cuStreamCreate, (CUstream*, unsigned))                                                                        \
    X(cuStreamDestroy, (CUstream))                                                                                  \
    X(cuStreamSynchronize, (CUstream))                                                                              \
    X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                             \
    X(cuStreamBeginCapture, (CUstream, int))                                                                        \
    X(cuStreamEndCapture, (CUstream, CUgraph*))                                                                     \
    X(cuEventCreate, (CUevent*, unsigned))                                                                          \
    X(cuEventDestroy, (CUevent))                                                                                    \
    X(cuEventRecord, (CUevent, CUstream))                                                                           \
    X(cuEventQuery, (CUevent))                                                                                      \
    X(cuEventSynchronize, (CUevent))                                                                                \
    X(cuEventElapsedTime, (float*, CUevent, CUevent))                                                               \
    X(cuModuleLoadData, (CUmodule*, const void*))                                                                   \
    X(cuModuleUnload, (CUmodule))                                                                                   \
    X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                                    \
    X(cuFuncSetAttribute, (CUfunction, int, int))                                                                   \
    X(cuLaunchKernel,                                                                                               \
      (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
    X(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long))                                     \
    X(cuGraphExecUpdate, (CUgraphExec, CUgraph, void*))                                                             \
    X(cuGraphLaunch, (CUgraphExec, CUstream))                                                                       \
    X(cuGraphDestroy, (CUgraph))                                                                                    \
    X(cuGraphExecDestroy, (CUgraphExec))

struct Driver {
#define GGR_MEMBER(name, parameters) CUresult(*name) parameters;
    GGR_CUDA_DRIVER(GGR_MEMBER)
#undef GGR_MEMBER
};

}  // namespace cuda
}  // namespace ggr
