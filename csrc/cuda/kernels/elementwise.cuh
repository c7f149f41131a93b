// What element-wise kernels share: where a thread's quad lies, and quads of any float type as f32.
#pragma once

#include "cuda/kernels/base.cuh"
#include "cuda/kernels/elementwise.h"

namespace ggr {
namespace cuda {

struct alignas(8) Bytes8 {
    uint32_t word[2];
};

// A quad of a result.
struct Place {
    bool valid;
    int64_t i0;
    uint32_t i1, i2, i3;
    int n;  // elements, 1 to 4
};

GGR_DEVICE uint32_t remainder_of(uint32_t n, const Divisor& d) { return n - quotient(n, d) * d.divisor; }

GGR_DEVICE Place place_of(const Cut& cut, int64_t ne0) {
    Place at;
    const uint32_t unit =
        static_cast<uint32_t>(block_x()) * static_cast<uint32_t>(n_threads()) + static_cast<uint32_t>(thread_index());
    at.valid = unit < cut.total;
    const uint32_t row = quotient(unit, cut.quads), i23 = quotient(row, cut.ne1);
    at.i0 = static_cast<int64_t>(unit - row * cut.quads.divisor) * 4;
    at.i1 = row - i23 * cut.ne1.divisor;
    at.i3 = quotient(i23, cut.ne2);
    at.i2 = i23 - at.i3 * cut.ne2.divisor;
    at.n = ne0 - at.i0 < 4 ? static_cast<int>(ne0 - at.i0) : 4;
    return at;
}

GGR_DEVICE int64_t row_offset(const View& t, int64_t i1, int64_t i2, int64_t i3) {
    return i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3];
}
GGR_DEVICE uint8_t* row_at(const View& t, int64_t i1, int64_t i2, int64_t i3) {
    return t.data + row_offset(t, i1, i2, i3);
}
GGR_DEVICE uint8_t* row_at(const View& t, const Place& at) { return row_at(t, at.i1, at.i2, at.i3); }

GGR_DEVICE float load_element(const uint8_t* p, int32_t type) {
    if (type == ELEMENT_F32) return *reinterpret_cast<const float*>(p);
    const uint16_t h = *reinterpret_cast<const uint16_t*>(p);
    return type == ELEMENT_F16 ? half_to_float(h) : bf16_to_float(h);
}
GGR_DEVICE void store_element(uint8_t* p, int32_t type, float v) {
    if (type == ELEMENT_F32)
        *reinterpret_cast<float*>(p) = v;
    else
        *reinterpret_cast<uint16_t*>(p) = type == ELEMENT_F16 ? float_to_half(v) : float_to_bf16(v);
}

// n elements from p on; what lies behind them may be read, and counts for nothing.
GGR_DEVICE void load_quad(float (&v)[4], const Operand& o, const uint8_t* p, int n) {
    if (o.packed) {
        if (o.type == ELEMENT_F32) {
            const Bytes16 w = *reinterpret_cast<const Bytes16*>(p);
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) v[i] = bits_to_float(w.word[i]);
            return;
        }
        const Bytes8 w = *reinterpret_cast<const Bytes8*>(p);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint16_t h = static_cast<uint16_t>(w.word[i / 2] >> (i % 2 * 16));
            v[i] = o.type == ELEMENT_F16 ? half_to_float(h) : bf16_to_float(h);
        }
        return;
    }
    GGR_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = i < n ? load_element(p + i * o.t.nb[0], o.type) : 0.0f;
}

GGR_DEVICE void store_quad(const Operand& o, uint8_t* p, const float (&v)[4], int n) {
    if (o.packed && n == 4) {
        if (o.type == ELEMENT_F32) {
            Bytes16 w;
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) w.word[i] = float_to_bits(v[i]);
            *reinterpret_cast<Bytes16*>(p) = w;
            return;
        }
        Bytes8 w;
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            const uint32_t lo = o.type == ELEMENT_F16 ? float_to_half(v[2 * i]) : float_to_bf16(v[2 * i]);
            const uint32_t hi = o.type == ELEMENT_F16 ? float_to_half(v[2 * i + 1]) : float_to_bf16(v[2 * i + 1]);
            w.word[i] = lo | hi << 16;
        }
        *reinterpret_cast<Bytes8*>(p) = w;
        return;
    }
    GGR_UNROLL
    for (int i = 0; i < 4; ++i)
        if (i < n) store_element(p + i * o.t.nb[0], o.type, v[i]);
}

}  // namespace cuda
}  // namespace ggr
