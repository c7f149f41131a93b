// Elementary functions on lane vectors, one source for every level: tanh, expm1, log, log1p, sin, cos, the normal
// tail, rounding. Within a few units in the last place wherever the result is normal; infinities, NaN and signed zeros
// come out as the C library's. Polynomials are minimax fits on the reduced ranges stated beside them.
#pragma once

#include "cpu/simd.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr float V_MAX = 3.402823466e38f;
constexpr int32_t V_SIGN = INT32_MIN;

static inline vf vsign_of(vf magnitude, vf sign) { return (vf)(((vi)magnitude & ~V_SIGN) | ((vi)sign & V_SIGN)); }

// Any lane's mask set.
static inline bool vany(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_epi8((__m128i)mask) != 0;
#else
    int32_t any = 0;
    for (int i = 0; i < VL; ++i) any |= mask[i];
    return any != 0;
#endif
}

static inline vf vsqrt(vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
    return (vf)_mm_sqrt_ps((__m128)x);
#else
    for (int i = 0; i < VL; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

// Toward zero, sign of zero kept. From 2^23 on every float is an integer.
static inline vf vtrunc(vf x) {
    const vf t = __builtin_convertvector(__builtin_convertvector(x, vi), vf);
    return vselect(vabs(x) < vset(8388608.0f), vsign_of(t, x), x);
}
static inline vf vfloor(vf x) {
    const vf t = vtrunc(x);
    return vselect(t > x, t - 1.0f, t);
}
static inline vf vceil(vf x) {
    const vf t = vtrunc(x);
    return vselect(t < x, vsign_of(t + 1.0f, x), t);  // the sign matters for -1 + 1
}
// Half away from zero, as C's roundf.
static inline vf vround_away(vf x) {
    const vf t = vtrunc(x);
    return vselect(vabs(x - t) >= vset(0.5f), t + vsign_of(vset(1.0f), x), t);
}

// e^x - 1 without cancellation: e^r - 1 = r + r^2 P(r) on |r| <= ln(2)/2, scaled by 2^(n-1) to stay finite at n = 128.
static inline vf vexpm1(vf x) {
    const vf hi = vset(88.8f), lo = vset(-30.0f);
    const vf c = vselect(x > hi, hi, vselect(x < lo, lo, x));
    const vf n = vround(c * 1.44269504088896341f);
    vf r = c - n * 0.693115234375f;  // 13 bits: n times it is exact
    r = r - n * 3.19461850e-5f;
    vf p = vset(1.99135393e-4f);
    p = p * r + 1.39409804e-3f;
    p = p * r + 8.33327416e-3f;
    p = p * r + 4.1666355e-2f;
    p = p * r + 1.66666672e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r;
    const vf half = (vf)((__builtin_convertvector(n, vi) + 126) << 23);  // 2^(n-1)
    const vf y = (half * p + (half - 0.5f)) * 2.0f;
    return vselect(vabs(x) < vset(1e-9f), x, y);
}

static inline vf vtanh(vf x) {
    const vf a = vabs(x), z = x * x;
    vf p = vset(-5.52906748e-3f);  // tanh x = x + x^3 P(x^2) on |x| < 0.65
    p = p * z + 2.048379e-2f;
    p = p * z - 5.36931492e-2f;
    p = p * z + 1.33309022e-1f;
    p = p * z - 3.33332628e-1f;
    const vf near_zero = p * z * x + x;
    const vf far = 1.0f - 2.0f / (vexp(a + a) + 1.0f);
    return vselect(a < vset(0.625f), vsign_of(near_zero, x), vsign_of(far, x));
}

static inline vf vlog(vf x) {
    // Subnormals: multiply into the normal range first.
    const vi tiny = x < vset(1.17549435e-38f);
    const vf y = vselect(tiny, x * 8388608.0f, x);
    const vf shift = vselect(tiny, vset(23.0f), vset(0.0f));
    // y = 2^e * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
    const vi bits = (vi)((vu)y - 0x3f3504f3u);
    const vf e = __builtin_convertvector(bits >> 23, vf) - shift;
    const vf f = (vf)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    const vf z = f * f;
    vf p = vset(6.91557825e-2f);  // log(1 + f) = f - f^2/2 + f^3 P(f)
    p = p * f - 1.17887996e-1f;
    p = p * f + 1.18723094e-1f;
    p = p * f - 1.23844944e-1f;
    p = p * f + 1.42187804e-1f;
    p = p * f - 1.66692451e-1f;
    p = p * f + 2.00022191e-1f;
    p = p * f - 2.49999866e-1f;
    p = p * f + 3.33333105e-1f;
    vf r = p * f * z + e * 3.19461850e-5f;
    r = r - z * 0.5f;
    r = (r + f) + e * 0.693115234375f;
    const vf inf = vset(__builtin_inff());
    r = vselect(x == vset(0.0f), -inf, r);
    r = vselect(x == inf, inf, r);
    return vselect(x >= vset(0.0f), r, vset(__builtin_nanf("")));
}

// log(1 + u) for u in [0, 1]: the rounding of 1 + u is put back to first order.
static inline vf vlog1p_unit(vf u) {
    const vf y = 1.0f + u;
    return vlog(y) + (u - (y - 1.0f)) / y;
}

// Half of erfc(|x| / sqrt(2)), the normal distribution's tail: e^(-x^2/2) Q(t), t = (|x| - 3) / (|x| + 3).
static inline vf vnormal_tail(vf x) {
    const vf a = vmin(vset(14.5f), vabs(x));  // the tail is below f32 from there; NaN passes
    const vf t = (a - 3.0f) / (a + 3.0f);
    vf q = vset(5.31614824e-5f);
    q = q * t + 1.15013849e-4f;
    q = q * t - 3.3901236e-4f;
    q = q * t - 9.83288512e-4f;
    q = q * t + 2.90438719e-3f;
    q = q * t + 6.13194238e-3f;
    q = q * t - 4.62132618e-2f;
    q = q * t + 1.23225041e-1f;
    q = q * t - 2.06402615e-1f;
    q = q * t + 1.21513948e-1f;
    return q * vexp(a * a * -0.5f);
}

// sin (shift 0) and cos (shift 1) with pi/2 in three parts of 9, 11 and 24 bits: exact products up to 2^13 quarter
// turns. Larger arguments, which no model has, go to the C library lane by lane.
static inline vf vsincos(vf x, int shift) {
    const vf limit = vset(8192.0f);
    const vi large = ~(vabs(x) < limit);
    const vf c = vselect(large, vset(0.0f), x);
    const vf n = vround(c * 0.636619772367581343f);
    vf r = c - n * 1.5703125f;
    r = r - n * 4.837512969970703e-4f;
    r = r - n * 7.54979013e-8f;
    const vf z = r * r;
    vf s = vset(-1.95093555e-4f);
    s = s * z + 8.33212119e-3f;
    s = s * z - 1.66666538e-1f;
    s = s * z * r + r;
    s = vselect(r == vset(0.0f), r, s);  // keeps -0
    vf k = vset(2.44302155e-5f);
    k = k * z - 1.3887299e-3f;
    k = k * z + 4.16666456e-2f;
    k = k * z * z - z * 0.5f + 1.0f;
    const vi quarter = __builtin_convertvector(n, vi) + shift;
    vf y = vselect((quarter & 1) == 0, s, k);
    y = (vf)((vu)y ^ ((vu)(quarter & 2) << 30));
    if (vany(large)) {
        for (int i = 0; i < VL; ++i)
            if (large[i]) y[i] = shift == 0 ? __builtin_sinf(x[i]) : __builtin_cosf(x[i]);
    }
    return y;
}
static inline vf vsin(vf x) { return vsincos(x, 0); }
static inline vf vcos(vf x) { return vsincos(x, 1); }

// ---- Gates and activations ----

// 1 / (1 + e^-x)
static inline vf vsigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

// x / (1 + e^-s); -infinity is held at the largest float so that the result is the limit, -0, not infinity / infinity.
static inline vf vgate(vf x, vf s) { return vmax(vset(-V_MAX), x) / (1.0f + vexp(-s)); }
static inline vf vsilu(vf x) { return vgate(x, x); }
static inline vf vgelu_quick(vf x) { return vgate(x, x * 1.702f); }
// x/2 (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2/pi) x (1 + 0.044715 x^2): no cancellation in the negative tail
static inline vf vgelu(vf x) { return vgate(x, x * (1.0f + 0.044715f * x * x) * 1.59576912160573071f); }
static inline vf vgelu_erf(vf x) {
    const vf tail = vnormal_tail(x);
    const vf c = vmax(vset(-V_MAX), x);
    return c * vselect(x < vset(0.0f), tail, 1.0f - tail);
}
// log(1 + e^x)
static inline vf vsoftplus(vf x) { return vmax(x, vset(0.0f)) + vlog1p_unit(vexp(-vabs(x))); }

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
