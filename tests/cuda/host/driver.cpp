// The emulated driver: devices, contexts, memory and copies. One lock around everything.
#include "driver_state.h"

namespace emulated {

static const std::map<CUresult, const char*> ERRORS = {
    {0, "CUDA_SUCCESS"},
    {1, "CUDA_ERROR_INVALID_VALUE"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY"},
    {3, "CUDA_ERROR_NOT_INITIALIZED"},
    {101, "CUDA_ERROR_INVALID_DEVICE"},
    {200, "CUDA_ERROR_INVALID_IMAGE"},
    {201, "CUDA_ERROR_INVALID_CONTEXT"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE"},
    {400, "CUDA_ERROR_INVALID_HANDLE"},
    {500, "CUDA_ERROR_NOT_FOUND"},
    {600, "CUDA_ERROR_NOT_READY"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED"},
    {719, "CUDA_ERROR_LAUNCH_FAILED"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"},
    {910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE"},
};

// ---- Memory ----
static uint8_t* pointer(CUdeviceptr p) { return reinterpret_cast<uint8_t*>(p); }
static CUresult check_device_range(const char* function, CUdeviceptr p, size_t bytes, CUcontext context) {
    const int owner = ggr_owner(pointer(p), bytes, GGR_DEVICE_MEMORY);
    if (owner == context->number) return 0;
    if (owner < 0 && ggr_owner(pointer(p), bytes, GGR_HOST_MEMORY) >= 0) return 0;
    return wrong(INVALID_VALUE, std::string(function) + ": " + std::to_string(bytes) +
                                    " bytes that are not device memory" + (owner < 0 ? "" : " of this context"));
}
static void check_pinned(const char* function, const void* p, size_t bytes) {
    if (bytes > 0 && ggr_owner(p, bytes, GGR_HOST_MEMORY) < 0)
        wrong(0, std::string(function) + ": host memory is not pinned");
}

// ---- The functions ----
CUresult emu_cuGetErrorName(CUresult code, const char** out) {
    const auto found = ERRORS.find(code);
    *out = found == ERRORS.end() ? nullptr : found->second;
    return *out ? 0 : INVALID_VALUE;
}
CUresult emu_cuGetErrorString(CUresult code, const char** out) {
    const auto found = ERRORS.find(code);
    *out = found == ERRORS.end() ? nullptr
           : code == 2           ? "out of memory"
           : code == 700         ? "an illegal memory access was encountered"
                                 : found->second + 5;
    return *out ? 0 : INVALID_VALUE;
}
CUresult emu_cuDeviceGetAttribute(int* out, int attribute, CUdevice device) {
    GGR_BEGIN(cuDeviceGetAttribute, false);
    if (device < 0 || device >= state->setup.devices) return INVALID_DEVICE;
    const std::map<int, int> values = {
        {1, 1024},        // threads a block
        {2, 1024},        // of them along x
        {5, 0x7fffffff},  // blocks along x
        {6, 65535},       // y
        {7, 65535},       // z
        {8, SHARED_WITHOUT_ASKING},
        {10, 32},       // threads a warp
        {12, 65536},    // registers a block
        {13, 1500000},  // kHz
        {16, 16},       // multiprocessors
        {18, 0},        // integrated
        {19, 1},        // maps host memory
        {31, 1},        // several kernels at once
        {33, device},   // PCI bus
        {34, 0},        // PCI device
        {38, state->setup.l2_bytes},
        {39, 2048},  // threads a multiprocessor
        {40, 2},     // copy engines
        {41, 1},     // one address space
        {75, state->setup.capability / 10},
        {76, state->setup.capability % 10},
        {81, 228 << 10},  // shared memory a multiprocessor
        {97, shared_at_most(state->setup.capability)},
    };
    const auto found = values.find(attribute);
    if (found == values.end())
        return wrong(INVALID_VALUE, "attribute " + std::to_string(attribute) + " is not emulated");
    *out = found->second;
    return 0;
}
CUresult emu_cuDeviceTotalMem(size_t* out, CUdevice device) {
    GGR_BEGIN(cuDeviceTotalMem, false);
    if (device < 0 || device >= state->setup.devices) return INVALID_DEVICE;
    *out = state->setup.memory_bytes;
    return 0;
}
CUresult emu_cuCtxCreate(CUcontext* out, unsigned flags, CUdevice device) {
    GGR_BEGIN(cuCtxCreate, false);
    GGR_TRY(check_flags("cuCtxCreate", flags, 0xff));
    if (device < 0 || device >= state->setup.devices) return INVALID_DEVICE;
    static int numbers = 0;
    current = *out = state->contexts.add({++numbers, device});
    return 0;
}
CUresult emu_cuCtxDestroy(CUcontext context) {
    GGR_BEGIN(cuCtxDestroy, false);
    GGR_TRY(check_handle("cuCtxDestroy", state->contexts, context));
    run_all(context);
    for (auto* memory : {&state->allocations, &state->pinned}) {
        for (auto it = memory->begin(); it != memory->end();) {
            if (it->second.context != context) {
                ++it;
                continue;
            }
            ggr_free(reinterpret_cast<void*>(it->first));
            if (memory == &state->allocations) state->used[context->device] -= it->second.bytes;
            it = memory->erase(it);
        }
    }
    for (auto& s : state->streams.all) s.alive = s.alive && s.context != context;
    for (auto& e : state->events.all) e.alive = e.alive && e.context != context;
    for (auto& m : state->modules.all) m.alive = m.alive && m.context != context;
    for (auto& g : state->execs.all) g.alive = g.alive && g.context != context;
    context->alive = false;
    if (current == context) current = nullptr;
    return 0;
}
CUresult emu_cuCtxSetCurrent(CUcontext context) {
    GGR_BEGIN(cuCtxSetCurrent, false);
    if (context) GGR_TRY(check_handle("cuCtxSetCurrent", state->contexts, context));
    current = context;
    return 0;
}
CUresult emu_cuDeviceCanAccessPeer(int* out, CUdevice device, CUdevice peer) {
    GGR_BEGIN(cuDeviceCanAccessPeer, false);
    for (const CUdevice d : {device, peer})
        if (d < 0 || d >= state->setup.devices) return INVALID_DEVICE;
    *out = device != peer;
    return 0;
}
CUresult emu_cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
    GGR_BEGIN(cuCtxEnablePeerAccess);
    GGR_TRY(check_handle("cuCtxEnablePeerAccess", state->contexts, peer));
    GGR_TRY(check_flags("cuCtxEnablePeerAccess", flags, 0));
    if (peer->device == current->device) return wrong(INVALID_DEVICE, "cuCtxEnablePeerAccess to the GPU itself");
    if (!current->peers.insert(peer).second) return wrong(PEER_ALREADY_ENABLED, "cuCtxEnablePeerAccess a second time");
    ++state->peers;
    return 0;
}
CUresult emu_cuMemGetInfo(size_t* free_bytes, size_t* total) {
    GGR_BEGIN(cuMemGetInfo);
    *total = state->setup.memory_bytes;
    *free_bytes = *total - state->used[current->device];
    return 0;
}
CUresult emu_cuMemAlloc(CUdeviceptr* out, size_t bytes) {
    GGR_BEGIN(cuMemAlloc);
    GGR_TRY(check_captures("cuMemAlloc"));
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > state->setup.memory_bytes - state->used[current->device]) return CUDA_ERROR_OUT_OF_MEMORY;
    void* p = ggr_alloc(bytes, 0, GGR_DEVICE_MEMORY, current->number);
    if (!p) return CUDA_ERROR_OUT_OF_MEMORY;
    std::memset(p, 0xcb, bytes < (1 << 20) ? bytes : 1 << 20);
    state->used[current->device] += bytes;
    *out = reinterpret_cast<CUdeviceptr>(p);
    state->allocations[*out] = {bytes, current, 0};
    return 0;
}
CUresult emu_cuMemFree(CUdeviceptr p) {
    GGR_BEGIN(cuMemFree);
    GGR_TRY(check_captures("cuMemFree"));
    const auto found = state->allocations.find(p);
    if (found == state->allocations.end()) return wrong(INVALID_VALUE, "cuMemFree of what is not allocated");
    if (found->second.context != current) return wrong(INVALID_VALUE, "cuMemFree of another context's memory");
    run_all(current);
    state->used[current->device] -= found->second.bytes;
    state->allocations.erase(found);
    ggr_free(pointer(p));
    return 0;
}
CUresult emu_cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
    GGR_BEGIN(cuMemHostAlloc);
    GGR_TRY(check_flags("cuMemHostAlloc", flags, 7));
    GGR_TRY(check_captures("cuMemHostAlloc"));
    if (bytes == 0) return INVALID_VALUE;
    *out = ggr_alloc(bytes, 0, GGR_HOST_MEMORY, current->number);
    if (!*out) return CUDA_ERROR_OUT_OF_MEMORY;
    state->pinned[reinterpret_cast<uintptr_t>(*out)] = {bytes, current, flags};
    return 0;
}
CUresult emu_cuMemHostGetDevicePointer(CUdeviceptr* out, void* p, unsigned flags) {
    GGR_BEGIN(cuMemHostGetDevicePointer);
    GGR_TRY(check_flags("cuMemHostGetDevicePointer", flags, 0));
    const auto found = state->pinned.find(reinterpret_cast<uintptr_t>(p));
    if (found == state->pinned.end()) return wrong(INVALID_VALUE, "the device address of memory that is not pinned");
    if ((found->second.flags & 2) == 0)
        return wrong(INVALID_VALUE, "the device address of memory that was not allocated to have one");
    *out = reinterpret_cast<CUdeviceptr>(p);
    return 0;
}
CUresult emu_cuMemFreeHost(void* p) {
    GGR_BEGIN(cuMemFreeHost);
    const auto found = state->pinned.find(reinterpret_cast<uintptr_t>(p));
    if (found == state->pinned.end()) return wrong(INVALID_VALUE, "cuMemFreeHost of what is not pinned");
    GGR_TRY(check_captures("cuMemFreeHost"));
    run_all(found->second.context);
    state->pinned.erase(found);
    ggr_free(p);
    return 0;
}
static Work copy_of(void* to, const void* from, size_t bytes) {
    Work w{Kind::copy};
    w.to = static_cast<uint8_t*>(to);
    w.from = static_cast<const uint8_t*>(from);
    w.bytes = bytes;
    return w;
}
CUresult emu_cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    GGR_BEGIN(cuMemcpyHtoDAsync);
    GGR_TRY(check_device_range("cuMemcpyHtoDAsync", to, bytes, current));
    check_pinned("cuMemcpyHtoDAsync", from, bytes);
    return put("cuMemcpyHtoDAsync", stream, copy_of(pointer(to), from, bytes));
}
CUresult emu_cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    GGR_BEGIN(cuMemcpyDtoHAsync);
    GGR_TRY(check_device_range("cuMemcpyDtoHAsync", from, bytes, current));
    check_pinned("cuMemcpyDtoHAsync", to, bytes);
    state->downloaded += bytes;
    return put("cuMemcpyDtoHAsync", stream, copy_of(to, pointer(from), bytes));
}
CUresult emu_cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    GGR_BEGIN(cuMemcpyDtoDAsync);
    GGR_TRY(check_device_range("cuMemcpyDtoDAsync", to, bytes, current));
    GGR_TRY(check_device_range("cuMemcpyDtoDAsync", from, bytes, current));
    if (to < from + bytes && from < to + bytes && bytes > 0) wrong(0, "cuMemcpyDtoDAsync between ranges that overlap");
    return put("cuMemcpyDtoDAsync", stream, copy_of(pointer(to), pointer(from), bytes));
}
CUresult emu_cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                               size_t bytes, CUstream stream) {
    GGR_BEGIN(cuMemcpyPeerAsync);
    GGR_TRY(check_handle("cuMemcpyPeerAsync", state->contexts, to_context));
    GGR_TRY(check_handle("cuMemcpyPeerAsync", state->contexts, from_context));
    GGR_TRY(check_device_range("cuMemcpyPeerAsync", to, bytes, to_context));
    GGR_TRY(check_device_range("cuMemcpyPeerAsync", from, bytes, from_context));
    return put("cuMemcpyPeerAsync", stream, copy_of(pointer(to), pointer(from), bytes));
}
CUresult emu_cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    GGR_BEGIN(cuMemsetD8Async);
    GGR_TRY(check_device_range("cuMemsetD8Async", to, bytes, current));
    Work w{Kind::fill};
    w.to = pointer(to);
    w.bytes = bytes;
    w.value = value;
    return put("cuMemsetD8Async", stream, std::move(w));
}

}  // namespace emulated
