#include "cpu/memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace ggr {

namespace {

struct File {
    std::FILE* f;
    explicit File(const char* path) : f(std::fopen(path, "re")) {}
    ~File() {
        if (f != nullptr) std::fclose(f);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
};

// The number after `key` in a file of "key number" lines, or `otherwise`.
uint64_t keyed(const char* path, const char* key, uint64_t otherwise) {
    const File file(path);
    char line[256];
    const size_t n = std::strlen(key);
    while (file.f != nullptr && std::fgets(line, sizeof line, file.f) != nullptr)
        if (std::strncmp(line, key, n) == 0) return std::strtoull(line + n, nullptr, 10);
    return otherwise;
}

// A file that holds one number; "max" and a missing file give `otherwise`.
uint64_t single(const char* path, uint64_t otherwise) {
    const File file(path);
    char line[64];
    if (file.f == nullptr || std::fgets(line, sizeof line, file.f) == nullptr || line[0] < '0' || line[0] > '9')
        return otherwise;
    return std::strtoull(line, nullptr, 10);
}

// Limit and use of this process's cgroup, version 2, else version 1.
void cgroup_memory(uint64_t* limit, uint64_t* used) {
    *limit = UINT64_MAX;
    *used = 0;
    const File file("/proc/self/cgroup");
    char line[512], path[768];
    while (file.f != nullptr && std::fgets(line, sizeof line, file.f) != nullptr) {
        line[std::strcspn(line, "\n")] = 0;
        const bool v2 = std::strncmp(line, "0::", 3) == 0;
        const char* v1 = std::strstr(line, ":memory:");
        if (!v2 && v1 == nullptr) continue;
        const char* root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
        const char* limit_name = v2 ? "memory.max" : "memory.limit_in_bytes";
        const char* used_name = v2 ? "memory.current" : "memory.usage_in_bytes";
        const char* cache_key = v2 ? "inactive_file " : "total_inactive_file ";
        // Inside a container the path of the file may not be visible; then the root of the mount is the container's own
        // group.
        for (const char* group : {v2 ? line + 3 : v1 + 8, ""}) {
            std::snprintf(path, sizeof path, "%s%s/%s", root, group, limit_name);
            const uint64_t found = single(path, UINT64_MAX);
            if (found == UINT64_MAX) continue;
            std::snprintf(path, sizeof path, "%s%s/%s", root, group, used_name);
            const uint64_t in_use = single(path, 0);
            std::snprintf(path, sizeof path, "%s%s/memory.stat", root, group);
            const uint64_t reclaimable = keyed(path, cache_key, 0);
            if (found < *limit) {
                *limit = found;
                *used = in_use - std::min(in_use, reclaimable);
            }
            break;
        }
    }
}

}  // namespace

void system_memory(uint64_t* available, uint64_t* total) {
    const uint64_t physical =
        static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t kib = keyed("/proc/meminfo", "MemAvailable:", physical / 1024);
    uint64_t limit, used;
    cgroup_memory(&limit, &used);
    *total = std::min(physical, limit);
    *available = std::min(kib * 1024, limit - std::min(limit, used));
}

Pager::~Pager() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    more_.notify_all();
    if (taker_.joinable()) taker_.join();
    if (giver_.joinable()) giver_.join();
}

void Pager::want(uint8_t* begin, uint64_t length) {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
        if (!taker_.joinable()) taker_ = std::thread([this] { take(); });
        wanted_.push_back({begin, length});
    } catch (const std::exception&) {
        return;  // no thread to be had: pages come as they are written
    }
    more_.notify_all();
}

void Pager::release(uint8_t* begin, uint64_t length) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto within = [=](const Range& r) { return r.begin >= begin && r.begin < begin + length; };
        wanted_.erase(std::remove_if(wanted_.begin(), wanted_.end(), within), wanted_.end());
        try {
            if (length >= CHUNK) {
                if (!giver_.joinable()) giver_ = std::thread([this] { give(); });
                released_.push_back({begin, length});
                more_.notify_all();
                return;
            }
        } catch (const std::exception&) {
            // No thread to be had: here and now, then.
        }
    }
    munmap(begin, length);
}

void Pager::drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return released_.empty() && !releasing_; });
}

void Pager::take() {
    // Whoever receives or computes comes first; of Linux's threads each has a priority of its own. The kernel holds a
    // lock of the whole process's memory within a call, so only a little at a time (0.1 ms).
    constexpr uint64_t PIECE = uint64_t{256} << 10;
    setpriority(PRIO_PROCESS, 0, 19);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        more_.wait(lock, [this] { return stop_ || !wanted_.empty(); });
        if (stop_) return;
        Range& next = wanted_.front();
        const Range piece = {next.begin, std::min(next.length, PIECE)};
        next.begin += piece.length;
        next.length -= piece.length;
        if (next.length == 0) wanted_.pop_front();
        lock.unlock();
#ifdef MADV_POPULATE_WRITE
        // Linux before 5.14 refuses: pages come as they are written, then. What was unmapped meanwhile is refused too.
        madvise(piece.begin, piece.length, MADV_POPULATE_WRITE);
#endif
        lock.lock();
    }
}

void Pager::give() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        more_.wait(lock, [this] { return stop_ || !released_.empty(); });
        if (released_.empty()) return;
        const Range range = released_.front();
        released_.pop_front();
        releasing_ = true;
        lock.unlock();
        munmap(range.begin, range.length);
        lock.lock();
        releasing_ = false;
        done_.notify_all();
    }
}

uint64_t resident_bytes() { return keyed("/proc/self/status", "RssAnon:", 0) * 1024; }

}  // namespace ggr
