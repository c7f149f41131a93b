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
    if (thread_.joinable()) thread_.join();
}

bool Pager::add(const Task& task) {
    try {
        if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
        tasks_.push_back(task);
    } catch (const std::exception&) {
        return false;
    }
    more_.notify_one();
    return true;
}

void Pager::want(uint8_t* begin, uint64_t length) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // Without a thread pages come as they are written.
    add({begin, length, false});
}

void Pager::release(uint8_t* begin, uint64_t length) {
    {
        // Tasks are done in order, so what is worked on within the mapping is over by then.
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto within = [=](const Task& t) { return t.begin >= begin && t.begin < begin + length; };
        tasks_.erase(std::remove_if(tasks_.begin(), tasks_.end(), within), tasks_.end());
        if ((length >= CHUNK || thread_.joinable()) && add({begin, length, true})) {
            ++releasing_;
            return;
        }
    }
    munmap(begin, length);
}

void Pager::drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return releasing_ == 0; });
}

void Pager::run() {
    // Whoever receives or computes comes first. Of Linux's threads each has a priority of its own; 0 is the caller.
    setpriority(PRIO_PROCESS, 0, 19);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        more_.wait(lock, [this] { return stop_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        const Task task = tasks_.front();
        tasks_.pop_front();
        lock.unlock();
        if (task.last) {
            munmap(task.begin, task.length);
        } else {
#ifdef MADV_POPULATE_WRITE
            // Linux before 5.14 refuses: pages come as they are written, then.
            madvise(task.begin, task.length, MADV_POPULATE_WRITE);
#endif
        }
        lock.lock();
        if (task.last && --releasing_ == 0) done_.notify_all();
    }
}

uint64_t resident_bytes() { return keyed("/proc/self/status", "RssAnon:", 0) * 1024; }

}  // namespace ggr
