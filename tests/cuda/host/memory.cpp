// Device memory, and the check of every address that a kernel uses.
//
// Kernels are compiled with -fsanitize=kernel-address, which puts a call before each access: the functions at the end
// of this file. An address may lie in the thread's own stack, in a live allocation, in the block's shared memory or in
// the library's constants. For shared memory each byte remembers who read and who wrote it last; two accesses of
// different threads, one of them a write, need a barrier between them: of the block, or of the warp if both are of one.
#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "internal.h"

namespace emulator {
namespace {

// ---- Allocations: each with a page behind it, at addresses that are used once ----
struct Allocation {
    uintptr_t at;
    size_t bytes, slack;
    int kind, owner;
};
std::map<uintptr_t, Allocation> allocations;
std::mutex allocations_lock;
uintptr_t arena, arena_end, arena_next;
constexpr size_t PAGE = 4096;

void reserve_arena() {
    if (arena) return;
    for (size_t bytes = size_t{8} << 40; bytes > (size_t{1} << 30); bytes /= 2) {
        void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) continue;
        arena = arena_next = reinterpret_cast<uintptr_t>(p);
        arena_end = arena + bytes;
        return;
    }
}
// The allocation at or before an address.
const Allocation* before(uintptr_t at) {
    auto it = allocations.upper_bound(at);
    return it == allocations.begin() ? nullptr : &std::prev(it)->second;
}

// ---- Shared memory ----
struct Mark {
    uint32_t epoch;       // of the block, when the last one read or wrote
    uint32_t warp_epoch;  // of its warp
    int16_t thread;       // -1: several warps; -2 - w: several threads of warp w
    uint8_t atomic, copying;
};
struct Byte {
    Mark read, written;
};
struct Region {
    uintptr_t begin;
    size_t bytes;
    std::vector<Byte> marks;
    size_t low, high;  // what was written since the last poisoning
};
Region dynamic_region, static_region;
std::map<uintptr_t, Region> static_regions;  // of the libraries seen
uintptr_t image_begin, image_end;            // constants of the library that runs
const GgrKernels* present;
Allocation cached[4];

bool ordered(const Mark& mark, int thread) {
    if (mark.epoch != block.epoch || mark.thread == thread) return true;
    const int warp = thread >> 5;
    const int its_warp = mark.thread >= 0 ? mark.thread >> 5 : -2 - mark.thread;
    return mark.thread != -1 && its_warp == warp && mark.warp_epoch != block.warp_epoch[warp];
}

std::string who(const Mark& mark) {
    if (mark.thread >= 0) return "thread " + std::to_string(mark.thread);
    return mark.thread == -1 ? "other threads" : "threads of warp " + std::to_string(-2 - mark.thread);
}

void race(Region& r, size_t i, const char* mine, const char* theirs, const Mark& mark) {
    ggr_fail("race: %s byte %zu of %s shared memory that %s %s, with no barrier between", mine, i,
             &r == &dynamic_region ? "dynamic" : "static", who(mark).c_str(), theirs);
}

void touch(Region& r, size_t from, size_t bytes, Access access) {
    const int thread = block.running->index, warp = thread >> 5;
    const Mark now{block.epoch, block.warp_epoch[warp], static_cast<int16_t>(thread), access == Access::atomic,
                   access == Access::copy_starts};
    if (access != Access::read) {
        if (from < r.low) r.low = from;
        if (from + bytes > r.high) r.high = from + bytes;
    }
    for (size_t i = from; i < from + bytes; ++i) {
        Byte& b = r.marks[i];
        if (access == Access::copy_ends) {
            b.written = now;
            continue;
        }
        // Counted from the start of the block: marks of earlier blocks have lower epochs.
        if (b.written.copying) race(r, i, access == Access::read ? "reads" : "writes", "is copying to", b.written);
        if (access == Access::read) {
            if (!ordered(b.written, thread)) race(r, i, "reads", "wrote", b.written);
            Mark& m = b.read;
            const int its_warp = m.thread >= 0 ? m.thread >> 5 : -2 - m.thread;
            if (m.epoch == now.epoch && m.thread != thread) {
                if (m.thread == -1 || its_warp != warp) {
                    m.thread = -1;
                    continue;
                }
                if (m.warp_epoch == now.warp_epoch) {
                    m.thread = static_cast<int16_t>(-2 - warp);
                    continue;
                }
            }
            m = now;
        } else {
            const bool both_atomic = access == Access::atomic && b.written.atomic;
            if (!both_atomic && !ordered(b.written, thread)) race(r, i, "writes", "wrote", b.written);
            if (!ordered(b.read, thread)) race(r, i, "writes", "read", b.read);
            b.written = now;
        }
    }
}

Region* region_of(uintptr_t at) {
    if (at - static_region.begin < static_region.bytes) return &static_region;
    if (at - dynamic_region.begin < MAX_DYNAMIC_SHARED + PAGE) return &dynamic_region;
    return nullptr;
}

void poison(Region& r) {
    if (r.low < r.high) std::memset(reinterpret_cast<void*>(r.begin + r.low), 0xff, r.high - r.low);
    for (size_t i = r.low; i < r.high; ++i) r.marks[i].written.copying = 0;
    r.low = r.bytes;
    r.high = 0;
}

// "norm.cu:81" of an instruction, if the machine has addr2line: who called what the emulator has in its header.
std::string source_of(const void* instruction) {
    Dl_info info;
    if (!instruction || !dladdr(instruction, &info) || !info.dli_fname) return "";
    char command[1200], line[600] = "";
    std::snprintf(
        command, sizeof command, "addr2line -s -i -e '%s' 0x%zx 2> /dev/null", info.dli_fname,
        static_cast<size_t>(static_cast<const char*>(instruction) - static_cast<const char*>(info.dli_fbase)) - 1);
    FILE* pipe = popen(command, "r");
    if (!pipe) return "";
    std::string found;
    while (std::fgets(line, sizeof line, pipe) != nullptr) {
        line[std::strcspn(line, "\n ")] = 0;
        if (line[0] && line[0] != '?' && (found.empty() || found.compare(0, 11, "emulator.h:") == 0)) found = line;
    }
    pclose(pipe);
    return found.empty() ? "" : " at " + found;
}

[[noreturn]] void fail_at(const void* instruction, const std::string& text) {
    ggr_fail("%s%s", text.c_str(), source_of(instruction).c_str());
}

void check(uintptr_t at, size_t bytes, bool write, const void* instruction);

void check_slowly(uintptr_t at, size_t bytes, bool write, const void* instruction) {
    if (Region* r = region_of(at)) {
        if (at - r->begin + bytes > r->bytes) {
            fail_at(instruction, std::string(write ? "writes " : "reads ") + std::to_string(bytes) + " bytes at " +
                                     std::to_string(at - r->begin) + " of " + std::to_string(r->bytes) + " bytes of " +
                                     (r == &dynamic_region ? "dynamic" : "static") + " shared memory");
        }
        touch(*r, at - r->begin, bytes, write ? Access::write : Access::read);
        return;
    }
    if (at - image_begin < image_end - image_begin && !write) return;
    if (at - reinterpret_cast<uintptr_t>(block.args) < sizeof block.args && !write) return;
    const char* what = write ? "writes " : "reads ";
    std::lock_guard<std::mutex> lock(allocations_lock);
    const Allocation* a = before(at);
    const bool foreign =
        a && a->kind == GGR_DEVICE_MEMORY && block.launch->owner != 0 && a->owner != block.launch->owner;
    if (a && !foreign && at - a->at + bytes <= a->bytes + (write ? 0 : a->slack)) {
        cached[at >> 12 & 3] = *a;
        return;
    }
    std::string text = what + std::to_string(bytes) + " bytes ";
    if (foreign) text += "of another context's memory, ";
    if (a && at - a->at < a->bytes + (size_t{1} << 16)) {
        text += "at " + std::to_string(at - a->at) + " of an allocation of " + std::to_string(a->bytes) + " bytes";
    } else if (at >= arena && at < arena_end) {
        text += "of freed memory or before the first allocation";
    } else {
        char hex[40];
        std::snprintf(hex, sizeof hex, "at 0x%zx", static_cast<size_t>(at));
        text += hex + std::string(", which is no memory of the device");
    }
    allocations_lock.unlock();  // fail_at does not come back
    fail_at(instruction, text);
}

inline void check(uintptr_t at, size_t bytes, bool write, const void* instruction) {
    if (!block.running) return;
    if (--block.left < 0) stop_over_budget();
    if (at - reinterpret_cast<uintptr_t>(block.running->stack) < STACK_BYTES) return;
    const Allocation& a = cached[at >> 12 & 3];
    if (at >= a.at && at - a.at + bytes <= a.bytes) return;
    check_slowly(at, bytes, write, instruction);
}

}  // namespace

bool touch_shared(uintptr_t at, size_t bytes, Access access) {
    Region* r = region_of(at);
    if (!r || at - r->begin + bytes > r->bytes) return false;
    touch(*r, at - r->begin, bytes, access);
    return true;
}

void start_memory_of_launch() {
    if (!dynamic_region.begin) {
        void* p = mmap(nullptr, MAX_DYNAMIC_SHARED + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        dynamic_region.begin = reinterpret_cast<uintptr_t>(p);
        dynamic_region.marks.resize(MAX_DYNAMIC_SHARED);
        dynamic_region.high = dynamic_region.bytes = MAX_DYNAMIC_SHARED;
        block.dynamic_shared = static_cast<uint8_t*>(p);
    }
    poison(dynamic_region);
    dynamic_region.bytes = dynamic_region.low = block.dynamic_bytes;
    for (Allocation& a : cached) a = Allocation{};
    if (present == block.launch->library) return;
    if (present) static_regions[static_region.begin] = std::move(static_region);
    present = block.launch->library;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(present->shared_begin);
    static_region = std::move(static_regions[begin]);
    if (!static_region.begin) {
        static_region.begin = begin;
        static_region.bytes = static_cast<size_t>(present->shared_end - present->shared_begin);
        static_region.marks.resize(static_region.bytes);
        static_region.low = 0;
        static_region.high = static_region.bytes;
    }
    image_begin = image_end = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
                const uintptr_t from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
                if (reinterpret_cast<uintptr_t>(present) - from < info->dlpi_phdr[i].p_memsz) {
                    const auto& first = info->dlpi_phdr[0];
                    image_begin = info->dlpi_addr + first.p_vaddr;
                    image_end = from + info->dlpi_phdr[i].p_memsz;
                }
            }
            return 0;
        },
        nullptr);
}

void start_memory_of_block() {
    poison(dynamic_region);
    poison(static_region);
}

}  // namespace emulator

using namespace emulator;

extern "C" {

void* ggr_alloc(size_t bytes, size_t slack, int kind, int owner) {
    std::lock_guard<std::mutex> lock(allocations_lock);
    reserve_arena();
    // Not at the start of a page: an address that is aligned to 256 only, as cuMemAlloc gives.
    const size_t whole = (256 + bytes + slack + PAGE - 1) / PAGE * PAGE;
    if (arena_next + whole + PAGE > arena_end) return nullptr;
    void* p = reinterpret_cast<void*>(arena_next);
    if (mprotect(p, whole, PROT_READ | PROT_WRITE) != 0) return nullptr;
    const uintptr_t at = arena_next + 256;
    arena_next += whole + PAGE;
    allocations[at] = {at, bytes, slack, kind, owner};
    return reinterpret_cast<void*>(at);
}

int ggr_free(void* p) {
    std::lock_guard<std::mutex> lock(allocations_lock);
    const auto it = allocations.find(reinterpret_cast<uintptr_t>(p));
    if (it == allocations.end()) return -1;
    const size_t whole = (256 + it->second.bytes + it->second.slack + PAGE - 1) / PAGE * PAGE;
    void* page = reinterpret_cast<void*>(it->second.at - 256);
    mmap(page, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    allocations.erase(it);
    return 0;
}

int ggr_owner(const void* p, size_t bytes, int kind) {
    std::lock_guard<std::mutex> lock(allocations_lock);
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    const Allocation* a = before(at);
    return a && a->kind == kind && at - a->at + bytes <= a->bytes ? a->owner : -1;
}

#define GGR_CALLER __builtin_return_address(0)

void ggr_check_read(const void* p, size_t bytes) { check(reinterpret_cast<uintptr_t>(p), bytes, false, GGR_CALLER); }

static void check_aligned(const char* what, const void* p, size_t bytes, const void* instruction) {
    if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
    fail_at(instruction, std::string(what) + ": address is no multiple of " + std::to_string(bytes));
}
static void check_global(const char* what, const void* p, size_t bytes, const void* instruction) {
    check_aligned(what, p, bytes, instruction);
    if (region_of(reinterpret_cast<uintptr_t>(p))) fail_at(instruction, std::string(what) + " from shared memory");
    check(reinterpret_cast<uintptr_t>(p), bytes, false, instruction);
}
void ggr_check_global(const char* what, const void* p, size_t bytes) { check_global(what, p, bytes, GGR_CALLER); }
void ggr_check_shared(const char* what, const void* p, size_t bytes) {
    check_aligned(what, p, bytes, GGR_CALLER);
    if (!region_of(reinterpret_cast<uintptr_t>(p))) fail_at(GGR_CALLER, std::string(what) + ": no shared memory");
    check(reinterpret_cast<uintptr_t>(p), bytes, false, GGR_CALLER);
}

static void check_atomic(void* p, const void* instruction) {
    check_aligned("atomic operation", p, 4, instruction);
    if (!touch_shared(reinterpret_cast<uintptr_t>(p), 4, Access::atomic)) {
        check(reinterpret_cast<uintptr_t>(p), 4, true, instruction);
    }
}
float ggr_atomic_add_f32(float* p, float v) {
    check_atomic(p, GGR_CALLER);
    const float old = *p;
    *p = old + v;
    return old;
}
int32_t ggr_atomic_add_i32(int32_t* p, int32_t v) {
    check_atomic(p, GGR_CALLER);
    const int32_t old = *p;
    *p = static_cast<int32_t>(static_cast<uint32_t>(old) + static_cast<uint32_t>(v));
    return old;
}
int32_t ggr_atomic_swap_i32(int32_t* p, int32_t old, int32_t v) {
    check_atomic(p, GGR_CALLER);
    const int32_t was = *p;
    if (was == old) *p = v;
    return was;
}

void ggr_copy_async(void* shared, const void* from, bool valid) {
    check_aligned("copy16_async to shared memory", shared, 16, GGR_CALLER);
    if (valid) check_global("copy16_async", from, 16, GGR_CALLER);
    if (!touch_shared(reinterpret_cast<uintptr_t>(shared), 16, Access::copy_starts)) {
        fail_at(GGR_CALLER, "copy16_async to what is no shared memory of the block");
    }
    auto& groups = block.running->groups;
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({static_cast<uint8_t*>(shared), valid ? static_cast<const uint8_t*>(from) : nullptr});
}
void ggr_copies_commit(void) {
    auto& groups = block.running->groups;
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}
void ggr_copies_wait(int pending) {
    auto& groups = block.running->groups;
    // The group that is not committed is not waited for, except at the end of the thread, where nothing is left behind.
    while (groups.size() > static_cast<size_t>(pending) + 1) {
        for (const Copy& c : groups.front()) {
            if (c.from) {
                std::memcpy(c.to, c.from, 16);
            } else {
                std::memset(c.to, 0, 16);
            }
            touch_shared(reinterpret_cast<uintptr_t>(c.to), 16, Access::copy_ends);
        }
        groups.erase(groups.begin());
    }
}

// ---- What the compiler calls before each access ----
#define GGR_CHECKED(n)                                                             \
    void __asan_load##n##_noabort(uintptr_t p) { check(p, n, false, GGR_CALLER); } \
    void __asan_store##n##_noabort(uintptr_t p) { check(p, n, true, GGR_CALLER); }
GGR_CHECKED(1)
GGR_CHECKED(2)
GGR_CHECKED(4)
GGR_CHECKED(8)
GGR_CHECKED(16)
void __asan_loadN_noabort(uintptr_t p, size_t n) { check(p, n, false, GGR_CALLER); }
void __asan_storeN_noabort(uintptr_t p, size_t n) { check(p, n, true, GGR_CALLER); }
void __asan_handle_no_return(void) {}

// ---- And where it finds undefined behaviour: an index beyond an array, a shift, an address that is not aligned ----
#define GGR_UNDEFINED(name, text, ...) \
    void __ubsan_handle_##name(__VA_ARGS__) { fail_at(GGR_CALLER, text); }
GGR_UNDEFINED(out_of_bounds, "index " + std::to_string(static_cast<int64_t>(index)) + " is beyond the array", void*,
              uintptr_t index)
GGR_UNDEFINED(shift_out_of_bounds, "shift by " + std::to_string(static_cast<int64_t>(by)) + " bits", void*, uintptr_t,
              uintptr_t by)
GGR_UNDEFINED(divrem_overflow, "division by zero", void*, uintptr_t, uintptr_t)
void __ubsan_handle_type_mismatch_v1(void* data, uintptr_t) {
    struct Mismatch {
        struct {
            const char* file;
            uint32_t line, column;
        } where;
        const void* type;
        uint8_t log_alignment, kind;
    };
    const unsigned alignment = 1u << static_cast<const Mismatch*>(data)->log_alignment;
    fail_at(GGR_CALLER, "address is no multiple of " + std::to_string(alignment));
}

}  // extern "C"
