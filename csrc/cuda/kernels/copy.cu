// CPY, CONT, DUP: units in logical order from one layout to another, a thread each. Floor: bytes read and written over
// memory bandwidth; neighbouring threads have neighbouring units, so whatever lies packed is read and written in whole
// lines.
#include "cuda/kernels/plain.cuh"
#include "cuda/kernels/rows.h"
#include "cuda/types/all.cuh"
#include "cuda/types/quantise.cuh"

namespace ggr {
namespace cuda {

GGR_DEVICE uint32_t unit_of_thread() {
    return static_cast<uint32_t>(block_x()) * static_cast<uint32_t>(n_threads()) +
           static_cast<uint32_t>(thread_index());
}
// Address of a unit, and with `in_row` its number in its row.
GGR_DEVICE uint8_t* unit_at(const View& v, const Divisor (&ne)[3], uint32_t unit, uint32_t* in_row = nullptr) {
    const uint32_t row = quotient(unit, ne[0]), plane = quotient(row, ne[1]), i3 = quotient(plane, ne[2]);
    const uint32_t i0 = unit - row * ne[0].divisor, i1 = row - plane * ne[1].divisor, i2 = plane - i3 * ne[2].divisor;
    if (in_row != nullptr) *in_row = i0;
    return v.data + i0 * v.nb[0] + i1 * v.nb[1] + i2 * v.nb[2] + i3 * v.nb[3];
}

struct Unit1 {
    using Bits = uint8_t;
};
struct Unit2 {
    using Bits = uint16_t;
};
struct Unit4 {
    using Bits = uint32_t;
};
struct Unit8 {
    using Bits = uint64_t;
};
struct Unit16 {
    using Bits = Bytes16;
};

template <class Unit>
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) copy_bits(const CopyArgs a) {
    const uint32_t unit = unit_of_thread();
    if (unit >= a.total) return;
    *reinterpret_cast<typename Unit::Bits*>(unit_at(a.to, a.to_ne, unit)) =
        *reinterpret_cast<const typename Unit::Bits*>(unit_at(a.from, a.from_ne, unit));
}

template <class From, class To>
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) copy_converted(const CopyArgs a) {
    const uint32_t unit = unit_of_thread();
    if (unit >= a.total) return;
    set_element<To>(unit_at(a.to, a.to_ne, unit), element<From>(unit_at(a.from, a.from_ne, unit)));
}

// Elements whose neighbours lie along dimension 0 in `to` and along dimension 1 in `from`: tiles of 32 x 32 by way of
// shared memory, so that both sides move whole lines. Grid: x tiles along dimension 0, y along 1, z planes.
template <class Unit>
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) copy_transposed(const CopyArgs a) {
    using Bits = typename Unit::Bits;
    GGR_SHARED Bits tile[32][33];
    const int64_t i2 = block_z() % a.to.ne[2], i3 = block_z() / a.to.ne[2];
    const int64_t x0 = static_cast<int64_t>(block_x()) * 32, y0 = static_cast<int64_t>(block_y()) * 32;
    const int x = thread_index() % 32;
    for (int y = thread_index() / 32; y < 32; y += COPY_THREADS / 32) {
        const int64_t i0 = x0 + y, i1 = y0 + x;
        if (i0 < a.to.ne[0] && i1 < a.to.ne[1])
            tile[y][x] = *reinterpret_cast<const Bits*>(a.from.data + i0 * a.from.nb[0] + i1 * a.from.nb[1] +
                                                        i2 * a.from.nb[2] + i3 * a.from.nb[3]);
    }
    sync_block();
    for (int y = thread_index() / 32; y < 32; y += COPY_THREADS / 32) {
        const int64_t i0 = x0 + x, i1 = y0 + y;
        if (i0 < a.to.ne[0] && i1 < a.to.ne[1])
            *reinterpret_cast<Bits*>(a.to.data + i0 * a.to.nb[0] + i1 * a.to.nb[1] + i2 * a.to.nb[2] +
                                     i3 * a.to.nb[3]) = tile[x][y];
    }
}

// Units are pieces of 16 elements, from.nb[0] is 0; `to` counts elements (its rows need not hold whole pieces).
template <class T>
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) copy_dequantised(const CopyArgs a) {
    const uint32_t unit = unit_of_thread();
    if (unit >= a.total) return;
    uint32_t in_row;
    const uint8_t* row = unit_at(a.from, a.from_ne, unit, &in_row);
    float v[16];
    values_of<T>(row_of<T>(row), in_row, v);
    if (a.to_ne[0].divisor % 16 == 0) {
        uint8_t* to = unit_at(a.to, a.to_ne, 16 * unit);
        GGR_UNROLL
        for (int j = 0; j < 16; ++j) *reinterpret_cast<float*>(to + j * a.to.nb[0]) = v[j];
        return;
    }
    uint32_t element = 16 * unit;
    GGR_UNROLL
    for (int j = 0; j < 16; ++j, ++element) *reinterpret_cast<float*>(unit_at(a.to, a.to_ne, element)) = v[j];
}

// Units are blocks of 32, in rows of `from` and of `to`.
template <class From, class T>
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) copy_quantised(const CopyArgs a) {
    const uint32_t unit = unit_of_thread();
    if (unit >= a.total) return;
    const uint8_t* from = unit_at(a.from, a.from_ne, unit);
    float x[32];
    GGR_UNROLL
    for (int i = 0; i < 32; ++i) x[i] = element<From>(from + i * (a.from.nb[0] / 32));
    Quantiser<T>::block(x, unit_at(a.to, a.to_ne, unit));
}

// Units are lanes of the warp that has a row; ne[0] of both views is 1.
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) copy_to_q8_kv(const CopyArgs a) {
    const uint32_t unit = unit_of_thread();
    if (unit >= a.total) return;
    const uint32_t row = unit / WARP;
    quantise_q8_kv(unit_at(a.from, a.from_ne, row), a.from.nb[0], a.row, unit_at(a.to, a.to_ne, row));
}

}  // namespace cuda
}  // namespace ggr
