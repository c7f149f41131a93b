// What kernels use of the hardware, each thing under one name: nothing else in csrc/cuda calls an intrinsic or writes
// PTX. With GGR_CUDA_HOST the same names come from the emulator of the tests, so a kernel must not go around them.
#pragma once

#include "cuda/args.h"

#ifdef GGR_CUDA_HOST
#include "emulator.h"
#else

namespace ggr {
namespace cuda {

#define GGR_KERNEL __global__ void
#define GGR_DEVICE static __device__ __forceinline__
#define GGR_CONST static __device__ const
#define GGR_SHARED __shared__ __align__(16)
#define GGR_UNROLL _Pragma("unroll")
#define GGR_ROLLED _Pragma("unroll 1")  // for loops whose copies would take too many registers
// At most `threads` a block and, if it matters, at least `blocks` blocks a multiprocessor at once.
#define GGR_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)

// ---- Where am I ----
GGR_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
GGR_DEVICE int n_threads() { return static_cast<int>(blockDim.x); }
GGR_DEVICE int lane() { return static_cast<int>(threadIdx.x & 31); }
GGR_DEVICE int warp_index() { return static_cast<int>(threadIdx.x >> 5); }
GGR_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
GGR_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
GGR_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
GGR_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }

// ---- Shared memory whose size the launch gives; 16-byte aligned ----
GGR_DEVICE uint8_t* dynamic_shared() {
    extern __shared__ __align__(16) uint8_t ggr_dynamic_shared[];
    return ggr_dynamic_shared;
}

// ---- Synchronisation and exchange ----
GGR_DEVICE void sync_block() { __syncthreads(); }
GGR_DEVICE void sync_warp() { __syncwarp(); }
GGR_DEVICE void fence_device() { __threadfence(); }
template <class T>
GGR_DEVICE T shuffle(T v, int from_lane) {
    return __shfl_sync(0xffffffffu, v, from_lane);
}
template <class T>
GGR_DEVICE T shuffle_xor(T v, int mask) {
    return __shfl_xor_sync(0xffffffffu, v, mask);
}
template <class T>
GGR_DEVICE T shuffle_up(T v, int distance) {
    return __shfl_up_sync(0xffffffffu, v, distance);
}
GGR_DEVICE uint32_t ballot(bool v) { return __ballot_sync(0xffffffffu, v); }

// ---- Atomics ----
GGR_DEVICE float atomic_add(float* p, float v) { return atomicAdd(p, v); }
GGR_DEVICE int32_t atomic_add(int32_t* p, int32_t v) { return atomicAdd(p, v); }
// Set *p to v if it is `old`; returns what it was.
GGR_DEVICE int32_t atomic_compare_swap(int32_t* p, int32_t old, int32_t v) { return atomicCAS(p, old, v); }

// ---- Memory: 16 bytes at once, from addresses that are multiples of 16 ----
struct alignas(16) Bytes16 {
    uint32_t word[4];
};
GGR_DEVICE Bytes16 load16(const void* p) {
    Bytes16 v;
    asm("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(p));
    return v;
}
// The same for what is read once and stays as it is for the whole launch: weights.
GGR_DEVICE Bytes16 stream16(const void* p) {
    Bytes16 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(p));
    return v;
}
// Words that blocks of a quantised type hold at addresses that are multiples of 2 or 1 only.
GGR_DEVICE uint32_t load4_from2(const void* p) {
    const uint16_t* h = static_cast<const uint16_t*>(p);
    return h[0] | static_cast<uint32_t>(h[1]) << 16;
}
GGR_DEVICE uint32_t load4_from1(const void* p) {
    const uint8_t* b = static_cast<const uint8_t*>(p);
    return b[0] | b[1] << 8 | b[2] << 16 | static_cast<uint32_t>(b[3]) << 24;
}
// Start to copy 16 bytes from global to shared memory; done after copies_wait and a barrier. With !valid zeros are
// written and `from` is not read. sm_80; before it an ordinary copy.
GGR_DEVICE void copy16_async(void* shared, const void* from, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
#else
    *static_cast<Bytes16*>(shared) = valid ? load16(from) : Bytes16{};
#endif
}
GGR_DEVICE void copies_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Wait until at most `PENDING` of the groups committed last are under way.
template <int PENDING>
GGR_DEVICE void copies_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- Numbers ----
GGR_DEVICE float bits_to_float(uint32_t v) { return __uint_as_float(v); }
GGR_DEVICE uint32_t float_to_bits(float v) { return __float_as_uint(v); }
GGR_DEVICE float half_to_float(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
GGR_DEVICE uint16_t float_to_half(float f) {  // to nearest even
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
GGR_DEVICE float bf16_to_float(uint16_t h) { return __uint_as_float(static_cast<uint32_t>(h) << 16); }
GGR_DEVICE uint16_t float_to_bf16(float f) {  // to nearest even; a NaN stays one
    const uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 64);
    return static_cast<uint16_t>((u + (0x7fffu + (u >> 16 & 1))) >> 16);
}
// Two halves in a word, the first in the low bits.
GGR_DEVICE uint32_t pack_halves(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    return word;
#else
    return float_to_half(lo) | static_cast<uint32_t>(float_to_half(hi)) << 16;
#endif
}
// The same in bf16; a NaN stays one.
GGR_DEVICE uint32_t pack_brains(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    return word;
#else
    return float_to_bf16(lo) | static_cast<uint32_t>(float_to_bf16(hi)) << 16;
#endif
}

GGR_DEVICE float fused_add(float a, float b, float c) { return fmaf(a, b, c); }  // a * b + c
GGR_DEVICE float square_root(float x) { return sqrtf(x); }
GGR_DEVICE double square_root(double x) { return sqrt(x); }
GGR_DEVICE float inverse_root(float x) { return rsqrtf(x); }
GGR_DEVICE float exponential(float x) { return expf(x); }
GGR_DEVICE float exponential_fast(float x) { return __expf(x); }  // 2 ulp and more for large x
GGR_DEVICE float logarithm(float x) { return logf(x); }
GGR_DEVICE float sine(float x) { return sinf(x); }
GGR_DEVICE float cosine(float x) { return cosf(x); }
GGR_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
GGR_DEVICE float error_function(float x) { return erff(x); }
GGR_DEVICE float power(float x, float y) { return powf(x, y); }
GGR_DEVICE float largest(float a, float b) { return fmaxf(a, b); }
GGR_DEVICE float smallest(float a, float b) { return fminf(a, b); }
GGR_DEVICE float absolute(float x) { return fabsf(x); }
GGR_DEVICE float round_even(float x) { return rintf(x); }
GGR_DEVICE float round_away(float x) { return roundf(x); }
GGR_DEVICE float round_down(float x) { return floorf(x); }
GGR_DEVICE float round_up(float x) { return ceilf(x); }
GGR_DEVICE float truncate(float x) { return truncf(x); }
GGR_DEVICE float log_1p(float x) { return log1pf(x); }
GGR_DEVICE float exp_m1(float x) { return expm1f(x); }
GGR_DEVICE float infinity() { return __int_as_float(0x7f800000); }

// ---- Integer dot products ----
// c + the four products of signed bytes.
GGR_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
    return __dp4a(static_cast<int32_t>(a), static_cast<int32_t>(b), c);
}
// For each byte: a - b, each in two's complement.
GGR_DEVICE uint32_t subtract4(uint32_t a, uint32_t b) { return __vsub4(a, b); }
// Bytes of lo (0 .. 3) and hi (4 .. 7), named by the four lowest nibbles of `selector`, each below 8.
GGR_DEVICE uint32_t permute4(uint32_t lo, uint32_t hi, uint32_t selector) { return __byte_perm(lo, hi, selector); }
// For each of the four low nibbles' bytes of `index` (0 .. 15): the byte of a table of 16.
GGR_DEVICE uint32_t lookup4(const uint32_t (&table)[4], uint32_t index) {
    // Bytes 0-7 and 8-15 by the low three bits, then one of both by the fourth.
    const uint32_t sel = index & 0x07070707u;
    const uint32_t packed = (sel & 7) | (sel >> 4 & 0x70) | (sel >> 8 & 0x700) | (sel >> 12 & 0x7000);
    const uint32_t lo = __byte_perm(table[0], table[1], packed), hi = __byte_perm(table[2], table[3], packed);
    const uint32_t mask = (index >> 3 & 0x01010101u) * 0xffu;
    return (lo & ~mask) | (hi & mask);
}

// ---- Matrix products by a warp; fragments as PTX lays them out ----
// d[16 x 8] += a[16 x 32] b[32 x 8], signed bytes; a: 4 words, b: 2, d: 4. sm_80; before it by four of m8n8k16 each
// way.
GGR_DEVICE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a[0]), "r"(b[0]));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(d[2]), "+r"(d[3])
        : "r"(a[1]), "r"(b[0]));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a[2]), "r"(b[1]));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(d[2]), "+r"(d[3])
        : "r"(a[3]), "r"(b[1]));
#endif
}
// d[16 x 8] += a[16 x 16] b[16 x 8], signed bytes: one half of the above.
GGR_DEVICE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
#else
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a[0]), "r"(b));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(d[2]), "+r"(d[3])
        : "r"(a[1]), "r"(b));
#endif
}
// d[16 x 8] += a[16 x 16] b[16 x 8], halves, sums in f32; a: 4 words, b: 2, d: 4. sm_80; before it by two of m16n8k8.
GGR_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}
// The same in bf16. sm_80; there is none before it: callers use mma_f16 or f32 there.
GGR_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}
// Four 8 x 8 matrices of halves from shared memory; lane i gives the address of row i % 8 of matrix i / 8.
GGR_DEVICE void load_matrices(uint32_t (&d)[4], const void* row) {
    const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from)
                 : "memory");
}
// The same, each matrix transposed.
GGR_DEVICE void load_matrices_transposed(uint32_t (&d)[4], const void* row) {
    const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from)
                 : "memory");
}

}  // namespace cuda
}  // namespace ggr

#endif  // GGR_CUDA_HOST

namespace ggr {
namespace cuda {

// ---- Made of the above ----
GGR_DEVICE float warp_sum(float v) {
    GGR_UNROLL
    for (int m = 16; m > 0; m >>= 1) v += shuffle_xor(v, m);
    return v;
}
GGR_DEVICE int32_t warp_sum(int32_t v) {
    GGR_UNROLL
    for (int m = 16; m > 0; m >>= 1) v += shuffle_xor(v, m);
    return v;
}
GGR_DEVICE float warp_max(float v) {
    GGR_UNROLL
    for (int m = 16; m > 0; m >>= 1) v = largest(v, shuffle_xor(v, m));
    return v;
}
// Over the whole block, for every thread of it; `shared`: one float a warp. Two barriers.
GGR_DEVICE float block_sum(float v, float* shared) {
    v = warp_sum(v);
    sync_block();
    if (lane() == 0) shared[warp_index()] = v;
    sync_block();
    return warp_sum(lane() < n_threads() / WARP ? shared[lane()] : 0.0f);
}
GGR_DEVICE float block_max(float v, float* shared) {
    v = warp_max(v);
    sync_block();
    if (lane() == 0) shared[warp_index()] = v;
    sync_block();
    return warp_max(lane() < n_threads() / WARP ? shared[lane()] : -infinity());
}

GGR_DEVICE uint32_t quotient(uint32_t n, const Divisor& d) {
    return (static_cast<uint32_t>(static_cast<uint64_t>(n) * d.multiplier >> 32) + n) >> d.shift;
}

// Report an illegal index; the first of a run is kept.
GGR_DEVICE void fail_index(const FaultSite& site, int64_t value, int64_t limit) {
    if (atomic_compare_swap(&site.fault->state, 0, 1) != 0) return;
    site.fault->node = site.node;
    site.fault->source = site.source;
    site.fault->value = value;
    site.fault->limit = limit;
    fence_device();
    site.fault->state = 2;
}

}  // namespace cuda
}  // namespace ggr

#ifdef __CUDACC_RTC__
// Names of kernels are looked up from outside, their template arguments with them: "tiles<QuantisedRows<Q4_K>, 64>".
using namespace ggr::cuda;
#endif
