// The CUDA device behind the device interface.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "cuda/cuda.h"
#include "cuda/gpu.h"
#include "cuda/memory.h"
#include "cuda/queue.h"
#include "graph/effects.h"
#include "graph/graph.h"

namespace ggr {
namespace cuda {

namespace {

// What kernels may rely on for the first byte of a tensor that a client places by it; as stock CUDA servers have it.
constexpr uint64_t ALIGNMENT = 128;

CudaPlan& plan_of(Plan* p) { return *reinterpret_cast<CudaPlan*>(p); }
const CudaPlan& plan_of(const Plan* p) { return *reinterpret_cast<const CudaPlan*>(p); }
CudaQueue& queue_of(Queue* q) { return *reinterpret_cast<CudaQueue*>(q); }

// Buffers that a graph names, all of one context.
bool list_buffers(const Graph& graph, const Device* device, CudaPlan* plan, Error* err) {
    Gpu& gpu = *plan->gpu;
    Buffer* last = nullptr;
    for (uint32_t i = 0; i < graph.n_tensors; ++i) {
        Buffer* b = graph.tensors[i].buffer;
        // What lies on another device is no node's (the parser saw to it) and may go before this plan.
        if (b == nullptr || b == last || b->device != device) continue;
        last = b;
        if (std::find(plan->buffers.begin(), plan->buffers.end(), b) != plan->buffers.end()) continue;
        plan->buffers.push_back(b);
        if (plan->context == nullptr) plan->context = state_of(*b).context;
        if (plan->context != state_of(*b).context)
            return err->fail(Code::device, "GRAPH_COMPUTE: an error of CUDA device %d lost some of the graph's memory",
                             gpu.ordinal);
    }
    if (plan->context == nullptr) plan->context = gpu.context(err);
    return plan->context != nullptr && plan->context->enter(err);
}

// Buffers that some node writes.
void list_written(const Graph& graph, CudaPlan* plan) {
    for (uint32_t i = 0; i < graph.n_nodes; ++i)
        for_each_written(*graph.nodes[i], [&](const Tensor& t) {
            const auto known = std::find(plan->written.begin(), plan->written.end(), t.buffer);
            const bool ours = std::find(plan->buffers.begin(), plan->buffers.end(), t.buffer) != plan->buffers.end();
            if (ours && known == plan->written.end()) plan->written.push_back(t.buffer);
        });
}

// Count what is left to the CPU, and say so the first time.
void note_fallbacks(const Graph& graph, const PlanData& data, Gpu& gpu) {
    for (const uint32_t i : data.cpu_nodes) {
        const Tensor& node = *graph.nodes[i];
        std::string text = op_traits(node.op)->name;
        text += " (";
        for (int s = 0; s < node.n_src; ++s) {
            if (node.src[s] == nullptr) continue;
            text += type_traits(node.src[s]->type)->name;
            text += s + 1 < node.n_src ? ", " : "";
        }
        text += std::string(node.n_src > 0 ? " -> " : "-> ") + type_traits(node.type)->name + ")";
        bool first;
        {
            const std::lock_guard<std::mutex> lock(gpu.mutex);
            first = gpu.fallbacks[text]++ == 0;
        }
        if (!first) continue;
        const std::string line =
            "no CUDA kernel for " + text + ", as in tensor '" + node.name + "': the CPU computes it";
        gpu.owner.log(gpu.owner.context, line.c_str());
    }
}

bool load_kernels(CudaPlan* plan, Error* err) {
    std::vector<std::pair<uint32_t, uint32_t>> wanted;
    for (const Launch& l : plan->data.launches) {
        if (l.kernel == BY_LIBRARY)
            ++plan->library_launches;
        else
            wanted.emplace_back(l.kernel, l.shared_bytes);
    }
    if (!plan->context->load(wanted, err)) return false;
    plan->functions.reserve(plan->data.launches.size());
    for (const Launch& l : plan->data.launches)
        plan->functions.push_back(l.kernel == BY_LIBRARY ? nullptr : plan->context->function(l.kernel));
    return true;
}

// Products of a plan that the library of its context computes.
class PlanLibrary : public ProductLibrary {
  public:
    explicit PlanLibrary(CudaPlan& plan) : plan_(plan) {}
    bool prepare(const ProductShape& shape, uint32_t* number) override {
        Library* library = plan_.context->library();
        if (library == nullptr) return false;
        std::shared_ptr<const Library::Prepared> product = library->prepare(shape, WORKSPACE_BYTES);
        if (product == nullptr) return false;
        *number = static_cast<uint32_t>(plan_.products.size());
        plan_.products.push_back(std::move(product));
        return true;
    }

  private:
    CudaPlan& plan_;
};

Plan* compile(Device* d, Graph* graph, Error* err) {
    Gpu& gpu = gpu_of(d);
    std::unique_ptr<CudaPlan> plan(new CudaPlan);
    plan->graph = graph;
    plan->gpu = &gpu;
    if (!list_buffers(*graph, d, plan.get(), err) || !plan->context->take_fault(&plan->fault, err)) return nullptr;
    PlanLibrary library(*plan);
    PlanBuilder(*graph, gpu.ops, gpu.hardware, gpu.kernels, plan->fault.device, library).build(&plan->data);
    plan->scratch_at = plan->data.scratch_base;
    note_fallbacks(*graph, plan->data, gpu);
    list_written(*graph, plan.get());
    if (!load_kernels(plan.get(), err) || !plan->fallback.build(*graph, plan->data, gpu, plan->written, err))
        return nullptr;
    return reinterpret_cast<Plan*>(plan.release());
}

void free_plan(Device*, Plan* plan) { delete &plan_of(plan); }

uint64_t plan_bytes(const Plan* p) {
    const CudaPlan& plan = plan_of(p);
    const PlanData& d = plan.data;
    return sizeof(CudaPlan) + plan.graph->bytes + d.launches.capacity() * (sizeof(Launch) + sizeof(CUfunction)) +
           d.args.capacity() + d.relocations.capacity() * 4 + d.cpu_nodes.capacity() * sizeof(Tensor);
}

Queue* open_queue(Device* d, Error* err) { return reinterpret_cast<Queue*>(CudaQueue::open(gpu_of(d), err)); }
void close_queue(Device*, Queue* q) { delete &queue_of(q); }
uint64_t submit(Device*, Queue* q, Plan* plan, Error* err) { return queue_of(q).submit(plan_of(plan), err); }
WaitResult wait(Device*, Queue* q, uint64_t number, int64_t timeout_ns, Error* err) {
    return queue_of(q).wait(number, timeout_ns, err);
}
void cancel(Device*, Queue* q) { queue_of(q).cancel(); }

const DeviceOps CUDA_OPS = {false,     alloc,      release,    map,         unmap,  expect, fill,   copy,  compile,
                            free_plan, plan_bytes, open_queue, close_queue, submit, wait,   cancel, memory};

OpTable op_table() {
    OpTable out = {};
    size_t n = 0;
    const Family* list = families(&n);
    for (size_t i = 0; i < n; ++i) list[i].enter(out);
    return out;
}

// Part of the host's memory that copies of weights may take for the nodes of one GPU that run on the CPU.
constexpr uint64_t KEPT_PART = 4;

// Attributes of CU_DEVICE_ATTRIBUTE_*.
constexpr int MULTIPROCESSORS = 16, L2_BYTES = 38, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, SHARED_OPTIN = 97;

bool read_hardware(const Driver& d, CUdevice device, Hardware* out, Error* err) {
    const auto attribute = [&](int which) {
        int value = 0;
        return d.cuDeviceGetAttribute(&value, which, device) == CUDA_SUCCESS ? value : -1;
    };
    const int major = attribute(CAPABILITY_MAJOR), minor = attribute(CAPABILITY_MINOR);
    out->capability = major * 10 + minor;
    out->multiprocessors = attribute(MULTIPROCESSORS);
    out->shared_bytes = attribute(SHARED_OPTIN);
    out->l2_bytes = static_cast<uint64_t>(std::max(0, attribute(L2_BYTES)));
    if (major < 0 || minor < 0 || out->multiprocessors < 1 || out->shared_bytes < 0)
        return err->fail(Code::device, "CUDA device %d does not say what it is", device);
    return true;
}

}  // namespace

}  // namespace cuda

using namespace cuda;

#define GGR_NAME(name, parameters) #name,
int cuda_driver_functions(const char** names, int capacity) {
    static const char* const all[] = {GGR_CUDA_DRIVER(GGR_NAME)};
    const int n = static_cast<int>(sizeof all / sizeof all[0]);
    std::copy_n(all, std::min(n, capacity), names);
    return n;
}

int cuda_blas_functions(const char** names, int capacity) {
    static const char* const all[] = {GGR_CUDA_BLAS(GGR_NAME)};
    const int n = static_cast<int>(sizeof all / sizeof all[0]);
    std::copy_n(all, std::min(n, capacity), names);
    return n;
}
#undef GGR_NAME

CudaGpu* cuda_open(const Driver* driver, int ordinal, const CudaOwner& owner, Device* cpu, int64_t graph_timeout_ns,
                   Error* err) {
    std::unique_ptr<CudaGpu> gpu(new CudaGpu);
    gpu->driver = *driver;
    gpu->ordinal = ordinal;
    gpu->owner = owner;
    gpu->cpu = cpu;
    gpu->graph_timeout_ns = graph_timeout_ns;
    gpu->ops = op_table();
    gpu->ops_of = &CUDA_OPS;
    const int64_t pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    gpu->keep_at_most = static_cast<uint64_t>(std::max<int64_t>(0, pages) * page_bytes) / KEPT_PART;
    if (!read_hardware(gpu->driver, ordinal, &gpu->hardware, err) || gpu->context(err) == nullptr) return nullptr;
    return gpu.release();
}

void cuda_close(CudaGpu* gpu) { delete gpu; }

void cuda_keep(CudaGpu* gpu, uint64_t bytes) { gpu->keep_at_most = bytes; }

void cuda_leave(CudaGpu* gpu, int32_t op) {
    if (op < 0 || op >= OP_COUNT_) return;
    gpu->ops.prepare[op] = nullptr;
    gpu->ops.fuse[op] = nullptr;
}

Device* cuda_device(CudaGpu* gpu, const char* name, const char* description) {
    CudaDevice* d = new CudaDevice;
    d->name = name;
    d->description = description;
    d->gpu = gpu;
    d->device = {&CUDA_OPS, d->name.c_str(), d->description.c_str(), ALIGNMENT, UINT64_MAX};
    return &d->device;
}

void cuda_free_device(Device* d) { delete reinterpret_cast<CudaDevice*>(d); }

const Hardware* cuda_hardware(const CudaGpu* gpu) { return &gpu->hardware; }

CudaCounts cuda_counts(const CudaGpu* gpu) {
    return {gpu->launches, gpu->graph_launches, gpu->graph_updates, gpu->cpu_nodes,
            gpu->products, gpu->contexts,       gpu->kept_bytes};
}

void cuda_plan_counts(const Plan* plan, uint32_t* launches, uint32_t* cpu_nodes) {
    *launches = static_cast<uint32_t>(plan_of(plan).data.launches.size());
    *cpu_nodes = static_cast<uint32_t>(plan_of(plan).data.cpu_nodes.size());
}

bool cuda_fallback(CudaGpu* gpu, uint32_t index, char* text, uint64_t text_bytes, uint64_t* nodes) {
    const std::lock_guard<std::mutex> lock(gpu->mutex);
    if (index >= gpu->fallbacks.size()) return false;
    const auto at = std::next(gpu->fallbacks.begin(), index);
    std::snprintf(text, text_bytes, "%s", at->first.c_str());
    *nodes = at->second;
    return true;
}

bool cuda_asked(const CudaGpu* gpu, uint32_t index, KernelName* out) {
    if (index >= gpu->kernels.size()) return false;
    const KernelTable::Row& row = gpu->kernels.row(index);
    *out = {row.file.c_str(), row.expression.c_str()};
    return true;
}

bool cuda_load(CudaGpu* gpu, const KernelName* names, uint32_t n, Error* err) {
    const std::shared_ptr<Context> context = gpu->context(err);
    if (context == nullptr || !context->enter(err)) return false;
    std::vector<std::pair<uint32_t, uint32_t>> wanted;
    for (uint32_t i = 0; i < n; ++i) wanted.emplace_back(gpu->kernels.number(names[i].file, names[i].expression), 0);
    return context->load(wanted, err);
}

void cuda_registry(void* context, KernelSink sink) {
    size_t n = 0;
    const Family* list = families(&n);
    for (size_t i = 0; i < n; ++i) list[i].list_kernels(context, sink);
}

bool cuda_has_op(int32_t op) {
    static const OpTable table = op_table();
    return op >= 0 && op < OP_COUNT_ && (table.prepare[op] != nullptr || table.fuse[op] != nullptr);
}

}  // namespace ggr
