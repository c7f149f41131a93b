// The emulated driver: a stream is a list of what is to be done, a graph a copy of one.
#include <dlfcn.h>

#include <algorithm>

#include "driver_state.h"

namespace emulated {

State* state = new State;  // replaced by a set-up, and never freed: handles of before must stay readable
std::recursive_mutex lock;
thread_local CUcontext current = nullptr;

CUresult wrong(CUresult code, const std::string& text) {
    state->misuse += text + "\n";
    return code;
}

// Calls that are given no context by a handle: the thread's.
CUresult enter(const char* function, bool needs_context) {
    const auto found = state->injections.find(function);
    if (found != state->injections.end()) {
        Injection& i = found->second;
        if (i.after > 0) {
            --i.after;
        } else if (i.times > 0) {
            --i.times;
            if (i.sticky && current) current->sticky = i.code;
            return i.code;
        }
    }
    if (!needs_context) return 0;
    if (!current) return wrong(INVALID_CONTEXT, std::string(function) + " on a thread without a context");
    if (!state->contexts.has(current)) {
        return wrong(INVALID_CONTEXT, std::string(function) + " in a context that was destroyed");
    }
    return current->sticky;
}

// ---- Doing what is on a stream ----
static CUresult run(const Work& w, CUcontext context) {
    switch (w.kind) {
        case Kind::kernel: {
            const CUfunc_st& f = *w.function;
            GgrLaunch launch = {f.module->kernels, f.kernel,       {w.grid[0], w.grid[1], w.grid[2]},
                                w.threads,         w.shared_bytes, w.args.data(),
                                context->number};
            const std::string name = f.module->file + " " + f.kernel->name;
            if (state->ran_seen.insert(name).second) state->ran += name + "\n";
            ++state->launches;
            if (ggr_launch(&launch) == 0) return 0;
            wrong(ILLEGAL_ADDRESS, std::string(f.module->file) + ".cu: " + ggr_failure());
            return ILLEGAL_ADDRESS;
        }
        case Kind::copy:
            std::memmove(w.to, w.from, w.bytes);
            return 0;
        case Kind::fill:
            std::memset(w.to, w.value, w.bytes);
            return 0;
        case Kind::record:
            w.record->done = true;
            w.record->when = Clock::now();
            return 0;
        case Kind::wait:
            if (!w.record->done && w.record->stream) run_until(w.record->stream, w.record.get());
            return 0;
        case Kind::call:
            w.call();
            return 0;
        case Kind::graph:
            for (const Work& part : *w.graph) {
                if (const CUresult status = run(part, context)) return status;
            }
            return 0;
    }
    return 0;
}

void run_until(CUstream stream, const Record* record) {
    if (stream->running) return;
    stream->running = true;
    while (!stream->work.empty() && !(record && record->done)) {
        const Work w = std::move(stream->work.front());
        stream->work.pop_front();
        // After an error only events come about: who waits for one must not wait for ever.
        if (stream->context->sticky && w.kind != Kind::record) continue;
        const CUresult status = run(w, stream->context);
        if (status && !stream->context->sticky) stream->context->sticky = status;
    }
    stream->running = false;
}
void run_all(CUcontext context) {
    for (CUstream_st& s : state->streams.all) {
        if (s.alive && s.context == context) run_until(&s, nullptr);
    }
}

CUresult put(const char* function, CUstream stream, Work&& work) {
    if (!stream) {  // the default stream: after all before, before all that follows
        run_all(current);
        const CUresult status = run(work, current);
        if (status) current->sticky = status;
        return status;
    }
    if (const CUresult status = check_own(function, state->streams, stream)) return status;
    if (stream->capturing) {
        stream->captured->push_back(std::move(work));
        return 0;
    }
    stream->work.push_back(std::move(work));
    if (!state->setup.lazy) run_until(stream, nullptr);
    return 0;  // as on a device, an error of the work itself shows at a later call
}

static CUresult check_idle(const char* function, CUstream stream) {
    if (!stream->capturing) return 0;
    stream->spoiled = true;
    return wrong(CAPTURE_UNSUPPORTED, std::string(function) + " on a stream that is being captured");
}

CUresult check_captures(const char* function) {
    for (CUstream_st& s : state->streams.all) {
        if (!s.alive || !s.capturing || s.capture_mode == CAPTURE_RELAXED) continue;
        if (s.capture_mode == CAPTURE_THREAD && s.capture_thread != std::this_thread::get_id()) continue;
        s.spoiled = true;
        return wrong(CAPTURE_UNSUPPORTED, std::string(function) + " while a stream is being captured");
    }
    return 0;
}

// ---- Streams and events ----
CUresult emu_cuStreamCreate(CUstream* out, unsigned flags) {
    GGR_BEGIN(cuStreamCreate);
    GGR_TRY(check_flags("cuStreamCreate", flags, 1));
    *out = state->streams.add({current});
    return 0;
}
CUresult emu_cuStreamDestroy(CUstream stream) {
    GGR_BEGIN(cuStreamDestroy);
    GGR_TRY(check_handle("cuStreamDestroy", state->streams, stream));
    run_until(stream, nullptr);
    stream->alive = false;
    return 0;
}
CUresult emu_cuStreamSynchronize(CUstream stream) {
    GGR_BEGIN(cuStreamSynchronize);
    if (!stream) {
        run_all(current);
        return current->sticky;
    }
    GGR_TRY(check_own("cuStreamSynchronize", state->streams, stream));
    GGR_TRY(check_idle("cuStreamSynchronize", stream));
    GGR_TRY(check_captures("cuStreamSynchronize"));
    run_until(stream, nullptr);
    return current->sticky;
}
CUresult emu_cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    GGR_BEGIN(cuStreamWaitEvent);
    GGR_TRY(check_flags("cuStreamWaitEvent", flags, 1));
    GGR_TRY(check_own("cuStreamWaitEvent", state->streams, stream));
    GGR_TRY(check_handle("cuStreamWaitEvent", state->events, event));
    if (stream->capturing != (event->capturing != nullptr)) {
        return wrong(CAPTURE_ISOLATION, "cuStreamWaitEvent between a capture and what is outside");
    }
    if (!event->last) return 0;  // never recorded: nothing to wait for
    Work w{Kind::wait};
    w.record = event->last;
    return put("cuStreamWaitEvent", stream, std::move(w));
}
CUresult emu_cuStreamBeginCapture(CUstream stream, int mode) {
    GGR_BEGIN(cuStreamBeginCapture);
    if (mode < CAPTURE_GLOBAL || mode > CAPTURE_RELAXED) return wrong(INVALID_VALUE, "cuStreamBeginCapture: mode");
    GGR_TRY(check_own("cuStreamBeginCapture", state->streams, stream));
    GGR_TRY(check_idle("cuStreamBeginCapture", stream));
    stream->capturing = true;
    stream->capture_mode = mode;
    stream->capture_thread = std::this_thread::get_id();
    stream->spoiled = false;
    stream->captured = std::make_shared<std::vector<Work>>();
    return 0;
}
CUresult emu_cuStreamEndCapture(CUstream stream, CUgraph* out) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    if (const CUresult entering = enter("cuStreamEndCapture")) {  // the capture ends nevertheless
        if (state->streams.has(stream)) stream->capturing = false;
        *out = nullptr;
        return entering;
    }
    GGR_TRY(check_own("cuStreamEndCapture", state->streams, stream));
    if (!stream->capturing) return wrong(INVALID_VALUE, "cuStreamEndCapture without a capture");
    stream->capturing = false;
    *out = nullptr;
    if (stream->spoiled) return CAPTURE_INVALIDATED;
    *out = state->graphs.add({true, stream->captured});
    return 0;
}
CUresult emu_cuEventCreate(CUevent* out, unsigned flags) {
    GGR_BEGIN(cuEventCreate);
    GGR_TRY(check_flags("cuEventCreate", flags, 3));
    *out = state->events.add({current});
    (*out)->flags = flags;
    return 0;
}
CUresult emu_cuEventDestroy(CUevent event) {
    GGR_BEGIN(cuEventDestroy);
    GGR_TRY(check_handle("cuEventDestroy", state->events, event));
    event->alive = false;
    return 0;
}
CUresult emu_cuEventRecord(CUevent event, CUstream stream) {
    GGR_BEGIN(cuEventRecord);
    GGR_TRY(check_own("cuEventRecord", state->events, event));
    if (stream) GGR_TRY(check_own("cuEventRecord", state->streams, stream));
    event->last = std::make_shared<Record>();
    event->last->stream = stream;
    event->queries = 0;
    event->capturing = stream && stream->capturing ? stream : nullptr;
    Work w{Kind::record};
    w.record = event->last;
    return put("cuEventRecord", stream, std::move(w));
}
CUresult emu_cuEventQuery(CUevent event) {
    GGR_BEGIN(cuEventQuery);
    GGR_TRY(check_handle("cuEventQuery", state->events, event));
    if (event->capturing) return wrong(CAPTURE_UNSUPPORTED, "cuEventQuery of an event in a capture");
    GGR_TRY(check_captures("cuEventQuery"));
    if (!event->last || event->last->done) return 0;
    if (event->queries++ < state->setup.queries) return CUDA_ERROR_NOT_READY;
    run_until(event->last->stream, event->last.get());
    return event->context->sticky;
}
CUresult emu_cuEventSynchronize(CUevent event) {
    GGR_BEGIN(cuEventSynchronize);
    GGR_TRY(check_handle("cuEventSynchronize", state->events, event));
    if (event->capturing) return wrong(CAPTURE_UNSUPPORTED, "cuEventSynchronize of an event in a capture");
    GGR_TRY(check_captures("cuEventSynchronize"));
    if (event->last && !event->last->done) run_until(event->last->stream, event->last.get());
    return event->context->sticky;
}
CUresult emu_cuEventElapsedTime(float* out, CUevent from, CUevent to) {
    GGR_BEGIN(cuEventElapsedTime);
    GGR_TRY(check_handle("cuEventElapsedTime", state->events, from));
    GGR_TRY(check_handle("cuEventElapsedTime", state->events, to));
    if (((from->flags | to->flags) & 2) != 0) return wrong(INVALID_HANDLE, "cuEventElapsedTime of events without time");
    if (!from->last || !to->last) return INVALID_HANDLE;
    if (!from->last->done || !to->last->done) return CUDA_ERROR_NOT_READY;
    *out = std::chrono::duration<float, std::milli>(to->last->when - from->last->when).count();
    return 0;
}

// ---- Kernels: an image is "GGREMU1", the path of a library and the name of its file, each with a zero behind it ----
CUresult emu_cuModuleLoadData(CUmodule* out, const void* image) {
    GGR_BEGIN(cuModuleLoadData);
    const char* text = static_cast<const char*>(image);
    if (std::strcmp(text, "GGREMU1") != 0) return wrong(INVALID_IMAGE, "an image that is not the emulator's");
    const char* path = text + 8;
    const char* file = path + std::strlen(path) + 1;
    void* library = dlopen(path, RTLD_NOW);
    if (!library) return wrong(INVALID_IMAGE, dlerror());
    const GgrKernels* kernels = static_cast<const GgrKernels*>(dlsym(library, "ggr_kernels"));
    if (!kernels) return wrong(INVALID_IMAGE, std::string(path) + " has no kernels");
    CUmod_st module;
    module.context = current;
    module.kernels = kernels;
    module.file = file;
    *out = state->modules.add(std::move(module));
    return 0;
}
CUresult emu_cuModuleUnload(CUmodule module) {
    GGR_BEGIN(cuModuleUnload);
    GGR_TRY(check_own("cuModuleUnload", state->modules, module));
    run_all(current);
    module->alive = false;
    return 0;
}
CUresult emu_cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
    GGR_BEGIN(cuModuleGetFunction);
    GGR_TRY(check_own("cuModuleGetFunction", state->modules, module));
    for (size_t i = 0; i < module->kernels->count; ++i) {
        const GgrKernel* kernel = module->kernels->kernels + i;
        if (std::strcmp(kernel->name, name) != 0) continue;
        auto& f = module->functions[name];
        if (!f) {
            // What the kernel itself has counts; all that the library's kernels have is a bound of it.
            const int64_t own = module->kernels->shared_end - module->kernels->shared_begin;
            f.reset(new CUfunc_st{module, kernel});
            f->max_dynamic = static_cast<int>(std::max<int64_t>(0, SHARED_WITHOUT_ASKING - own));
        }
        *out = f.get();
        return 0;
    }
    return NOT_FOUND;
}
// A function is a part of its module, for whose life it is good.
static CUresult check_function(const char* caller, CUfunction f) {
    for (CUmod_st& m : state->modules.all) {
        for (auto& named : m.functions) {
            if (named.second.get() != f) continue;
            if (!m.alive)
                return wrong(INVALID_HANDLE, std::string(caller) + ": a function of a module that was unloaded");
            if (m.context != current)
                return wrong(INVALID_HANDLE, std::string(caller) + ": a function of another context");
            return 0;
        }
    }
    return wrong(INVALID_HANDLE, std::string(caller) + ": no function");
}
CUresult emu_cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    GGR_BEGIN(cuFuncSetAttribute);
    GGR_TRY(check_function("cuFuncSetAttribute", function));
    if (attribute == 9) return 0;  // how much of L1 is shared memory: a hint
    if (attribute != 8 || value < 0 || value > shared_at_most(state->setup.capability)) {
        return wrong(INVALID_VALUE,
                     "cuFuncSetAttribute: attribute " + std::to_string(attribute) + " = " + std::to_string(value));
    }
    function->max_dynamic = value;
    return 0;
}
CUresult emu_cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared_bytes, CUstream stream, void** parameters, void** extra) {
    GGR_BEGIN(cuLaunchKernel);
    GGR_TRY(check_function("cuLaunchKernel", function));
    const std::string name = function->kernel->name;
    if (by != 1 || bz != 1 || bx < 1 || bx > 1024)
        return wrong(INVALID_VALUE, name + ": a block of " + std::to_string(bx) + " threads");
    if (static_cast<int>(bx) > function->kernel->max_threads)
        return wrong(INVALID_VALUE, name + ": " + std::to_string(bx) + " threads a block, its bound is " +
                                        std::to_string(function->kernel->max_threads));
    if (gx < 1 || gy < 1 || gz < 1 || gx > 0x7fffffffu || gy > 65535 || gz > 65535)
        return wrong(INVALID_VALUE, name + ": the grid");
    if (static_cast<int64_t>(shared_bytes) > function->max_dynamic) {
        return wrong(INVALID_VALUE, name + ": " + std::to_string(shared_bytes) + " bytes of shared memory, " +
                                        std::to_string(function->max_dynamic) + " allowed");
    }
    Work w{Kind::kernel};
    w.function = function;
    w.grid[0] = gx, w.grid[1] = gy, w.grid[2] = gz;
    w.threads = bx;
    w.shared_bytes = shared_bytes;
    const size_t bytes = function->kernel->args_bytes;
    const void* args = parameters ? parameters[0] : nullptr;
    if (extra) {  // pairs: 1 the bytes, 2 their number, 0 the end
        for (void** e = extra; *e; e += 2) {
            if (*e == reinterpret_cast<void*>(1)) args = e[1];
            if (*e == reinterpret_cast<void*>(2) && *static_cast<size_t*>(e[1]) != bytes) {
                return wrong(INVALID_VALUE, name + " takes " + std::to_string(bytes) + " bytes of arguments, not " +
                                                std::to_string(*static_cast<size_t*>(e[1])));
            }
        }
    }
    if (!args) return wrong(INVALID_VALUE, name + ": no arguments");
    w.args.assign(static_cast<const uint8_t*>(args), static_cast<const uint8_t*>(args) + bytes);
    return put("cuLaunchKernel", stream, std::move(w));
}

// ---- Graphs ----
CUresult emu_cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
    GGR_BEGIN(cuGraphInstantiateWithFlags);
    GGR_TRY(check_handle("cuGraphInstantiateWithFlags", state->graphs, graph));
    GGR_TRY(check_flags("cuGraphInstantiateWithFlags", flags, 15));
    *out = state->execs.add({current, true, graph->work});
    return 0;
}
// As the driver: only what the nodes do may change, not which nodes there are.
CUresult emu_cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, void* info) {
    GGR_BEGIN(cuGraphExecUpdate);
    GGR_TRY(check_own("cuGraphExecUpdate", state->execs, exec));
    GGR_TRY(check_handle("cuGraphExecUpdate", state->graphs, graph));
    if (!info) return wrong(INVALID_VALUE, "cuGraphExecUpdate without memory for its result");
    std::memset(info, 0, 24);  // CUgraphExecUpdateResultInfo: a result and two nodes
    bool same = exec->work->size() == graph->work->size();
    for (size_t i = 0; same && i < exec->work->size(); ++i) same = (*exec->work)[i].kind == (*graph->work)[i].kind;
    if (!same) {
        const int topology_changed = 2;
        std::memcpy(info, &topology_changed, sizeof topology_changed);
        return UPDATE_FAILURE;
    }
    exec->work = graph->work;
    return 0;
}
CUresult emu_cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    GGR_BEGIN(cuGraphLaunch);
    GGR_TRY(check_own("cuGraphLaunch", state->execs, exec));
    for (const Work& w : *exec->work) {
        if (w.kind == Kind::kernel) GGR_TRY(check_function("cuGraphLaunch", w.function));
    }
    ++state->graph_launches;
    Work w{Kind::graph};
    w.graph = exec->work;
    return put("cuGraphLaunch", stream, std::move(w));
}
CUresult emu_cuGraphDestroy(CUgraph graph) {
    GGR_BEGIN(cuGraphDestroy);
    GGR_TRY(check_handle("cuGraphDestroy", state->graphs, graph));
    graph->alive = false;
    return 0;
}
CUresult emu_cuGraphExecDestroy(CUgraphExec exec) {
    GGR_BEGIN(cuGraphExecDestroy);
    GGR_TRY(check_handle("cuGraphExecDestroy", state->execs, exec));
    exec->alive = false;
    return 0;
}

}  // namespace emulated

using namespace emulated;

extern "C" {

void ggr_driver_setup(const GgrDriverSetup* setup) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    for (auto* memory : {&state->allocations, &state->pinned}) {
        for (const auto& m : *memory) ggr_free(reinterpret_cast<void*>(m.first));
    }
    for (auto& c : state->contexts.all) c.alive = false;
    current = nullptr;
    state = new State;
    state->setup = *setup;
}

void* ggr_driver_function(const char* name) {
#define GGR_NAMED(function, parameters) \
    if (std::strcmp(name, #function) == 0) return reinterpret_cast<void*>(&emu_##function);
    GGR_CUDA_DRIVER(GGR_NAMED)
#undef GGR_NAMED
    return nullptr;
}

void ggr_driver_inject(const char* function, int after, int times, int code, int sticky) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    state->injections[function] = {after, times, code, sticky != 0};
}

const char* ggr_driver_misuse(void) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    state->misuse_told = std::move(state->misuse);
    state->misuse.clear();
    return state->misuse_told.c_str();
}
const char* ggr_driver_ran(void) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    state->ran_told = std::move(state->ran);
    state->ran.clear();
    return state->ran_told.c_str();
}

void ggr_driver_counts(GgrDriverCounts* out) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    *out = {state->launches,
            state->graph_launches,
            state->contexts.live(),
            state->streams.live(),
            state->events.live(),
            state->modules.live(),
            state->graphs.live() + state->execs.live(),
            state->allocations.size(),
            state->pinned.size(),
            {},
            state->peers,
            state->downloaded};
    std::memcpy(out->bytes, state->used, sizeof out->bytes);
}

}  // extern "C"
