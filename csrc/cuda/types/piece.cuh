// How kernels see quantised weights: pieces of 16 elements, each code * scale + min with codes of one signed byte.
//
// A type is a struct without members:
//   ELEMENTS, BYTES   of a block; ALIGN: what the addresses of its rows must be multiples of
//   UNITS, PARTS      a block is UNITS units of PARTS pieces; a unit is what one lane of a vector product takes, chosen
//   so
//                     that it reads no byte twice
//   JOINED            parts 2 i and 2 i + 1 are a group of 32 with one scale and one minimum
//   MINIMA            min may differ from 0
//   piece(unit, part), unit_of(piece), part_of(piece): which 16 elements of the block those are, and back
//   load(block, unit, part)
// Parts of one unit share their loads: after unrolling the compiler sees the same addresses.
//
// scale * code is exact in f32 for all types (11 bits of d, at most 6 of the scale, at most 8 of the code), so a value
// is rounded once at most, as on the CPU. Types without minima have -0 as min: x + -0 is x, also if x is -0.
#pragma once

#include "cuda/kernels/base.cuh"

namespace ggr {
namespace cuda {

struct Piece {
    uint32_t codes[4];  // 16 bytes, the first element's lowest
    float scale, min;
};

GGR_DEVICE float half_at(const uint8_t* p) { return half_to_float(*reinterpret_cast<const uint16_t*>(p)); }

// Words at any address, by aligned loads: one load more than words, where single bytes would be four times as many.
// Reads up to 3 bytes before (of the first word) and 4 after.
template <int N>
GGR_DEVICE void words_at(const uint8_t* p, uint32_t (&w)[N]) {
    const uint64_t address = reinterpret_cast<uint64_t>(p);
    const uint32_t* from = reinterpret_cast<const uint32_t*>(address & ~uint64_t{3});
    const int shift = static_cast<int>(address & 3) * 8;
    uint32_t raw[N + 1];
    GGR_UNROLL
    for (int i = 0; i <= N; ++i) raw[i] = from[i];
    GGR_UNROLL
    for (int i = 0; i < N; ++i)
        w[i] = static_cast<uint32_t>((static_cast<uint64_t>(raw[i + 1]) << 32 | raw[i]) >> shift);
}
GGR_DEVICE uint32_t word_at(const uint8_t* p) {
    uint32_t w[1];
    words_at(p, w);
    return w[0];
}
// Words at multiples of 4.
template <int N>
GGR_DEVICE void words_at4(const uint8_t* p, uint32_t (&w)[N]) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(p);
    GGR_UNROLL
    for (int i = 0; i < N; ++i) w[i] = from[i];
}
GGR_DEVICE void words_at16(const uint8_t* p, uint32_t (&w)[4]) {
    const Bytes16 v = load16(p);
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = v.word[i];
}

// Four bits to the lowest bits of four bytes.
GGR_DEVICE uint32_t spread4(uint32_t bits) {
    return (bits & 1) | (bits << 7 & 0x100) | (bits << 14 & 0x10000) | (bits << 21 & 0x1000000);
}
// Four codes of 0 .. 127 with the same power of two subtracted from each.
GGR_DEVICE uint32_t minus4(uint32_t codes, uint32_t zero) { return subtract4(codes, zero * 0x01010101u); }

// Element i of four signed bytes as f32, exact: 2^23 + 128 + v has v + 128 in its lowest bits.
GGR_DEVICE float code_value(uint32_t biased, int i) {
    return bits_to_float((biased >> 8 * i & 255) | 0x4b000000u) - 8388736.0f;
}
GGR_DEVICE void piece_values(const Piece& piece, float (&v)[16]) {
    GGR_UNROLL
    for (int w = 0; w < 4; ++w) {
        const uint32_t biased = piece.codes[w] ^ 0x80808080u;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) v[4 * w + i] = fused_add(code_value(biased, i), piece.scale, piece.min);
    }
}

// What types of blocks of 32 in two halves share.
template <int BYTES_, int ALIGN_, bool MINIMA_>
struct HalvedBlock {
    static constexpr int ELEMENTS = 32, BYTES = BYTES_, ALIGN = ALIGN_, UNITS = 1, PARTS = 2;
    static constexpr bool JOINED = true, MINIMA = MINIMA_;
    GGR_DEVICE int piece(int, int part) { return part; }
    GGR_DEVICE int unit_of(int) { return 0; }
    GGR_DEVICE int part_of(int piece) { return piece; }
};
// Blocks whose pieces are stored one after the other, PARTS a unit.
template <int ELEMENTS_, int BYTES_, int ALIGN_, int PARTS_, bool JOINED_, bool MINIMA_ = false>
struct OrderedBlock {
    static constexpr int ELEMENTS = ELEMENTS_, BYTES = BYTES_, ALIGN = ALIGN_;
    static constexpr int PARTS = PARTS_, UNITS = ELEMENTS_ / 16 / PARTS_;
    static constexpr bool JOINED = JOINED_, MINIMA = MINIMA_;
    GGR_DEVICE int piece(int unit, int part) { return unit * PARTS + part; }
    GGR_DEVICE int unit_of(int piece) { return piece / PARTS; }
    GGR_DEVICE int part_of(int piece) { return piece % PARTS; }
};

}  // namespace cuda
}  // namespace ggr
