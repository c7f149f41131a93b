// Blocks of 32 from f32, for the types that caches have: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q6_0; rows of Q8_KV. Bit
// for bit as the CPU device does it, so nothing here may be fused: a thread has a block, and sums run in the elements'
// order.
#pragma once

#include "cuda/kernels/plain.cuh"
#include "cuda/types/ik_small.cuh"

namespace ggr {
namespace cuda {

GGR_DEVICE void store_half(uint8_t* p, float v) { *reinterpret_cast<uint16_t*>(p) = float_to_half(v); }
GGR_DEVICE void store2(uint8_t* p, uint32_t v) { *reinterpret_cast<uint16_t*>(p) = static_cast<uint16_t>(v); }

// The first element of largest magnitude; NaN is skipped.
GGR_DEVICE float extreme_of_32(const float (&x)[32]) {
    float extreme = 0.0f;
    GGR_UNROLL
    for (int i = 0; i < 32; ++i) extreme = absolute(x[i]) > absolute(extreme) ? x[i] : extreme;
    return extreme;
}
GGR_DEVICE float inverse_or_zero(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }
// (x - low) * scale + half, cut to an integer in 0 .. limit; what exceeds int32 becomes 0.
GGR_DEVICE uint32_t code_of(float x, float low, float scale, float half, int limit) {
    const float v = product_rounded(x - low, scale) + half;
    if (!(v > 0.0f && v < 2147483648.0f)) return 0;
    const int c = static_cast<int>(v);
    return static_cast<uint32_t>(c < limit ? c : limit);
}

// Codes of four or five bits: nibbles at `qs`, fifth bits (if any) at `qh`.
GGR_DEVICE void store_codes(const float (&x)[32], float low, float scale, float half, int limit, uint8_t* qs,
                            uint8_t* qh) {
    uint32_t high = 0;
    GGR_UNROLL
    for (int i = 0; i < 16; i += 2) {
        uint32_t two = 0;
        GGR_UNROLL
        for (int j = 0; j < 2; ++j) {
            const uint32_t first = code_of(x[i + j], low, scale, half, limit);
            const uint32_t second = code_of(x[i + j + 16], low, scale, half, limit);
            two |= ((first & 15) | (second & 15) << 4) << 8 * j;
            high |= first >> 4 << (i + j) | second >> 4 << (i + j + 16);
        }
        store2(qs + i, two);
    }
    if (qh != nullptr) {
        store2(qh, high);
        store2(qh + 2, high >> 16);
    }
}
GGR_DEVICE void range_of_32(const float (&x)[32], float* least, float* most) {
    float lo = 3.402823466e38f, hi = -lo;
    GGR_UNROLL
    for (int i = 0; i < 32; ++i) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    *least = lo;
    *most = hi;
}

template <class T>
struct Quantiser;

template <>
struct Quantiser<Q8_0> {
    GGR_DEVICE void block(const float (&x)[32], uint8_t* to) {
        const float most = absolute(extreme_of_32(x));
        const float scale = most != 0.0f ? 127.0f / most : 0.0f;
        store_half(to, most / 127.0f);
        GGR_UNROLL
        for (int i = 0; i < 32; i += 2) {
            uint32_t two = 0;
            GGR_UNROLL
            for (int j = 0; j < 2; ++j) {
                const float v = round_even(x[i + j] * scale);
                const bool fits = v >= -128.0f && v < 2147483648.0f;  // else the least int32, and so -128
                const int code = !fits ? -128 : v > 127.0f ? 127 : static_cast<int>(v);
                two |= (static_cast<uint32_t>(code) & 255) << 8 * j;
            }
            store2(to + 2 + i, two);
        }
    }
};
template <>
struct Quantiser<Q4_0> {
    GGR_DEVICE void block(const float (&x)[32], uint8_t* to) {
        const float d = extreme_of_32(x) / -8.0f;
        store_half(to, d);
        store_codes(x, 0.0f, inverse_or_zero(d), 8.5f, 15, to + 2, nullptr);
    }
};
template <>
struct Quantiser<Q4_1> {
    GGR_DEVICE void block(const float (&x)[32], uint8_t* to) {
        float least, most;
        range_of_32(x, &least, &most);
        const float d = (most - least) / 15.0f;
        store_half(to, d);
        store_half(to + 2, least);
        store_codes(x, least, inverse_or_zero(d), 0.5f, 15, to + 4, nullptr);
    }
};
template <>
struct Quantiser<Q5_0> {
    GGR_DEVICE void block(const float (&x)[32], uint8_t* to) {
        const float d = extreme_of_32(x) / -16.0f;
        store_half(to, d);
        store_codes(x, 0.0f, inverse_or_zero(d), 16.5f, 31, to + 6, to + 2);
    }
};
template <>
struct Quantiser<Q5_1> {
    GGR_DEVICE void block(const float (&x)[32], uint8_t* to) {
        float least, most;
        range_of_32(x, &least, &most);
        const float d = (most - least) / 31.0f;
        store_half(to, d);
        store_half(to + 2, least);
        store_codes(x, least, inverse_or_zero(d), 0.5f, 31, to + 8, to + 4);
    }
};

// The value of a code of IQ4_NL.
GGR_DEVICE float iq4_value(uint32_t code) {
    return static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(iq4_values(code))));
}

// Codes by the block's extreme, then the scale that fits best with weights x^2.
template <>
struct Quantiser<IQ4_NL> {
    // The nearest value's code; of two equally near the upper. Midpoints are halves of integers below 128: exact.
    GGR_DEVICE uint32_t nearest(float x) {
        constexpr float MIDPOINTS[15] = {-115.5f, -93.5f, -74.0f, -57.0f, -42.0f, -28.5f, -16.0f, -4.5f,
                                         7.0f,    19.0f,  31.5f,  45.5f,  61.0f,  79.0f,  101.0f};
        uint32_t code = 0;
        GGR_UNROLL
        for (int i = 0; i < 15; ++i) code += x >= MIDPOINTS[i] ? 1 : 0;
        return code;
    }
    GGR_DEVICE void block(const float (&x)[32], uint8_t* to) {
        const float extreme = extreme_of_32(x);
        if (absolute(extreme) < 1e-15f) {
            for (int i = 0; i < 18; i += 2) store2(to + i, 0);
            return;
        }
        const float scale = 1.0f / (extreme / -127.0f);
        uint32_t codes[4] = {};  // nibbles in order
        float sum_qx = 0.0f, sum_qq = 0.0f;
        GGR_UNROLL
        for (int i = 0; i < 32; ++i) {
            const uint32_t code = nearest(x[i] * scale);
            codes[i / 8] |= code << 4 * (i % 8);
            const float value = iq4_value(code), weighted = product_rounded(product_rounded(x[i], x[i]), value);
            sum_qx += product_rounded(weighted, x[i]);
            sum_qq += product_rounded(weighted, value);
        }
        store_half(to, sum_qq > 0.0f ? sum_qx / sum_qq : 0.0f);
        GGR_UNROLL
        for (int i = 0; i < 16; i += 2) {
            uint32_t two = 0;
            GGR_UNROLL
            for (int j = i; j < i + 2; ++j)
                two |= ((codes[j / 8] >> 4 * (j % 8) & 15) | (codes[j / 8 + 2] >> 4 * (j % 8) & 15) << 4)
                       << 8 * (j - i);
            store2(to + 2 + i, two);
        }
    }
};

// Codes by the block's extreme, then the scale that fits best with weights of the scaled elements' squares; sums run in
// pairs of elements 16 apart.
template <>
struct Quantiser<Q6_0> {
    GGR_DEVICE void block(const float (&x)[32], uint8_t* to) {
        const float d = extreme_of_32(x) / -32.0f, scale = inverse_or_zero(d);
        uint32_t high[2] = {};
        float sum_qx = 0.0f, sum_qq = 0.0f;
        GGR_UNROLL
        for (int i = 0; i < 16; i += 2) {
            uint32_t two = 0;
            GGR_UNROLL
            for (int j = i; j < i + 2; ++j) {
                const float a = x[j] * scale, b = x[j + 16] * scale, weight_a = a * a, weight_b = b * b;
                const uint32_t first = code_of(x[j], 0.0f, scale, 32.5f, 63);
                const uint32_t second = code_of(x[j + 16], 0.0f, scale, 32.5f, 63);
                const float qa = static_cast<float>(first) - 32.0f, qb = static_cast<float>(second) - 32.0f;
                sum_qx += product_rounded(weight_a * x[j], qa) + product_rounded(weight_b * x[j + 16], qb);
                sum_qq += product_rounded(weight_a * qa, qa) + product_rounded(weight_b * qb, qb);
                two |= ((first & 15) | (second & 15) << 4) << 8 * (j - i);
                high[j % 8 / 4] |= (first >> 4 | second >> 4 << 2) << (8 * (j % 4) + 4 * (j / 8));
            }
            store2(to + 10 + i, two);
        }
        store_half(to, sum_qq > 0.0f ? sum_qx / sum_qq : d);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) store2(to + 2 + 2 * i, high[i / 2] >> 16 * (i % 2));
    }
};

// A row of n elements of f32, `nb` bytes apart, by a warp: its scale and the sum of its integers stand before them.
GGR_DEVICE void quantise_q8_kv(const uint8_t* from, int64_t nb, int64_t n, uint8_t* to) {
    float most = 0.0f;
    for (int64_t i = lane(); i < n; i += WARP) most = largest(most, absolute(element<F32>(from + i * nb)));
    const float d = warp_max(most) / 127.0f, scale = inverse_or_zero(d);
    int32_t sum = 0;
    for (int64_t i = 4 * lane(); i < n; i += 4 * WARP) {
        uint32_t word = 0;
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) {
            const float v = round_even(element<F32>(from + (i + j) * nb) * scale);
            const int code = v >= -128.0f ? v < 127.0f ? static_cast<int>(v) : 127 : -128;
            sum += code;
            word |= (static_cast<uint32_t>(code) & 255) << 8 * j;
        }
        *reinterpret_cast<uint32_t*>(to + Q8_KV::HEADER + i) = word;
    }
    sum = warp_sum(sum);
    if (lane() == 0) {
        *reinterpret_cast<float*>(to) = d;
        *reinterpret_cast<int32_t*>(to + 4) = sum;
    }
}

}  // namespace cuda
}  // namespace ggr
