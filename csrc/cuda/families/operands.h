// What the families of element-wise and row-wise kernels share on the host's side.
#pragma once

#include "cuda/kernels/elementwise.h"
#include "cuda/plan.h"

namespace ggr {
namespace cuda {

static_assert(ELEMENT_F32 == TYPE_F32 && ELEMENT_F16 == TYPE_F16 && ELEMENT_BF16 == TYPE_BF16, "as in spec/ids.h");

static inline bool is_float(int32_t type) { return type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16; }

// Dividends of Divisor and sizes of grids stay below this.
constexpr int64_t MAX_COUNT = int64_t{1} << 31;

// Every row begins at a multiple of `bytes` and has no gaps between its elements.
static inline bool rows_aligned(const View& v, int64_t element, int64_t bytes) {
    if (v.nb[0] != element || reinterpret_cast<uintptr_t>(v.data) % static_cast<uintptr_t>(bytes) != 0) return false;
    for (int i = 1; i < MAX_DIMS; ++i)
        if (v.ne[i] != 1 && v.nb[i] % bytes != 0) return false;
    return true;
}

static inline Operand operand_of(const Tensor& t) {
    Operand o = {view_of(t), t.type, 0};
    o.packed = rows_aligned(o.t, block_bytes(t.type), 4 * block_bytes(t.type));
    return o;
}
// The same of a packed tensor, taken as one row.
static inline Operand flat_operand_of(const Tensor& t) {
    Operand o = {view_of(t), t.type, 0};
    o.t.ne[0] = n_elements(t);
    for (int i = 1; i < MAX_DIMS; ++i) o.t.ne[i] = 1;
    o.packed = rows_aligned(o.t, block_bytes(t.type), 4 * block_bytes(t.type));
    return o;
}

static inline Divisor divisor_of_size(int64_t n) { return divisor_of(static_cast<uint32_t>(n)); }

// False if the result is too large for 32-bit numbers of quads.
static inline bool cut_of(const View& dst, Cut* cut) {
    const int64_t quads = (dst.ne[0] + 3) / 4, rows = dst.ne[1] * dst.ne[2] * dst.ne[3];
    if (dst.ne[0] >= MAX_COUNT || rows >= MAX_COUNT || quads * rows >= MAX_COUNT) return false;
    *cut = {divisor_of_size(quads), divisor_of_size(dst.ne[1]), divisor_of_size(dst.ne[2]),
            static_cast<uint32_t>(quads * rows)};
    return true;
}

// Small results in small blocks, so that they spread over the multiprocessors.
static inline int threads_of(const Cut& cut) { return cut.total <= 16384 ? 64 : 256; }
static inline Grid blocks_of(const Cut& cut) {
    const uint32_t threads = static_cast<uint32_t>(threads_of(cut));
    return {(cut.total + threads - 1) / threads, 1, 1};
}

static inline bool packed_f32(const Tensor& t) { return t.type == TYPE_F32 && rows_contiguous(t); }

}  // namespace cuda
}  // namespace ggr
