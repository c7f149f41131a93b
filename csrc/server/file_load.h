// Files that are read into memory behind the session's back: the client goes on while its tensor comes from the cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <ctime>
#include <thread>

namespace ggr {

// Read a file into memory, from its first byte on, all of it or up to its end; false if it ends before or is
// unreadable.
bool read_file(int fd, uint8_t* to, uint64_t at, uint64_t size);

// One file at a time, by a thread that lives as long as its reading takes. Not for use from several threads.
class FileLoad {
  public:
    FileLoad() = default;
    ~FileLoad() { drop(); }
    FileLoad(const FileLoad&) = delete;
    FileLoad& operator=(const FileLoad&) = delete;

    // Begin to read `size` bytes to `to`, which stays untouched by others until finish() or drop(). The descriptor
    // stays the caller's. False if the system has no thread or descriptor for it; then nothing was begun. What was
    // begun before must be finished.
    bool start(int fd, uint8_t* to, uint64_t size);
    bool running() const { return thread_.joinable(); }
    // Help to read what is left and wait for the rest. False if the file was not as long as at the start, could not be
    // read, or changed meanwhile.
    bool finish();
    // Read no more.
    void drop();

  private:
    struct Stamp {
        timespec modified, changed;
    };
    static bool stamp(int fd, Stamp* out);
    void read_pieces();
    void end();

    std::thread thread_;
    std::atomic<uint64_t> next_{0};
    std::atomic<bool> whole_{true};
    int fd_ = -1;
    uint8_t* to_ = nullptr;
    uint64_t size_ = 0;
    Stamp stamp_ = {};
};

}  // namespace ggr
