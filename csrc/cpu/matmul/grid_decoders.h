// Decoders of the types that quants/grid.h and quants/tiny.h give as codes.
#pragma once

#include "cpu/matmul/decoders.h"
#include "cpu/quants/grid.h"
#include "cpu/quants/tiny.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Super-blocks with integer scales.
template <class T>
struct Coded : Super<sizeof(typename T::Block), T::SUB, T::ZERO, false, false> {
    using Block = typename T::Block;

    static inline const Block& block(const uint8_t* p) { return *reinterpret_cast<const Block*>(p); }
    // Not inline: what looks entries up wants all general registers, and of four rows it is 12 KiB of code.
    __attribute__((noinline)) static void unpack(const uint8_t* p, bv u[REGISTERS]) {
        b32 codes[PIECES];
        T::unpack(block(p), codes);
        for (int i = 0; i < PIECES; i += 2) join32(u + i * QK / BW, codes[i], codes[i + 1]);
    }
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        uint64_t words[2];
        T::scales(block(p), words);
        for (int i = 0; i < QK / T::SUB; ++i) s[i] = bytes_to_f8(words[i]) * T::d(block(p));
    }
    static inline Factors factors(const uint8_t* p) {
        typedef uint64_t u2 __attribute__((vector_size(16)));
        uint64_t words[2];
        T::scales(block(p), words);
        const f4 d = {T::d(block(p))};
        if constexpr (T::SUB == 32)
            return {widen_twice(words[0]), w16{}, d};
        else
            return {widen((b16)u2{words[0], words[1]}), w16{}, d};
    }
};

// Blocks of 64 or 128.
template <class T>
struct SmallCoded {
    using Block = typename T::Block;
    static constexpr ActFormat FORMAT = ACT_Q8_0;
    static constexpr int GROUP_BYTES = sizeof(Block) * GROUP / T::ELEMENTS, SUB = T::SUB, ZERO = T::ZERO;
    static constexpr bool WIDE = false, MINIMUM = false, SMALL = true, INTEGER = false;
    static constexpr int MOST = 126;

    static inline const Block* blocks(const uint8_t* p) { return reinterpret_cast<const Block*>(p); }
    static inline b32 piece_of(const uint8_t* p, int i) { return T::piece(blocks(p), i); }
    static inline f8 lanes(const uint8_t* p, int i) {
        const float a = T::scale(blocks(p), i * QK / SUB), b = T::scale(blocks(p), (i * QK + 16) / SUB);
        return f8{a, a, a, a, b, b, b, b};
    }
    static inline void unpack(const uint8_t* p, bv u[REGISTERS]) {
#pragma GCC unroll 4
        for (int i = 0; i < PIECES; i += 2) join32(u + i * QK / BW, piece_of(p, i), piece_of(p, i + 1));
    }
};

struct Q1_0 : SmallCoded<CodesQ1_0> {
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        const uint16_t a = blocks(p)[0].d, b = blocks(p)[1].d;
        s[0] = half8(h8{a, a, a, a, b, b, b, b});
    }
};
struct Q2_0 : SmallCoded<CodesQ2_0> {
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        const uint16_t a = blocks(p)[0].d, b = blocks(p)[1].d, c = blocks(p)[2].d, d = blocks(p)[3].d;
        s[0] = half8(h8{a, a, b, b, c, c, d, d});
    }
};
struct NVFP4 : SmallCoded<CodesNVFP4> {
    // Eight of nvfp4_scale.
    static inline f8 floats(const uint8_t* first, const uint8_t* second) {
        const i8x bytes = (i8x)eight_words(read_u32(first) | (uint64_t)read_u32(second) << 32);
        return (f8)((bytes & 0x7f) << 20 & (bytes != 0x7f)) * 0x1p119f;
    }
    static inline void scales(const uint8_t* p, f8* s, f8*) {
        s[0] = floats(blocks(p)[0].d, blocks(p)[1].d);
        s[1] = floats(blocks(p)[2].d, blocks(p)[3].d);
    }
};

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
