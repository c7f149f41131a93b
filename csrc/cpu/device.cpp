// The CPU device behind the device interface.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "cpu/cpu.h"
#include "cpu/levels.h"
#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/pool.h"
#include "graph/graph.h"

namespace ggr {

// The last reading, all of one moment.
struct SystemMemory {
    std::chrono::steady_clock::time_point at;
    uint64_t available, total, resident;
    bool valid = false;
};

struct CpuShared {
    CpuShared(int n_threads, const OpTable* ops, int64_t graph_timeout_ns, const Placement& where);
    const OpTable* table;
    const Placement placement;
    uint64_t resident_at_start;
    std::atomic<uint64_t> allocated{0};
    std::mutex alloc_mutex, system_mutex;
    SystemMemory system;
    Pager pager;
    Pool pool;
};

struct Plan {
    PlanData data;
    ~Plan() { free_graph(data.graph); }
};

namespace {

struct CpuDevice {
    Device device;  // first: a Device * is a CpuDevice *
    CpuShared* shared;
    std::string name, description;
};

// Cache lines, and the widest vector load.
constexpr uint64_t ALIGNMENT = 64;
constexpr uint64_t PAGE = 4096;
constexpr uint64_t HUGE_PAGE = uint64_t{2} << 20;
constexpr uint64_t LARGEST_PAGE = 65536;  // that an ordinary one can be
// Never promise the last of the machine's memory.
constexpr uint64_t RESERVE = uint64_t{64} << 20;

CpuShared& shared(Device* d) { return *reinterpret_cast<CpuDevice*>(d)->shared; }

uint64_t mapping_bytes(uint64_t size) { return (size + SLACK_BYTES + PAGE - 1) / PAGE * PAGE; }

std::vector<bool>* touched(Buffer* b) { return static_cast<std::vector<bool>*>(b->state); }

// What the system says is read from files, which costs 90 us: an answer may be so old, unless memory was freed since.
constexpr std::chrono::milliseconds SYSTEM_AGE{5};

uint64_t free_memory(CpuShared& s, std::chrono::milliseconds age, uint64_t* total_bytes) {
    s.pager.drain();
    const std::lock_guard<std::mutex> lock(s.system_mutex);
    SystemMemory& system = s.system;
    const auto now = std::chrono::steady_clock::now();
    if (!system.valid || now - system.at >= age) {
        system_memory(&system.available, &system.total);
        system.resident = resident_bytes();
        system.at = now;
        system.valid = true;
    }
    *total_bytes = system.total;
    // What was promised but never touched is not in use yet, but will be.
    const uint64_t promised = s.allocated.load() + s.pool.scratch_bytes();
    const uint64_t touched = system.resident - std::min(system.resident, s.resident_at_start);
    const uint64_t untouched = promised - std::min(promised, touched) + RESERVE;
    return system.available - std::min(system.available, untouched);
}

uint64_t room_for_scratch(CpuShared& s) {
    uint64_t total;
    return free_memory(s, std::chrono::milliseconds{0}, &total);
}

void memory(Device* d, uint64_t* free_bytes, uint64_t* total_bytes) {
    *free_bytes = free_memory(shared(d), SYSTEM_AGE, total_bytes);
}

// Map `bytes` of memory, in huge pages from their first whole one on: a core streams weights from ordinary pages at 22
// GB/s and from huge ones at 30 (Zen 4), and first touches 1 GiB of them in 0.14 s instead of 0.6.
void* map_memory(uint64_t bytes) {
    const uint64_t room = bytes < HUGE_PAGE ? 0 : HUGE_PAGE;
    void* p = mmap(nullptr, bytes + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    if (room == 0) return p;
    uint8_t* begin = static_cast<uint8_t*>(p);
    const uint64_t before = -reinterpret_cast<uintptr_t>(p) % HUGE_PAGE;
    const uint64_t end = (before + bytes + LARGEST_PAGE - 1) / LARGEST_PAGE * LARGEST_PAGE;
    if (before > 0) munmap(begin, before);
    if (end < bytes + room) munmap(begin + end, bytes + room - end);
#ifdef MADV_HUGEPAGE
    madvise(begin + before, bytes, MADV_HUGEPAGE);
#endif
    return begin + before;
}

bool alloc(Device* d, uint64_t size, Buffer* out, Error* err) {
    CpuShared& s = shared(d);
    const std::lock_guard<std::mutex> lock(s.alloc_mutex);
    uint64_t total;
    const uint64_t free_bytes = free_memory(s, std::chrono::milliseconds{0}, &total);
    if (size > free_bytes || mapping_bytes(size) > free_bytes)
        return err->fail(Code::memory, "ALLOC_BUFFER: %llu bytes wanted, %llu free on %s",
                         static_cast<unsigned long long>(size), static_cast<unsigned long long>(free_bytes), d->name);
    const uint64_t bytes = mapping_bytes(size);
    void* p = map_memory(bytes);
    if (p == nullptr)
        return err->fail(Code::memory, "ALLOC_BUFFER: the system refused %llu bytes",
                         static_cast<unsigned long long>(size));
    place_memory(s.placement, p, bytes);
    s.allocated += bytes;
    out->data = static_cast<uint8_t*>(p);
    out->size = size;
    out->device = d;
    // Which chunks of the buffer the pager was asked for.
    out->state = new (std::nothrow) std::vector<bool>((size + Pager::CHUNK - 1) / Pager::CHUNK);
    return true;
}

void release(Device* d, Buffer* b) {
    const uint64_t bytes = mapping_bytes(b->size);
    delete touched(b);
    shared(d).pager.release(b->data, bytes);
    shared(d).allocated -= bytes;
    const std::lock_guard<std::mutex> lock(shared(d).system_mutex);
    shared(d).system.valid = false;
    b->data = nullptr;
}

uint8_t* map(Device*, Buffer* b, uint64_t offset, uint64_t length, bool, uint64_t* mapped, Error*) {
    *mapped = length;
    return b->data + offset;
}

bool unmap(Device*, Buffer*, uint8_t*, uint64_t, uint64_t, bool, Error*) { return true; }

void expect(Device* d, Buffer* b, uint64_t offset, uint64_t length) {
    if (touched(b) == nullptr || offset >= b->size) return;
    const uint64_t end = offset + std::min(length, b->size - offset);
    for (uint64_t chunk = offset / Pager::CHUNK; chunk * Pager::CHUNK < end; ++chunk) {
        if ((*touched(b))[chunk]) continue;
        (*touched(b))[chunk] = true;
        const uint64_t begin = chunk * Pager::CHUNK;
        shared(d).pager.want(b->data + begin, std::min(Pager::CHUNK, b->size - begin));
    }
}

bool fill(Device*, Buffer* b, uint64_t offset, uint64_t length, uint8_t value, Error*) {
    std::memset(b->data + offset, value, length);
    return true;
}

bool copy(Device*, const Buffer* src, uint64_t src_offset, Buffer* dst, uint64_t dst_offset, uint64_t length, Error*) {
    std::memmove(dst->data + dst_offset, src->data + src_offset, length);
    return true;
}

Plan* compile(Device* d, Graph* graph, Error* err) {
    CpuShared& s = shared(d);
    std::unique_ptr<Plan> plan(new Plan);
    plan->data.graph = graph;
    PlanBuilder builder(*graph, *s.table, s.pool.size(), err);
    if (!builder.build(&plan->data)) return nullptr;
    return plan.release();
}

void free_plan(Device*, Plan* plan) { delete plan; }

uint64_t plan_bytes(const Plan* plan) {
    return sizeof(Plan) + plan->data.graph->bytes + plan->data.steps.capacity() * sizeof(Step) +
           plan->data.segments.capacity() * sizeof(Segment);
}

Queue* open_queue(Device* d, Error*) { return shared(d).pool.open(); }
void close_queue(Device* d, Queue* q) { shared(d).pool.close(q); }
uint64_t submit(Device* d, Queue* q, Plan* plan, Error* err) { return shared(d).pool.submit(q, &plan->data, err); }
WaitResult wait(Device* d, Queue* q, uint64_t number, int64_t timeout_ns, Error* err) {
    return shared(d).pool.wait(q, number, timeout_ns, err);
}
void cancel(Device* d, Queue* q) { shared(d).pool.cancel(q); }

const DeviceOps CPU_OPS = {true,      alloc,      release,    map,         unmap,  expect, fill,   copy,  compile,
                           free_plan, plan_bytes, open_queue, close_queue, submit, wait,   cancel, memory};

// The processor's own name for itself, as a person would look it up.
std::string processor() {
    char line[256];
    std::string found = "CPU";
    if (std::FILE* f = std::fopen("/proc/cpuinfo", "re")) {
        while (std::fgets(line, sizeof line, f) != nullptr) {
            if (std::strncmp(line, "model name", 10) != 0) continue;
            if (const char* colon = std::strchr(line, ':')) {
                found.assign(colon + 2);
                found.erase(found.find_last_not_of(" \n") + 1);
            }
            break;
        }
        std::fclose(f);
    }
    return found;
}

}  // namespace

CpuShared::CpuShared(int n_threads, const OpTable* ops, int64_t graph_timeout_ns, const Placement& where)
    : table(ops),
      placement(where),
      resident_at_start(resident_bytes()),
      pool(n_threads, graph_timeout_ns, where, [this] { return room_for_scratch(*this); }) {}

int cpu_levels(const char** names, int capacity, bool emulated) { return level_names(names, capacity, emulated); }

CpuShared* cpu_open(int n_threads, const char* level, int64_t graph_timeout_ns, const Placement& placement,
                    Error* err) {
    const OpTable* table = level_table(level);
    if (table == nullptr) {
        err->fail(Code::device, "instruction set level '%s' is not there on this machine", level);
        return nullptr;
    }
    if (n_threads < 1 || n_threads > 1024) {
        err->fail(Code::device, "%d threads: it must be 1 to 1024", n_threads);
        return nullptr;
    }
    if (!try_placement(placement, err)) return nullptr;
    return new CpuShared(n_threads, table, graph_timeout_ns, placement);
}

const char* cpu_level(const CpuShared* s) { return s->table->level; }

void cpu_close(CpuShared* s) { delete s; }

Device* cpu_device(CpuShared* s, const char* name) {
    CpuDevice* d = new CpuDevice;
    d->name = name;
    d->description = processor();
    d->shared = s;
    d->device = {&CPU_OPS, d->name.c_str(), d->description.c_str(), ALIGNMENT, UINT64_MAX};
    return &d->device;
}

void cpu_free_device(Device* d) { delete reinterpret_cast<CpuDevice*>(d); }

}  // namespace ggr
