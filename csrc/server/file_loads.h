// Files that are read into memory behind the answer: the client goes on while its tensors come from the cache.
#pragma once

#include <cstdint>
#include <ctime>
#include <deque>

namespace ggr {

// Read a file into memory, from its byte `at` on; false if it ends before or is unreadable.
bool read_file(int fd, uint8_t* to, uint64_t at, uint64_t size);

// Files to be read, one after the other, by the session's own thread where it would wait for the client. A thread of
// its own would compete with the client for a processor, where both are on one machine: the system lets a thread that
// is in the kernel, reading, go on for milliseconds when the session wakes up, and the client waits for it. Here it
// waits for a piece at most.
class FileLoads {
  public:
    FileLoads() = default;
    ~FileLoads() { drop(); }
    FileLoads(const FileLoads&) = delete;
    FileLoads& operator=(const FileLoads&) = delete;

    // Have the file's first `size` bytes read to `to`, which stays untouched by others until finish() or drop(). The
    // descriptor stays the caller's. False if the system has no descriptor for it, or enough files wait already; then
    // nothing changed.
    bool add(int fd, uint8_t* to, uint64_t size);
    bool pending() const { return !loads_.empty(); }
    // True where a file is still to be read to some of these bytes.
    bool fills(const uint8_t* begin, uint64_t size) const;
    // Read the next piece, a tenth of a millisecond; there must be one. False if its file is not as long as it was,
    // cannot be read, or changed meanwhile.
    bool step();
    // Read all that is left; false as step().
    bool finish();
    // Read no more.
    void drop();

  private:
    struct Load {
        int fd;
        uint8_t* to;
        uint64_t size, at;
        timespec modified, changed;  // when it was added
    };
    std::deque<Load> loads_;
};

}  // namespace ggr
