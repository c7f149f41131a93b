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
//   load(block, unit, part); of interleaved rows load(blocks of the group, member, unit, part)
//   HEADER, GROUP     bytes of a header at the start of a row: a factor of all its values, f16 or (4 bytes and more)
//   f32;
//                     rows that are interleaved, their headers before their blocks
//   PRODUCT           what products multiply the values with
//   ROUNDED           codes are rounded: `values` gives the elements' values
// Parts of one unit share their loads: after unrolling the compiler sees the same addresses. Kernels go by row_of and
// piece_of.
//
// Without a header the scale is exact in f32 (11 bits of d, at most 8 of the block's), so a value is rounded once at
// most, as on the CPU; with one the scale is rounded too. Types without minima have -0 as min: x + -0 is x, also if x
// is -0.
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

// What types whose rows are blocks and nothing else need not say.
struct Alone {
    static constexpr int HEADER = 0, GROUP = 1;
    static constexpr float PRODUCT = 1.0f;
    static constexpr bool ROUNDED = false;
};

// What types of blocks of 32 in two halves share.
template <int BYTES_, int ALIGN_, bool MINIMA_>
struct HalvedBlock : Alone {
    static constexpr int ELEMENTS = 32, BYTES = BYTES_, ALIGN = ALIGN_, UNITS = 1, PARTS = 2;
    static constexpr bool JOINED = true, MINIMA = MINIMA_;
    GGR_DEVICE int piece(int, int part) { return part; }
    GGR_DEVICE int unit_of(int) { return 0; }
    GGR_DEVICE int part_of(int piece) { return piece; }
};
// Blocks whose pieces are stored one after the other, PARTS a unit.
template <int ELEMENTS_, int BYTES_, int ALIGN_, int PARTS_, bool JOINED_, bool MINIMA_ = false>
struct OrderedBlock : Alone {
    static constexpr int ELEMENTS = ELEMENTS_, BYTES = BYTES_, ALIGN = ALIGN_;
    static constexpr int PARTS = PARTS_, UNITS = ELEMENTS_ / 16 / PARTS_;
    static constexpr bool JOINED = JOINED_, MINIMA = MINIMA_;
    GGR_DEVICE int piece(int unit, int part) { return unit * PARTS + part; }
    GGR_DEVICE int unit_of(int piece) { return piece / PARTS; }
    GGR_DEVICE int part_of(int piece) { return piece % PARTS; }
};

// A row on its way through a kernel.
struct Row {
    const uint8_t* blocks;  // of its group where rows are interleaved
    int member;             // its number there
    float scale;            // of all its values, from its header
};

// Row `index` of a matrix whose rows lie `stride` bytes apart; it would lie at `at` if it were not interleaved.
template <class T>
GGR_DEVICE Row row_of(const uint8_t* at, int index = 0, int64_t stride = 0) {
    Row row;
    row.member = T::GROUP == 1 ? 0 : index % T::GROUP;
    const uint8_t* start = at - row.member * stride;
    const uint8_t* header = start + row.member * T::HEADER;
    row.scale = 1.0f;
    if constexpr (T::HEADER == 2)
        row.scale = half_to_float(static_cast<uint16_t>(header[0] | header[1] << 8));
    else if constexpr (T::HEADER != 0)
        row.scale = *reinterpret_cast<const float*>(header);
    row.blocks = start + T::GROUP * T::HEADER;
    return row;
}
// The same for a product.
template <class T>
GGR_DEVICE Row product_row(const uint8_t* at, int index, int64_t stride) {
    Row row = row_of<T>(at, index, stride);
    if constexpr (T::PRODUCT != 1.0f) row.scale *= T::PRODUCT;
    return row;
}
template <class T>
GGR_DEVICE Piece piece_of(const Row& row, int64_t block, int unit, int part) {
    const uint8_t* at = row.blocks + block * (T::GROUP * T::BYTES);
    Piece p;
    if constexpr (T::GROUP == 1)
        p = T::load(at, unit, part);
    else
        p = T::load(at, row.member, unit, part);
    if constexpr (T::HEADER != 0) p.scale *= row.scale;
    return p;
}
// Piece `piece` of a row as f32.
template <class T>
GGR_DEVICE void values_of(const Row& row, int64_t piece, float (&v)[16]) {
    const int64_t block = piece / (T::ELEMENTS / 16);
    const int i = static_cast<int>(piece - block * (T::ELEMENTS / 16));
    if constexpr (T::ROUNDED)
        T::values(row.blocks + block * T::BYTES, T::unit_of(i), T::part_of(i), v);
    else
        piece_values(piece_of<T>(row, block, T::unit_of(i), T::part_of(i)), v);
}

}  // namespace cuda
}  // namespace ggr
