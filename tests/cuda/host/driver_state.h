// What the emulated driver keeps, and how work comes onto a stream and is done.
#pragma once

#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda/driver.h"
#include "driver.h"
#include "runtime.h"

namespace emulated {

using namespace ggr::cuda;

constexpr CUresult INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
                   INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700,
                   LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_ISOLATION = 905,
                   UPDATE_FAILURE = 910;
constexpr CUresult PEER_ALREADY_ENABLED = 704;
constexpr int SHARED_WITHOUT_ASKING = 48 << 10;
constexpr int CAPTURE_GLOBAL = 0, CAPTURE_THREAD = 1, CAPTURE_RELAXED = 2;

using Clock = std::chrono::steady_clock;

// One cuEventRecord.
struct Record {
    bool done = false;
    CUstream stream;
    Clock::time_point when;
};
enum class Kind { kernel, copy, fill, record, wait, graph, call };
struct Work {
    Kind kind;
    CUfunction function = nullptr;
    uint32_t grid[3] = {}, threads = 0, shared_bytes = 0;
    std::vector<uint8_t> args;
    uint8_t* to = nullptr;
    const uint8_t* from = nullptr;
    size_t bytes = 0;
    uint8_t value = 0;
    std::shared_ptr<Record> record;
    std::shared_ptr<std::vector<Work>> graph;
    std::function<void()> call;  // what a library put there
};

}  // namespace emulated

// ---- What handles point to; all are kept until the next set-up, so that a use after destruction is seen ----
namespace ggr {
namespace cuda {

using emulated::Record;
using emulated::Work;
struct CUctx_st {
    int number, device;
    bool alive = true;
    CUresult sticky = 0;
    std::set<CUctx_st*> peers;  // whose memory copies may read directly
};
struct CUstream_st {
    CUcontext context;
    bool alive = true;
    std::deque<Work> work;
    bool capturing = false, spoiled = false, running = false;
    int capture_mode = 0;
    std::thread::id capture_thread;
    std::shared_ptr<std::vector<Work>> captured;
};
struct CUevent_st {
    CUcontext context;
    bool alive = true;
    unsigned flags = 0;
    int queries = 0;
    std::shared_ptr<Record> last;
    CUstream capturing = nullptr;  // recorded in a capture of this stream
};
struct CUmod_st {
    CUcontext context;
    bool alive = true;
    const GgrKernels* kernels;
    std::string file;
    std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};
struct CUfunc_st {
    CUmodule module;
    const GgrKernel* kernel;
    int max_dynamic = emulated::SHARED_WITHOUT_ASKING;
};
struct CUgraph_st {
    bool alive = true;
    std::shared_ptr<std::vector<Work>> work;
};
struct CUgraphExec_st {
    CUcontext context;
    bool alive = true;
    std::shared_ptr<std::vector<Work>> work;
};
}  // namespace cuda
}  // namespace ggr

namespace emulated {

template <class T>
struct Handles {
    std::deque<T> all;
    T* add(T&& t) {
        all.push_back(std::move(t));
        return &all.back();
    }
    bool has(const T* t) const {
        for (const T& other : all) {
            if (&other == t) return t->alive;
        }
        return false;
    }
    uint64_t live() const {
        uint64_t n = 0;
        for (const T& t : all) n += t.alive;
        return n;
    }
};

struct Injection {
    int after, times, code;
    bool sticky;
};

struct State {
    GgrDriverSetup setup = {1, 80, uint64_t{1} << 30, 0, 0, 4 << 20};
    Handles<CUctx_st> contexts;
    Handles<CUstream_st> streams;
    Handles<CUevent_st> events;
    Handles<CUmod_st> modules;
    Handles<CUgraph_st> graphs;
    Handles<CUgraphExec_st> execs;
    struct Memory {
        size_t bytes;
        CUcontext context;
        unsigned flags;
    };
    std::map<uintptr_t, Memory> allocations, pinned;
    uint64_t used[8] = {};
    std::map<std::string, Injection> injections;
    std::string misuse, ran, misuse_told, ran_told;
    std::set<std::string> ran_seen;
    uint64_t launches = 0, graph_launches = 0, peers = 0, downloaded = 0;
};

extern State* state;  // replaced by a set-up, and never freed: handles of before must stay readable
extern std::recursive_mutex lock;
extern thread_local CUcontext current;

// Note a misuse; returns the code.
CUresult wrong(CUresult code, const std::string& text);
// What every call begins with: injected errors, the thread's context, its sticky error.
CUresult enter(const char* function, bool needs_context = true);
template <class T>
CUresult check_handle(const char* function, const Handles<T>& handles, const T* t) {
    if (!handles.has(t))
        return wrong(INVALID_HANDLE, std::string(function) + ": a handle that was destroyed, or never was");
    return 0;
}
template <class T>
CUresult check_own(const char* function, const Handles<T>& handles, const T* t) {
    if (const CUresult status = check_handle(function, handles, t)) return status;
    if (t->context != current) return wrong(INVALID_CONTEXT, std::string(function) + ": a handle of another context");
    return 0;
}

// Flags with bits that the function does not know.
inline CUresult check_flags(const char* function, unsigned long long flags, unsigned long long known) {
    return (flags & ~known) == 0 ? 0 : wrong(INVALID_VALUE, std::string(function) + ": flags " + std::to_string(flags));
}
// What may wait for the device, or change its memory, spoils captures that are not relaxed: of this thread, and global
// ones of any.
CUresult check_captures(const char* function);
// Shared memory that a block may have, after asking; by the tables of the Programming Guide.
inline int shared_at_most(int capability) {
    switch (capability) {
        case 75:
            return 64 << 10;
        case 80:
        case 87:
            return 163 << 10;
        case 86:
        case 89:
        case 120:
            return 99 << 10;
        default:
            return 227 << 10;
    }
}

// Put work on a stream (or into the graph that it captures).
CUresult put(const char* function, CUstream stream, Work&& work);
// Do all of a stream, or what is before a record in it.
void run_until(CUstream stream, const Record* record);
void run_all(CUcontext context);

#define GGR_DECLARE(name, parameters) CUresult emu_##name parameters;
GGR_CUDA_DRIVER(GGR_DECLARE)
#undef GGR_DECLARE

#define GGR_BEGIN(name, ...)                                 \
    const std::lock_guard<std::recursive_mutex> guard(lock); \
    if (const CUresult entering = enter(#name, ##__VA_ARGS__)) return entering
#define GGR_TRY(expression) \
    if (const CUresult tried = (expression)) return tried

}  // namespace emulated
