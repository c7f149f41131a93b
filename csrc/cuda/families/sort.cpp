// ARGSORT and TOP_K.
#include "cuda/kernels/sort.h"

#include "cuda/families/families.h"
#include "cuda/families/operands.h"

namespace ggr {
namespace cuda {

namespace {

// Longest row, and most pairs that are held in scratch.
constexpr int64_t MAX_ROW = int64_t{1} << 27;
constexpr int64_t MAX_PAIRS = int64_t{1} << 26;

int64_t chunks_of(int64_t n) { return (n + SORT_CHUNK - 1) / SORT_CHUNK; }

uint64_t* pairs_in_scratch(PlanBuilder& builder, int64_t pairs) {
    return reinterpret_cast<uint64_t*>(builder.scratch(static_cast<uint64_t>(pairs) * 8));
}

void launch_chunks(PlanBuilder& builder, const Tensor& node, SortArgs& args, int64_t n, int64_t size, int64_t keep) {
    const int64_t chunks = (n + size - 1) / size;
    args.n = static_cast<int32_t>(n);
    args.size = static_cast<int32_t>(size);
    args.keep = static_cast<int32_t>(keep);
    args.chunks = divisor_of_size(chunks);
    const int64_t half = size / 2 < WARP ? WARP : size / 2;
    builder.launch(node, {static_cast<uint32_t>(chunks * n_rows(node)), 1, 1},
                   static_cast<int>(half < 1024 ? half : 1024), static_cast<int>(size * 8), args, "sort",
                   "sort_chunks");
}

// Sort rows of pairs until they are chunks, merge the chunks.
bool sort_all(PlanBuilder& builder, const Tensor& node, SortArgs& args) {
    const int64_t n = node.src[0]->ne[0], rows = n_rows(node), total = chunks_of(n) * SORT_CHUNK;
    if (total * rows > MAX_PAIRS) return false;
    uint64_t *from = pairs_in_scratch(builder, total * rows), *to = pairs_in_scratch(builder, total * rows);
    args.out = from;
    launch_chunks(builder, node, args, n, SORT_CHUNK, SORT_CHUNK);
    MergeArgs merge = {};
    merge.dst = args.dst;
    merge.ne1 = args.ne1;
    merge.ne2 = args.ne2;
    merge.total = static_cast<int32_t>(total);
    merge.keep = static_cast<int32_t>(node.ne[0]);
    merge.n = static_cast<int32_t>(n);
    merge.from_end = args.from_end;
    const int64_t blocks = (total + 255) / 256;
    merge.blocks = divisor_of_size(blocks);
    for (int64_t width = SORT_CHUNK; width < total; width *= 2) {
        merge.width = static_cast<int32_t>(width);
        merge.in = from;
        merge.out = width * 2 < total ? to : nullptr;
        builder.launch(node, {static_cast<uint32_t>(blocks * rows), 1, 1}, 256, 0, merge, "sort", "merge_runs");
        uint64_t* const t = from;
        from = to;
        to = t;
    }
    return true;
}

bool sort(PlanBuilder& builder, const Tensor& node, bool descending) {
    const Tensor& x = *node.src[0];
    if (x.type != TYPE_F32 || node.type != TYPE_I32 || !rows_contiguous(node)) return false;
    int64_t n = x.ne[0];
    const int64_t k = node.ne[0], rows = n_rows(node);
    if (n > MAX_ROW || k > n || rows * chunks_of(n) * (SORT_CHUNK / 256) >= MAX_COUNT) return false;
    SortArgs args = {};
    args.x = view_of(x);
    args.dst = view_of(node);
    args.ne1 = divisor_of_size(node.ne[1]);
    args.ne2 = divisor_of_size(node.ne[2]);
    args.descending = descending;
    args.from_end = (node.flags & FLAG_LATER_EQUALS_FIRST) != 0;
    if (n > SORT_CHUNK && k > SORT_CHUNK / 4) return sort_all(builder, node, args);
    while (n > SORT_CHUNK) {
        const int64_t left = chunks_of(n) * k;
        if (left * rows > MAX_PAIRS) return false;
        args.out = pairs_in_scratch(builder, left * rows);
        launch_chunks(builder, node, args, n, SORT_CHUNK, k);
        args.in = args.out;
        n = left;
    }
    args.out = nullptr;
    int64_t size = 2;
    while (size < n) size *= 2;
    launch_chunks(builder, node, args, n, size, k);
    return true;
}

// Relies on: source and result of one shape.
bool prepare_argsort(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    if ((node.flags & FLAG_HEAP_SELECTED) != 0 && x.ne[0] <= SELECT_MAX) {
        if (x.type != TYPE_F32 || node.type != TYPE_I32 || n_rows(node) >= MAX_COUNT) return false;
        if (node.params[1] < 0 || node.params[1] > x.ne[0]) return false;
        SelectArgs args = {};
        args.x = view_of(x);
        args.dst = view_of(node);
        args.ne1 = divisor_of_size(node.ne[1]);
        args.ne2 = divisor_of_size(node.ne[2]);
        args.k = node.params[1];
        builder.launch(node, {static_cast<uint32_t>(n_rows(node)), 1, 1}, WARP, 0, args, "sort", "select_first");
        return true;
    }
    return sort(builder, node, node.params[0] == SORT_DESC);
}

// Relies on: dst [k, ne1, ne2, ne3] of the source, 0 < k <= ne0.
bool prepare_top_k(PlanBuilder& builder, const Tensor& node) { return sort(builder, node, true); }

void enter(OpTable& table) {
    table.prepare[OP_ARGSORT] = prepare_argsort;
    table.prepare[OP_TOP_K] = prepare_top_k;
}

void list_kernels(void* context, KernelSink sink) {
    sink(context, {"sort", "sort_chunks"});
    sink(context, {"sort", "merge_runs"});
    sink(context, {"sort", "select_first"});
}

}  // namespace

const Family SORT = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
