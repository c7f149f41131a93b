// Sine and cosine of many angles given in f64.
#pragma once

#include "cpu/attention/rows.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Angles up to this size are reduced by two products in f64: n < 2^31 fits an int32 and n * (high part of pi/2) is off
// by at most 2^-24.
constexpr double SINCOS_LIMIT = 1073741824.0;

// cosine[i], sine[i] = cos, sin of theta[i] times `factor`, for i < n; n is a multiple of VL. reduced and quadrant hold
// n elements. Within 2 ulp of f32: the reduction is in f64, the polynomials (of Cephes' sinf and cosf, for |r| <= pi/4)
// in f32. Angles that are too large, infinite or NaN go through libm.
static inline void sincos_f64(const double* theta, int64_t n, float factor, float* cosine, float* sine, float* reduced,
                              int32_t* quadrant) {
    bool beyond = false;
    for (int64_t i = 0; i < n; ++i) beyond |= !(__builtin_fabs(theta[i]) < SINCOS_LIMIT);
    if (beyond) {
        for (int64_t i = 0; i < n; ++i) {
            cosine[i] = (float)__builtin_cos(theta[i]) * factor;
            sine[i] = (float)__builtin_sin(theta[i]) * factor;
        }
        return;
    }
    constexpr double MAGIC = 6755399441055744.0;  // 1.5 * 2^52: adding and subtracting it rounds to an integer
    for (int64_t i = 0; i < n; ++i) {
        const double k = (theta[i] * 0.63661977236758134308 + MAGIC) - MAGIC;
        const double r = theta[i] - k * 1.57079632679489655800;
        reduced[i] = (float)(r - k * 6.12323399573676603587e-17);
        quadrant[i] = (int32_t)k;
    }
    for (int64_t i = 0; i < n; i += VL) {
        vi q;
        std::memcpy(&q, quadrant + i, sizeof q);
        const vf r = vload(reduced + i), z = r * r;
        vf s = vset(-1.9515295891e-4f);
        s = s * z + 8.3321608736e-3f;
        s = s * z - 1.6666654611e-1f;
        s = s * z * r + r;
        vf c = vset(2.443315711809948e-5f);
        c = c * z - 1.388731625493765e-3f;
        c = c * z + 4.166664568298827e-2f;
        c = c * z * z - z * 0.5f + 1.0f;
        const vi swap = (q & 1) != 0;  // quadrants 1 and 3 exchange the two
        const vu sine_sign = ((vu)q & 2u) << 30, cosine_sign = ((vu)(q + 1) & 2u) << 30;
        vstore(sine + i, (vf)((vu)vselect(swap, c, s) ^ sine_sign) * factor);
        vstore(cosine + i, (vf)((vu)vselect(swap, s, c) ^ cosine_sign) * factor);
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
