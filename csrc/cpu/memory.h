// How much memory this process may still take.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>

namespace ggr {

// Bytes of the machine (or of the cgroup, where that is less): in all, and not in use by anybody.
void system_memory(uint64_t* available, uint64_t* total);
// Bytes of this process's anonymous memory that are in RAM.
uint64_t resident_bytes();

// Takes pages from the system before they are written and gives them back after the last use, in threads that begin
// when they are needed. One fault a page costs the thread that receives half a second a GB, and giving a GB back makes
// who frees it wait for a tenth.
class Pager {
  public:
    // What is asked for at once.
    static constexpr uint64_t CHUNK = uint64_t{4} << 20;

    ~Pager();
    // A part of a mapping will be written. Its contents stay as they are, whoever writes meanwhile.
    void want(uint8_t* begin, uint64_t length);
    // Unmap a whole mapping.
    void release(uint8_t* begin, uint64_t length);
    // Wait until all that was released is the system's again.
    void drain();

  private:
    struct Range {
        uint8_t* begin;
        uint64_t length;
    };
    void take();
    void give();

    std::mutex mutex_;
    std::condition_variable more_, done_;
    std::deque<Range> wanted_, released_;
    bool releasing_ = false;  // a mapping that is in the list no longer is still there
    bool stop_ = false;
    std::thread taker_, giver_;
};

}  // namespace ggr
