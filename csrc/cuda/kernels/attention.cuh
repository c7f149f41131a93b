// What the kernels of fused attention share: elements of K and V of any type, rows, results.
#pragma once

#include "cuda/kernels/attention.h"
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/softmax.cuh"

namespace ggr {
namespace cuda {

// Numbers of spec/ids.h.
enum CacheType : int32_t {
    CACHE_Q4_0 = 2,
    CACHE_Q4_1 = 3,
    CACHE_Q5_0 = 6,
    CACHE_Q5_1 = 7,
    CACHE_Q8_0 = 8,
    CACHE_IQ4_NL = 20,
    CACHE_Q6_0 = 133,
    CACHE_Q8_KV = 151,
};

GGR_DEVICE void halves_of(float (&x)[8], const Bytes16& w) {
    GGR_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = half_to_float(static_cast<uint16_t>(w.word[i / 2] >> (i % 2 * 16)));
}

// Channels [8 * chunk, 8 * chunk + 8) of a row of quantised blocks of 32.
GGR_DEVICE void load_quantised(float (&x)[8], int32_t type, const uint8_t* row, int chunk) {
    const int sub = chunk % 4;
    const auto scale_at = [](const uint8_t* p) { return half_to_float(*reinterpret_cast<const uint16_t*>(p)); };
    if (type == CACHE_Q8_KV) {  // a scale for the row, at multiples of 4
        const float d = *reinterpret_cast<const float*>(row);
        const uint32_t* codes = reinterpret_cast<const uint32_t*>(row + 8 + 8 * static_cast<int64_t>(chunk));
        GGR_UNROLL
        for (int i = 0; i < 8; ++i) x[i] = d * static_cast<float>(static_cast<int8_t>(codes[i / 4] >> 8 * (i % 4)));
        return;
    }
    if (type == CACHE_Q6_0) {
        const uint8_t* block = row + static_cast<int64_t>(chunk / 4) * 26;
        const float d = scale_at(block);
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const uint32_t low = load4_from2(block + 10 + 8 * (sub % 2) + 4 * i) >> 4 * (sub / 2) & 0x0f0f0f0fu;
            const uint32_t high = load4_from2(block + 2 + 4 * i) >> (4 * (sub % 2) + 2 * (sub / 2)) & 0x03030303u;
            GGR_UNROLL
            for (int j = 0; j < 4; ++j)
                x[4 * i + j] = d * static_cast<float>(static_cast<int>((low | high << 4) >> 8 * j & 63) - 32);
        }
        return;
    }
    if (type == CACHE_Q8_0) {
        const uint8_t* block = row + static_cast<int64_t>(chunk / 4) * 34;
        const float d = scale_at(block);
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const uint32_t word = load4_from2(block + 2 + 8 * sub + 4 * i);
            GGR_UNROLL
            for (int j = 0; j < 4; ++j) x[4 * i + j] = d * static_cast<float>(static_cast<int8_t>(word >> (8 * j)));
        }
        return;
    }
    const bool with_minimum = type == CACHE_Q4_1 || type == CACHE_Q5_1, five = type == CACHE_Q5_0 || type == CACHE_Q5_1;
    const int head = with_minimum ? 4 : 2, bytes = head + (five ? 4 : 0) + 16;
    const uint8_t* block = row + static_cast<int64_t>(chunk / 4) * bytes;
    const float d = scale_at(block);
    const float m = with_minimum ? scale_at(block + 2) : type == CACHE_Q4_0 ? -8.0f * d : five ? -16.0f * d : 0.0f;
    const uint32_t high = five ? load4_from2(block + head) >> (8 * sub) : 0;
    const uint8_t* codes = block + bytes - 16 + 8 * (sub % 2);
    constexpr uint32_t IQ4_NL[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
    GGR_UNROLL
    for (int i = 0; i < 2; ++i) {
        const uint32_t word = (load4_from2(codes + 4 * i) >> (sub / 2 * 4)) & 0x0f0f0f0fu;
        const uint32_t values = type == CACHE_IQ4_NL ? lookup4(IQ4_NL, word) : word;
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) {
            const int code = type == CACHE_IQ4_NL
                                 ? static_cast<int8_t>(values >> (8 * j))
                                 : static_cast<int>((values >> (8 * j) & 15u) | (high >> (4 * i + j) & 1u) << 4);
            x[4 * i + j] = d * static_cast<float>(code) + m;
        }
    }
}

// The same of a row of any type with d channels; zeros past its end.
GGR_DEVICE void load_chunk(float (&x)[8], int32_t type, bool aligned, const uint8_t* row, int chunk, int d) {
    if (chunk * 8 + 8 > d) {  // blocks are whole, so these are single elements
        for (int i = 0; i < 8; ++i) {
            const int at = chunk * 8 + i;
            x[i] = at < d ? load_element(row + at * (type == ELEMENT_F32 ? 4 : 2), type) : 0.0f;
        }
    } else if (type == ELEMENT_F32) {
        GGR_UNROLL
        for (int i = 0; i < 8; ++i) x[i] = reinterpret_cast<const float*>(row)[8 * chunk + i];
    } else if (type == ELEMENT_F16 || type == ELEMENT_BF16) {
        Bytes16 w;
        if (aligned) {
            w = load16(row + 16 * static_cast<int64_t>(chunk));
        } else {
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) w.word[i] = load4_from2(row + 16 * static_cast<int64_t>(chunk) + 4 * i);
        }
        if (type == ELEMENT_F16) {
            halves_of(x, w);
        } else {
            GGR_UNROLL
            for (int i = 0; i < 8; ++i) x[i] = bf16_to_float(static_cast<uint16_t>(w.word[i / 2] >> (i % 2 * 16)));
        }
    } else {
        load_quantised(x, type, row, chunk);
    }
}

GGR_DEVICE const uint8_t* k_head(const AttentionArgs& a, int first_head, int batch) {
    return a.k.data + static_cast<int64_t>(first_head / a.heads_a_k) * a.k.nb[2] + batch * a.k.nb[3];
}
GGR_DEVICE const uint8_t* v_head(const AttentionArgs& a, int first_head, int batch) {
    return a.v.data + static_cast<int64_t>(first_head / a.heads_a_v) * a.v.nb[2] + batch * a.v.nb[3];
}
GGR_DEVICE const uint16_t* mask_row(const AttentionArgs& a, int query, int head, int batch) {
    return reinterpret_cast<const uint16_t*>(a.mask.data + query * a.mask.nb[1] + head % a.mask.ne[2] * a.mask.nb[2] +
                                             batch % a.mask.ne[3] * a.mask.nb[3]);
}
GGR_DEVICE float* result_row(const AttentionArgs& a, int query, int head, int batch) {
    return reinterpret_cast<float*>(a.dst.data + head * a.dst.nb[1] + query * a.dst.nb[2] + batch * a.dst.nb[3]);
}
GGR_DEVICE float* partial_row(const AttentionArgs& a, int query, int head, int batch, int split) {
    const int64_t row = (static_cast<int64_t>(batch) * a.n_heads + head) * a.n_queries + query;
    return a.partials + (row * a.n_splits + split) * (a.dv + 2);
}

// e^(x - base) where x may be -inf: a maximum of nothing.
GGR_DEVICE float weight_of(float x, float base) { return x == -infinity() ? 0.0f : exponential(x - base); }

// Final factor of a row with maximum m and sum l: the sink joins the sum; a row without live positions is zero.
GGR_DEVICE float final_factor(const AttentionArgs& a, int head, float m, float l) {
    if (l == 0.0f) return 0.0f;
    if (a.sinks == nullptr) return 1.0f / l;
    const float sink = a.sinks[head], top = largest(sink, m), shrink = exponential(m - top);
    return shrink / (l * shrink + exponential(sink - top));
}

}  // namespace cuda
}  // namespace ggr
