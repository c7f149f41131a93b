#include "core/status.h"

#include <cstdio>

namespace ggr {

void Error::clear() {
    code = Code::ok;
    text[0] = 0;
}

bool Error::failv(Code c, const char* format, va_list args) {
    code = c;
    std::vsnprintf(text, sizeof text, format, args);
    return false;
}

bool Error::fail(Code c, const char* format, ...) {
    va_list args;
    va_start(args, format);
    failv(c, format, args);
    va_end(args);
    return false;
}

}  // namespace ggr
