#include "server/file_loads.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace ggr {

namespace {

// What the client may have to wait for.
constexpr uint64_t PIECE = uint64_t{256} << 10;

// Each takes a descriptor. A client that hashes byte by byte asks for tensors more slowly than they are read.
constexpr size_t MOST_WAITING = 16;

bool same(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

}  // namespace

bool read_file(int fd, uint8_t* to, uint64_t at, uint64_t size) {
    while (size > 0) {
        const ssize_t n = pread(fd, to, size, static_cast<off_t>(at));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        to += n;
        at += static_cast<uint64_t>(n);
        size -= static_cast<uint64_t>(n);
    }
    return true;
}

bool FileLoads::add(int fd, uint8_t* to, uint64_t size) {
    struct stat s;
    if (loads_.size() >= MOST_WAITING || fstat(fd, &s) != 0) return false;
    const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) return false;
    loads_.push_back({own, to, size, 0, s.st_mtim, s.st_ctim});
    return true;
}

bool FileLoads::fills(const uint8_t* begin, uint64_t size) const {
    return std::any_of(loads_.begin(), loads_.end(),
                       [=](const Load& l) { return l.to < begin + size && begin < l.to + l.size; });
}

bool FileLoads::step() {
    Load& l = loads_.front();
    const uint64_t n = std::min(PIECE, l.size - l.at);
    if (!read_file(l.fd, l.to + l.at, l.at, n)) return false;
    l.at += n;
    if (l.at < l.size) return true;
    struct stat s;
    const bool good = fstat(l.fd, &s) == 0 && same(s.st_mtim, l.modified) && same(s.st_ctim, l.changed);
    close(l.fd);
    loads_.pop_front();
    return good;
}

bool FileLoads::finish() {
    while (pending())
        if (!step()) return false;
    return true;
}

void FileLoads::drop() {
    for (const Load& l : loads_) close(l.fd);
    loads_.clear();
}

}  // namespace ggr
