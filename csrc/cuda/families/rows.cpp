// GET_ROWS: all types to F32, and rows as they are. SET_ROWS: F32 and F16 into plain types and those that caches have.
#include "cuda/kernels/rows.h"

#include "cuda/families/families.h"
#include "cuda/families/types.h"

namespace ggr {
namespace cuda {

namespace {

constexpr int64_t MAX_UNITS = int64_t{1} << 31;

Divisor divisor_of_size(int64_t n) { return divisor_of(static_cast<uint32_t>(n)); }
uint32_t ceil_div(int64_t a, int64_t b) { return static_cast<uint32_t>((a + b - 1) / b); }

// Relies on: rows contiguous; node [ne0, n, b, c] of ids [n, b, c] and rows [ne0, ., b, c].
bool prepare_get_rows(PlanBuilder& builder, const Tensor& node) {
    const Tensor &src = *node.src[0], &ids = *node.src[1];
    if (ids.type != TYPE_I32 || !readable(ids) || !rows_contiguous(src) || !rows_contiguous(node)) return false;
    if (n_rows(node) >= MAX_UNITS) return false;
    GetRowsArgs args = {};
    args.src = view_of(src);
    args.ids = view_of(ids);
    args.dst = view_of(node);
    args.row_bytes = row_bytes(node.type, node.ne[0]);
    args.absent_is_zero = (node.flags & FLAG_ABSENT_ROWS_ARE_ZERO) != 0;
    args.site = builder.fault_site(node, 1);
    const bool as_is = src.type == node.type && src.type != TYPE_F32 && src.type != TYPE_I32;
    if (!as_is && (!readable(src) || !readable(node))) return false;
    const int64_t chunks = ceil_div(as_is ? args.row_bytes : node.ne[0], ROWS_CHUNK);
    if (chunks > MAX_GRID) return false;
    const Grid grid = {static_cast<uint32_t>(n_rows(node)), static_cast<uint32_t>(chunks), 1};
    const QuantisedType* quantised = quantised_type(src.type);
    if (as_is)
        builder.launch(node, grid, ROWS_THREADS, 0, args, "rows", "get_rows_bytes");
    else if (quantised != nullptr && quantised->supply != SUPPLY_INTERLEAVED && node.type == TYPE_F32)
        builder.launch(node, grid, ROWS_THREADS, 0, args, "rows", "get_rows_quantised<%s>", quantised->name);
    else if (src.type == TYPE_I32 && node.type == TYPE_I32)  // four bytes are four bytes
        builder.launch(node, grid, ROWS_THREADS, 0, args, "rows", "get_rows_plain<%s>", "F32");
    else if (float_name(src.type) != nullptr && node.type == TYPE_F32)
        builder.launch(node, grid, ROWS_THREADS, 0, args, "rows", "get_rows_plain<%s>", float_name(src.type));
    else
        return false;
    return true;
}

// Relies on: rows contiguous; src [ne0, n, b, c], ids [n, b', c'] with b' dividing b and c' dividing c, node [ne0, .,
// b, c].
bool prepare_set_rows(PlanBuilder& builder, const Tensor& node) {
    const Tensor &src = *node.src[0], &ids = *node.src[1];
    const bool to_blocks = is_cache_type(node.type), to_rows = node.type == TYPE_Q8_KV && src.type == TYPE_F32;
    if ((src.type != TYPE_F32 && src.type != TYPE_F16) || (!to_blocks && !to_rows && float_name(node.type) == nullptr))
        return false;
    if ((ids.type != TYPE_I32 && ids.type != TYPE_I64) || !readable(src) || !readable(ids) || !readable(node))
        return false;
    if (!rows_contiguous(src) || !rows_contiguous(node) || n_elements(src) >= MAX_UNITS) return false;
    if (is_empty(src) || is_empty(ids)) return false;
    const int64_t width = to_rows ? 1 : src.ne[0] / block_size(node.type), total = width * n_rows(src);
    const int64_t all_threads = to_rows ? WARP * total : total;
    if (all_threads >= MAX_UNITS) return false;
    SetRowsArgs args = {};
    args.src = view_of(src);
    args.ids = view_of(ids);
    args.dst = view_of(node);
    args.width = divisor_of_size(width);
    args.ne1 = divisor_of_size(src.ne[1]);
    args.ne2 = divisor_of_size(src.ne[2]);
    args.ids_ne1 = divisor_of_size(ids.ne[1]);
    args.ids_ne2 = divisor_of_size(ids.ne[2]);
    args.total = static_cast<uint32_t>(total);
    args.wide = ids.type == TYPE_I64;
    args.site = builder.fault_site(node, 1);
    const int threads = all_threads <= 8192 ? 64 : COPY_THREADS;
    const Grid grid = {ceil_div(all_threads, threads), 1, 1};
    const char* from = float_name(src.type);
    if (to_rows)
        builder.launch(node, grid, threads, 0, args, "rows", "set_rows_q8_kv");
    else if (to_blocks)
        builder.launch(node, grid, threads, 0, args, "rows", "set_rows_quantised<%s, %s>", from,
                       quantised_type(node.type)->name);
    else
        builder.launch(node, grid, threads, 0, args, "rows", "set_rows_plain<%s, %s>", from, float_name(node.type));
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_GET_ROWS] = prepare_get_rows;
    table.prepare[OP_SET_ROWS] = prepare_set_rows;
}

void list_kernels(void* context, KernelSink sink) {
    for (const char* type : FLOATS) {
        list_kernel(context, sink, "rows", "get_rows_plain<%s>", type);
        for (const char* from : {"F32", "F16"})
            list_kernel(context, sink, "rows", "set_rows_plain<%s, %s>", from, type);
    }
    sink(context, {"rows", "set_rows_q8_kv"});
    sink(context, {"rows", "get_rows_bytes"});
    for (const QuantisedType& type : QUANTISED_TYPES) {
        if (type.supply == SUPPLY_INTERLEAVED) continue;
        list_kernel(context, sink, "rows", "get_rows_quantised<%s>", type.name);
        if (!is_cache_type(type.type)) continue;
        for (const char* from : {"F32", "F16"})
            list_kernel(context, sink, "rows", "set_rows_quantised<%s, %s>", from, type.name);
    }
}

}  // namespace

const Family ROWS = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
