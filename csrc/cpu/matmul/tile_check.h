// Whether the tile instructions do here what the kernels rely on, tried once before a level that has them is offered:
// the kernels' arithmetic is tested everywhere with software in place of the instructions, so this is what remains.
#pragma once

#include "cpu/matmul/tiles.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Pseudo-random numbers (Numerical Recipes' linear congruential generator).
struct Sequence {
    uint32_t state;
    uint32_t next() {
        state = state * 1664525u + 1013904223u;
        return state >> 8;
    }
};

// Room for a tile whose rows lie further apart than they are long.
struct SpacedTile {
    static constexpr int64_t STRIDE = 2 * TILE_ROW_BYTES;
    alignas(64) uint8_t bytes[TILE_ROWS * STRIDE];
    uint8_t* row(int m) { return bytes + m * STRIDE; }
    template <class T>
    T get(int m, int i) {
        T v;
        std::memcpy(&v, row(m) + i * (int)sizeof(T), sizeof v);
        return v;
    }
    template <class T>
    void set(int m, int i, T v) {
        std::memcpy(row(m) + i * (int)sizeof(T), &v, sizeof v);
    }
};

static inline float value_of_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Registers 0 and 7 += registers 1 by 2, twice, the first from what is there before, the second from zero. `k_bytes`:
// of a row of register 1.
template <class Dot>
static inline void multiply_twice(SpacedTile& a, SpacedTile& b, SpacedTile* c, int k_bytes, Dot dot) {
    TileShapes shapes = {};
    shapes.palette = 1;
    set_shape(&shapes, 0, TILE_ROWS, TILE_ROW_BYTES);
    set_shape(&shapes, 1, TILE_ROWS, k_bytes);
    set_shape(&shapes, 2, k_bytes / 4, TILE_ROW_BYTES);
    set_shape(&shapes, 7, TILE_ROWS, TILE_ROW_BYTES);
    tile_configure(shapes);
    tile_load<0>(c[0].bytes, SpacedTile::STRIDE);
    tile_zero<7>();
    tile_load<1>(a.bytes, SpacedTile::STRIDE);
    tile_load<2>(b.bytes, SpacedTile::STRIDE);
    dot();
    dot();
    tile_store<0>(c[0].bytes, SpacedTile::STRIDE);
    tile_store<7>(c[1].bytes, SpacedTile::STRIDE);
    tile_release();
}

static inline bool check_byte_tiles(int k_bytes, Sequence random) {
    SpacedTile a, b, c[2];
    int32_t before[TILE_ROWS][TILE_ROWS];
    for (int m = 0; m < TILE_ROWS; ++m)
        for (int i = 0; i < TILE_ROW_BYTES; ++i) {
            a.set(m, i, (int8_t)random.next());
            b.set(m, i, (int8_t)random.next());
        }
    for (int m = 0; m < TILE_ROWS; ++m)
        for (int n = 0; n < TILE_ROWS; ++n) c[0].set(m, n, before[m][n] = (int32_t)random.next());
    multiply_twice(a, b, c, k_bytes, [] {
        tile_dot_bytes<0, 1, 2>();
        tile_dot_bytes<7, 1, 2>();
    });
    for (int m = 0; m < TILE_ROWS; ++m)
        for (int n = 0; n < TILE_ROWS; ++n) {
            int32_t sum = 0;
            for (int k = 0; k < k_bytes; ++k) sum += a.get<int8_t>(m, k) * b.get<int8_t>(k / 4, 4 * n + k % 4);
            if (c[0].get<int32_t>(m, n) != before[m][n] + 2 * sum || c[1].get<int32_t>(m, n) != 2 * sum) return false;
        }
    return true;
}

static inline bool check_bf16_tiles(int k_bytes, Sequence random) {
    SpacedTile a, b, c[2];
    float before[TILE_ROWS][TILE_ROWS];
    // 1 <= |x| < 2
    const auto any = [&random] { return (uint16_t)(0x3f80u | (random.next() & 0x807fu)); };
    for (int m = 0; m < TILE_ROWS; ++m)
        for (int i = 0; i < TILE_ROW_BYTES / 2; ++i) {
            a.set(m, i, any());
            b.set(m, i, any());
        }
    for (int m = 0; m < TILE_ROWS; ++m)
        for (int n = 0; n < TILE_ROWS; ++n) c[0].set(m, n, before[m][n] = value_of_bf16(any()));
    multiply_twice(a, b, c, k_bytes, [] {
        tile_dot_bf16<0, 1, 2>();
        tile_dot_bf16<7, 1, 2>();
    });
    for (int m = 0; m < TILE_ROWS; ++m)
        for (int n = 0; n < TILE_ROWS; ++n) {
            float sum = 0;
            for (int k = 0; k < k_bytes / 2; ++k)
                sum += value_of_bf16(a.get<uint16_t>(m, k)) * value_of_bf16(b.get<uint16_t>(k / 2, 2 * n + k % 2));
            // 64 products below 4, in any order of additions: 256 * 64 * 2^-24 = 1e-3 at most. A NaN is not less.
            if (!(__builtin_fabsf(c[0].get<float>(m, n) - (before[m][n] + 2 * sum)) < 1e-3f)) return false;
            if (!(__builtin_fabsf(c[1].get<float>(m, n) - 2 * sum) < 1e-3f)) return false;
        }
    return true;
}

}  // namespace

bool check_tiles() {
    bool right = true;
    for (uint32_t seed = 1; seed <= 4; ++seed)
        for (int k_bytes = 4; k_bytes <= TILE_ROW_BYTES; k_bytes *= 2)
            right = right && check_byte_tiles(k_bytes, {seed}) && check_bf16_tiles(k_bytes, {seed});
    return right;
}

}  // namespace GGR_LEVEL
}  // namespace ggr
