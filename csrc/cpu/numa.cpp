#include "cpu/numa.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ggr {

namespace {

#if defined(__linux__) && defined(SYS_mbind)
// The system call itself: libnuma would be one more library to have, for one number.
bool deal(const Placement& placement, void* begin, uint64_t bytes) {
    constexpr int MPOL_INTERLEAVE = 3;
    constexpr size_t BITS = 8 * sizeof(unsigned long);
    const int last = *std::max_element(placement.nodes.begin(), placement.nodes.end());
    std::vector<unsigned long> mask(static_cast<size_t>(last) / BITS + 1);
    for (const int node : placement.nodes) mask[static_cast<size_t>(node) / BITS] |= 1ul << (node % BITS);
    // The kernel looks at one bit less than it is told.
    return syscall(SYS_mbind, begin, bytes, MPOL_INTERLEAVE, mask.data(), mask.size() * BITS + 1, 0u) == 0;
}
#else
bool deal(const Placement&, void*, uint64_t) {
    errno = ENOSYS;
    return false;
}
#endif

}  // namespace

bool try_placement(const Placement& placement, Error* err) {
    if (placement.nodes.empty()) return true;
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* p = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return err->fail(Code::memory, "the system refused a page");
    const bool dealt = deal(placement, p, page);
    const int reason = errno;
    munmap(p, page);
    if (dealt) return true;
    return err->fail(Code::device, "the system does not let memory be placed on NUMA nodes: %s", std::strerror(reason));
}

void place_memory(const Placement& placement, void* begin, uint64_t bytes) {
    // try_placement succeeded with the same nodes; a node that went offline since leaves the pages to the system.
    if (!placement.nodes.empty()) deal(placement, begin, bytes);
}

void place_thread(const Placement& placement, int index) {
    if (placement.cpus.empty()) return;
#if defined(__linux__)
    const std::vector<int>& cpus = placement.cpus[static_cast<size_t>(index) % placement.cpus.size()];
    const size_t count = static_cast<size_t>(*std::max_element(cpus.begin(), cpus.end())) + 1;
    const size_t bytes = CPU_ALLOC_SIZE(count);
    cpu_set_t* set = CPU_ALLOC(count);
    if (set == nullptr) return;
    CPU_ZERO_S(bytes, set);
    for (const int cpu : cpus) CPU_SET_S(static_cast<size_t>(cpu), bytes, set);
    // A processor that went offline since leaves the thread where it may run.
    sched_setaffinity(0, bytes, set);
    CPU_FREE(set);
#endif
}

}  // namespace ggr
