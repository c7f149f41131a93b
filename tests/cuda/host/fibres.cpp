// Runs a grid: blocks one after another, the threads of a block as fibres of this one OS thread.
//
// A fibre runs until it waits. A warp is driven until all of its threads wait for the block or are done, then the next.
// When all warps have had their turn, the barrier opens if every live thread stands at it; otherwise nothing can ever
// happen again, and the launch fails with a list of who waits where.
#include <sys/mman.h>

#include <cinttypes>
#include <cstdarg>
#include <cstring>
#include <mutex>
#include <string>

#include "internal.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

Block block = [] {
    Block b = {};
    b.budget = -1;
    return b;
}();

namespace {

constexpr int MAX_THREADS = 1024;
Fibre fibres[MAX_THREADS];
Fibre home;        // of the scheduler: its stack_pointer
bool failed;       // the launch ends
bool over_budget;  // it is no failure
std::string failure;
std::mutex one_at_a_time;
int order = GGR_FORWARD;
uint64_t seed, n_launches;
uint32_t warp_epochs = 0;

// ---- Switching ----
#ifdef __x86_64__
extern "C" void ggr_switch(void** save, void* to);
asm(R"(
.text
.globl ggr_switch
.hidden ggr_switch
.type ggr_switch, @function
ggr_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ggr_switch, .-ggr_switch
)");
void prepare(Fibre& f, void (*start)()) {
    void** top = reinterpret_cast<void**>(f.stack + STACK_BYTES);
    *--top = nullptr;  // where `start` would return to; also aligns the stack as after a call
    *--top = reinterpret_cast<void*>(start);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    f.stack_pointer = top;
}
void swap(Fibre& from, Fibre& to) { ggr_switch(&from.stack_pointer, to.stack_pointer); }
#else
ucontext_t contexts[MAX_THREADS + 1];
ucontext_t& context_of(Fibre& f) { return contexts[&f == &home ? MAX_THREADS : &f - fibres]; }
void prepare(Fibre& f, void (*start)()) {
    ucontext_t& c = context_of(f);
    getcontext(&c);
    c.uc_stack.ss_sp = f.stack;
    c.uc_stack.ss_size = STACK_BYTES;
    c.uc_link = nullptr;
    makecontext(&c, start, 0);
}
void swap(Fibre& from, Fibre& to) { swapcontext(&context_of(from), &context_of(to)); }
#endif

void resume(Fibre& f) {
    block.running = &f;
    swap(home, f);
    block.running = nullptr;
}
void leave() { swap(*block.running, home); }

// The last of a warp to wait for its warp: are all 32 here, at the same place?
bool all_of_warp(State state) {
    const int first = block.running->index & ~31;
    for (int i = first; i < first + 32 && i < block.threads; ++i) {
        const State s = fibres[i].state;
        if (s != state && !(state == State::at_warp_barrier && s == State::done)) return false;
    }
    return true;
}
void release_warp(State state) {
    const int first = block.running->index & ~31;
    for (int i = first; i < first + 32 && i < block.threads; ++i) {
        if (fibres[i].state == state) fibres[i].state = State::ready;
    }
}
void open_warp_barrier() {
    block.warp_epoch[block.running->index >> 5] = ++warp_epochs;
    release_warp(State::at_warp_barrier);
}

void run_thread() {
    block.launch->kernel->enter(block.args);
    ggr_copies_wait(0);
    block.running->state = State::done;
    // The others of its warp may have waited for this one only.
    if (all_of_warp(State::at_warp_barrier)) open_warp_barrier();
    leave();
}

void reserve_stacks() {
    static bool done = false;
    if (done) return;
    done = true;
    const size_t guard = 4096, each = STACK_BYTES + guard;
    uint8_t* all = static_cast<uint8_t*>(
        mmap(nullptr, each * MAX_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (int i = 0; i < MAX_THREADS; ++i) {
        mprotect(all + i * each, guard, PROT_NONE);
        fibres[i].stack = all + i * each + guard;
    }
}

// ---- Order: a permutation of 0 .. n - 1, for n up to 2^31 without a table ----
struct Permutation {
    uint64_t n, step, first;
    Permutation(uint64_t count, uint64_t salt) : n(count), step(1), first(0) {
        if (order == GGR_REVERSE) step = n - 1, first = n - 1;
        if (order != GGR_RANDOM) return;
        uint64_t x = seed * 0x9e3779b97f4a7c15u + n_launches * 0xbf58476d1ce4e5b9u + salt * 0x94d049bb133111ebu;
        x ^= x >> 31, x *= 0xd6e8feb86659fd93u, x ^= x >> 32;
        first = x % n;
        step = (x >> 20) % n;
        while (step == 0 || gcd(step, n) != 1) step = step % n + 1;
    }
    static uint64_t gcd(uint64_t a, uint64_t b) { return b == 0 ? a : gcd(b, a % b); }
    uint64_t operator[](uint64_t i) const { return (first + i * step) % n; }
};

const char* base_name(const char* file) {
    const char* slash = std::strrchr(file, '/');
    return slash ? slash + 1 : file;
}

std::string place(const Fibre& f) {
    if (f.state == State::done) return "done";
    if (f.state == State::ready) return "running";
    const char* what = f.state == State::at_barrier        ? "sync_block"
                       : f.state == State::at_warp_barrier ? "sync_warp"
                                                           : f.what;
    return std::string("at ") + what + " (" + base_name(f.file) + ":" + std::to_string(f.line) + ")";
}
// "threads 0-30 done; thread 31 at sync_block (norm.cu:40)"
std::string who_is_where(int from, int to) {
    std::string text;
    for (int i = from; i < to;) {
        int end = i + 1;
        const std::string here = place(fibres[i]);
        while (end < to && place(fibres[end]) == here) ++end;
        text += (text.empty() ? "" : "; ") + std::string(end - i > 1 ? "threads " : "thread ") + std::to_string(i);
        if (end - i > 1) text += "-" + std::to_string(end - 1);
        text += " " + here;
        i = end;
    }
    return text;
}

std::string where_in_grid() {
    return std::string(block.launch->kernel->name) + ", block (" + std::to_string(block.at[0]) + ", " +
           std::to_string(block.at[1]) + ", " + std::to_string(block.at[2]) + ")";
}

void fail_launch(const std::string& text) {
    failed = true;
    failure = text;
}

// Let the threads of a warp run until none can.
void drive(int first, int count, uint64_t salt) {
    const Permutation lanes(static_cast<uint64_t>(count), salt);
    for (bool any = true; any && !failed;) {
        any = false;
        for (int i = 0; i < count && !failed; ++i) {
            Fibre& f = fibres[first + static_cast<int>(lanes[static_cast<uint64_t>(i)])];
            if (f.state != State::ready) continue;
            any = true;
            resume(f);
        }
    }
}

// After all had their turn: open the barrier, or find that nobody can go on. False when the block is done.
bool next_phase(int n) {
    int at_barrier = 0, done = 0;
    const Fibre* first = nullptr;
    for (int i = 0; i < n; ++i) {
        done += fibres[i].state == State::done;
        if (fibres[i].state != State::at_barrier) continue;
        ++at_barrier;
        if (!first) first = &fibres[i];
        if (fibres[i].line != first->line || std::strcmp(fibres[i].file, first->file) != 0) {
            fail_launch(where_in_grid() + ": threads of one block wait at different barriers: " + who_is_where(0, n));
            return false;
        }
    }
    if (done == n) return false;
    if (at_barrier + done != n) {
        fail_launch(where_in_grid() + ": deadlock: " + who_is_where(0, n));
        return false;
    }
    for (int i = 0; i < n; ++i) {
        if (fibres[i].state == State::at_barrier) fibres[i].state = State::ready;
    }
    ++block.epoch;
    return true;
}

void run_block(const GgrLaunch& launch, const uint32_t at[3], uint64_t number) {
    const int n = static_cast<int>(launch.threads), warps = (n + 31) / 32;
    ++block.epoch;
    block.threads = n;
    for (int axis = 0; axis < 3; ++axis) block.at[axis] = static_cast<int32_t>(at[axis]);
    start_memory_of_block();
    for (int w = 0; w < warps; ++w) block.warp_epoch[w] = ++warp_epochs;
    for (int i = 0; i < n; ++i) {
        Fibre& f = fibres[i];
        f.state = State::ready;
        f.groups.clear();
        f.index = i;
        prepare(f, run_thread);
    }
    const Permutation turns(static_cast<uint64_t>(warps), number + 1);
    do {
        for (int w = 0; w < warps && !failed; ++w) {
            const int first = static_cast<int>(turns[static_cast<uint64_t>(w)]) * 32;
            drive(first, n - first < 32 ? n - first : 32, number + static_cast<uint64_t>(first));
        }
    } while (!failed && next_phase(n));
}

void same_place() {
    const int first = block.running->index & ~31, n = block.threads;
    const int end = first + 32 < n ? first + 32 : n;
    for (int i = first; i < end; ++i) {
        const Fibre &a = fibres[i], &b = *block.running;
        if (a.state == State::done) continue;
        if (a.line == b.line && a.compute == b.compute && std::strcmp(a.file, b.file) == 0) continue;
        ggr_fail("threads of one warp at different places: %s", who_is_where(first, end).c_str());
    }
}
}  // namespace

void stop_over_budget() {
    failed = over_budget = true;
    for (;;) leave();
}

}  // namespace emulator

using namespace emulator;

extern "C" {

int ggr_index(void) { return block.running->index; }
int ggr_threads(void) { return block.threads; }
int ggr_block(int axis) { return block.at[axis]; }
int ggr_grid(int axis) { return static_cast<int>(block.launch->grid[axis]); }
uint8_t* ggr_dynamic_shared(void) { return block.dynamic_shared; }

void ggr_fail(const char* format, ...) {
    char text[1500];
    va_list list;
    va_start(list, format);
    std::vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fail_launch(where_in_grid() + ", thread " + std::to_string(block.running->index) + ": " + text);
    for (;;) leave();
}

void ggr_sync_block(const char* file, int line) {
    Fibre& f = *block.running;
    f.file = file, f.line = line, f.state = State::at_barrier;
    leave();
}

void ggr_sync_warp(const char* file, int line) {
    Fibre& f = *block.running;
    f.file = file, f.line = line, f.compute = nullptr, f.state = State::at_warp_barrier;
    if (!all_of_warp(State::at_warp_barrier)) return leave();
    same_place();
    open_warp_barrier();
}

void ggr_exchange(const char* what, GgrCompute compute, const void* in, void* out, const char* file, int line) {
    Fibre& f = *block.running;
    f.file = file, f.line = line, f.what = what, f.compute = compute, f.in = in, f.out = out;
    f.state = State::at_exchange;
    if (!all_of_warp(State::at_exchange)) return leave();
    const int first = f.index & ~31;
    if (first + 32 > block.threads) ggr_fail("%s in a warp of %d threads", what, block.threads - first);
    same_place();
    const void* ins[32];
    void* outs[32];
    for (int i = 0; i < 32; ++i) ins[i] = fibres[first + i].in, outs[i] = fibres[first + i].out;
    compute(ins, outs);
    release_warp(State::at_exchange);
}

int ggr_launch(const GgrLaunch* launch) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    if (over_budget) return 0;
    failed = false;
    if (block.budget < 0) block.left = INT64_MAX;
    reserve_stacks();
    ++n_launches;
    block.launch = launch;
    block.fibres = fibres;
    block.dynamic_bytes = launch->shared_bytes;
    const char* name = launch->kernel->name;
    if (launch->threads < 1 || launch->threads > MAX_THREADS) {
        fail_launch(std::string(name) + ": a block of " + std::to_string(launch->threads) + " threads");
        return -1;
    }
    if (launch->shared_bytes > MAX_DYNAMIC_SHARED) {
        fail_launch(std::string(name) + ": " + std::to_string(launch->shared_bytes) +
                    " bytes of dynamic shared memory");
        return -1;
    }
    const uint64_t n = uint64_t{1} * launch->grid[0] * launch->grid[1] * launch->grid[2];
    if (n == 0 || launch->grid[0] > 0x7fffffffu || launch->grid[1] > 65535 || launch->grid[2] > 65535) {
        fail_launch(std::string(name) + ": a grid of (" + std::to_string(launch->grid[0]) + ", " +
                    std::to_string(launch->grid[1]) + ", " + std::to_string(launch->grid[2]) + ")");
        return -1;
    }
    if (launch->kernel->args_bytes > sizeof block.args) {
        fail_launch(std::string(name) + ": " + std::to_string(launch->kernel->args_bytes) + " bytes of arguments");
        return -1;
    }
    std::memcpy(block.args, launch->args, launch->kernel->args_bytes);
    start_memory_of_launch();
    const Permutation blocks(n, 0);
    for (uint64_t i = 0; i < n && !failed; ++i) {
        const uint64_t at = blocks[i];
        const uint32_t xyz[3] = {static_cast<uint32_t>(at % launch->grid[0]),
                                 static_cast<uint32_t>(at / launch->grid[0] % launch->grid[1]),
                                 static_cast<uint32_t>(at / launch->grid[0] / launch->grid[1])};
        run_block(*launch, xyz, at);
    }
    return failed && !over_budget ? -1 : 0;
}

void ggr_set_budget(int64_t accesses) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    block.budget = accesses;
    block.left = accesses < 0 ? INT64_MAX : accesses;
    over_budget = false;
}
int ggr_over_budget(void) { return over_budget; }

const char* ggr_failure(void) { return failure.c_str(); }
void ggr_set_failure(const char* text) { failure = text; }

void ggr_set_order(int how, uint64_t with) { order = how, seed = with; }

}  // extern "C"
