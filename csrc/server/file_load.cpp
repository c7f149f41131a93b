#include "server/file_load.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>

namespace ggr {

namespace {

// What a thread takes of the file at a time.
constexpr uint64_t PIECE = uint64_t{1} << 20;

// A thread's own priority on Linux. The client that hashes the next tensor, on the same machine maybe, comes before.
constexpr int BEHIND_NICE = 10;

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

bool FileLoad::stamp(int fd, Stamp* out) {
    struct stat s;
    if (fstat(fd, &s) != 0) return false;
    *out = {s.st_mtim, s.st_ctim};
    return true;
}

bool FileLoad::start(int fd, uint8_t* to, uint64_t size) {
    fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (fd_ < 0) return false;
    to_ = to;
    size_ = size;
    next_ = 0;
    whole_ = true;
    try {
        if (stamp(fd_, &stamp_))
            thread_ = std::thread([this] {
                setpriority(PRIO_PROCESS, 0, BEHIND_NICE);
                read_pieces();
            });
    } catch (const std::exception&) {  // no thread: the caller reads the file itself
    }
    if (!running()) end();
    return running();
}

void FileLoad::read_pieces() {
    for (;;) {
        const uint64_t at = next_.fetch_add(PIECE);
        if (at >= size_) return;
        if (!read_file(fd_, to_ + at, at, std::min(PIECE, size_ - at))) {
            whole_ = false;
            next_ = size_;
        }
    }
}

bool FileLoad::finish() {
    if (!running()) return true;
    read_pieces();
    thread_.join();
    Stamp now;
    const bool good =
        whole_ && stamp(fd_, &now) && same(now.modified, stamp_.modified) && same(now.changed, stamp_.changed);
    end();
    return good;
}

void FileLoad::drop() {
    if (!running()) return;
    next_ = size_;
    thread_.join();
    end();
}

void FileLoad::end() {
    close(fd_);
    fd_ = -1;
}

}  // namespace ggr
