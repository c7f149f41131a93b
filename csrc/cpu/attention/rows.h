// What the softmax, rope and attention families share: storage formats, row tails, ALiBi slopes.
#pragma once

#include "cpu/simd.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Storage formats: how a vector of lanes, the first n lanes (zeros above) and a single element are read and written.
struct RowF32 {
    using Element = float;
    static inline vf load(const float* p) { return vload(p); }
    static inline void store(float* p, vf v) { vstore(p, v); }
    static inline float get(const float* p) { return *p; }
    static inline void put(float* p, float x) { *p = x; }
};
struct RowF16 {
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_f16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_f16(p, v); }
    static inline float get(const uint16_t* p) { return f16_to_f32(*p); }
    static inline void put(uint16_t* p, float x) { *p = f32_to_f16(x); }
};
struct RowBF16 {
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_bf16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_bf16(p, v); }
    static inline float get(const uint16_t* p) { return bf16_to_f32(*p); }
    static inline void put(uint16_t* p, float x) { *p = f32_to_bf16(x); }
};

// The first n < VL elements, the lanes above set to `fill`: what follows a row may be NaN, so it must not be read.
template <class F>
static inline vf load_tail(const typename F::Element* p, int64_t n, float fill = 0.0f) {
    float lanes[VL];
    for (int i = 0; i < VL; ++i) lanes[i] = i < n ? F::get(p + i) : fill;
    return vload(lanes);
}
template <class F>
static inline void store_tail(typename F::Element* p, int64_t n, vf v) {
    float lanes[VL];
    vstore(lanes, v);
    for (int i = 0; i < VL; ++i)
        if (i < n) F::put(p + i, lanes[i]);
}

template <class T>
static inline T* at(uint8_t* base, int64_t offset) {
    return reinterpret_cast<T*>(base + offset);
}
template <class T>
static inline const T* at(const uint8_t* base, int64_t offset) {
    return reinterpret_cast<const T*>(base + offset);
}

// The factor by which head `head` of n_head multiplies its mask: with n = the largest power of two <= n_head, heads
// below n take 2^(-max_bias (h + 1) / n), the others 2^(-max_bias (2 (h - n) + 1) / 2n). Without bias the mask counts
// as it is.
static inline float alibi_slope(float max_bias, int64_t n_head, int64_t head) {
    if (!(max_bias > 0.0f)) return 1.0f;
    int64_t n = 1;
    while (n * 2 <= n_head) n *= 2;
    const double steps = head < n ? (double)(head + 1) : (double)(head - n) + 0.5;
    return (float)__builtin_exp2(-(double)max_bias * steps / (double)n);
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
