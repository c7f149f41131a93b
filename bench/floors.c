// What this machine can do at most: `floors KIND LEVEL THREADS ...` prints a number for each triple, bytes or
// multiply-adds a second of all threads together, 0 where the processor lacks the level.
//
//   memory any N    reading memory that no cache holds
//   int8 LEVEL N    8-bit products summed to 32 bits, operands in registers
//   f32 LEVEL N     fused multiply-adds of single precision, operands in registers
//   bf16 LEVEL N    products of bfloat16 pairs summed to single precision, operands in registers
//
// Of several passes the best counts for products: other load only takes from what the hardware can do. For memory their
// mean does: a virtual machine may be given two rates in turn, 30 and 48 GB/s on that of the README, for seconds each,
// and whatever runs beside the measurement meets the same.

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { kPasses = 25, kMaxThreads = 1024, kRounds = 1000000 };
static const size_t kBytes = (size_t)192 << 20;  // a thread's part, beyond any cache

typedef double (*Work)(const void* memory);  // one thread's pass; returns bytes or multiply-adds

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static volatile float g_sink;
static volatile uint64_t g_sink_bits;

static double read_plain(const void* memory) {
    const uint64_t* p = memory;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < kBytes / 8; i += 8)
        for (int k = 0; k < 8; k++) sum[k] |= p[i + (size_t)k];
    g_sink_bits = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
    return (double)kBytes;
}

#if defined(__x86_64__)

#define TARGET(isa) __attribute__((target(isa)))
#define KEEP(x) __asm__ volatile("" : "+x"(x))
#define KEEP512(x) __asm__ volatile("" : "+v"(x))

// Four streams of a page group each: the prefetchers of the cores follow them side by side.
TARGET("avx2") static double read_avx2(const void* memory) {
    const char* p = memory;
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    const size_t quarter = kBytes / 4;
    for (size_t i = 0; i < quarter; i += 64) {
        a = _mm256_or_si256(a, _mm256_load_si256((const __m256i*)(p + i)));
        b = _mm256_or_si256(b, _mm256_load_si256((const __m256i*)(p + i + quarter)));
        c = _mm256_or_si256(c, _mm256_load_si256((const __m256i*)(p + i + 2 * quarter)));
        d = _mm256_or_si256(d, _mm256_load_si256((const __m256i*)(p + i + 3 * quarter)));
        a = _mm256_or_si256(a, _mm256_load_si256((const __m256i*)(p + i + 32)));
        b = _mm256_or_si256(b, _mm256_load_si256((const __m256i*)(p + i + quarter + 32)));
        c = _mm256_or_si256(c, _mm256_load_si256((const __m256i*)(p + i + 2 * quarter + 32)));
        d = _mm256_or_si256(d, _mm256_load_si256((const __m256i*)(p + i + 3 * quarter + 32)));
    }
    a = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
    g_sink_bits = (uint64_t)_mm256_extract_epi64(a, 0);
    return (double)kBytes;
}

TARGET("avx512f") static double read_avx512(const void* memory) {
    const char* p = memory;
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    const size_t quarter = kBytes / 4;
    for (size_t i = 0; i < quarter; i += 64) {
        a = _mm512_or_si512(a, _mm512_load_si512(p + i));
        b = _mm512_or_si512(b, _mm512_load_si512(p + i + quarter));
        c = _mm512_or_si512(c, _mm512_load_si512(p + i + 2 * quarter));
        d = _mm512_or_si512(d, _mm512_load_si512(p + i + 3 * quarter));
    }
    a = _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d));
    g_sink_bits = (uint64_t)_mm512_reduce_or_epi64(a);
    return (double)kBytes;
}

// Twelve independent sums cover the latency of every unit below: 5 cycles at two a cycle need ten.
#define SUMS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

TARGET("avx512f,avx512vnni") static double int8_avx512(const void* memory) {
    (void)memory;
    __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5), s[12];
    for (int i = 0; i < 12; i++) s[i] = _mm512_setzero_si512();
    for (int i = 0; i < kRounds; i++) {
        KEEP512(x);
        KEEP512(y);
#define STEP(k) s[k] = _mm512_dpbusd_epi32(s[k], x, y);
        SUMS(STEP)
#undef STEP
    }
    for (int i = 1; i < 12; i++) s[0] = _mm512_xor_si512(s[0], s[i]);
    g_sink_bits = (uint64_t)_mm512_reduce_or_epi64(s[0]);
    return 12.0 * 64 * kRounds;
}

// Without VNNI a product of bytes takes three instructions.
TARGET("avx2") static double int8_avx2(const void* memory) {
    (void)memory;
    __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1), s[12];
    for (int i = 0; i < 12; i++) s[i] = _mm256_setzero_si256();
    for (int i = 0; i < kRounds; i++) {
#define STEP(k) \
    KEEP(x);    \
    s[k] = _mm256_add_epi32(s[k], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
        SUMS(STEP)
#undef STEP
    }
    for (int i = 1; i < 12; i++) s[0] = _mm256_xor_si256(s[0], s[i]);
    g_sink_bits = (uint64_t)_mm256_extract_epi64(s[0], 0);
    return 12.0 * 32 * kRounds;
}

#if __GNUC__ >= 11 || __clang_major__ >= 12
#define HAS_AVXVNNI 1
TARGET("avx2,avxvnni") static double int8_avxvnni(const void* memory) {
    (void)memory;
    __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5), s[12];
    for (int i = 0; i < 12; i++) s[i] = _mm256_setzero_si256();
    for (int i = 0; i < kRounds; i++) {
        KEEP(x);
        KEEP(y);
#define STEP(k) s[k] = _mm256_dpbusd_avx_epi32(s[k], x, y);
        SUMS(STEP)
#undef STEP
    }
    for (int i = 1; i < 12; i++) s[0] = _mm256_xor_si256(s[0], s[i]);
    g_sink_bits = (uint64_t)_mm256_extract_epi64(s[0], 0);
    return 12.0 * 32 * kRounds;
}
#endif

TARGET("avx512f") static double f32_avx512(const void* memory) {
    (void)memory;
    __m512 x = _mm512_set1_ps(1e-8F), y = _mm512_set1_ps(0.5F), s[12];
    for (int i = 0; i < 12; i++) s[i] = _mm512_set1_ps(1.0F);
    for (int i = 0; i < kRounds; i++) {
        KEEP512(x);
        KEEP512(y);
#define STEP(k) s[k] = _mm512_fmadd_ps(x, y, s[k]);
        SUMS(STEP)
#undef STEP
    }
    for (int i = 1; i < 12; i++) s[0] = _mm512_add_ps(s[0], s[i]);
    g_sink = _mm512_reduce_add_ps(s[0]);
    return 12.0 * 16 * kRounds;
}

TARGET("avx2,fma") static double f32_avx2(const void* memory) {
    (void)memory;
    __m256 x = _mm256_set1_ps(1e-8F), y = _mm256_set1_ps(0.5F), s[12];
    for (int i = 0; i < 12; i++) s[i] = _mm256_set1_ps(1.0F);
    for (int i = 0; i < kRounds; i++) {
        KEEP(x);
        KEEP(y);
#define STEP(k) s[k] = _mm256_fmadd_ps(x, y, s[k]);
        SUMS(STEP)
#undef STEP
    }
    for (int i = 1; i < 12; i++) s[0] = _mm256_add_ps(s[0], s[i]);
    g_sink = _mm256_cvtss_f32(s[0]);
    return 12.0 * 8 * kRounds;
}

TARGET("avx512f,avx512bf16") static double bf16_avx512(const void* memory) {
    (void)memory;
    __m512 s[12];
    __m512i x = _mm512_set1_epi16(0x3C00), y = _mm512_set1_epi16(0x3C01);
    for (int i = 0; i < 12; i++) s[i] = _mm512_set1_ps(1.0F);
    for (int i = 0; i < kRounds; i++) {
        KEEP512(x);
        KEEP512(y);
#define STEP(k) s[k] = _mm512_dpbf16_ps(s[k], (__m512bh)x, (__m512bh)y);
        SUMS(STEP)
#undef STEP
    }
    for (int i = 1; i < 12; i++) s[0] = _mm512_add_ps(s[0], s[i]);
    g_sink = _mm512_reduce_add_ps(s[0]);
    return 12.0 * 32 * kRounds;
}

#if __GNUC__ >= 11 || __clang_major__ >= 12
#define HAS_AMX 1

struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// The kernel gives a process the tile registers on request; each thread loads its own configuration.
TARGET("amx-tile") static int tiles(void) {
    enum { kArchReqXcompPerm = 0x1023, kTileData = 18 };
    if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) != 0) return 0;
    struct TileConfig config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
    return 1;
}

#define TILE_STEPS(op) op(0, 4, 6) op(1, 5, 6) op(2, 4, 7) op(3, 5, 7)

TARGET("amx-tile,amx-int8") static double int8_amx(const void* memory) {
    (void)memory;
    if (!tiles()) return 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int i = 0; i < kRounds / 16; i++) {
#define STEP(c, a, b) _tile_dpbssd(c, a, b);
        TILE_STEPS(STEP)
#undef STEP
    }
    _tile_release();
    return 4.0 * 16 * 16 * 64 * (kRounds / 16);
}

TARGET("amx-tile,amx-bf16") static double bf16_amx(const void* memory) {
    (void)memory;
    if (!tiles()) return 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int i = 0; i < kRounds / 16; i++) {
#define STEP(c, a, b) _tile_dpbf16ps(c, a, b);
        TILE_STEPS(STEP)
#undef STEP
    }
    _tile_release();
    return 4.0 * 16 * 16 * 32 * (kRounds / 16);
}
#endif
#endif  // x86-64

// Compilers disagree on which names __builtin_cpu_supports knows; the kernel's list is the same for all.
static int has_flag(const char* name) {
    static char flags[8192];
    if (flags[0] == 0) {
        FILE* file = fopen("/proc/cpuinfo", "r");
        char line[8192];
        while (file != NULL && fgets(line, sizeof line, file) != NULL)
            if (strncmp(line, "flags", 5) == 0) {
                line[strcspn(line, "\n")] = ' ';
                snprintf(flags, sizeof flags, "%s", line);
                break;
            }
        if (file != NULL) fclose(file);
        if (flags[0] == 0) flags[0] = ' ';
    }
    char word[64];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(flags, word) != NULL;
}

static Work find(const char* kind, const char* level) {
#if defined(__x86_64__)
    const struct {
        const char *kind, *level, *flag;
        Work work;
    } table[] = {
        {"memory", "any", "avx512f", read_avx512},      {"memory", "any", "avx2", read_avx2},
        {"int8", "avx512", "avx512_vnni", int8_avx512}, {"int8", "avx2", "avx2", int8_avx2},
        {"f32", "avx512", "avx512f", f32_avx512},       {"f32", "avx2", "fma", f32_avx2},
        {"bf16", "avx512", "avx512_bf16", bf16_avx512},
#ifdef HAS_AVXVNNI
        {"int8", "avxvnni", "avx_vnni", int8_avxvnni},  {"f32", "avxvnni", "fma", f32_avx2},
#endif
#ifdef HAS_AMX
        {"int8", "amx", "amx_int8", int8_amx},          {"bf16", "amx", "amx_bf16", bf16_amx},
#endif
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strcmp(kind, table[i].kind) == 0 && strcmp(level, table[i].level) == 0 && has_flag(table[i].flag))
            return table[i].work;
#endif
    return strcmp(kind, "memory") == 0 ? read_plain : NULL;
}

static Work g_work;
static int g_needs_memory;
static pthread_barrier_t g_barrier;
static struct { double amount, begin, end; } g_pass[kMaxThreads];

// Threads that are woken together may start on one processor; a floor is of all.
static void pin(size_t index) {
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    size_t nth = index % (size_t)CPU_COUNT(&allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && nth-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

static void* run(void* argument) {
    const size_t index = (size_t)argument;
    pin(index);
    void* memory = NULL;
    if (g_needs_memory) {  // touched by the thread that reads it
        memory = mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) exit(1);
        madvise(memory, kBytes, MADV_HUGEPAGE);
        memset(memory, 1, kBytes);
    }
    for (int pass = 0; pass < kPasses; pass++) {
        pthread_barrier_wait(&g_barrier);
        g_pass[index].begin = now();
        g_pass[index].amount = g_work(memory);
        g_pass[index].end = now();
        pthread_barrier_wait(&g_barrier);
    }
    if (memory != NULL) munmap(memory, kBytes);
    return NULL;
}

static double measure(int threads) {
    pthread_t ids[kMaxThreads];
    double best = 0, amounts = 0, seconds = 0;
    pthread_barrier_init(&g_barrier, NULL, (unsigned)threads + 1);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, run, (void*)(size_t)i) != 0) exit(1);
    for (int pass = 0; pass < kPasses; pass++) {
        pthread_barrier_wait(&g_barrier);
        pthread_barrier_wait(&g_barrier);
        double amount = 0, begin = g_pass[0].begin, end = g_pass[0].end;
        for (int i = 0; i < threads; i++) {
            amount += g_pass[i].amount;
            if (g_pass[i].begin < begin) begin = g_pass[i].begin;
            if (g_pass[i].end > end) end = g_pass[i].end;
        }
        if (amount / (end - begin) > best) best = amount / (end - begin);
        amounts += amount;
        seconds += end - begin;
    }
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&g_barrier);
    return g_needs_memory ? amounts / seconds : best;
}

int main(int argc, char** argv) {
    for (int i = 1; i + 2 < argc; i += 3) {
        const int threads = atoi(argv[i + 2]);
        if (threads < 1 || threads > kMaxThreads) return 2;
        g_work = find(argv[i], argv[i + 1]);
        g_needs_memory = strcmp(argv[i], "memory") == 0;
        printf("%.6g\n", g_work == NULL ? 0.0 : measure(threads));
        fflush(stdout);
    }
    return 0;
}
