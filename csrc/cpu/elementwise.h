// What the element-wise families share: storage formats, tiles of f32 for what is not packed f32, and the split of a
// tensor into work items.
#pragma once

#include "cpu/plan.h"
#include "cpu/simd.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Storage formats: how a lane vector and a single element are read and written.
struct F32 {
    using Element = float;
    static inline vf load(const float* p) { return vload(p); }
    static inline void store(float* p, vf v) { vstore(p, v); }
    static inline float get(const float* p) { return *p; }
    static inline void put(float* p, float x) { *p = x; }
};
struct F16 {
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_f16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_f16(p, v); }
    static inline float get(const uint16_t* p) { return f16_to_f32(*p); }
    static inline void put(uint16_t* p, float x) { *p = f32_to_f16(x); }
};
struct BF16 {
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_bf16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_bf16(p, v); }
    static inline float get(const uint16_t* p) { return bf16_to_f32(*p); }
    static inline void put(uint16_t* p, float x) { *p = f32_to_bf16(x); }
};

inline bool is_float(int32_t type) { return type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16; }

// Elements of a tile: three tiles lie in the first-level cache beside the rows.
constexpr int64_t TILE = 512;

template <class F>
static inline void load_elements(float* out, const uint8_t* p, int64_t stride, int64_t n) {
    using E = typename F::Element;
    int64_t i = 0;
    if (stride == static_cast<int64_t>(sizeof(E)))
        for (; i + VL <= n; i += VL) vstore(out + i, F::load(reinterpret_cast<const E*>(p) + i));
    for (; i < n; ++i) out[i] = F::get(reinterpret_cast<const E*>(p + i * stride));
}
template <class F>
static inline void store_elements(uint8_t* p, int64_t stride, const float* in, int64_t n) {
    using E = typename F::Element;
    int64_t i = 0;
    if (stride == static_cast<int64_t>(sizeof(E)))
        for (; i + VL <= n; i += VL) F::store(reinterpret_cast<E*>(p) + i, vload(in + i));
    for (; i < n; ++i) F::put(reinterpret_cast<E*>(p + i * stride), in[i]);
}

// Read n elements `stride` bytes apart of a float type as f32. Zero stride repeats one element.
[[maybe_unused]] void load_tile(float* out, int32_t type, const uint8_t* p, int64_t stride, int64_t n) {
    if (type == TYPE_F32)
        load_elements<F32>(out, p, stride, n);
    else if (type == TYPE_F16)
        load_elements<F16>(out, p, stride, n);
    else
        load_elements<BF16>(out, p, stride, n);
}
[[maybe_unused]] void store_tile(int32_t type, uint8_t* p, int64_t stride, const float* in, int64_t n) {
    if (type == TYPE_F32)
        store_elements<F32>(p, stride, in, n);
    else if (type == TYPE_F16)
        store_elements<F16>(p, stride, in, n);
    else
        store_elements<BF16>(p, stride, in, n);
}

// The first `n` < VL lanes of a row's end, without touching what follows; the other lanes are 0.
static inline vf vload_part(const float* p, int64_t n) {
    float lanes[VL] = {};
    std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
    return vload(lanes);
}
static inline void vstore_part(float* p, vf v, int64_t n) {
    float lanes[VL];
    vstore(lanes, v);
    std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

// Work items of an element-wise step: rows of dst, long rows cut into parts, packed tensors taken as one long row.
struct Split {
    int64_t n;      // elements of a row
    int64_t part;   // elements of an item (the last of a row may have fewer)
    int64_t parts;  // items a row
    int64_t items;
};

// A part is some microseconds of work, and a multiple of every vector's and cache line's length.
constexpr int64_t PART = 4096;

// `flat`: all tensors of the step are packed and of one shape.
inline Split split_rows(const Tensor& dst, bool flat) {
    Split s;
    s.n = flat ? n_elements(dst) : dst.ne[0];
    const int64_t rows = flat ? 1 : n_rows(dst);
    s.part = s.n >= 2 * PART ? PART : s.n;
    s.parts = (s.n + s.part - 1) / s.part;
    s.items = rows * s.parts;
    return s;
}

// Work of n elements at `cost` vector operations, counted for four lanes; nothing is cheaper than moving the element.
inline int64_t work_of(int64_t n, int64_t cost) {
    const int64_t scaled = cost * 4 / VL;
    return n * (scaled > 1 ? scaled : 1);
}

// Steps keep their split in arg.i64[3 .. 5] and a function in arg.i64[6]; f32 parameters lie before, in arg.f32[0 ..
// 5].
inline void keep_split(Step& step, const Split& s) {
    step.arg.i64[3] = s.n;
    step.arg.i64[4] = s.part;
    step.arg.i64[5] = s.parts;
}

// Where an item lies: row (i1, i2, i3) of dst, elements [at, at + n).
struct Item {
    int64_t i1, i2, i3, at, n;
};
inline Item item_of(const Step& step, int64_t index) {
    const int64_t n = step.arg.i64[3], part = step.arg.i64[4], parts = step.arg.i64[5];
    const int64_t row = parts == 1 ? index : index / parts;
    const int64_t ne1 = step.dst->ne[1], ne2 = step.dst->ne[2];
    Item item;
    item.at = (index - row * parts) * part;
    item.n = n - item.at < part ? n - item.at : part;
    item.i1 = row;
    item.i2 = item.i3 = 0;
    if (row >= ne1) {
        item.i2 = row / ne1;
        item.i1 = row - item.i2 * ne1;
        if (item.i2 >= ne2) {
            item.i3 = item.i2 / ne2;
            item.i2 -= item.i3 * ne2;
        }
    }
    return item;
}

inline int64_t wrap(int64_t i, int64_t ne) { return i < ne ? i : i % ne; }

inline uint8_t* row_at(const Tensor& t, int64_t i1, int64_t i2, int64_t i3) {
    return t.data + i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3];
}
// The row of a tensor that is repeated to a larger shape.
inline uint8_t* repeated_row_at(const Tensor& t, int64_t i1, int64_t i2, int64_t i3) {
    return row_at(t, wrap(i1, t.ne[1]), wrap(i2, t.ne[2]), wrap(i3, t.ne[3]));
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
