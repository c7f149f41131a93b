// ARGSORT, ARGSORT_THRESH and TOP_K of f32 rows.
//
// All order the pairs of sort_pairs.h in the worker's own memory. Where equal values are to stay in falling index
// order, the row is read from its end and indices are counted from there. TOP_K gives its k indices best first. Floor:
// 3 counting passes of 8 bytes each way a row for ARGSORT; one read of the row for TOP_K.
#include "cpu/elementwise.h"
#include "cpu/level.h"
#include "cpu/sort_pairs.h"

GGR_KERNELS_BEGIN

namespace {

// Short rows (the experts of a router): an element's place is the number of those before it, counted for VL elements at
// a time: n * n / VL comparisons and no branch. Writes the indices that fall on the first k places.
constexpr int64_t RANK_MAX = 16 * VL;

void rank_sort(uint8_t* dst, int64_t stride_dst, const uint8_t* x, int64_t stride, int64_t n, int64_t k,
               bool descending, bool from_end) {
    int32_t keys[RANK_MAX], ranks[RANK_MAX];
    const int64_t blocks = (n + VL - 1) / VL;
    for (int64_t i = 0; i < n; ++i)  // as signed numbers: unsigned order with the top bit turned
        keys[i] =
            static_cast<int32_t>(key_of(*reinterpret_cast<const float*>(x + i * stride), descending) ^ 0x80000000u);
    for (int64_t i = n; i < blocks * VL; ++i) keys[i] = INT32_MAX;
    vi lane;
    for (int i = 0; i < VL; ++i) lane[i] = i;
    for (int64_t block = 0; block < blocks; ++block) {
        const int32_t at = static_cast<int32_t>(block * VL);
        vi own, rank = {};
        std::memcpy(&own, keys + at, sizeof own);
        // Of equal keys the one with the lower index comes first.
        int32_t j = 0;
        for (; j < at; ++j) rank -= (vi)(own >= keys[j]);
        for (; j < n && j < at + VL; ++j) rank -= (vi)(own > keys[j]) | ((vi)(own == keys[j]) & (vi)(lane > j - at));
        for (; j < n; ++j) rank -= (vi)(own > keys[j]);
        std::memcpy(ranks + at, &rank, sizeof rank);
    }
    for (int64_t i = 0; i < n; ++i) {
        const int32_t index = static_cast<int32_t>(from_end ? n - 1 - i : i);
        if (ranks[i] < k) std::memcpy(dst + ranks[i] * stride_dst, &index, sizeof index);
    }
}

// ---- The first k of a short row as std::partial_sort of the GNU library selects them, equal values included ----

constexpr int64_t SELECT_MAX = 1024;

// Indices of a row as a heap whose root is the one that a greater value replaces.
struct Selection {
    const uint8_t* x;
    int64_t stride;
    int32_t index[SELECT_MAX];

    bool before(int32_t a, int32_t b) const {
        return *reinterpret_cast<const float*>(x + a * stride) > *reinterpret_cast<const float*>(x + b * stride);
    }
    // Fill the hole at `top` of a heap of n: it sinks to a leaf, then `value` rises from there.
    void fill(int64_t top, int64_t n, int32_t value) {
        int64_t hole = top;
        while (2 * hole + 1 < n) {
            int64_t child = 2 * hole + 2;
            if (child == n || before(index[child], index[child - 1])) --child;
            index[hole] = index[child];
            hole = child;
        }
        for (; hole > top && before(index[(hole - 1) / 2], value); hole = (hole - 1) / 2)
            index[hole] = index[(hole - 1) / 2];
        index[hole] = value;
    }
    void select(int64_t n, int64_t k) {
        for (int64_t i = 0; i < n; ++i) index[i] = static_cast<int32_t>(i);
        for (int64_t i = k / 2; i-- > 0;) fill(i, k, index[i]);
        for (int64_t i = k; i < n; ++i)
            if (before(index[i], index[0])) swap_in(i, k);
        for (int64_t left = k - 1; left > 0; --left) swap_in(left, left);
    }
    // The root of a heap of n goes to `at`, what lies there into the heap.
    void swap_in(int64_t at, int64_t n) {
        const int32_t value = index[at];
        index[at] = index[0];
        fill(0, n, value);
    }
};

// arg: i64[2] selected.
bool run_selection(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    Selection selection;
    selection.stride = x.nb[0];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        selection.x = row_at(x, item.i1, item.i2, item.i3);
        selection.select(x.ne[0], step.arg.i64[2]);
        uint8_t* out = row_at(dst, item.i1, item.i2, item.i3);
        for (int64_t i = 0; i < x.ne[0]; ++i) std::memcpy(out + i * dst.nb[0], selection.index + i, sizeof(int32_t));
    }
    return true;
}

// Items are slots: each has its own memory and takes every n-th row, so that memory does not grow with the rows.
struct Slots {
    int64_t count, bytes;
};
constexpr int64_t SLOT_TOTAL = int64_t{64} << 20;

Slots slots_for(const PlanBuilder& builder, int64_t rows, int64_t pairs) {
    Slots s;
    s.bytes = pairs * static_cast<int64_t>(sizeof(Pair));
    s.count = SLOT_TOTAL / s.bytes;
    if (s.count > builder.n_workers()) s.count = builder.n_workers();
    if (s.count > rows) s.count = rows;
    if (s.count < 1) s.count = 1;
    return s;
}

// A row as it is to be read.
struct Reading {
    const uint8_t* first;
    int64_t stride;
};
Reading read_row(const Tensor& x, const Item& item, bool from_end) {
    const uint8_t* row = row_at(x, item.i1, item.i2, item.i3);
    return from_end ? Reading{row + (x.ne[0] - 1) * x.nb[0], -x.nb[0]} : Reading{row, x.nb[0]};
}

// ARGSORT_THRESH: from rank params[0] on, entries below params[1] times the largest are not named.
void drop_small(const Tensor& dst, uint8_t* out, const Reading& in) {
    const auto value = [&](int32_t i) { return *reinterpret_cast<const float*>(in.first + i * in.stride); };
    int32_t index;
    std::memcpy(&index, out, sizeof index);
    const float least_value = value(index) * param_f32(dst, 1);
    for (int64_t j = dst.params[0]; j < dst.ne[0]; ++j) {
        std::memcpy(&index, out + j * dst.nb[0], sizeof index);
        if (value(index) < least_value) index = -1;
        std::memcpy(out + j * dst.nb[0], &index, sizeof index);
    }
}

// arg: i64[2] descending, i64[7] from the end.
bool run_ranks(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const bool from_end = step.arg.i64[7] != 0;
        const Reading row = read_row(x, item, from_end);
        uint8_t* const out = row_at(dst, item.i1, item.i2, item.i3);
        rank_sort(out, dst.nb[0], row.first, row.stride, x.ne[0], dst.ne[0], step.arg.i64[2] != 0, from_end);
        if (dst.op == OP_ARGSORT_THRESH) drop_small(dst, out, row);
    }
    return true;
}

// arg: i64[0] slots, i64[1] bytes a slot, i64[2] descending, i64[6] whether the heap is used (never from the end),
// i64[7] from the end.
bool run(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const int64_t n = x.ne[0], k = dst.ne[0], rows = n_rows(dst);
    for (int64_t slot = begin; slot < end; ++slot) {
        Pair* const a = reinterpret_cast<Pair*>(worker.shared + step.offset[0] + slot * step.arg.i64[1]);
        for (int64_t row = slot; row < rows; row += step.arg.i64[0]) {
            const Item item = item_of(step, row);
            const Reading in = read_row(x, item, step.arg.i64[7] != 0);
            const Pair* sorted = a;
            if (step.arg.i64[6] != 0) {
                select_top(a, reinterpret_cast<const float*>(in.first), n, k);
            } else {
                make_pairs(a, in.first, in.stride, n, step.arg.i64[2] != 0);
                sorted = sort_pairs(a, a + n, n);
            }
            uint8_t* const out = row_at(dst, item.i1, item.i2, item.i3);
            put_indices(out, dst.nb[0], sorted, k, step.arg.i64[7] != 0 ? n - 1 : -1);
            if (dst.op == OP_ARGSORT_THRESH) drop_small(dst, out, in);
        }
    }
    return true;
}

bool add_step(PlanBuilder& builder, const Tensor& node, bool descending, bool heap, int64_t cost) {
    const Tensor& x = *node.src[0];
    const bool from_end = (node.flags & FLAG_LATER_EQUALS_FIRST) != 0;
    if (x.ne[0] <= RANK_MAX) {
        Step& step = builder.add(run_ranks, node, n_rows(node), n_elements(x) * (1 + x.ne[0] * 2 / VL));
        keep_split(step, {node.ne[0], node.ne[0], 1, n_rows(node)});
        step.arg.i64[2] = descending;
        step.arg.i64[7] = from_end;
        return true;
    }
    const Slots slots = slots_for(builder, n_rows(node), heap ? node.ne[0] : 2 * x.ne[0]);
    const int64_t bytes = slots.count * slots.bytes, offset = builder.scratch(bytes);
    Step& step = builder.add(run, node, slots.count, n_elements(x) * cost);
    // Where values rise along a row, each sinks through the heap.
    if (heap)
        builder.largest_item(node, n_elements(x) / slots.count * 16 * (64 - __builtin_clzll((uint64_t)node.ne[0])));
    keep_split(step, {node.ne[0], node.ne[0], 1, n_rows(node)});
    step.offset[0] = offset;
    step.arg.i64[0] = slots.count;
    step.arg.i64[1] = slots.bytes;
    step.arg.i64[2] = descending;
    step.arg.i64[6] = heap;
    step.arg.i64[7] = from_end;
    builder.writes_scratch(offset, bytes);
    return true;
}

bool check_types(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    if (x.type != TYPE_F32 || node.type != TYPE_I32)
        return builder.unsupported(node, "types %s -> %s", type_traits(x.type)->name, type_traits(node.type)->name);
    if (x.ne[0] > INT32_MAX) return builder.unsupported(node, "rows of %lld elements", static_cast<long long>(x.ne[0]));
    return true;
}

// Relies on: source and result of one shape.
bool prepare_argsort(PlanBuilder& builder, const Tensor& node) {
    if (!check_types(builder, node)) return false;
    if ((node.flags & FLAG_HEAP_SELECTED) != 0 && node.ne[0] <= SELECT_MAX) {
        Step& step = builder.add(run_selection, node, n_rows(node), n_elements(node) * 4);
        keep_split(step, {node.ne[0], node.ne[0], 1, n_rows(node)});
        step.arg.i64[2] = node.params[1];
        return true;
    }
    return add_step(builder, node, node.params[0] == SORT_DESC, false, 32);
}

// Relies on: source and result of one shape, params[0] not negative.
bool prepare_argsort_thresh(PlanBuilder& builder, const Tensor& node) {
    return check_types(builder, node) && add_step(builder, node, true, false, 32);
}

// Relies on: dst [k, ne1, ne2, ne3] of the source, 0 < k <= ne0.
bool prepare_top_k(PlanBuilder& builder, const Tensor& node) {
    if (!check_types(builder, node)) return false;
    const Tensor& x = *node.src[0];
    if (node.ne[0] > x.ne[0])
        return builder.unsupported(node, "%lld of %lld elements", static_cast<long long>(node.ne[0]),
                                   static_cast<long long>(x.ne[0]));
    const bool heap = rows_contiguous(x) && node.ne[0] <= x.ne[0] / 16;
    return add_step(builder, node, true, heap, heap ? 2 : 32);
}

}  // namespace

void register_sort(OpTable& table) {
    table.prepare[OP_ARGSORT] = prepare_argsort;
    table.prepare[OP_ARGSORT_THRESH] = prepare_argsort_thresh;
    table.prepare[OP_TOP_K] = prepare_top_k;
}

GGR_KERNELS_END
