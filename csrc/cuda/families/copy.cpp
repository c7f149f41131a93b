// CPY, CONT, DUP: between layouts, plain types, and into and out of quantised ones.
#include "cuda/families/families.h"
#include "cuda/families/types.h"
#include "cuda/kernels/rows.h"

namespace ggr {
namespace cuda {

namespace {

constexpr int64_t MAX_UNITS = int64_t{1} << 31;
constexpr int64_t TRANSPOSED_LEAST = 16;  // elements in both dimensions from which on tiles pay

// Launches `total` units of `from` and `to`, whose ne[0] and nb[0] are of units; false if there are too many.
template <class... Values>
bool launch_units(PlanBuilder& builder, const Tensor& node, const View& from, const View& to, int64_t total,
                  const char* expression, Values... values) {
    if (total >= MAX_UNITS) return false;
    const int64_t from_all = from.ne[0] * from.ne[1] * from.ne[2] * from.ne[3];
    const int64_t to_all = to.ne[0] * to.ne[1] * to.ne[2] * to.ne[3];
    if (from_all >= MAX_UNITS || to_all >= MAX_UNITS) return false;
    CopyArgs args = {};
    args.from = from;
    args.to = to;
    for (int i = 0; i < 3; ++i) {
        args.from_ne[i] = divisor_of(static_cast<uint32_t>(from.ne[i]));
        args.to_ne[i] = divisor_of(static_cast<uint32_t>(to.ne[i]));
    }
    args.total = static_cast<uint32_t>(total);
    args.row = node.ne[0];
    const int threads = total <= 8192 ? 64 : COPY_THREADS;
    const Grid grid = {static_cast<uint32_t>((total + threads - 1) / threads), 1, 1};
    builder.launch(node, grid, threads, 0, args, "copy", expression, values...);
    return true;
}

// A tensor of packed rows as bytes; one row if nothing lies between the rows.
View bytes_of(const Tensor& t) {
    View v = view_of(t);
    v.ne[0] = row_bytes(t.type, t.ne[0]);
    if (is_contiguous(t)) {
        v.ne[0] *= n_rows(t);
        for (int i = 1; i < MAX_DIMS; ++i) v.ne[i] = 1;
    }
    return v;
}
bool in_units_of(const View& v, int64_t bytes) {
    if (reinterpret_cast<uintptr_t>(v.data) % static_cast<uintptr_t>(bytes) != 0 || v.ne[0] % bytes != 0) return false;
    for (int i = 1; i < MAX_DIMS; ++i)
        if (v.ne[i] > 1 && v.nb[i] % bytes != 0) return false;
    return true;
}

// The same type in packed rows, in the largest units that fit both sides.
bool copy_bytes(PlanBuilder& builder, const Tensor& node, const Tensor& src) {
    View from = bytes_of(src), to = bytes_of(node);
    int unit = 16;
    while (!in_units_of(from, unit) || !in_units_of(to, unit)) unit /= 2;
    for (View* v : {&from, &to}) {
        v->ne[0] /= unit;
        v->nb[0] = unit;
    }
    const int64_t total = to.ne[0] * to.ne[1] * to.ne[2] * to.ne[3];
    return launch_units(builder, node, from, to, total, "copy_bits<Unit%d>", unit);
}

// The same type, packed along dimension 0 in the result and along 1 in the source, or the other way round.
bool copy_transposed(PlanBuilder& builder, const Tensor& node, const Tensor& src) {
    const int64_t size = block_bytes(node.type);
    if (!same_shape(src, node) || node.ne[0] < TRANSPOSED_LEAST || node.ne[1] < TRANSPOSED_LEAST) return false;
    CopyArgs args = {};
    args.from = view_of(src);
    args.to = view_of(node);
    if (node.nb[1] == size && src.nb[0] == size) {
        for (View* v : {&args.from, &args.to}) {
            std::swap(v->ne[0], v->ne[1]);
            std::swap(v->nb[0], v->nb[1]);
        }
    } else if (node.nb[0] != size || src.nb[1] != size) {
        return false;
    }
    const int64_t y = (args.to.ne[1] + 31) / 32, z = node.ne[2] * node.ne[3];
    if (y > MAX_GRID || z > MAX_GRID || args.to.ne[0] >= MAX_UNITS) return false;
    const Grid grid = {static_cast<uint32_t>((args.to.ne[0] + 31) / 32), static_cast<uint32_t>(y),
                       static_cast<uint32_t>(z)};
    builder.launch(node, grid, COPY_THREADS, 0, args, "copy", "copy_transposed<Unit%d>", static_cast<int>(size));
    return true;
}

const char* number_name(int32_t type) { return type == TYPE_I32 ? "I32" : float_name(type); }

// Relies on: equal numbers of elements; rows of quantised tensors hold whole blocks, those of a float source too.
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor& src = *node.src[0];
    if (is_empty(node)) return false;
    const int64_t n = n_elements(node);
    View from = view_of(src), to = view_of(node);
    if (src.type == node.type) {
        if (rows_contiguous(src) && rows_contiguous(node)) return copy_bytes(builder, node, src);
        const int64_t size = block_bytes(node.type);
        if (is_quantized(src.type) || size > 8 || !readable(src) || !readable(node)) return false;
        return copy_transposed(builder, node, src) ||
               launch_units(builder, node, from, to, n, "copy_bits<Unit%d>", static_cast<int>(size));
    }
    if (!readable(src) || !readable(node)) return false;
    if (quantised_type(src.type) != nullptr && node.type == TYPE_F32) return add_dequantised(builder, node, src);
    if (src.type == TYPE_F32 && node.type == TYPE_Q8_KV) {
        from.ne[0] = to.ne[0] = 1;
        return launch_units(builder, node, from, to, WARP * n_rows(node), "copy_to_q8_kv");
    }
    if (float_name(src.type) != nullptr && is_cache_type(node.type)) {
        from.ne[0] /= 32;
        from.nb[0] *= 32;
        to.ne[0] /= 32;
        return launch_units(builder, node, from, to, n / 32, "copy_quantised<%s, %s>", float_name(src.type),
                            quantised_type(node.type)->name);
    }
    const bool integers = src.type == TYPE_I32 || node.type == TYPE_I32;
    if (number_name(src.type) == nullptr || number_name(node.type) == nullptr ||
        (integers && src.type != TYPE_F32 && node.type != TYPE_F32))
        return false;
    return launch_units(builder, node, from, to, n, "copy_converted<%s, %s>", number_name(src.type),
                        number_name(node.type));
}

void enter(OpTable& table) {
    table.prepare[OP_DUP] = prepare;
    table.prepare[OP_CPY] = prepare;
    table.prepare[OP_CONT] = prepare;
}

void list_kernels(void* context, KernelSink sink) {
    for (const int size : {1, 2, 4, 8, 16}) list_kernel(context, sink, "copy", "copy_bits<Unit%d>", size);
    for (const int size : {1, 2, 4, 8}) list_kernel(context, sink, "copy", "copy_transposed<Unit%d>", size);
    for (const char* from : FLOATS)
        for (const char* to : FLOATS)
            if (from != to) list_kernel(context, sink, "copy", "copy_converted<%s, %s>", from, to);
    list_kernel(context, sink, "copy", "copy_converted<%s, %s>", "F32", "I32");
    list_kernel(context, sink, "copy", "copy_converted<%s, %s>", "I32", "F32");
    sink(context, {"copy", "copy_to_q8_kv"});
    for (const QuantisedType& type : QUANTISED_TYPES) {
        if (type.supply == SUPPLY_INTERLEAVED) continue;  // rules keep single rows of groups from every other op
        list_kernel(context, sink, "copy", "copy_dequantised<%s>", type.name);
        if (!is_cache_type(type.type)) continue;
        for (const char* from : FLOATS) list_kernel(context, sink, "copy", "copy_quantised<%s, %s>", from, type.name);
    }
}

}  // namespace

bool add_dequantised(PlanBuilder& builder, const Tensor& node, const Tensor& src) {
    const QuantisedType* type = quantised_type(src.type);
    if (type->supply == SUPPLY_INTERLEAVED || !readable(src)) return false;
    View from = view_of(src);
    from.ne[0] /= 16;
    from.nb[0] = 0;
    return launch_units(builder, node, from, view_of(node), n_elements(node) / 16, "copy_dequantised<%s>", type->name);
}

const Family COPY = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
