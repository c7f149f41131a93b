// GET_ROWS: rows of src[0] that src[1] names, as f32 or as they are (i32 rows always).
// GATHER: elements of each row of src[0] that src[1] names. BLEND: src[0] with one value at the places that src[1]
// names. SET_ROWS: rows of src[0] into the rows of the result (a view of src[2]) that src[1] names, converted to its
// type. Every index is checked when it is read. Floor: bytes read and written over memory bandwidth.
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/quants/dequant.h"
#include "cpu/quants/quant.h"

GGR_KERNELS_BEGIN

namespace {

template <class I>
inline int64_t index_at(const uint8_t* p) {
    I value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

// GET_ROWS. Items are indices: result row (i1, i2, i3) comes from plane (i2, i3) of src[0], and its index is element
// (i1, i2, i3) of src[1].
template <class I>
bool run_get_rows(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &src = *step.src[0], &ids = *step.src[1], &dst = *step.dst;
    const DequantRow dequantize = dst.type == TYPE_F32 ? dequant_row_for(src.type) : nullptr;
    const size_t bytes = static_cast<size_t>(row_bytes(dst.type, dst.ne[0]));
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const int64_t i = index_at<I>(ids.data + row.i1 * ids.nb[0] + row.i2 * ids.nb[1] + row.i3 * ids.nb[2]);
        uint8_t* to = row.of(dst);
        if (i < 0 || i >= src.ne[1]) {
            if ((dst.flags & FLAG_ABSENT_ROWS_ARE_ZERO) == 0) return fail_index(worker, step, &ids, i, src.ne[1]);
            std::memset(to, 0, bytes);  // a zero in every type: its scale is 0
            continue;
        }
        const uint8_t* from = src.data + i * src.nb[1] + row.i2 * src.nb[2] + row.i3 * src.nb[3];
        if (dequantize != nullptr)
            dequantize(from, reinterpret_cast<float*>(to), dst.ne[0]);
        else
            std::memmove(to, from, bytes);
    }
    return true;
}

// Relies on: result [ne0, n, b, c] of ids [n, b, c] and rows [ne0, ., b, c].
bool prepare_get_rows(PlanBuilder& builder, const Tensor& node) {
    const Tensor &src = *node.src[0], &ids = *node.src[1];
    const bool types = node.type == src.type || (node.type == TYPE_F32 && dequant_row_for(src.type) != nullptr);
    if (!types || (ids.type != TYPE_I32 && ids.type != TYPE_I64))
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(src.type)->name, type_traits(ids.type)->name,
                                   type_traits(node.type)->name);
    if (!rows_contiguous(src) || !rows_contiguous(node)) return builder.unsupported(node, "rows that are not packed");
    builder.add(ids.type == TYPE_I32 ? run_get_rows<int32_t> : run_get_rows<int64_t>, node, n_rows(node),
                n_elements(node));
    return true;
}

constexpr int64_t STAGE = 1024;  // elements converted at a time through a buffer on the stack

void set_row(const uint8_t* x, bool x_is_f16, uint8_t* y, int64_t n, int32_t type, QuantRow quantize) {
    if (!x_is_f16) {
        quantize(reinterpret_cast<const float*>(x), y, n);
        return;
    }
    if (type == TYPE_F16) {
        std::memmove(y, x, (size_t)n * 2);
        return;
    }
    float buffer[STAGE];
    for (int64_t i = 0; i < n; i += STAGE) {
        const int64_t k = least(STAGE, n - i);
        f16_row_to_f32(x + 2 * i, buffer, k);
        quantize(buffer, y + row_bytes(type, i), k);
    }
}

// SET_ROWS. Items are rows of src[0]; the index of row (i1, i2, i3) is element (i1, i2, i3) of src[1], whose last two
// dimensions repeat.
template <class I>
bool run_set_rows(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &src = *step.src[0], &ids = *step.src[1], &dst = *step.dst;
    const QuantRow quantize = quant_row_for(dst.type);
    const bool is_f16 = src.type == TYPE_F16;
    RowCursor row(src, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const int64_t i = index_at<I>(ids.data + row.i1 * ids.nb[0] + row.i2 % ids.ne[1] * ids.nb[1] +
                                      row.i3 % ids.ne[2] * ids.nb[2]);
        if (i < 0 || i >= dst.ne[1]) return fail_index(worker, step, &ids, i, dst.ne[1]);
        uint8_t* to = dst.data + i * dst.nb[1] + row.i2 * dst.nb[2] + row.i3 * dst.nb[3];
        set_row(row.of(src), is_f16, to, src.ne[0], dst.type, quantize);
    }
    return true;
}

// Rows of one f32 element each, as transposed value caches are written: no call and no division an element.
template <class I, bool F16>
bool run_set_elements(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &src = *step.src[0], &ids = *step.src[1], &dst = *step.dst;
    RowCursor row(src, begin);
    while (begin < end) {
        const int64_t n = least(end - begin, src.ne[1] - row.i1);
        const uint8_t* from = row.of(src);
        const uint8_t* index =
            ids.data + row.i1 * ids.nb[0] + row.i2 % ids.ne[1] * ids.nb[1] + row.i3 % ids.ne[2] * ids.nb[2];
        uint8_t* plane = dst.data + row.i2 * dst.nb[2] + row.i3 * dst.nb[3];
        for (int64_t k = 0; k < n; ++k) {
            const int64_t i = index_at<I>(index + k * ids.nb[0]);
            if (i < 0 || i >= dst.ne[1]) return fail_index(worker, step, &ids, i, dst.ne[1]);
            const float x = *reinterpret_cast<const float*>(from + k * src.nb[1]);
            if (F16) {
                *reinterpret_cast<uint16_t*>(plane + i * dst.nb[1]) = f32_to_f16(x);
            } else {
                *reinterpret_cast<float*>(plane + i * dst.nb[1]) = x;
            }
        }
        begin += n;
        row = RowCursor(src, begin);
    }
    return true;
}

// Relies on: src[0] [ne0, n, b, c]; ids [n, b', c'] with b' dividing b, c' dividing c; result [ne0, ., b, c].
bool prepare_set_rows(PlanBuilder& builder, const Tensor& node) {
    const Tensor &src = *node.src[0], &ids = *node.src[1];
    if ((src.type != TYPE_F32 && src.type != TYPE_F16) || (ids.type != TYPE_I32 && ids.type != TYPE_I64) ||
        quant_row_for(node.type) == nullptr)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(src.type)->name, type_traits(ids.type)->name,
                                   type_traits(node.type)->name);
    if (!rows_contiguous(src) || !rows_contiguous(node)) return builder.unsupported(node, "rows that are not packed");
    if (src.type != TYPE_F32 && type_traits(node.type)->row_meta != 0)  // set_row converts a row in parts
        return builder.unsupported(node, "%s rows from other types than F32", type_traits(node.type)->name);
    if (is_empty(src)) return true;
    const bool wide = ids.type == TYPE_I64;
    Step::Fn fn = wide ? run_set_rows<int64_t> : run_set_rows<int32_t>;
    if (src.ne[0] == 1 && src.type == TYPE_F32 && node.type == TYPE_F16)
        fn = wide ? run_set_elements<int64_t, true> : run_set_elements<int32_t, true>;
    else if (src.ne[0] == 1 && src.type == TYPE_F32 && node.type == TYPE_F32)
        fn = wide ? run_set_elements<int64_t, false> : run_set_elements<int32_t, false>;
    const int64_t work = is_quantized(node.type) ? 3 * n_elements(src) : n_elements(src);
    Step& step = builder.add_bare(fn, &node, n_rows(src), work + 4 * n_rows(src));
    step.src[0] = &src;
    step.src[1] = &ids;
    builder.reads(src);
    builder.reads(ids);
    builder.writes(node);
    return true;
}

// GATHER. Items are rows: result (j, i1, i2, i3) is element src[1](j, i1, i2, i3) of row (i1, i2, i3) of src[0].
template <class T>
bool run_gather(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &src = *step.src[0], &ids = *step.src[1], &dst = *step.dst;
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const uint8_t *from = row.of(src), *index = row.of(ids);
        uint8_t* to = row.of(dst);
        for (int64_t j = 0; j < dst.ne[0]; ++j) {
            const int64_t i = index_at<int32_t>(index + j * ids.nb[0]);
            if (i < 0 || i >= src.ne[0]) return fail_index(worker, step, &ids, i, src.ne[0]);
            std::memcpy(to + j * static_cast<int64_t>(sizeof(T)), from + i * src.nb[0], sizeof(T));
        }
    }
    return true;
}

// Relies on: result [n, b, c, d] in packed rows, ids of its shape, src [., b, c, d] of its type.
bool prepare_gather(PlanBuilder& builder, const Tensor& node) {
    const Tensor &src = *node.src[0], &ids = *node.src[1];
    const int64_t bytes = block_bytes(node.type);
    if (node.type != src.type || block_size(node.type) != 1 || (bytes != 2 && bytes != 4) || ids.type != TYPE_I32)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(src.type)->name, type_traits(ids.type)->name,
                                   type_traits(node.type)->name);
    builder.add(bytes == 2 ? run_gather<uint16_t> : run_gather<uint32_t>, node, n_rows(node), 4 * n_elements(node));
    return true;
}

// BLEND. Items are rows.
template <class T, class I>
bool run_blend(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &src = *step.src[0], &ids = *step.src[1], &dst = *step.dst;
    const T value = static_cast<T>(step.arg.i64[0]);
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const uint8_t* index = row.of(ids);
        uint8_t* to = row.of(dst);
        std::memmove(to, row.of(src), static_cast<size_t>(dst.ne[0]) * sizeof(T));
        for (int64_t j = 0; j < ids.ne[0]; ++j) {
            const int64_t i = index_at<I>(index + j * ids.nb[0]);
            if (i < 0 || i >= dst.ne[0]) return fail_index(worker, step, &ids, i, dst.ne[0]);
            std::memcpy(to + i * static_cast<int64_t>(sizeof(T)), &value, sizeof value);
        }
    }
    return true;
}

// Relies on: src and result of one shape in packed rows, ids [., b, c, d] for [n, b, c, d].
bool prepare_blend(PlanBuilder& builder, const Tensor& node) {
    const Tensor &src = *node.src[0], &ids = *node.src[1];
    const bool single = node.type == TYPE_F32, wide = ids.type == TYPE_I64;
    if (node.type != src.type || (!single && node.type != TYPE_F16 && node.type != TYPE_BF16) ||
        (ids.type != TYPE_I32 && !wide))
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(src.type)->name, type_traits(ids.type)->name,
                                   type_traits(node.type)->name);
    const Step::Fn fn = single ? (wide ? run_blend<uint32_t, int64_t> : run_blend<uint32_t, int32_t>)
                               : (wide ? run_blend<uint16_t, int64_t> : run_blend<uint16_t, int32_t>);
    const float value = param_f32(node, 0);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (node.type == TYPE_F16) bits = f32_to_f16(value);
    if (node.type == TYPE_BF16) bits = f32_to_bf16(value);
    builder.add(fn, node, n_rows(node), n_elements(node) + 4 * n_elements(ids)).arg.i64[0] = bits;
    return true;
}

}  // namespace

void register_rows(OpTable& table) {
    table.prepare[OP_GET_ROWS] = prepare_get_rows;
    table.prepare[OP_SET_ROWS] = prepare_set_rows;
    table.prepare[OP_GATHER] = prepare_gather;
    table.prepare[OP_BLEND] = prepare_blend;
}

GGR_KERNELS_END
