// Which kernels this machine can run.
#include "cpu/levels.h"

#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "levels_config.h"

namespace ggr {

#define GGR_DECLARE_LEVEL(level, base) \
    namespace level {                  \
    void register_all(OpTable& table); \
    }
GGR_LEVELS(GGR_DECLARE_LEVEL)
GGR_EMULATED_LEVELS(GGR_DECLARE_LEVEL)
#undef GGR_DECLARE_LEVEL
namespace amx {
bool check_tiles();  // matmul/tile_check.h
}
namespace amx_emulated {
bool check_tiles();
}

namespace {

namespace nothing {  // the base of levels that are complete
void register_all(OpTable&) {}
}  // namespace nothing

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

// By cpuid itself, whose bits older compilers have no names for.
struct Features {
    unsigned eax, ebx, ecx, edx;
};
Features features_of_leaf_7(unsigned subleaf) {
    Features f = {};
    __get_cpuid_count(7, subleaf, &f.eax, &f.ebx, &f.ecx, &f.edx);
    return f;
}
// A function below is used, and what it calls is there, if its level is in the build.
[[maybe_unused]] bool runs_avxvnni() { return runs_avx2() && (features_of_leaf_7(1).eax & 1u << 4) != 0; }
[[maybe_unused]] bool runs_avxvnni_emulated() { return runs_avx512(); }

// Whether the system lets this process hold the state of tiles, 8 KiB a thread. It has to be asked, once for all
// threads.
[[maybe_unused]] bool tiles_permitted() {
#if defined(__linux__)
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}
[[maybe_unused]] bool runs_amx() {
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25, ALL = BF16 | TILE | INT8;
    static const bool runs =
        runs_avx512() && (features_of_leaf_7(0).edx & ALL) == ALL && tiles_permitted() && amx::check_tiles();
    return runs;
}
[[maybe_unused]] bool runs_amx_emulated() { return runs_avx512() && amx_emulated::check_tiles(); }
#endif

template <void (*Base)(OpTable&), void (*Register)(OpTable&)>
const OpTable* table(const char* name) {
    static const OpTable filled = [name] {
        OpTable t = {};
        t.level = name;
        Base(t);
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

#define GGR_LEVEL_ROW(level, base) {#level, runs_##level, table<base::register_all, level::register_all>},
const Level LEVELS[] = {GGR_LEVELS(GGR_LEVEL_ROW)};
// Found by name only.
const Level EMULATED[] = {GGR_EMULATED_LEVELS(GGR_LEVEL_ROW){nullptr, nullptr, nullptr}};
#undef GGR_LEVEL_ROW

bool chosen(const Level& level, const char* name) {
    return level.name != nullptr && (name == nullptr || std::strcmp(name, level.name) == 0) && level.runs();
}

}  // namespace

int level_names(const char** names, int capacity, bool emulated) {
    int n = 0;
    if (emulated) {
        for (const Level& level : EMULATED)
            if (chosen(level, nullptr) && n < capacity) names[n++] = level.name;
    } else {
        for (const Level& level : LEVELS)
            if (chosen(level, nullptr) && n < capacity) names[n++] = level.name;
    }
    return n;
}

const OpTable* level_table(const char* name) {
    for (const Level& level : LEVELS)
        if (chosen(level, name)) return level.table(level.name);
    for (const Level& level : EMULATED)
        if (name != nullptr && chosen(level, name)) return level.table(level.name);
    return nullptr;
}

}  // namespace ggr
