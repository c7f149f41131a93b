// The kernels that plans of a device refer to by number.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace ggr {
namespace cuda {

class KernelTable {
  public:
    struct Row {
        std::string file, expression;
    };

    // The number of a kernel; a new one if nobody asked for it before.
    uint32_t number(const char* file, const char* expression) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = numbers_.emplace(std::make_pair(file, expression), static_cast<uint32_t>(rows_.size()));
        if (found.second) rows_.push_back({file, expression});
        return found.first->second;
    }
    uint32_t size() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return static_cast<uint32_t>(rows_.size());
    }
    // Rows never move.
    const Row& row(uint32_t number) const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return rows_[number];
    }

  private:
    mutable std::mutex mutex_;
    std::map<std::pair<std::string, std::string>, uint32_t> numbers_;
    std::deque<Row> rows_;
};

}  // namespace cuda
}  // namespace ggr
