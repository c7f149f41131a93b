// REPEAT, CONCAT, PAD: elements of plain types arranged anew. ARANGE, FILL: results without input. DIAG_MASK_INF,
// DIAG_MASK_ZERO: a triangle overwritten. ACC, SET: a region of a copy added to or overwritten.
// Items are rows of the result everywhere. Floor: bytes read and written over memory bandwidth.
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/simd.h"

GGR_KERNELS_BEGIN

namespace {

// n elements of `size` bytes each.
void move_elements(uint8_t* y, int64_t y_stride, const uint8_t* x, int64_t x_stride, int64_t n, int64_t size) {
    if (y_stride == size && x_stride == size) {
        std::memmove(y, x, (size_t)(n * size));
        return;
    }
    switch (size) {
#define GGR_CASE(T)                                                                                 \
    case sizeof(T):                                                                                 \
        for (int64_t i = 0; i < n; ++i) std::memcpy(y + i * y_stride, x + i * x_stride, sizeof(T)); \
        return
        GGR_CASE(uint8_t);
        GGR_CASE(uint16_t);
        GGR_CASE(uint32_t);
        GGR_CASE(uint64_t);
#undef GGR_CASE
        default:
            for (int64_t i = 0; i < n; ++i) std::memcpy(y + i * y_stride, x + i * x_stride, (size_t)size);
    }
}

bool is_plain(int32_t type) { return block_size(type) == 1; }

bool refuse_types(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s -> %s", type_traits(node.src[0]->type)->name,
                               type_traits(node.type)->name);
}

// ---- REPEAT ----

bool run_repeat(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    const int64_t size = block_bytes(dst.type), n = src.ne[0];
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const uint8_t* x =
            src.data + row.i1 % src.ne[1] * src.nb[1] + row.i2 % src.ne[2] * src.nb[2] + row.i3 % src.ne[3] * src.nb[3];
        uint8_t* y = row.of(dst);
        if (n == 1) {
            move_elements(y, dst.nb[0], x, 0, dst.ne[0], size);
        } else {
            for (int64_t i = 0; i < dst.ne[0]; i += n)
                move_elements(y + i * dst.nb[0], dst.nb[0], x, src.nb[0], n, size);
        }
    }
    return true;
}

// Relies on: every dimension of src[0] divides the result's.
bool prepare_repeat(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != node.type || !is_plain(node.type)) return refuse_types(builder, node);
    builder.add(run_repeat, node, n_rows(node), n_elements(node));
    return true;
}

// ---- CONCAT ----

// arg.i64[0]: the dimension.
bool run_concat(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &a = *step.src[0], &b = *step.src[1], &dst = *step.dst;
    const int64_t size = block_bytes(dst.type), dim = step.arg.i64[0];
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        uint8_t* y = row.of(dst);
        if (dim == 0) {
            move_elements(y, dst.nb[0], row.of(a), a.nb[0], a.ne[0], size);
            move_elements(y + a.ne[0] * dst.nb[0], dst.nb[0], row.of(b), b.nb[0], b.ne[0], size);
            continue;
        }
        RowCursor from = row;
        int64_t& i = dim == 1 ? from.i1 : dim == 2 ? from.i2 : from.i3;
        const bool second = i >= a.ne[dim];
        const Tensor& src = second ? b : a;
        if (second) i -= a.ne[dim];
        move_elements(y, dst.nb[0], from.of(src), src.nb[0], dst.ne[0], size);
    }
    return true;
}

// Relies on: parameter 0 in 0 .. 3; shapes equal but for that dimension, in which the result has the sum.
bool prepare_concat(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != node.type || node.src[1]->type != node.type || !is_plain(node.type))
        return refuse_types(builder, node);
    builder.add(run_concat, node, n_rows(node), n_elements(node)).arg.i64[0] = node.params[0];
    return true;
}

// ---- PAD ----

inline int64_t wrap(int64_t i, int64_t n) {
    const int64_t r = i % n;
    return r < 0 ? r + n : r;
}

// Parameters: left and right padding of dimensions 0 .. 3, then 1 for a torus instead of zeros.
bool run_pad(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    const int64_t lp0 = dst.params[0], lp1 = dst.params[2], lp2 = dst.params[4], lp3 = dst.params[6];
    const bool circular = dst.params[8] != 0;
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        uint8_t* y = row.of(dst);
        RowCursor from = row;
        from.i1 -= lp1;
        from.i2 -= lp2;
        from.i3 -= lp3;
        if (circular) {
            from.i1 = wrap(from.i1, src.ne[1]);
            from.i2 = wrap(from.i2, src.ne[2]);
            from.i3 = wrap(from.i3, src.ne[3]);
        }
        const bool inside = from.i1 >= 0 && from.i1 < src.ne[1] && from.i2 >= 0 && from.i2 < src.ne[2] &&
                            from.i3 >= 0 && from.i3 < src.ne[3];
        for (int64_t i = 0; i < dst.ne[0]; ++i) {
            const int64_t i0 = circular ? wrap(i - lp0, src.ne[0]) : i - lp0;
            float x = 0.0f;
            if (inside && i0 >= 0 && i0 < src.ne[0]) x = *reinterpret_cast<const float*>(from.of(src) + i0 * src.nb[0]);
            *reinterpret_cast<float*>(y + i * dst.nb[0]) = x;
        }
    }
    return true;
}

// Relies on: the result's dimensions are the source's plus both paddings, which are not negative.
bool prepare_pad(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return refuse_types(builder, node);
    if (is_empty(*node.src[0])) return builder.unsupported(node, "an empty source");
    builder.add(run_pad, node, n_rows(node), 4 * n_elements(node));
    return true;
}

// ---- ARANGE, FILL ----

// One item; parameters: start, stop, step.
bool run_arange(const Step& step, int64_t, int64_t, Worker&) {
    const Tensor& dst = *step.dst;
    const float start = param_f32(dst, 0), delta = param_f32(dst, 2);
    for (int64_t i = 0; i < dst.ne[0]; ++i)
        *reinterpret_cast<float*>(dst.data + i * dst.nb[0]) = start + delta * (float)i;
    return true;
}
// Relies on: a result of one dimension.
bool prepare_arange(PlanBuilder& builder, const Tensor& node) {
    if (node.type != TYPE_F32) return builder.unsupported(node, "type %s", type_traits(node.type)->name);
    builder.add(run_arange, node, 1, 2 * node.ne[0]);
    return true;
}

// arg.i32[0]: the bits of the value in the result's type.
template <class T>
bool run_fill(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor& dst = *step.dst;
    T value;
    std::memcpy(&value, &step.arg.i32[0], sizeof value);
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        uint8_t* y = row.of(dst);
        for (int64_t i = 0; i < dst.ne[0]; ++i) *reinterpret_cast<T*>(y + i * dst.nb[0]) = value;
    }
    return true;
}
bool prepare_fill(PlanBuilder& builder, const Tensor& node) {
    if (node.type != TYPE_F32 && node.type != TYPE_F16) return refuse_types(builder, node);
    Step& step = builder.add_bare(node.type == TYPE_F32 ? run_fill<uint32_t> : run_fill<uint16_t>, &node, n_rows(node),
                                  n_elements(node));
    step.arg.i32[0] = node.type == TYPE_F32 ? node.params[0] : f32_to_f16(param_f32(node, 0));
    builder.writes(node);
    return true;
}

// ---- DIAG_MASK ----

// Elements right of the diagonal (column > row + n_past) become arg.f32[0]. Parameter: n_past.
bool run_diag_mask(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    const float value = step.arg.f32[0];
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const int64_t kept = least(dst.ne[0], (int64_t)dst.params[0] + row.i1 + 1);
        uint8_t* y = row.of(dst);
        const uint8_t* x = row.of(src);
        if (x != y) move_elements(y, dst.nb[0], x, src.nb[0], kept, 4);
        for (int64_t i = kept; i < dst.ne[0]; ++i) *reinterpret_cast<float*>(y + i * dst.nb[0]) = value;
    }
    return true;
}
// Relies on: equal shapes.
template <bool ZERO>
bool prepare_diag_mask(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return refuse_types(builder, node);
    if (node.params[0] < 0) return builder.unsupported(node, "n_past %d", node.params[0]);
    builder.add(run_diag_mask, node, n_rows(node), n_elements(node)).arg.f32[0] = ZERO ? 0.0f : -__builtin_inff();
    return true;
}

// ---- ACC, SET ----

// The source's elements as they are, before the region is touched; items are rows.
bool run_move(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next())
        move_elements(row.of(dst), dst.nb[0], row.of(src), src.nb[0], dst.ne[0], block_bytes(dst.type));
    return true;
}
// Items are rows of src[1]. Parameters: byte strides 1 .. 3 and byte offset of the region in the result.
template <bool ADD>
bool run_region(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &b = *step.src[1], &dst = *step.dst;
    const int64_t nb1 = dst.params[0], nb2 = dst.params[1], nb3 = dst.params[2], offset = dst.params[3];
    RowCursor row(b, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const uint8_t* x = row.of(b);
        uint8_t* y = dst.data + offset + row.i1 * nb1 + row.i2 * nb2 + row.i3 * nb3;
        if (!ADD) {
            move_elements(y, 4, x, b.nb[0], b.ne[0], 4);
            continue;
        }
        for (int64_t i = 0; i < b.ne[0]; ++i)
            reinterpret_cast<float*>(y)[i] += *reinterpret_cast<const float*>(x + i * b.nb[0]);
    }
    return true;
}

// Strides and offset are multiples of the element and the region ends within the result.
bool region_fits(const Tensor& node) {
    const Tensor& b = *node.src[1];
    __int128 last = node.params[3];
    for (int i = 0; i < 4; ++i) {
        if (node.params[i] < 0 || node.params[i] % 4 != 0) return false;
        if (i < 3) last += (__int128)(b.ne[i + 1] - 1) * node.params[i];
    }
    return last + (__int128)b.ne[0] * 4 <= extent_bytes(node);
}

// Relies on: src[0] of the result's shape, both contiguous.
template <bool ADD>
bool prepare_region(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    const bool types =
        a.type == node.type && b.type == node.type && (node.type == TYPE_F32 || (!ADD && node.type == TYPE_I32));
    if (!types) return refuse_types(builder, node);
    if (!is_contiguous(node)) return builder.unsupported(node, "a result that is not contiguous");
    if (!is_empty(b) && !region_fits(node)) return builder.unsupported(node, "a region that leaves the tensor");
    if (a.data != node.data) {
        Step& step = builder.add_bare(run_move, &node, n_rows(node), n_elements(node));
        step.src[0] = &a;
        builder.reads(a);
        builder.writes(node);
    }
    if (is_empty(b)) return true;
    Step& step = builder.add_bare(run_region<ADD>, &node, n_rows(b), n_elements(b));
    step.src[1] = &b;
    builder.reads(b);
    builder.writes(node);
    return true;
}

}  // namespace

void register_shape(OpTable& table) {
    table.prepare[OP_REPEAT] = prepare_repeat;
    table.prepare[OP_CONCAT] = prepare_concat;
    table.prepare[OP_PAD] = prepare_pad;
    table.prepare[OP_ARANGE] = prepare_arange;
    table.prepare[OP_FILL] = prepare_fill;
    table.prepare[OP_DIAG_MASK_INF] = prepare_diag_mask<false>;
    table.prepare[OP_DIAG_MASK_ZERO] = prepare_diag_mask<true>;
    table.prepare[OP_ACC] = prepare_region<true>;
    table.prepare[OP_SET] = prepare_region<false>;
}

GGR_KERNELS_END
