// Which kernels this machine can run.
#include "cpu/levels.h"

#include <cstring>

#include "levels_config.h"

namespace ggr {

#define GGR_DECLARE_LEVEL(level)       \
    namespace level {                  \
    void register_all(OpTable& table); \
    }
GGR_LEVELS(GGR_DECLARE_LEVEL)
#undef GGR_DECLARE_LEVEL

namespace {

bool runs_baseline() { return true; }

#if defined(__x86_64__)
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
}
bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

template <void (*Register)(OpTable&)>
const OpTable* table(const char* name) {
    static const OpTable filled = [name] {
        OpTable t = {};
        t.level = name;
        Register(t);
        return t;
    }();
    return &filled;
}

struct Level {
    const char* name;
    bool (*runs)();
    const OpTable* (*table)(const char* name);
};

const Level LEVELS[] = {
#define GGR_LEVEL_ROW(level) {#level, runs_##level, table<level::register_all>},
    GGR_LEVELS(GGR_LEVEL_ROW)
#undef GGR_LEVEL_ROW
};

}  // namespace

int level_names(const char** names, int capacity) {
    int n = 0;
    for (const Level& level : LEVELS)
        if (level.runs() && n < capacity) names[n++] = level.name;
    return n;
}

const OpTable* level_table(const char* name) {
    for (const Level& level : LEVELS)
        if (level.runs() && (name == nullptr || std::strcmp(name, level.name) == 0)) return level.table(level.name);
    return nullptr;
}

}  // namespace ggr
