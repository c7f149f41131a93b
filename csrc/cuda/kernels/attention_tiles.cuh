// What the kernels of fused attention on the tensor cores share: what a block of rows sees, K and V in shared memory,
// and the arithmetic.
#pragma once

#include "cuda/kernels/attention.cuh"

namespace ggr {
namespace cuda {

// What queries, K, weights and V are for the products. Halves: exact for F16; BF16 as it is, by products of that type;
// and F32 (or a mixture) as the sum of two numbers in bf16, three products each: 16 bits of a mantissa.
enum TileMode : int { TILE_HALF = 0, TILE_BRAIN = 1, TILE_SPLIT = 2 };

template <int MODE>
struct Mode {
    static constexpr int PLANES = MODE == TILE_SPLIT ? 2 : 1;
    static constexpr int32_t NATIVE = MODE == TILE_HALF ? ELEMENT_F16 : ELEMENT_BF16;
};

// Two numbers as words of the planes.
template <int MODE>
GGR_DEVICE void pack(uint32_t (&word)[Mode<MODE>::PLANES], float lo, float hi) {
    if constexpr (MODE == TILE_HALF) {
        word[0] = pack_halves(lo, hi);
    } else {
        word[0] = pack_brains(lo, hi);
        if constexpr (MODE == TILE_SPLIT)
            word[1] = pack_brains(lo - bits_to_float(word[0] << 16), hi - bits_to_float(word[0] & 0xffff0000u));
    }
}

// d += a b, all products of planes but that of the two small ones.
template <int MODE>
GGR_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[Mode<MODE>::PLANES][4],
                         const uint32_t (&b)[Mode<MODE>::PLANES][2]) {
    if constexpr (MODE == TILE_HALF) {
        mma_f16(d, a[0], b[0]);
    } else {
        if constexpr (MODE == TILE_SPLIT) {
            mma_bf16(d, a[1], b[0]);
            mma_bf16(d, a[0], b[1]);
        }
        mma_bf16(d, a[0], b[0]);
    }
}

// What the rows of a block see of a block of positions.
struct Sight {
    uint32_t live[2];
    bool plain;
};

// The rows of a block: queries and, where every head has a mask of its own, heads.
struct Span {
    int first_query, last_query, first_head, n_heads, batch;
};

// Positions from `key` on, `n` of them (32 or 64, at a multiple of that).
GGR_DEVICE Sight sight_of(const AttentionArgs& a, const Span& span, int key, int n) {
    Sight s;
    const int left = a.n_kv - key;
    s.live[0] = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    s.live[1] = n < 64 || left >= 64 ? 0xffffffffu : left <= 32 ? 0 : (1u << (left - 32)) - 1;
    s.plain = left >= n;
    if (a.mask.data == nullptr) return s;
    const int blocks = (a.n_queries + MASK_QUERIES - 1) / MASK_QUERIES, columns = (a.n_kv + MASK_KEYS - 1) / MASK_KEYS;
    const int ne2 = static_cast<int>(a.mask.ne[2]), matrices = ne2 == 1 ? 1 : span.n_heads;
    uint32_t live[2] = {0, 0};
    for (int h = 0; h < matrices; ++h) {
        const int64_t matrix = (span.first_head + h) % ne2 + span.batch % static_cast<int>(a.mask.ne[3]) * ne2;
        for (int b = span.first_query / MASK_QUERIES; b <= span.last_query / MASK_QUERIES; ++b) {
            const MaskTile& tile = a.tiles[(matrix * blocks + b) * columns + key / MASK_KEYS];
            live[0] |= tile.live[0];
            live[1] |= tile.live[1];
            s.plain = s.plain && tile.plain != 0;
        }
    }
    s.live[0] &= n < 64 && key % MASK_KEYS != 0 ? live[1] : live[0];
    s.live[1] &= n < 64 ? 0xffffffffu : live[1];
    return s;
}

// KEYS rows of K or V, zeros past d channels and past the last position; planes lie `plane` elements apart. Words of 16
// bytes by the threads in turn, so that neighbours read neighbours.
template <int D, int KEYS, int MODE>
GGR_DEVICE void load_rows(uint16_t* to, [[maybe_unused]] int plane, const uint8_t* from, int64_t nb, int32_t type,
                          bool aligned, int d, int key, int n_kv) {
    constexpr int CHUNKS = D / 8, PLANES = Mode<MODE>::PLANES;
    for (int i = thread_index(); i < KEYS * CHUNKS; i += n_threads()) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool valid = key + row < n_kv && chunk * 8 < d;
        const uint8_t* source = from + (valid ? key + row : 0) * nb;
        uint16_t* target = to + row * (D + 8) + chunk * 8;
        if (PLANES == 1 && type == Mode<MODE>::NATIVE && aligned) {
            copy16_async(target, source + (valid ? 16 * chunk : 0), valid);
            continue;
        }
        float x[8];
        GGR_UNROLL
        for (int j = 0; j < 8; ++j) x[j] = 0.0f;
        if (valid) load_chunk(x, type, aligned, source, chunk, d);
        Bytes16 w[PLANES];
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) {
            uint32_t word[PLANES];
            pack<MODE>(word, x[2 * j], x[2 * j + 1]);
            GGR_UNROLL
            for (int p = 0; p < PLANES; ++p) w[p].word[j] = word[p];
        }
        GGR_UNROLL
        for (int p = 0; p < PLANES; ++p) *reinterpret_cast<Bytes16*>(target + p * plane) = w[p];
    }
}

}  // namespace cuda
}  // namespace ggr
