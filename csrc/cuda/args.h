// What kernels are given: plain structs, the same for the compiler of the host and the one of the GPU.
//
// A kernel takes one struct by value, at most MAX_ARGS bytes. So a launch is a name, a grid and some bytes, a captured
// graph is updated by replacing those bytes, and a kernel that was compiled for the host is called with a pointer to
// them.
#pragma once

#ifndef __CUDACC_RTC__
#include <cstdint>
#else
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long long;
using uint64_t = unsigned long long;
using size_t = decltype(sizeof 0);
#endif

namespace ggr {
namespace cuda {

constexpr int MAX_ARGS = 4000;
constexpr int WARP = 32;

// A tensor as a kernel sees it. Elements and bytes as in Tensor; data is an address of the device.
struct View {
    uint8_t* data;
    int64_t ne[4];
    int64_t nb[4];
};

// The first illegal value that a run found; a word in host memory that the device can write. `state`: 0 none, 1 being
// written, 2 complete.
struct Fault {
    int32_t state;
    int32_t node;    // number of the node in the graph
    int32_t source;  // which of its sources holds the value
    int32_t unused;
    int64_t value;
    int64_t limit;  // legal are 0 .. limit - 1
};

// Where a kernel that reads indices reports them.
struct FaultSite {
    Fault* fault;
    int32_t node;
    int32_t source;
};

// Quotient and remainder by a divisor that is fixed at launch, for dividends below 2^31 (Granlund and Montgomery,
// 1994): a multiplication where the hardware has no division.
struct Divisor {
    uint32_t divisor, multiplier, shift;
};

// Which words of a launch's arguments may be addresses of scratch, as offsets: none, unless GGR_SCRATCH_AT names some.
// They alone are moved with the scratch. Any other word may be a number that a client chose, whatever it looks like.
template <class Args>
struct ScratchWords {
    static constexpr int COUNT = 0;
    static constexpr uint32_t AT[1] = {0};
};
#ifndef __CUDACC_RTC__
#define GGR_SCRATCH_AT(Args, ...)                                                \
    template <>                                                                  \
    struct ScratchWords<Args> {                                                  \
        static constexpr uint32_t AT[] = {__VA_ARGS__};                          \
        static constexpr int COUNT = static_cast<int>(sizeof AT / sizeof AT[0]); \
    }
#define GGR_AT(Args, member) static_cast<uint32_t>(__builtin_offsetof(Args, member))
#else
#define GGR_SCRATCH_AT(Args, ...) static_assert(sizeof(Args) > 0, "of the host alone")
#endif

}  // namespace cuda
}  // namespace ggr
