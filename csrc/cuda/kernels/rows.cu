// GET_ROWS and SET_ROWS; every index is checked as it is read. Floor: bytes read and written over memory bandwidth.
#include "cuda/kernels/plain.cuh"
#include "cuda/kernels/rows.h"
#include "cuda/types/all.cuh"
#include "cuda/types/quantise.cuh"

namespace ggr {
namespace cuda {

// ---- GET_ROWS: a block has ROWS_CHUNK elements of a row of the result ----

struct RowPair {
    const uint8_t* from;  // nullptr: there is no such row
    uint8_t* to;
};
GGR_DEVICE RowPair row_pair(const GetRowsArgs& a) {
    const int64_t row = block_x();
    const int64_t i1 = row % a.dst.ne[1], i2 = row / a.dst.ne[1] % a.dst.ne[2], i3 = row / a.dst.ne[1] / a.dst.ne[2];
    const int64_t i =
        *reinterpret_cast<const int32_t*>(a.ids.data + i1 * a.ids.nb[0] + i2 * a.ids.nb[1] + i3 * a.ids.nb[2]);
    RowPair p = {nullptr, a.dst.data + i1 * a.dst.nb[1] + i2 * a.dst.nb[2] + i3 * a.dst.nb[3]};
    if (i >= 0 && i < a.src.ne[1])
        p.from = a.src.data + i * a.src.nb[1] + i2 * a.src.nb[2] + i3 * a.src.nb[3];
    else if (a.absent_is_zero == 0 && block_y() == 0 && thread_index() == 0)
        fail_index(a.site, i, a.src.ne[1]);
    return p;
}

template <class T>
GGR_KERNEL GGR_BOUNDS(ROWS_THREADS, 1) get_rows_quantised(const GetRowsArgs a) {
    const RowPair p = row_pair(a);
    const int64_t piece = static_cast<int64_t>(block_y()) * (ROWS_CHUNK / 16) + thread_index();
    if (16 * piece >= a.dst.ne[0]) return;
    float v[16] = {};
    if (p.from != nullptr) values_of<T>(row_of<T>(p.from), piece, v);
    float* const to = reinterpret_cast<float*>(p.to) + 16 * piece;
    if (reinterpret_cast<uint64_t>(to) % 16 != 0) {
        GGR_UNROLL
        for (int i = 0; i < 16; ++i) to[i] = v[i];
        return;
    }
    GGR_UNROLL
    for (int i = 0; i < 16; i += 4) {
        Bytes16 four;
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) four.word[j] = float_to_bits(v[i + j]);
        *reinterpret_cast<Bytes16*>(to + i) = four;
    }
}

template <class From>
GGR_KERNEL GGR_BOUNDS(ROWS_THREADS, 1) get_rows_plain(const GetRowsArgs a) {
    constexpr int64_t SIZE = sizeof(typename From::Bits);
    const RowPair p = row_pair(a);
    const int64_t first = static_cast<int64_t>(block_y()) * ROWS_CHUNK;
    const int64_t end = first + ROWS_CHUNK < a.dst.ne[0] ? first + ROWS_CHUNK : a.dst.ne[0];
    for (int64_t i = first + thread_index(); i < end; i += n_threads())
        reinterpret_cast<float*>(p.to)[i] = p.from != nullptr ? element<From>(p.from + i * SIZE) : 0.0f;
}

// Rows as they are, whatever they hold.
GGR_KERNEL GGR_BOUNDS(ROWS_THREADS, 1) get_rows_bytes(const GetRowsArgs a) {
    const RowPair p = row_pair(a);
    const int64_t first = static_cast<int64_t>(block_y()) * ROWS_CHUNK;
    const int64_t end = first + ROWS_CHUNK < a.row_bytes ? first + ROWS_CHUNK : a.row_bytes;
    for (int64_t i = first + thread_index(); i < end; i += n_threads()) p.to[i] = p.from != nullptr ? p.from[i] : 0;
}

// ---- SET_ROWS: a thread has an element or a block ----

struct UnitPair {
    const uint8_t* from;  // the row
    uint8_t* to;          // nullptr: there is no such row
    int64_t i;            // number of the unit in it
};
GGR_DEVICE uint32_t unit_of_thread() {
    return static_cast<uint32_t>(block_x()) * static_cast<uint32_t>(n_threads()) +
           static_cast<uint32_t>(thread_index());
}
GGR_DEVICE UnitPair unit_pair(const SetRowsArgs& a, uint32_t unit) {
    if (unit >= a.total) return {nullptr, nullptr, 0};
    const uint32_t row = quotient(unit, a.width), plane = quotient(row, a.ne1), i3 = quotient(plane, a.ne2);
    const uint32_t i1 = row - plane * a.ne1.divisor, i2 = plane - i3 * a.ne2.divisor;
    const uint32_t ids2 = i2 - quotient(i2, a.ids_ne1) * a.ids_ne1.divisor;
    const uint32_t ids3 = i3 - quotient(i3, a.ids_ne2) * a.ids_ne2.divisor;
    const uint8_t* id = a.ids.data + i1 * a.ids.nb[0] + ids2 * a.ids.nb[1] + ids3 * a.ids.nb[2];
    const int64_t i = a.wide != 0 ? *reinterpret_cast<const int64_t*>(id) : *reinterpret_cast<const int32_t*>(id);
    UnitPair p = {a.src.data + i1 * a.src.nb[1] + i2 * a.src.nb[2] + i3 * a.src.nb[3], nullptr,
                  static_cast<int64_t>(unit - row * a.width.divisor)};
    if (i >= 0 && i < a.dst.ne[1])
        p.to = a.dst.data + i * a.dst.nb[1] + i2 * a.dst.nb[2] + i3 * a.dst.nb[3];
    else if (p.i == 0)
        fail_index(a.site, i, a.dst.ne[1]);
    return p;
}

template <class From, class To>
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) set_rows_plain(const SetRowsArgs a) {
    const UnitPair p = unit_pair(a, unit_of_thread());
    if (p.to == nullptr) return;
    set_element<To>(p.to + p.i * static_cast<int64_t>(sizeof(typename To::Bits)),
                    element<From>(p.from + p.i * static_cast<int64_t>(sizeof(typename From::Bits))));
}

template <class From, class T>
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) set_rows_quantised(const SetRowsArgs a) {
    const UnitPair p = unit_pair(a, unit_of_thread());
    if (p.to == nullptr) return;
    float x[32];
    GGR_UNROLL
    for (int i = 0; i < 32; ++i)
        x[i] = element<From>(p.from + (32 * p.i + i) * static_cast<int64_t>(sizeof(typename From::Bits)));
    Quantiser<T>::block(x, p.to + p.i * T::BYTES);
}

// A warp has a row, which is one unit.
GGR_KERNEL GGR_BOUNDS(COPY_THREADS, 1) set_rows_q8_kv(const SetRowsArgs a) {
    const UnitPair p = unit_pair(a, unit_of_thread() / WARP);
    if (p.to == nullptr) return;
    quantise_q8_kv(p.from, 4, a.src.ne[0], p.to);
}

}  // namespace cuda
}  // namespace ggr
