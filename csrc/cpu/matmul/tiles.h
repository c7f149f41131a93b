// The AMX instructions that products use, palette 1: eight registers of 16 rows of 64 bytes. By inline assembly, which
// takes the register as a constant and no more than an assembler that knows the names; with GGR_EMULATED in software,
// which does what Intel's manual says and traps where a processor would.
#pragma once

#include <cstdint>
#include <cstring>

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int TILE_ROWS = 16, TILE_ROW_BYTES = 64, TILE_REGISTERS = 8;

// What LDTILECFG reads.
struct TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64, "as the processor wants it");

static inline void set_shape(TileShapes* s, int tile, int rows, int row_bytes) {
    s->rows[tile] = (uint8_t)rows;
    s->row_bytes[tile] = (uint16_t)row_bytes;
}

#if !defined(GGR_EMULATED)

static inline void tile_configure(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
static inline void tile_release() { asm volatile("tilerelease"); }
template <int T>
static inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
// Rows `stride` bytes apart.
template <int T>
static inline void tile_load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
static inline void tile_store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
// C[m][n] += sum over i < 4, k of A[m][4 k + i] * B[k][4 n + i], signed bytes to int32.
template <int C, int A, int B>
static inline void tile_dot_bytes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// The same of pairs of bf16 to f32.
template <int C, int A, int B>
static inline void tile_dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#else

struct TileState {
    TileShapes shapes;  // palette 0: not configured
    uint8_t data[TILE_REGISTERS][TILE_ROWS][TILE_ROW_BYTES];
};
static thread_local TileState tiles;

static inline void legal(bool condition) {
    if (!condition) __builtin_trap();
}
static inline bool in_use(int t) {
    return tiles.shapes.palette == 1 && tiles.shapes.rows[t] != 0 && tiles.shapes.row_bytes[t] != 0;
}

static inline void tile_configure(const TileShapes& shapes) {
    legal(shapes.palette == 1 && shapes.start_row == 0);
    for (int i = 0; i < 14; ++i) legal(shapes.reserved[i] == 0);
    for (int t = 0; t < 16; ++t) {
        legal((shapes.rows[t] == 0) == (shapes.row_bytes[t] == 0));
        legal(shapes.rows[t] <= TILE_ROWS && shapes.row_bytes[t] <= TILE_ROW_BYTES);
        legal(t < TILE_REGISTERS || shapes.rows[t] == 0);
    }
    std::memset(&tiles, 0, sizeof tiles);
    tiles.shapes = shapes;
}
static inline void tile_release() { std::memset(&tiles, 0, sizeof tiles); }
template <int T>
static inline void tile_zero() {
    legal(tiles.shapes.palette == 1);
    std::memset(tiles.data[T], 0, sizeof tiles.data[T]);
}
template <int T>
static inline void tile_load(const void* p, int64_t stride) {
    legal(in_use(T));
    std::memset(tiles.data[T], 0, sizeof tiles.data[T]);
    for (int m = 0; m < tiles.shapes.rows[T]; ++m)
        std::memcpy(tiles.data[T][m], static_cast<const uint8_t*>(p) + m * stride, tiles.shapes.row_bytes[T]);
}
template <int T>
static inline void tile_store(void* p, int64_t stride) {
    legal(in_use(T));
    for (int m = 0; m < tiles.shapes.rows[T]; ++m)
        std::memcpy(static_cast<uint8_t*>(p) + m * stride, tiles.data[T][m], tiles.shapes.row_bytes[T]);
}

// What all products demand: C is [M][4 N bytes], A [M][4 K bytes], B [K][4 N bytes].
template <int C, int A, int B>
static inline void legal_shapes() {
    static_assert(C != A && C != B && A != B, "three different registers");
    const TileShapes& s = tiles.shapes;
    legal(in_use(C) && in_use(A) && in_use(B));
    legal(s.row_bytes[C] % 4 == 0 && s.row_bytes[A] % 4 == 0 && s.row_bytes[B] % 4 == 0);
    legal(s.rows[C] == s.rows[A] && s.row_bytes[C] == s.row_bytes[B] && s.row_bytes[A] / 4 == s.rows[B]);
}
template <int C, int A, int B>
static inline void tile_dot_bytes() {
    legal_shapes<C, A, B>();
    for (int m = 0; m < tiles.shapes.rows[C]; ++m) {
        int32_t sum[TILE_ROW_BYTES / 4];
        std::memcpy(sum, tiles.data[C][m], sizeof sum);
        for (int k = 0; k < tiles.shapes.rows[B]; ++k)
            for (int n = 0; n < TILE_ROW_BYTES / 4; ++n)  // beyond the shape are zeros
                for (int i = 0; i < 4; ++i)
                    sum[n] += (int8_t)tiles.data[A][m][4 * k + i] * (int8_t)tiles.data[B][k][4 * n + i];
        std::memcpy(tiles.data[C][m], sum, sizeof sum);
    }
}

// Denormals are taken and given as zeros.
static inline float flushed(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
    std::memcpy(&x, &bits, 4);
    return x;
}
static inline float tile_bf16(const uint8_t* p) {
    uint16_t half;
    std::memcpy(&half, p, 2);
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
}
// Elements of even and of odd k are summed apart, each product and addition rounded once.
template <int C, int A, int B>
static inline void tile_dot_bf16() {
    legal_shapes<C, A, B>();
    for (int m = 0; m < tiles.shapes.rows[C]; ++m) {
        float sum[TILE_ROW_BYTES / 4], even[TILE_ROW_BYTES / 4] = {}, odd[TILE_ROW_BYTES / 4] = {};
        std::memcpy(sum, tiles.data[C][m], sizeof sum);
        for (int k = 0; k < tiles.shapes.rows[B]; ++k) {
            const float a0 = tile_bf16(tiles.data[A][m] + 4 * k), a1 = tile_bf16(tiles.data[A][m] + 4 * k + 2);
            for (int n = 0; n < TILE_ROW_BYTES / 4; ++n) {
                even[n] = flushed(__builtin_fmaf(a0, tile_bf16(tiles.data[B][k] + 4 * n), even[n]));
                odd[n] = flushed(__builtin_fmaf(a1, tile_bf16(tiles.data[B][k] + 4 * n + 2), odd[n]));
            }
        }
        for (int n = 0; n < tiles.shapes.row_bytes[C] / 4; ++n)
            sum[n] = flushed(flushed(sum[n]) + flushed(even[n] + odd[n]));
        std::memcpy(tiles.data[C][m], sum, sizeof sum);
    }
}

#endif

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
