// Quantisation to Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, byte-exact with the format's reference quantisers (without
// importance weights). n is a multiple of 256.
//
// Each searches for the scales that reconstruct best; a graph asks for it at most when it copies into such a type, so
// these are plain loops. The sums run in the elements' order and every product is rounded before it is added: the
// search takes the better of close candidates, so the last bit matters.
#pragma once

#include "cpu/quants/k.h"
#include "cpu/quants/tables4.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr float NO_SIGNAL = 1e-15f;  // a group whose magnitudes are all below has scale 0

static inline float product(float a, float b) { return keep_rounding(a * b); }
static inline float product(float a, float b, float c) { return product(product(a, b), c); }
static inline int clamp_int(int x, int lo, int hi) { return x < lo ? lo : x > hi ? hi : x; }
static inline int nearest_code(float x, int lo, int hi) { return clamp_int(round_to_int(x), lo, hi); }
static inline float max_of(float a, float b) { return b > a ? b : a; }

// First element of largest magnitude.
static inline float extreme_of_group(const float* x, int n) {
    float magnitude = 0.0f, extreme = 0.0f;
    for (int i = 0; i < n; ++i) {
        if (abs_of(x[i]) > magnitude) {
            magnitude = abs_of(x[i]);
            extreme = x[i];
        }
    }
    return extreme;
}

// ---- Groups with a scale: x = scale * (code - bias) ----

// Sums of least squares with weights x^2 for codes at a given inverse scale.
struct Fit {
    float xl, ll;
};
static inline Fit fit_16(const float* x, float inverse_scale, int bias) {
    Fit f = {0.0f, 0.0f};
    for (int i = 0; i < 16; ++i) {
        const float l = (float)nearest_code(product(inverse_scale, x[i]), -bias, bias - 1), w = product(x[i], x[i]);
        f.xl += product(w, x[i], l);
        f.ll += product(w, l, l);
    }
    return f;
}
static inline void codes_16(const float* x, float inverse_scale, int bias, uint8_t* codes) {
    for (int i = 0; i < 16; ++i)
        codes[i] = (uint8_t)(bias + nearest_code(product(inverse_scale, x[i]), -bias, bias - 1));
}

// Q6_K's group: the best of 19 scales around that which puts the extreme on the grid's end.
static inline float best_scale_q6(const float* x, uint8_t* codes) {
    constexpr int BIAS = 32;
    const float extreme = extreme_of_group(x, 16);
    if (abs_of(extreme) < NO_SIGNAL) {
        std::memset(codes, 0, 16);
        return 0.0f;
    }
    float inverse_scale = (float)-BIAS / extreme;
    Fit f = fit_16(x, inverse_scale, BIAS);
    codes_16(x, inverse_scale, BIAS, codes);
    float scale = f.ll != 0.0f ? f.xl / f.ll : 0.0f, best = product(scale, f.xl);
    for (int step = -9; step <= 9; ++step) {
        if (step == 0) continue;
        inverse_scale = -((float)BIAS + product(0.1f, (float)step)) / extreme;
        f = fit_16(x, inverse_scale, BIAS);
        if (f.ll > 0.0f && product(f.xl, f.xl) > product(best, f.ll)) {
            codes_16(x, inverse_scale, BIAS, codes);
            scale = f.xl / f.ll;
            best = product(scale, f.xl);
        }
    }
    return scale;
}

// Q3_K's group: codes moved one at a time while that lowers the error, at most five rounds.
static inline float best_scale_q3(const float* x, uint8_t* codes) {
    constexpr int BIAS = 4;
    const float extreme = extreme_of_group(x, 16);
    if (abs_of(extreme) < NO_SIGNAL) {
        std::memset(codes, 0, 16);
        return 0.0f;
    }
    const float inverse_scale = (float)-BIAS / extreme;
    int l[16];
    Fit f = {0.0f, 0.0f};
    for (int i = 0; i < 16; ++i) {
        l[i] = nearest_code(product(inverse_scale, x[i]), -BIAS, BIAS - 1);
        const float w = product(x[i], x[i]), v = (float)l[i];
        f.xl += product(w, x[i], v);
        f.ll += product(w, v, v);
    }
    for (int round = 0; round < 5; ++round) {
        bool changed = false;
        for (int i = 0; i < 16; ++i) {
            const float w = product(x[i], x[i]), old = (float)l[i];
            Fit other = {f.xl - product(w, x[i], old), 0.0f};
            if (!(other.xl > 0.0f)) continue;
            other.ll = f.ll - product(w, old, old);
            const int code = nearest_code(product(x[i], other.ll) / other.xl, -BIAS, BIAS - 1);
            if (code == l[i]) continue;
            const float v = (float)code;
            other.xl += product(w, x[i], v);
            other.ll += product(w, v, v);
            if (other.ll > 0.0f && product(other.xl, other.xl, f.ll) > product(f.xl, f.xl, other.ll)) {
                l[i] = code;
                f = other;
                changed = true;
            }
        }
        if (!changed) break;
    }
    for (int i = 0; i < 16; ++i) codes[i] = (uint8_t)(l[i] + BIAS);
    return f.ll > 0.0f ? f.xl / f.ll : 0.0f;
}

[[maybe_unused]] static void quantize_row_q6_K(const float* x, uint8_t* dst, int64_t n) {
    BlockQ6_K* y = reinterpret_cast<BlockQ6_K*>(dst);
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        uint8_t codes[QK_K];
        float scales[16];
        for (int g = 0; g < 16; ++g) scales[g] = best_scale_q6(x + 16 * g, codes + 16 * g);
        const float largest = extreme_of_group(scales, 16);
        if (abs_of(largest) < NO_SIGNAL) {
            std::memset(&y[b], 0, sizeof y[b]);
            continue;
        }
        const float inverse_scale = -128.0f / largest;
        y[b].d = f32_to_f16(1.0f / inverse_scale);
        for (int g = 0; g < 16; ++g) {
            y[b].scales[g] = (int8_t)nearest_code(product(inverse_scale, scales[g]), -128, 127);
            const float d = product(f16_to_f32(y[b].d), (float)y[b].scales[g]);
            if (d == 0.0f) continue;
            for (int i = 16 * g; i < 16 * g + 16; ++i) codes[i] = (uint8_t)(32 + nearest_code(x[i] / d, -32, 31));
        }
        for (int half = 0; half < 2; ++half) {
            const uint8_t* c = codes + 128 * half;
            for (int i = 0; i < 32; ++i) {
                y[b].ql[64 * half + i] = (uint8_t)((c[i] & 15) | c[i + 64] << 4);
                y[b].ql[64 * half + 32 + i] = (uint8_t)((c[i + 32] & 15) | c[i + 96] << 4);
                y[b].qh[32 * half + i] =
                    (uint8_t)(c[i] >> 4 | c[i + 32] >> 4 << 2 | c[i + 64] >> 4 << 4 | c[i + 96] >> 4 << 6);
            }
        }
    }
}

// Two bits of each of 256 codes: byte i of a half holds codes i, i + 32, i + 64, i + 96.
static inline void store_pairs(uint8_t* qs, const uint8_t* codes) {
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 32; ++i) {
            const uint8_t* c = codes + 128 * half + i;
            qs[32 * half + i] = (uint8_t)((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
        }
}

[[maybe_unused]] static void quantize_row_q3_K(const float* x, uint8_t* dst, int64_t n) {
    BlockQ3_K* y = reinterpret_cast<BlockQ3_K*>(dst);
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        uint8_t codes[QK_K];
        float scales[16];
        for (int g = 0; g < 16; ++g) scales[g] = best_scale_q3(x + 16 * g, codes + 16 * g);
        const float largest = extreme_of_group(scales, 16);
        std::memset(&y[b], 0, sizeof y[b]);
        if (largest != 0.0f) {
            const float inverse_scale = -32.0f / largest;
            for (int g = 0; g < 16; ++g) {
                const int l = nearest_code(product(inverse_scale, scales[g]), -32, 31) + 32;
                y[b].scales[g % 8] |= (uint8_t)((l & 15) << (g < 8 ? 0 : 4));
                y[b].scales[8 + g % 4] |= (uint8_t)(l >> 4 << 2 * (g / 4));
            }
            y[b].d = f32_to_f16(1.0f / inverse_scale);
        }
        int8_t stored[16];
        unpack_q3_scales(y[b].scales, stored);
        for (int g = 0; g < 16; ++g) {
            const float d = product(f16_to_f32(y[b].d), (float)stored[g]);
            if (d == 0.0f) continue;
            for (int i = 16 * g; i < 16 * g + 16; ++i) codes[i] = (uint8_t)(4 + nearest_code(x[i] / d, -4, 3));
        }
        for (int i = 0; i < QK_K; ++i) y[b].hmask[i % 32] |= (uint8_t)(codes[i] >> 2 << i / 32);
        store_pairs(y[b].qs, codes);
    }
}

// ---- Groups with a scale and a minimum: x = scale * code - minimum ----

struct Grid {
    int top;            // largest code
    float first, step;  // inverse scales tried: (first + step * k + top) / (high - low)
    int n_steps;
    bool absolute;  // error by magnitude instead of square
};

static inline float grid_error(const float* x, const float* weights, const uint8_t* codes, int n, float scale,
                               float low, bool absolute) {
    float error = 0.0f;
    for (int i = 0; i < n; ++i) {
        const float diff = product(scale, (float)codes[i]) + low - x[i];
        error += product(weights[i], absolute ? abs_of(diff) : product(diff, diff));
    }
    return error;
}

// Scale and minimum of n elements (at most 32), the better of fits around the plain range.
static inline float best_scale_and_min(const Grid& grid, int n, const float* x, const float* weights, uint8_t* codes,
                                       float* minimum) {
    float low = x[0], high = x[0], sum_w = weights[0], sum_x = product(weights[0], x[0]);
    for (int i = 1; i < n; ++i) {
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
        sum_w += weights[i];
        sum_x += product(weights[i], x[i]);
    }
    if (low > 0.0f) low = 0.0f;
    if (high == low) {
        std::memset(codes, 0, (size_t)n);
        *minimum = -low;
        return 0.0f;
    }
    float inverse_scale = (float)grid.top / (high - low), scale = 1.0f / inverse_scale;
    for (int i = 0; i < n; ++i) codes[i] = (uint8_t)nearest_code(product(inverse_scale, x[i] - low), 0, grid.top);
    float best = grid_error(x, weights, codes, n, scale, low, grid.absolute);
    for (int k = 0; k <= grid.n_steps; ++k) {
        // The range moves along with the best minimum so far.
        inverse_scale = (grid.first + product(grid.step, (float)k) + (float)grid.top) / (high - low);
        uint8_t trial[32];
        float sum_l = 0.0f, sum_ll = 0.0f, sum_xl = 0.0f;
        for (int i = 0; i < n; ++i) {
            trial[i] = (uint8_t)nearest_code(product(inverse_scale, x[i] - low), 0, grid.top);
            const float l = (float)trial[i], wl = product(weights[i], l);
            sum_l += wl;
            sum_ll += product(wl, l);
            sum_xl += product(wl, x[i]);
        }
        const float det = product(sum_w, sum_ll) - product(sum_l, sum_l);
        if (!(det > 0.0f)) continue;
        float this_scale = (product(sum_w, sum_xl) - product(sum_x, sum_l)) / det;
        float this_low = (product(sum_ll, sum_x) - product(sum_l, sum_xl)) / det;
        if (this_low > 0.0f) {
            this_low = 0.0f;
            this_scale = sum_xl / sum_ll;
        }
        const float error = grid_error(x, weights, trial, n, this_scale, this_low, grid.absolute);
        if (error < best) {
            std::memcpy(codes, trial, (size_t)n);
            best = error;
            scale = this_scale;
            low = this_low;
        }
    }
    *minimum = -low;
    return scale;
}

[[maybe_unused]] static void quantize_row_q2_K(const float* x, uint8_t* dst, int64_t n) {
    constexpr Grid GRID = {3, -0.5f, 0.1f, 15, true};
    BlockQ2_K* y = reinterpret_cast<BlockQ2_K*>(dst);
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        uint8_t codes[QK_K];
        float scales[16], minima[16], max_scale = 0.0f, max_min = 0.0f;
        for (int g = 0; g < 16; ++g) {
            float weights[16];
            for (int i = 0; i < 16; ++i) weights[i] = abs_of(x[16 * g + i]);
            scales[g] = best_scale_and_min(GRID, 16, x + 16 * g, weights, codes + 16 * g, &minima[g]);
            max_scale = max_of(max_scale, scales[g]);
            max_min = max_of(max_min, minima[g]);
        }
        const float to_scale = max_scale > 0.0f ? 15.0f / max_scale : 0.0f,
                    to_min = max_min > 0.0f ? 15.0f / max_min : 0.0f;
        y[b].d = f32_to_f16(max_scale / 15.0f);
        y[b].dmin = f32_to_f16(max_min / 15.0f);
        for (int g = 0; g < 16; ++g) {
            const int scale = nearest_code(product(to_scale, scales[g]), 0, 15);
            const int min = nearest_code(product(to_min, minima[g]), 0, 15);
            y[b].scales[g] = (uint8_t)(scale | min << 4);
            const float d = product(f16_to_f32(y[b].d), (float)scale), m = product(f16_to_f32(y[b].dmin), (float)min);
            if (d == 0.0f) continue;
            for (int i = 16 * g; i < 16 * g + 16; ++i) codes[i] = (uint8_t)nearest_code((x[i] + m) / d, 0, 3);
        }
        store_pairs(y[b].qs, codes);
    }
}

// What Q4_K and Q5_K share: codes of 256 elements, packed scales, d and dmin.
static inline void quantize_with_min(const Grid& grid, const float* x, uint8_t* codes, uint8_t* packed,
                                     uint16_t* d_bits, uint16_t* dmin_bits) {
    float scales[8], minima[8], max_scale = 0.0f, max_min = 0.0f;
    for (int g = 0; g < 8; ++g) {
        const float* xg = x + 32 * g;
        float weights[32], sum_xx = 0.0f;
        for (int i = 0; i < 32; ++i) sum_xx += product(xg[i], xg[i]);
        const float rms = __builtin_sqrtf(sum_xx / 32.0f);
        for (int i = 0; i < 32; ++i) weights[i] = rms + abs_of(xg[i]);
        scales[g] = best_scale_and_min(grid, 32, xg, weights, codes + 32 * g, &minima[g]);
        max_scale = max_of(max_scale, scales[g]);
        max_min = max_of(max_min, minima[g]);
    }
    const float to_scale = max_scale > 0.0f ? 63.0f / max_scale : 0.0f,
                to_min = max_min > 0.0f ? 63.0f / max_min : 0.0f;
    *d_bits = f32_to_f16(max_scale / 63.0f);
    *dmin_bits = f32_to_f16(max_min / 63.0f);
    const float d = f16_to_f32(*d_bits), dmin = f16_to_f32(*dmin_bits);
    std::memset(packed, 0, 12);
    for (int g = 0; g < 8; ++g) {
        const int scale = nearest_code(product(to_scale, scales[g]), 0, 63);
        const int min = nearest_code(product(to_min, minima[g]), 0, 63);
        if (g < 4) {
            packed[g] |= (uint8_t)scale;
            packed[g + 4] |= (uint8_t)min;
        } else {
            packed[g + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
            packed[g - 4] |= (uint8_t)(scale >> 4 << 6);
            packed[g] |= (uint8_t)(min >> 4 << 6);
        }
        const float dl = product(d, (float)scale), ml = product(dmin, (float)min);
        if (dl == 0.0f) continue;
        for (int i = 32 * g; i < 32 * g + 32; ++i) codes[i] = (uint8_t)nearest_code((x[i] + ml) / dl, 0, grid.top);
    }
}
[[maybe_unused]] static void quantize_row_q4_K(const float* x, uint8_t* dst, int64_t n) {
    constexpr Grid GRID = {15, -1.0f, 0.1f, 20, false};
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        BlockQ4_K y;
        uint8_t codes[QK_K];
        uint16_t d, dmin;
        quantize_with_min(GRID, x, codes, y.scales, &d, &dmin);
        y.d = d;
        y.dmin = dmin;
        for (int i = 0; i < 128; ++i) {
            const uint8_t* c = codes + i / 32 * 64 + i % 32;
            y.qs[i] = (uint8_t)(c[0] | c[32] << 4);
        }
        std::memcpy(dst + b * (int64_t)sizeof y, &y, sizeof y);
    }
}
[[maybe_unused]] static void quantize_row_q5_K(const float* x, uint8_t* dst, int64_t n) {
    constexpr Grid GRID = {31, -0.5f, 0.1f, 15, false};
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        BlockQ5_K y;
        uint8_t codes[QK_K];
        uint16_t d, dmin;
        quantize_with_min(GRID, x, codes, y.scales, &d, &dmin);
        y.d = d;
        y.dmin = dmin;
        std::memset(y.qh, 0, sizeof y.qh);
        for (int i = 0; i < 128; ++i) {
            const uint8_t* c = codes + i / 32 * 64 + i % 32;
            y.qs[i] = (uint8_t)((c[0] & 15) | (c[32] & 15) << 4);
        }
        for (int i = 0; i < QK_K; ++i) y.qh[i % 32] |= (uint8_t)(codes[i] >> 4 << i / 32);
        std::memcpy(dst + b * (int64_t)sizeof y, &y, sizeof y);
    }
}

// ---- IQ4_XS ----

static inline Fit fit_iq4(const float* x, float inverse_scale) {
    static constexpr float VALUES[16] = {GGR_IQ4_VALUES};
    Fit f = {0.0f, 0.0f};
    for (int i = 0; i < QK; i += VL) {
        const vi codes = nearest_iq4(vload(x + i) * inverse_scale);
        for (int k = 0; k < VL; ++k) {
            const float v = VALUES[codes[k]], w = product(x[i + k], x[i + k]);
            f.xl += product(w, v, x[i + k]);
            f.ll += product(w, v, v);
        }
    }
    return f;
}

[[maybe_unused]] static void quantize_row_iq4_xs(const float* x, uint8_t* dst, int64_t n) {
    static constexpr float FIRST = -127.0f;  // value of code 0
    BlockIQ4_XS* y = reinterpret_cast<BlockIQ4_XS*>(dst);
    for (int64_t b = 0; b < n / QK_K; ++b, x += QK_K) {
        float scales[8];
        for (int g = 0; g < 8; ++g) {
            const float* xg = x + QK * g;
            const float extreme = extreme_of_group(xg, QK);
            scales[g] = 0.0f;
            if (abs_of(extreme) < NO_SIGNAL) continue;
            Fit f = fit_iq4(xg, 1.0f / (-extreme / FIRST));
            float d = f.ll > 0.0f ? f.xl / f.ll : 0.0f, best = product(d, f.xl);
            for (int step = -7; step <= 7; ++step) {
                f = fit_iq4(xg, ((float)step + FIRST) / extreme);
                if (f.ll > 0.0f && product(f.xl, f.xl) > product(best, f.ll)) {
                    d = f.xl / f.ll;
                    best = product(d, f.xl);
                }
            }
            scales[g] = d;
        }
        const float d = -extreme_of_group(scales, 8) / 32.0f, inverse_d = inverse(d);
        std::memset(&y[b], 0, sizeof y[b]);
        y[b].d = f32_to_f16(d);
        uint32_t high = 0;
        for (int g = 0; g < 8; ++g) {
            const int l = nearest_code(product(inverse_d, scales[g]), -32, 31);
            const float scale = inverse(product(d, (float)l));
            vi q[VPB];
            for (int i = 0; i < VPB; ++i) q[i] = nearest_iq4(vload(x + QK * g + i * VL) * scale);
            uint8_t codes[QK];
            store_i8x32(reinterpret_cast<int8_t*>(codes), q);
            store_nibbles(y[b].qs + 16 * g, load_u8x16(codes), load_u8x16(codes + 16));
            y[b].scales_l[g / 2] |= (uint8_t)(((l + 32) & 15) << 4 * (g % 2));
            high |= (uint32_t)(l + 32) >> 4 << 2 * g;
        }
        y[b].scales_h = (uint16_t)high;
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
