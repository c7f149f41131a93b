// The names of csrc/cuda/kernels/base.cuh for the host: a kernel that is compiled with GGR_CUDA_HOST runs on fibres,
// one a thread of a block, with every access to memory checked (the compiler calls __asan_load4 and the like, see
// memory.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime.h"

// Static shared memory is what a library of kernels has in .bss: the attribute `section` has no effect in templates.
#define GGR_KERNEL static void
#define GGR_DEVICE [[maybe_unused]] static inline
#define GGR_CONST [[maybe_unused]] static const
#define GGR_SHARED static __attribute__((aligned(16)))
#define GGR_UNROLL
#define GGR_ROLLED
#define GGR_BOUNDS(threads, blocks)

#define GGR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace ggr {
namespace cuda {

// ---- Where am I ----
GGR_DEVICE int thread_index() { return ggr_index(); }
GGR_DEVICE int n_threads() { return ggr_threads(); }
GGR_DEVICE int lane() { return ggr_index() & 31; }
GGR_DEVICE int warp_index() { return ggr_index() >> 5; }
GGR_DEVICE int block_x() { return ggr_block(0); }
GGR_DEVICE int block_y() { return ggr_block(1); }
GGR_DEVICE int block_z() { return ggr_block(2); }
GGR_DEVICE int grid_x() { return ggr_grid(0); }
GGR_DEVICE uint8_t* dynamic_shared() { return ggr_dynamic_shared(); }

// ---- Synchronisation and exchange ----
GGR_DEVICE void sync_block(GGR_HERE) { ggr_sync_block(file, line); }
GGR_DEVICE void sync_warp(GGR_HERE) { ggr_sync_warp(file, line); }
GGR_DEVICE void fence_device() {}

namespace emulator {
template <class T>
struct FromLane {
    T value;
    int lane;
};
// out[i] = in[Source::of(i, in[i].lane)].value; these lie on the stacks of 32 threads.
template <class T, class Source>
__attribute__((no_sanitize("kernel-address"))) static void compute_shuffle(const void* const* in, void* const* out) {
    for (int i = 0; i < 32; ++i) {
        const int from = Source::of(i, static_cast<const FromLane<T>*>(in[i])->lane);
        std::memcpy(out[i], &static_cast<const FromLane<T>*>(in[from])->value, sizeof(T));
    }
}
struct Indexed {
    static int of(int, int from) { return from & 31; }
};
struct Xor {
    static int of(int i, int mask) { return (i ^ mask) & 31; }
};
struct Up {
    static int of(int i, int distance) { return i >= distance ? i - distance : i; }
};
template <class T, class Source>
static inline T exchange(const char* what, T v, int number, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what __shfl_sync takes");
    const FromLane<T> in{v, number};
    T out;
    ggr_exchange(what, compute_shuffle<T, Source>, &in, &out, file, line);
    return out;
}
void compute_ballot(const void* const* in, void* const* out);
void compute_mma_s8(const void* const* in, void* const* out);
void compute_mma_f16(const void* const* in, void* const* out);
void compute_mma_bf16(const void* const* in, void* const* out);
void compute_load_matrices(const void* const* in, void* const* out);
void compute_load_matrices_transposed(const void* const* in, void* const* out);
template <class T>
struct Fragments {
    T d[4];
    uint32_t a[4], b[2];
};
template <class T>
static inline void product(const char* what, GgrCompute compute, T (&d)[4], const uint32_t (&a)[4],
                           const uint32_t (&b)[2], const char* file, int line) {
    const Fragments<T> in{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    ggr_exchange(what, compute, &in, d, file, line);
}
}  // namespace emulator

template <class T>
GGR_DEVICE T shuffle(T v, int from_lane, GGR_HERE) {
    return emulator::exchange<T, emulator::Indexed>("shuffle", v, from_lane, file, line);
}
template <class T>
GGR_DEVICE T shuffle_xor(T v, int mask, GGR_HERE) {
    return emulator::exchange<T, emulator::Xor>("shuffle_xor", v, mask, file, line);
}
template <class T>
GGR_DEVICE T shuffle_up(T v, int distance, GGR_HERE) {
    return emulator::exchange<T, emulator::Up>("shuffle_up", v, distance, file, line);
}
GGR_DEVICE uint32_t ballot(bool v, GGR_HERE) {
    uint32_t out;
    ggr_exchange("ballot", emulator::compute_ballot, &v, &out, file, line);
    return out;
}

// ---- Atomics ----
GGR_DEVICE float atomic_add(float* p, float v) { return ggr_atomic_add_f32(p, v); }
GGR_DEVICE int32_t atomic_add(int32_t* p, int32_t v) { return ggr_atomic_add_i32(p, v); }
GGR_DEVICE int32_t atomic_compare_swap(int32_t* p, int32_t old, int32_t v) { return ggr_atomic_swap_i32(p, old, v); }

// ---- Memory ----
struct alignas(16) Bytes16 {
    uint32_t word[4];
};
GGR_DEVICE Bytes16 load16(const void* p) {
    ggr_check_global("load16", p, 16);
    return *static_cast<const Bytes16*>(p);
}
GGR_DEVICE Bytes16 stream16(const void* p) {
    ggr_check_global("stream16", p, 16);
    return *static_cast<const Bytes16*>(p);
}
GGR_DEVICE uint32_t load4_from2(const void* p) {
    const uint16_t* h = static_cast<const uint16_t*>(p);
    return h[0] | static_cast<uint32_t>(h[1]) << 16;
}
GGR_DEVICE uint32_t load4_from1(const void* p) {
    const uint8_t* b = static_cast<const uint8_t*>(p);
    return b[0] | static_cast<uint32_t>(b[1]) << 8 | static_cast<uint32_t>(b[2]) << 16 |
           static_cast<uint32_t>(b[3]) << 24;
}
// The bytes arrive with copies_wait, not before; until then nobody may touch them.
GGR_DEVICE void copy16_async(void* shared, const void* from, bool valid = true) { ggr_copy_async(shared, from, valid); }
GGR_DEVICE void copies_commit() { ggr_copies_commit(); }
template <int PENDING>
GGR_DEVICE void copies_wait() {
    ggr_copies_wait(PENDING);
}

// ---- Numbers ----
GGR_DEVICE float bits_to_float(uint32_t v) {
    float f;
    std::memcpy(&f, &v, 4);
    return f;
}
GGR_DEVICE uint32_t float_to_bits(float v) {
    uint32_t u;
    std::memcpy(&u, &v, 4);
    return u;
}
GGR_DEVICE float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = static_cast<uint32_t>(h & 0x7fff) << 13;
    if ((h & 0x7c00) == 0x7c00) return bits_to_float(sign | 0x7f800000u | rest);
    // The exponent is 112 too small, also for subnormal halves: a product by 2^112 is exact.
    return bits_to_float(sign | float_to_bits(bits_to_float(rest) * 0x1p112f));
}
GGR_DEVICE uint16_t float_to_half(float f) {
    const uint32_t u = float_to_bits(f), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
    if (rest > 0x7f800000u) return 0x7fff;  // as PTX makes every NaN
    if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);
    if (rest < 0x38800000u) {  // below 2^-14: the sum's last place is 2^-24
        return static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((rest + 0xfffu + (rest >> 13 & 1) - 0x38000000u) >> 13));
}
GGR_DEVICE float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }
GGR_DEVICE uint16_t float_to_bf16(float f) {
    const uint32_t u = float_to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 64);
    return static_cast<uint16_t>((u + (0x7fffu + (u >> 16 & 1))) >> 16);
}
GGR_DEVICE uint32_t pack_halves(float lo, float hi) {
    return float_to_half(lo) | static_cast<uint32_t>(float_to_half(hi)) << 16;
}
GGR_DEVICE uint32_t pack_brains(float lo, float hi) {
    return float_to_bf16(lo) | static_cast<uint32_t>(float_to_bf16(hi)) << 16;
}

GGR_DEVICE float fused_add(float a, float b, float c) { return std::fma(a, b, c); }
GGR_DEVICE float square_root(float x) { return std::sqrt(x); }
GGR_DEVICE double square_root(double x) { return std::sqrt(x); }
GGR_DEVICE float inverse_root(float x) { return 1.0f / std::sqrt(x); }
GGR_DEVICE float exponential(float x) { return std::exp(x); }
GGR_DEVICE float exponential_fast(float x) { return std::exp(x); }
GGR_DEVICE float logarithm(float x) { return std::log(x); }
GGR_DEVICE float sine(float x) { return std::sin(x); }
GGR_DEVICE float cosine(float x) { return std::cos(x); }
GGR_DEVICE float hyperbolic_tangent(float x) { return std::tanh(x); }
GGR_DEVICE float error_function(float x) { return std::erf(x); }
GGR_DEVICE float power(float x, float y) { return std::pow(x, y); }
GGR_DEVICE float largest(float a, float b) { return std::fmax(a, b); }
GGR_DEVICE float smallest(float a, float b) { return std::fmin(a, b); }
GGR_DEVICE float absolute(float x) { return std::fabs(x); }
GGR_DEVICE float round_even(float x) { return std::rint(x); }
GGR_DEVICE float round_away(float x) { return std::round(x); }
GGR_DEVICE float round_down(float x) { return std::floor(x); }
GGR_DEVICE float round_up(float x) { return std::ceil(x); }
GGR_DEVICE float truncate(float x) { return std::trunc(x); }
GGR_DEVICE float log_1p(float x) { return std::log1p(x); }
GGR_DEVICE float exp_m1(float x) { return std::expm1(x); }
GGR_DEVICE float infinity() { return bits_to_float(0x7f800000u); }

// ---- Integer dot products ----
GGR_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
    uint32_t sum = static_cast<uint32_t>(c);
    for (int i = 0; i < 32; i += 8) {
        sum += static_cast<uint32_t>(static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i));
    }
    return static_cast<int32_t>(sum);
}
GGR_DEVICE uint32_t subtract4(uint32_t a, uint32_t b) {
    uint32_t d = 0;
    for (int i = 0; i < 32; i += 8) d |= (((a >> i) - (b >> i)) & 0xff) << i;
    return d;
}
GGR_DEVICE uint32_t permute4(uint32_t lo, uint32_t hi, uint32_t selector) {
    uint32_t d = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t at = selector >> 4 * i & 7;
        d |= ((at < 4 ? lo : hi) >> at % 4 * 8 & 0xff) << 8 * i;
    }
    return d;
}
GGR_DEVICE uint32_t lookup4(const uint32_t (&table)[4], uint32_t index) {
    uint32_t d = 0;
    for (int i = 0; i < 32; i += 8) {
        const uint32_t at = index >> i & 15;
        d |= (table[at / 4] >> at % 4 * 8 & 0xff) << i;
    }
    return d;
}

// ---- Matrix products by a warp ----
GGR_DEVICE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], GGR_HERE) {
    emulator::product("mma_s8", emulator::compute_mma_s8, d, a, b, file, line);
}
GGR_DEVICE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b, GGR_HERE) {
    emulator::product("mma_s8", emulator::compute_mma_s8, d, {a[0], a[1], 0, 0}, {b, 0}, file, line);
}
GGR_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], GGR_HERE) {
    emulator::product("mma_f16", emulator::compute_mma_f16, d, a, b, file, line);
}
GGR_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], GGR_HERE) {
    emulator::product("mma_bf16", emulator::compute_mma_bf16, d, a, b, file, line);
}
GGR_DEVICE void load_matrices(uint32_t (&d)[4], const void* row, GGR_HERE) {
    ggr_check_shared("load_matrices", row, 16);
    ggr_exchange("load_matrices", emulator::compute_load_matrices, row, d, file, line);
}
GGR_DEVICE void load_matrices_transposed(uint32_t (&d)[4], const void* row, GGR_HERE) {
    ggr_check_shared("load_matrices_transposed", row, 16);
    ggr_exchange("load_matrices_transposed", emulator::compute_load_matrices_transposed, row, d, file, line);
}

// ---- The table of a library's kernels ----
namespace emulator {
template <class F>
struct ArgsOf;
template <class A>
struct ArgsOf<void (*)(A)> {
    using type = A;
};
template <auto F>
static void enter(const void* args) {
    F(*static_cast<const typename ArgsOf<decltype(F)>::type*>(args));
}
template <auto F>
constexpr size_t args_bytes() {
    return sizeof(typename ArgsOf<decltype(F)>::type);
}
}  // namespace emulator
#define GGR_ENTRY(name, max_threads, ...)                                                                     \
    {                                                                                                         \
        name, &::ggr::cuda::emulator::enter<&__VA_ARGS__>, ::ggr::cuda::emulator::args_bytes<&__VA_ARGS__>(), \
            max_threads                                                                                       \
    }

}  // namespace cuda
}  // namespace ggr
