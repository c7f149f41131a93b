// ik_llama.cpp's interleaved types: groups of 4, 8 or 16 rows in one run of memory, the headers of their rows first. In
// a block of a group a row has four consecutive elements, or the codes of as many, then the next row has: words of the
// pieces, so a piece is four loads of four bytes. Units are blocks of 32.
#pragma once

#include "cuda/types/ik_small.cuh"

namespace ggr {
namespace cuda {

template <int ELEMENTS_, int BYTES_, bool JOINED_, int GROUP_ = 4, int HEADER_ = 0, bool MINIMA_ = false>
struct GroupBlock : OrderedBlock<ELEMENTS_, BYTES_, 4, 2, JOINED_, MINIMA_> {
    static constexpr int GROUP = GROUP_, HEADER = HEADER_;
};

GGR_DEVICE uint32_t aligned_word(const uint8_t* p) { return *reinterpret_cast<const uint32_t*>(p); }
GGR_DEVICE float half_of_row(const uint8_t* p, int k) { return half_at(p + 2 * k); }

// ---- Codes ----

// Nibbles of row k among four, 64 bytes a block of 32: bytes 0 hold elements 0 and 8 on, bytes 16 elements 16 and 24,
// bytes 32 elements 4 and 12, bytes 48 elements 20 and 28.
GGR_DEVICE void nibbles_of_four(const uint8_t* qs, int k, int part, uint32_t (&codes)[4]) {
    const uint32_t a = aligned_word(qs + 4 * k + 16 * part), b = aligned_word(qs + 4 * k + 16 * part + 32);
    codes[0] = a & 0x0f0f0f0fu;
    codes[1] = b & 0x0f0f0f0fu;
    codes[2] = a >> 4 & 0x0f0f0f0fu;
    codes[3] = b >> 4 & 0x0f0f0f0fu;
}
// Codes of 2 bits, 32 bytes a block of 32.
GGR_DEVICE void pairs_of_four(const uint8_t* qs, int k, int part, uint32_t (&codes)[4]) {
    const uint32_t word = aligned_word(qs + 4 * k + 16 * part);
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = word >> 2 * i & 0x03030303u;
}
// Four words of row k among eight.
GGR_DEVICE void words_of_eight(const uint8_t* qs, int k, uint32_t (&words)[4]) {
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) words[i] = aligned_word(qs + 4 * k + 32 * i);
}
// Bit `first + i` of the bytes of `high` on top of codes of `bits` bits.
GGR_DEVICE void add_bits(uint32_t high, int first, int bits, uint32_t (&codes)[4]) {
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] |= (high >> (first + i) & 0x01010101u) << bits;
}
// The fifth bits of elements 0, 4, 8, 12 on where they are these bits of a byte.
GGR_DEVICE void add_fifth(uint32_t high, int b0, int b1, int b2, int b3, uint32_t (&codes)[4]) {
    codes[0] |= (high >> b0 & 0x01010101u) << 4;
    codes[1] |= (high >> b1 & 0x01010101u) << 4;
    codes[2] |= (high >> b2 & 0x01010101u) << 4;
    codes[3] |= (high >> b3 & 0x01010101u) << 4;
}
GGR_DEVICE void lower4(uint32_t zero, uint32_t (&codes)[4]) {
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = minus4(codes[i], zero);
}
GGR_DEVICE void to_ik4(bool moved, uint32_t (&codes)[4]) {
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = ik4_values(codes[i], moved);
}
GGR_DEVICE void to_ik5(bool moved, uint32_t (&codes)[4]) {
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = ik5_values(codes[i], moved);
}

// Six bits of scale `i` of a block: 4 in 32 bytes at `low`, counted through the low nibbles first, 2 in 16 at `high`.
GGR_DEVICE int six_bits_of(const uint8_t* low, const uint8_t* high, int i) {
    return (low[i % 32] >> i / 32 * 4 & 15) | (high[i % 16] >> i / 16 * 2 & 3) << 4;
}
GGR_DEVICE uint32_t four_bits_of(const uint8_t* low, int i) { return low[i % 32] >> i / 32 * 4 & 15; }

// ---- Groups of four, blocks of 32 ----

struct IQ4_NL_R4 : GroupBlock<32, 18, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        nibbles_of_four(p + 8, k, part, v.codes);
        to_ik4(false, v.codes);
        v.scale = half_of_row(p, k);
        v.min = -0.0f;
        return v;
    }
};
struct Q5_0_R4 : GroupBlock<32, 22, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        nibbles_of_four(p + 24, k, part, v.codes);
        add_fifth(aligned_word(p + 8 + 4 * k) >> part, 0, 2, 4, 6, v.codes);
        lower4(16, v.codes);
        v.scale = half_of_row(p, k);
        v.min = -0.0f;
        return v;
    }
};
struct Q6_0_R4 : GroupBlock<32, 26, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        nibbles_of_four(p + 40, k, part, v.codes);
        const uint32_t high = aligned_word(p + 8 + 16 * part + 4 * k);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) v.codes[i] |= (high >> 2 * i & 0x03030303u) << 4;
        lower4(32, v.codes);
        v.scale = half_of_row(p, k);
        v.min = -0.0f;
        return v;
    }
};
// 16 bytes a row hold 64 elements, 16 of them in each four bytes.
struct IQ2_BN_R4 : GroupBlock<64, 16, true, 4, 4> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        pairs_of_four(p + 32 * unit, k, part, v.codes);
        lower4(1, v.codes);
        v.scale = 1.0f;
        v.min = -0.0f;
        return v;
    }
};

// ---- Groups of four, super-blocks ----

struct Q2_K_R4 : GroupBlock<256, 84, false, 4, 0, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        pairs_of_four(p + 80 + 32 * unit, k, part, v.codes);
        const uint32_t both = p[16 + 8 * unit + k + 4 * part];
        v.scale = half_of_row(p, k) * static_cast<float>(both & 15);
        v.min = -half_of_row(p + 8, k) * static_cast<float>(both >> 4);
        return v;
    }
};
struct Q3_K_R4 : GroupBlock<256, 110, false> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        pairs_of_four(p + 184 + 32 * unit, k, part, v.codes);
        add_bits(aligned_word(p + 56 + 16 * unit + 4 * k), 4 * part, 2, v.codes);
        lower4(4, v.codes);
        v.scale = half_of_row(p, k) * whole(six_bits_of(p + 24, p + 8, 8 * unit + k + 4 * part) - 32);
        v.min = -0.0f;
        return v;
    }
};

// Of Q4_K and Q5_K: scale and minimum of a block, 4 bits of each at byte 32, 2 more at byte 16.
GGR_DEVICE void scale_and_minimum(const uint8_t* p, int k, int unit, Piece& v) {
    const int at = 4 * unit + k, low = p[32 + at], high = p[16 + at % 16] >> at / 16 * 4;
    v.scale = half_of_row(p, k) * whole((low & 15) | (high & 3) << 4);
    v.min = -half_of_row(p + 8, k) * whole(low >> 4 | (high & 12) << 2);
}
struct Q4_K_R4 : GroupBlock<256, 144, true, 4, 0, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        nibbles_of_four(p + 64 + 64 * unit, k, part, v.codes);
        scale_and_minimum(p, k, unit, v);
        return v;
    }
};
struct Q5_K_R4 : GroupBlock<256, 176, true, 4, 0, true> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        nibbles_of_four(p + 192 + 64 * unit, k, part, v.codes);
        add_fifth(aligned_word(p + 64 + 16 * unit + 4 * k) >> 4 * part, 0, 2, 1, 3, v.codes);
        scale_and_minimum(p, k, unit, v);
        return v;
    }
};
struct Q6_K_R4 : GroupBlock<256, 210, false> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        nibbles_of_four(p + 328 + 64 * unit, k, part, v.codes);
        const uint32_t high = aligned_word(p + 72 + 32 * unit + 16 * part + 4 * k);
        v.codes[0] |= (high & 0x03030303u) << 4;
        v.codes[1] |= (high >> 4 & 0x03030303u) << 4;
        v.codes[2] |= (high >> 2 & 0x03030303u) << 4;
        v.codes[3] |= (high >> 6 & 0x03030303u) << 4;
        lower4(32, v.codes);
        v.scale = half_of_row(p, k) * whole(static_cast<int8_t>(p[8 + 8 * unit + k + 4 * part]));
        v.min = -0.0f;
        return v;
    }
};

// Of IQ2_K .. IQ5_K: whether 16 elements are on the moved grid.
GGR_DEVICE bool on_moved(const uint8_t* p, int k, int unit, int part) { return has_bit(p[8 + k + 4 * part], unit); }

struct IQ2_K_R4 : GroupBlock<256, 76, false> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        pairs_of_four(p + 48 + 32 * unit, k, part, v.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) v.codes[i] = ik2_values(v.codes[i], on_moved(p, k, unit, part));
        const uint32_t scale = four_bits_of(p + 16, 8 * unit + k + 4 * part);
        v.scale = half_of_row(p, k) * whole(static_cast<int>(scale) - 8);
        v.min = -0.0f;
        return v;
    }
};
struct IQ3_K_R4 : GroupBlock<256, 110, false> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        pairs_of_four(p + 56 + 32 * unit, k, part, v.codes);
        add_bits(aligned_word(p + 312 + 16 * unit + 4 * k), 4 * part, 2, v.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) v.codes[i] = ik3_values(v.codes[i], on_moved(p, k, unit, part));
        const int at = 8 * unit + k + 4 * part;
        const float odd = whole(2 * static_cast<int>(four_bits_of(p + 24, at)) + 1);
        v.scale = half_of_row(p, k) * (has_bit(p[16 + at % 8], at / 8) ? -odd : odd);
        v.min = -0.0f;
        return v;
    }
};
struct IQ4_K_R4 : GroupBlock<256, 144, false> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        nibbles_of_four(p + 64 + 64 * unit, k, part, v.codes);
        to_ik4(on_moved(p, k, unit, part), v.codes);
        v.scale = half_of_row(p, k) * whole(six_bits_of(p + 32, p + 16, 8 * unit + k + 4 * part) - 32);
        v.min = -0.0f;
        return v;
    }
};
struct IQ5_K_R4 : GroupBlock<256, 176, false> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        nibbles_of_four(p + 64 + 64 * unit, k, part, v.codes);
        add_fifth(aligned_word(p + 576 + 16 * unit + 4 * k) >> 2 * part, 0, 4, 1, 5, v.codes);
        to_ik5(on_moved(p, k, unit, part), v.codes);
        v.scale = half_of_row(p, k) * whole(six_bits_of(p + 32, p + 16, 8 * unit + k + 4 * part) - 32);
        v.min = -0.0f;
        return v;
    }
};
struct IQ4_KS_R4 : GroupBlock<256, 136, true, 4, 4> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        nibbles_of_four(p + 32 + 64 * unit, k, part, v.codes);
        const uint32_t scale = p[4 * unit + k];
        to_ik4(has_bit(scale, 0), v.codes);
        v.scale = seven_bit_scale(scale);
        v.min = -0.0f;
        return v;
    }
};
struct IQ5_KS_R4 : GroupBlock<256, 168, true, 4, 4> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        nibbles_of_four(p + 32 + 64 * unit, k, part, v.codes);
        add_fifth(aligned_word(p + 544 + 16 * unit + 4 * k) >> 2 * part, 0, 4, 1, 5, v.codes);
        const uint32_t scale = p[4 * unit + k];
        to_ik5(has_bit(scale, 0), v.codes);
        v.scale = seven_bit_scale(scale);
        v.min = -0.0f;
        return v;
    }
};

// ---- Groups of eight and sixteen ----

struct Q4_0_R8 : GroupBlock<32, 18, true, 8> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        uint32_t q[4];
        words_of_eight(p + 16, k, q);
        nibbles(q, part, v.codes);
        lower4(8, v.codes);
        v.scale = half_of_row(p, k);
        v.min = -0.0f;
        return v;
    }
};
struct MXFP4_R8 : GroupBlock<32, 17, true, 8> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        uint32_t q[4];
        words_of_eight(p + 8, k, q);
        nibbles(q, part, v.codes);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) v.codes[i] = fp4_values(v.codes[i]);
        v.scale = half_power(p[k]);
        v.min = -0.0f;
        return v;
    }
};
struct Q8_0_R8 : GroupBlock<32, 34, true, 8> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        words_of_eight(p + 16 + 128 * part, k, v.codes);
        v.scale = half_of_row(p, k);
        v.min = -0.0f;
        return v;
    }
};
struct IQ4_XS_R8 : GroupBlock<256, 136, true, 8> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        const uint8_t* at = p + 64 + 128 * unit + 64 * part + 4 * k;
        const uint32_t a = aligned_word(at), b = aligned_word(at + 32);
        v.codes[0] = a & 0x0f0f0f0fu;
        v.codes[1] = a >> 4 & 0x0f0f0f0fu;
        v.codes[2] = b & 0x0f0f0f0fu;
        v.codes[3] = b >> 4 & 0x0f0f0f0fu;
        to_ik4(false, v.codes);
        v.scale = half_of_row(p, k) * whole(six_bits_of(p + 32, p + 16, 8 * unit + k) - 32);
        v.min = -0.0f;
        return v;
    }
};
struct Q8_KV_R8 : GroupBlock<32, 32, true, 8, 4> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int, int part) {
        Piece v;
        words_of_eight(p + 128 * part, k, v.codes);
        v.scale = 1.0f;
        v.min = -0.0f;
        return v;
    }
};
struct Q8_K_R8 : GroupBlock<256, 258, true, 8> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        words_of_eight(p + 16 + 256 * unit + 128 * part, k, v.codes);
        v.scale = half_of_row(p, k);
        v.min = -0.0f;
        return v;
    }
};
// Bytes raised by 128.
struct Q8_K_R16 : GroupBlock<256, 258, true, 16> {
    GGR_DEVICE Piece load(const uint8_t* p, int k, int unit, int part) {
        Piece v;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i)
            v.codes[i] = aligned_word(p + 32 + 512 * unit + 256 * part + 4 * k + 64 * i) ^ 0x80808080u;
        v.scale = half_of_row(p, k);
        v.min = -0.0f;
        return v;
    }
};

}  // namespace cuda
}  // namespace ggr
