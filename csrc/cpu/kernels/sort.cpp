// ARGSORT and TOP_K of f32 rows.
//
// Both order (value, index) pairs held as one u64 in the worker's own memory: the value's bits mapped so that unsigned
// order is numeric order, then the index. The order is total, so equal values stay in index order, +0 equals -0, and
// NaN comes last in either direction; no comparison can contradict another, whatever the bits. Where equal values are
// to stay in falling index order, the row is read from its end and indices are counted from there. TOP_K gives its k
// indices best first. Floor: 3 counting passes of 8 bytes each way a row for ARGSORT; one read of the row for TOP_K.
#include "cpu/elementwise.h"
#include "cpu/level.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

using Pair = uint64_t;

inline uint32_t key_of(float value, bool descending) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;  // no number maps to it in either direction
    if (bits == 0x80000000u) bits = 0;
    const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return descending ? ~key : key;
}
inline Pair pair_of(float value, int64_t index, bool descending) {
    return static_cast<Pair>(key_of(value, descending)) << 32 | static_cast<uint32_t>(index);
}

void make_pairs(Pair* out, const uint8_t* x, int64_t stride, int64_t n, bool descending) {
    for (int64_t i = 0; i < n; ++i) out[i] = pair_of(*reinterpret_cast<const float*>(x + i * stride), i, descending);
}

constexpr int64_t RUN = 16;          // sorted by insertion
constexpr int64_t RADIX_MIN = 2048;  // from here on three counting passes beat merging

void insertion_sort(Pair* p, int64_t n) {
    for (int64_t i = 1; i < n; ++i) {
        const Pair x = p[i];
        int64_t j = i;
        for (; j > 0 && p[j - 1] > x; --j) p[j] = p[j - 1];
        p[j] = x;
    }
}

// Returns whichever of the two buffers holds the result.
Pair* merge_sort(Pair* a, Pair* b, int64_t n) {
    for (int64_t i = 0; i < n; i += RUN) insertion_sort(a + i, n - i < RUN ? n - i : RUN);
    for (int64_t width = RUN; width < n; width *= 2) {
        for (int64_t at = 0; at < n; at += 2 * width) {
            const int64_t middle = at + width < n ? at + width : n, end = middle + width < n ? middle + width : n;
            int64_t i = at, j = middle, o = at;
            while (i < middle && j < end) {
                const bool second = a[j] < a[i];
                b[o++] = second ? a[j] : a[i];
                i += !second;
                j += second;
            }
            while (i < middle) b[o++] = a[i++];
            while (j < end) b[o++] = a[j++];
        }
        Pair* const t = a;
        a = b;
        b = t;
    }
    return a;
}

// Three stable passes over 11, 11 and 10 bits of the key; the pairs start in index order.
Pair* radix_sort(Pair* a, Pair* b, int64_t n) {
    constexpr int BITS = 11, SIZE = 1 << BITS;
    uint32_t count[3][SIZE] = {};
    for (int64_t i = 0; i < n; ++i) {
        ++count[0][a[i] >> 32 & (SIZE - 1)];
        ++count[1][a[i] >> (32 + BITS) & (SIZE - 1)];
        ++count[2][a[i] >> (32 + 2 * BITS)];
    }
    for (int pass = 0; pass < 3; ++pass) {
        const int shift = 32 + pass * BITS;
        uint32_t sum = 0;
        for (int d = 0; d < SIZE; ++d) {
            const uint32_t c = count[pass][d];
            count[pass][d] = sum;
            sum += c;
        }
        for (int64_t i = 0; i < n; ++i) b[count[pass][a[i] >> shift & (SIZE - 1)]++] = a[i];
        Pair* const t = a;
        a = b;
        b = t;
    }
    return a;
}

Pair* sort_pairs(Pair* a, Pair* b, int64_t n) { return n < RADIX_MIN ? merge_sort(a, b, n) : radix_sort(a, b, n); }

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

// `end`: indices are counted down from it, or -1.
void put_indices(uint8_t* dst, int64_t stride, const Pair* pairs, int64_t n, int64_t end) {
    for (int64_t i = 0; i < n; ++i) {
        const int32_t at = static_cast<int32_t>(pairs[i] & 0xffffffffu);
        const int32_t index = end < 0 ? at : static_cast<int32_t>(end) - at;
        std::memcpy(dst + i * stride, &index, sizeof index);
    }
}

// ---- The k first pairs of a row: a heap of the k best so far, its worst on top ----

void sift_down(Pair* heap, int64_t k, int64_t i) {
    const Pair x = heap[i];
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= k) break;
        if (child + 1 < k && heap[child + 1] > heap[child]) ++child;
        if (heap[child] <= x) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = x;
}

inline float value_of(const float* x, Pair p) { return x[p & 0xffffffffu]; }

// Most of a long row is turned away by one vector comparison with the worst of the k: about one load a vector. `heap`
// has room for k pairs; they end in order.
void select_top(Pair* heap, const float* x, int64_t n, int64_t k) {
    make_pairs(heap, reinterpret_cast<const uint8_t*>(x), sizeof(float), k, true);
    for (int64_t i = k / 2; i-- > 0;) sift_down(heap, k, i);
    int64_t i = k;
    const auto offer = [&](int64_t at) {
        const Pair p = pair_of(x[at], at, true);
        if (p < heap[0]) {
            heap[0] = p;
            sift_down(heap, k, 0);
        }
    };
    while (i + 4 * VL <= n) {
        // Not "greater than": were the worst a NaN, all must be looked at.
        const vf worst = vset(value_of(x, heap[0]));
        const vi out = (vload(x + i) <= worst) & (vload(x + i + VL) <= worst) & (vload(x + i + 2 * VL) <= worst) &
                       (vload(x + i + 3 * VL) <= worst);
        if (vany(~out))
            for (int64_t j = i; j < i + 4 * VL; ++j) offer(j);
        i += 4 * VL;
    }
    for (; i < n; ++i) offer(i);
    for (int64_t left = k - 1; left > 0; --left) {  // heap sort: the worst to the end
        const Pair worst = heap[0];
        heap[0] = heap[left];
        heap[left] = worst;
        sift_down(heap, left, 0);
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

// arg: i64[2] descending, i64[7] from the end.
bool run_ranks(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const bool from_end = step.arg.i64[7] != 0;
        const Reading row = read_row(x, item, from_end);
        rank_sort(row_at(dst, item.i1, item.i2, item.i3), dst.nb[0], row.first, row.stride, x.ne[0], dst.ne[0],
                  step.arg.i64[2] != 0, from_end);
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
            put_indices(row_at(dst, item.i1, item.i2, item.i3), dst.nb[0], sorted, k,
                        step.arg.i64[7] != 0 ? n - 1 : -1);
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
    table.prepare[OP_TOP_K] = prepare_top_k;
}

GGR_KERNELS_END
