// Status codes and the message that goes with a failure. Native code never throws: it returns false (or a code) and
// fills an Error; the Cython boundary turns that into an exception.
#pragma once

#include <cstdarg>
#include <cstdint>

namespace ggr {

enum class Code : int32_t {
    ok = 0,
    closed = 1,       // the peer left between two messages
    protocol = 2,     // a frame breaks the wire format
    session = 3,      // a request breaks a rule of the session (foreign handle, out of bounds, ...)
    graph = 4,        // a graph breaks a rule of its op, its types or its memory
    unsupported = 5,  // a legal graph for which this device has no kernel
    device = 6,       // the device failed while it ran
    compute = 7,      // a value found while a graph ran is illegal (an index out of range)
    cancelled = 8,    // the run was cancelled
    timeout = 9,      // a deadline passed
    io = 10,          // the socket or a file failed
    memory = 11,      // an allocation failed
};

// Declare as `Error err = {};`. Plain data: kernels at every instruction-set level see this header.
struct Error {
    Code code;
    char text[512];

    // Record a failure; always returns false, so that `return err.fail(...)` reads well.
    bool fail(Code c, const char* format, ...) __attribute__((format(printf, 3, 4)));
    bool failv(Code c, const char* format, va_list args) __attribute__((format(printf, 3, 0)));
    void clear();
};

}  // namespace ggr
