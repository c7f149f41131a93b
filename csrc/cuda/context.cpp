#include "cuda/context.h"

#include <algorithm>
#include <cstring>

#include "cuda/gpu.h"

namespace ggr {
namespace cuda {

namespace {

constexpr unsigned MAP_HOST = 8;       // of contexts: pinned memory has addresses on the device
constexpr unsigned DEVICE_MAP = 2;     // of pinned memory: it has such an address
constexpr int MAX_DYNAMIC_SHARED = 8;  // attribute of a function
constexpr size_t FAULTS_A_BLOCK = 128;
constexpr size_t KEPT_GRAPHS = 16;
// Of the device's memory for modules, stacks and what the driver needs while kernels run.
constexpr uint64_t RESERVE = uint64_t{64} << 20;

// Errors after which every call into the context fails.
bool is_sticky(CUresult status) {
    return status == 214 || status == 220 || status == 226 || status == 700 || status == 702 ||
           (status >= 709 && status <= 710) || (status >= 714 && status <= 719) || status == 721 || status == 999;
}

std::atomic<uint64_t> contexts_made{0};

}  // namespace

std::shared_ptr<Context> Gpu::context(Error* err) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (current != nullptr && !current->dead()) return current;
    current.reset();
    current = Context::open(*this, err);
    return current;
}

Context::Context(Gpu& gpu, CUcontext handle)
    : gpu_(gpu), driver_(gpu.driver), handle_(handle), number_(++contexts_made), staging_(*this) {}

std::shared_ptr<Context> Context::open(Gpu& gpu, Error* err) {
    CUcontext handle = nullptr;
    const CUresult status = gpu.driver.cuCtxCreate(&handle, MAP_HOST, gpu.ordinal);
    if (status != CUDA_SUCCESS) {
        const char* text = nullptr;
        gpu.driver.cuGetErrorString(status, &text);
        err->fail(Code::device, "CUDA device %d: no context: %s (%d)", gpu.ordinal, text != nullptr ? text : "unknown",
                  status);
        return nullptr;
    }
    std::shared_ptr<Context> out(new Context(gpu, handle));
    if (!out->enter(err) || !out->staging_.open(err)) return nullptr;
    ++gpu.contexts;
    return out;
}

Context::~Context() {
    if (driver_.cuCtxSetCurrent(handle_) == CUDA_SUCCESS) {
        for (const auto& g : graphs_) driver_.cuGraphExecDestroy(g.second);
        library_.reset();
        staging_.close();
        for (void* block : fault_blocks_) driver_.cuMemFreeHost(block);
    }
    driver_.cuCtxDestroy(handle_);
}

bool Context::enter(Error* err) {
    if (dead())
        return err->fail(Code::device, "CUDA device %d: an earlier error ended this session's work on it",
                         gpu_.ordinal);
    return check(driver_.cuCtxSetCurrent(handle_), "cuCtxSetCurrent", err);
}

bool Context::check(CUresult status, const char* what, Error* err) {
    if (status == CUDA_SUCCESS) return true;
    if (is_sticky(status)) dead_ = true;
    const char *name = nullptr, *text = nullptr;
    driver_.cuGetErrorName(status, &name);
    driver_.cuGetErrorString(status, &text);
    return err->fail(status == CUDA_ERROR_OUT_OF_MEMORY ? Code::memory : Code::device,
                     "CUDA device %d: %s failed: %s (%s)", gpu_.ordinal, what, text != nullptr ? text : "unknown error",
                     name != nullptr ? name : "?");
}

bool Context::allocate(uint64_t bytes, const char* what, CUdeviceptr* out, Error* err) {
    size_t free_bytes = 0, total = 0;
    CUresult status;
    do {
        status = CUDA_ERROR_OUT_OF_MEMORY;
        if (!check(driver_.cuMemGetInfo(&free_bytes, &total), "cuMemGetInfo", err)) return false;
        if (bytes <= free_bytes && RESERVE <= free_bytes - bytes) status = driver_.cuMemAlloc(out, bytes);
    } while (status == CUDA_ERROR_OUT_OF_MEMORY && free_given());
    if (status == CUDA_ERROR_OUT_OF_MEMORY)
        return err->fail(Code::memory, "%s: %llu bytes wanted, %llu free on CUDA device %d", what,
                         static_cast<unsigned long long>(bytes),
                         static_cast<unsigned long long>(free_bytes - std::min<uint64_t>(free_bytes, RESERVE)),
                         gpu_.ordinal);
    return check(status, "cuMemAlloc", err);
}

void Context::give_memory(CUdeviceptr memory, uint64_t bytes) {
    {
        const std::lock_guard<std::mutex> lock(given_mutex_);
        given_.emplace_back(memory, bytes);
        given_bytes_ += bytes;
    }
    if (runs_ == 0) free_given();
}

bool Context::free_given() {
    std::vector<std::pair<CUdeviceptr, uint64_t>> given;
    {
        const std::lock_guard<std::mutex> lock(given_mutex_);
        given.swap(given_);
    }
    Error ignored = {};  // but not that the context is lost
    for (const auto& g : given) {
        check(driver_.cuMemFree(g.first), "cuMemFree", &ignored);
        given_bytes_ -= g.second;
    }
    return !given.empty();
}

bool Context::take_fault(FaultWord* out, Error* err) {
    const std::lock_guard<std::mutex> lock(fault_mutex_);
    if (faults_.empty()) {
        void* block = nullptr;
        CUdeviceptr device = 0;
        const size_t bytes = FAULTS_A_BLOCK * sizeof(Fault);
        if (!check(driver_.cuMemHostAlloc(&block, bytes, DEVICE_MAP), "cuMemHostAlloc", err)) return false;
        fault_blocks_.push_back(block);
        if (!check(driver_.cuMemHostGetDevicePointer(&device, block, 0), "cuMemHostGetDevicePointer", err))
            return false;
        std::memset(block, 0, bytes);
        for (size_t i = 0; i < FAULTS_A_BLOCK; ++i)
            faults_.push_back({static_cast<Fault*>(block) + i, reinterpret_cast<Fault*>(device) + i});
    }
    *out = faults_.back();
    faults_.pop_back();
    return true;
}

void Context::give_fault(FaultWord word) {
    const std::lock_guard<std::mutex> lock(fault_mutex_);
    std::memset(word.host, 0, sizeof *word.host);
    faults_.push_back(word);
}

bool Context::load(const std::vector<std::pair<uint32_t, uint32_t>>& kernels_and_shared, Error* err) {
    const std::lock_guard<std::mutex> loading(load_mutex_);
    std::vector<uint32_t> missing;
    {
        const std::lock_guard<std::mutex> lock(function_mutex_);
        for (const auto& k : kernels_and_shared) {
            if (k.first >= functions_.size()) functions_.resize(gpu_.kernels.size());
            if (functions_[k.first].function == nullptr &&
                std::find(missing.begin(), missing.end(), k.first) == missing.end())
                missing.push_back(k.first);
        }
    }
    if (!missing.empty()) {
        std::vector<KernelName> names;
        for (const uint32_t k : missing) {
            const KernelTable::Row& row = gpu_.kernels.row(k);
            names.push_back({row.file.c_str(), row.expression.c_str()});
        }
        std::vector<CUfunction> found(missing.size(), nullptr);
        if (!gpu_.owner.load(gpu_.owner.context, names.data(), static_cast<uint32_t>(names.size()), found.data(), err))
            return false;
        const std::lock_guard<std::mutex> lock(function_mutex_);
        for (size_t i = 0; i < missing.size(); ++i) {
            if (found[i] == nullptr)
                return err->fail(Code::device, "no kernel %s of %s.cu was made", names[i].expression, names[i].file);
            functions_[missing[i]].function = found[i];
        }
    }
    const std::lock_guard<std::mutex> lock(function_mutex_);
    for (const auto& k : kernels_and_shared) {
        Loaded& l = functions_[k.first];
        // 48 KiB are allowed without asking, but what the kernel has by itself counts among them.
        if (k.second <= l.shared_bytes) continue;
        const CUresult status = driver_.cuFuncSetAttribute(l.function, MAX_DYNAMIC_SHARED, static_cast<int>(k.second));
        if (!check(status, "cuFuncSetAttribute", err)) return false;
        l.shared_bytes = k.second;
    }
    return true;
}

Library* Context::library() {
    std::call_once(library_once_, [this] {
        std::call_once(gpu_.asked_for_blas, [this] {
            const Blas* const table = gpu_.owner.blas(gpu_.owner.context);
            gpu_.has_blas = table != nullptr;
            if (table != nullptr) gpu_.blas = *table;
        });
        if (gpu_.has_blas) library_ = Library::open(gpu_.blas);
    });
    return library_.get();
}

CUfunction Context::function(uint32_t kernel) const {
    const std::lock_guard<std::mutex> lock(function_mutex_);
    return functions_[kernel].function;
}

void Context::reach(const Context& source) {
    const std::lock_guard<std::mutex> lock(reach_mutex_);
    if (std::find(reached_.begin(), reached_.end(), source.number_) != reached_.end()) return;
    reached_.push_back(source.number_);
    int can = 0;
    if (gpu_.ordinal == source.gpu_.ordinal ||
        driver_.cuDeviceCanAccessPeer(&can, gpu_.ordinal, source.gpu_.ordinal) != CUDA_SUCCESS || can == 0)
        return;
    Error ignored = {};  // but not that the context is lost
    check(driver_.cuCtxEnablePeerAccess(source.handle_, 0), "cuCtxEnablePeerAccess", &ignored);
}

CUgraphExec Context::take_graph(uint64_t key) {
    const std::lock_guard<std::mutex> lock(graph_mutex_);
    for (auto g = graphs_.begin(); g != graphs_.end(); ++g)
        if (g->first == key) {
            const CUgraphExec out = g->second;
            graphs_.erase(g);
            return out;
        }
    return nullptr;
}

void Context::give_graph(uint64_t key, CUgraphExec graph) {
    const std::lock_guard<std::mutex> lock(graph_mutex_);
    graphs_.emplace_back(key, graph);
    if (graphs_.size() <= KEPT_GRAPHS) return;
    driver_.cuGraphExecDestroy(graphs_.front().second);
    graphs_.erase(graphs_.begin());
}

}  // namespace cuda
}  // namespace ggr
