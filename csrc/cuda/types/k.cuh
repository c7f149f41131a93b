// Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS: super-blocks of 256.
#pragma once

#include "cuda/types/small.cuh"

namespace ggr {
namespace cuda {

// Pieces of Q2_K and Q3_K: unit `half * 2 + side` has 16 bytes, part i of it their bits 2 i.
template <int BYTES_, int ALIGN_, bool MINIMA_>
struct ShiftedBlock : Alone {
    static constexpr int ELEMENTS = 256, BYTES = BYTES_, ALIGN = ALIGN_, UNITS = 4, PARTS = 4;
    static constexpr bool JOINED = false, MINIMA = MINIMA_;
    GGR_DEVICE int piece(int unit, int part) { return 8 * (unit / 2) + 2 * part + unit % 2; }
    GGR_DEVICE int unit_of(int piece) { return piece / 8 * 2 + piece % 2; }
    GGR_DEVICE int part_of(int piece) { return piece / 2 % 4; }
};

struct Q2_K : ShiftedBlock<84, 4, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4];
        words_at4(block + 16 + 16 * unit, q);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = q[i] >> 2 * part & 0x03030303u;
        const uint32_t scales = block[8 * (unit / 2) + 2 * part + unit % 2];  // minimum in the high nibble
        p.scale = half_at(block + 80) * static_cast<float>(scales & 15);
        p.min = -half_at(block + 82) * static_cast<float>(scales >> 4);
        return p;
    }
    // The scale of the 16 is in the codes (0 .. 45), that of the block in `scale`.
    GGR_DEVICE Piece load_scaled(const uint8_t* block, int unit, int part) {
        Piece p = load(block, unit, part);
        const uint32_t scale = block[8 * (unit / 2) + 2 * part + unit % 2] & 15;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] *= scale;
        p.scale = half_at(block + 80);
        return p;
    }
};

struct Q3_K : ShiftedBlock<110, 2, false> {
    // Codes raised by 4.
    GGR_DEVICE void raised(const uint8_t* block, int unit, int part, uint32_t (&codes)[4]) {
        uint32_t q[4], high[4];
        words_at(block + 32 + 16 * unit, q);
        words_at(block + 16 * (unit % 2), high);  // third bit, clear for minus 4: bit 4 * half + part
        const int bit = 4 * (unit / 2) + part;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) codes[i] = (q[i] >> 2 * part & 0x03030303u) | (high[i] >> bit & 0x01010101u) << 2;
    }
    // 16 scales of 6 bits, raised by 32: low nibbles of bytes 0 .. 7, then their high ones; upper bits of scale i at
    // 2 (i / 4) of byte 8 + i % 4.
    GGR_DEVICE int scale_of(const uint8_t* block, int unit, int part) {
        const int i = 8 * (unit / 2) + 2 * part + unit % 2;
        const uint8_t* s = block + 96;
        return ((s[i % 8] >> 4 * (i / 8) & 15) | (s[8 + i % 4] >> 2 * (i / 4) & 3) << 4) - 32;
    }
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        raised(block, unit, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = minus4(p.codes[i], 4);
        p.scale = half_at(block + 108) * static_cast<float>(scale_of(block, unit, part));
        p.min = -0.0f;
        return p;
    }
    // The scale of the 16 is in the codes, with the opposite sign: -(-4 .. 3) * (-32 .. 31) is in -128 .. 124.
    GGR_DEVICE Piece load_scaled(const uint8_t* block, int unit, int part) {
        Piece p;
        raised(block, unit, part, p.codes);
        const int scale = scale_of(block, unit, part);
        const uint32_t size = static_cast<uint32_t>(scale < 0 ? -scale : scale), zero = 4 * size * 0x01010101u;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint32_t scaled = p.codes[i] * size;  // 0 .. 224 a byte
            p.codes[i] = scale < 0 ? subtract4(scaled, zero) : subtract4(zero, scaled);
        }
        p.scale = -half_at(block + 108);
        p.min = -0.0f;
        return p;
    }
};

// Pieces of Q4_K and Q5_K: unit j has 32 bytes, their low nibbles group 2 j, the high ones group 2 j + 1.
template <int BYTES_>
struct PairedBlock : Alone {
    static constexpr int ELEMENTS = 256, BYTES = BYTES_, ALIGN = 16, UNITS = 4, PARTS = 4;
    static constexpr bool JOINED = true, MINIMA = true;
    GGR_DEVICE int piece(int unit, int part) { return 4 * unit + part; }
    GGR_DEVICE int unit_of(int piece) { return piece / 4; }
    GGR_DEVICE int part_of(int piece) { return piece % 4; }

    // Scales and minima of 6 bits: bytes 0 .. 3 scales 0 .. 3, bytes 4 .. 7 minima 0 .. 3; nibbles of bytes 8 .. 11 the
    // low bits of those of groups 4 .. 7, whose high two lie on top of bytes 0 .. 7. One load of 16 bytes has d and
    // dmin too.
    GGR_DEVICE void scales(const uint8_t* block, int group, Piece& p) {
        uint32_t head[4];
        words_at16(block, head);
        const int shift = 8 * (group % 4);
        const uint32_t a = head[1] >> shift, b = head[2] >> shift, c = head[3] >> shift;
        const uint32_t scale = group < 4 ? a & 63 : (c & 15) | (a >> 2 & 0x30);
        const uint32_t min = group < 4 ? b & 63 : (c >> 4 & 15) | (b >> 2 & 0x30);
        p.scale = half_to_float(static_cast<uint16_t>(head[0])) * static_cast<float>(scale);
        p.min = -half_to_float(static_cast<uint16_t>(head[0] >> 16)) * static_cast<float>(min);
    }
};

struct Q4_K : PairedBlock<144> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4];
        words_at16(block + 16 + 32 * unit + 16 * (part % 2), q);
        nibbles(q, part / 2, p.codes);
        scales(block, 2 * unit + part / 2, p);
        return p;
    }
};

struct Q5_K : PairedBlock<176> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4], high[4];
        words_at16(block + 48 + 32 * unit + 16 * (part % 2), q);
        words_at16(block + 16 + 16 * (part % 2), high);
        nibbles(q, part / 2, p.codes);
        const int bit = 2 * unit + part / 2;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] |= (high[i] >> bit & 0x01010101u) << 4;
        scales(block, bit, p);
        return p;
    }
};

// Unit `half * 2 + side`: part k is quarter k of a half of 128, bytes 32 (k % 2) of the low bits, nibble k / 2, and
// bits 2 k of the high ones.
struct Q6_K : Alone {
    static constexpr int ELEMENTS = 256, BYTES = 210, ALIGN = 2, UNITS = 4, PARTS = 4;
    static constexpr bool JOINED = false, MINIMA = false;
    GGR_DEVICE int piece(int unit, int part) { return 8 * (unit / 2) + 2 * part + unit % 2; }
    GGR_DEVICE int unit_of(int piece) { return piece / 8 * 2 + piece % 2; }
    GGR_DEVICE int part_of(int piece) { return piece / 2 % 4; }
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t low[4], high[4];
        words_at(block + 64 * (unit / 2) + 32 * (part % 2) + 16 * (unit % 2), low);
        words_at(block + 128 + 16 * unit, high);
        nibbles(low, part / 2, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = minus4(p.codes[i] | (high[i] >> 2 * part & 0x03030303u) << 4, 32);
        const int scale = static_cast<int8_t>(block[192 + piece(unit, part)]);
        p.scale = half_at(block + 208) * static_cast<float>(scale);
        p.min = -0.0f;
        return p;
    }
};

struct IQ4_XS : OrderedBlock<256, 136, 8, 2, true> {
    GGR_DEVICE Piece load(const uint8_t* block, int unit, int part) {
        Piece p;
        uint32_t q[4], head[2];  // d and the scales' upper bits, their nibbles
        words_at4(block, head);
        words_at4(block + 8 + 16 * unit, q);
        nibbles(q, part, p.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) p.codes[i] = iq4_values(p.codes[i]);
        const uint32_t scale = (head[1] >> 4 * unit & 15) | (head[0] >> (16 + 2 * unit) & 3) << 4;
        p.scale = half_to_float(static_cast<uint16_t>(head[0])) * static_cast<float>(static_cast<int>(scale) - 32);
        p.min = -0.0f;
        return p;
    }
};

}  // namespace cuda
}  // namespace ggr
