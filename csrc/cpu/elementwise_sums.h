// Sums over f32 rows in f64 lanes: neither length nor magnitude costs accuracy, and at two fused operations per vector
// of f64 a row from the first-level cache still takes less than a nanosecond per VL elements.
#pragma once

#include "cpu/simd.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

typedef double vd __attribute__((vector_size(VL * 4)));  // VL / 2 lanes
typedef float vfh __attribute__((vector_size(VL * 2)));  // as many f32

static inline vd load_f64(const float* p) {
    vfh h;
    std::memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, vd);
}
static inline double sum_lanes(vd v) {
    double sum = 0.0;
    for (int i = 0; i < VL / 2; ++i) sum += v[i];
    return sum;
}

struct Plain {
    template <class T>
    static inline T of(T x, T) {
        return x;
    }
};
struct Square {
    template <class T>
    static inline T of(T x, T) {
        return x * x;
    }
};
struct SquaredDistance {  // from the row's centre
    template <class T>
    static inline T of(T x, T centre) {
        return (x - centre) * (x - centre);
    }
};

template <class Term>
double sum_packed(const float* x, int64_t n, double centre) {
    constexpr int H = VL / 2;
    const vd c = vd{} + centre;
    vd s0 = {}, s1 = {}, s2 = {}, s3 = {};  // four chains hide the latency of the addition
    int64_t i = 0;
    for (; i + 4 * H <= n; i += 4 * H) {
        s0 += Term::of(load_f64(x + i), c);
        s1 += Term::of(load_f64(x + i + H), c);
        s2 += Term::of(load_f64(x + i + 2 * H), c);
        s3 += Term::of(load_f64(x + i + 3 * H), c);
    }
    double sum = sum_lanes((s0 + s1) + (s2 + s3));
    for (; i < n; ++i) sum += Term::of(static_cast<double>(x[i]), centre);
    return sum;
}

// The sum of a term over n elements `stride` bytes apart.
template <class Term>
inline double sum_row(const uint8_t* x, int64_t stride, int64_t n, double centre = 0.0) {
    if (stride == sizeof(float)) return sum_packed<Term>(reinterpret_cast<const float*>(x), n, centre);
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i)
        sum += Term::of(static_cast<double>(*reinterpret_cast<const float*>(x + i * stride)), centre);
    return sum;
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
