// ARGSORT and TOP_K of f32 rows. The order of pairs is total: equal values stay in index order, +0 equals -0, NaN comes
// last in either direction. Where equal values are to stay in falling index order, the row is read from its end.
//
// A block sorts a chunk by the bitonic network in shared memory. TOP_K keeps the k best of each chunk and sorts those
// again, until one chunk is left; ARGSORT merges the chunks, each pair finding its place by binary search in the other
// run. Floor: one read of the row; 78 steps of compare and exchange a chunk of 4096.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/sort.h"

namespace ggr {
namespace cuda {

constexpr uint64_t LAST_PAIR = ~uint64_t{0};

GGR_DEVICE uint64_t pair_of(float value, uint32_t index, bool descending) {
    uint32_t bits = float_to_bits(value);
    uint32_t key = 0xffffffffu;  // of a NaN; no number maps to it in either direction
    if ((bits & 0x7fffffffu) <= 0x7f800000u) {
        if (bits == 0x80000000u) bits = 0;
        key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
        if (descending) key = ~key;
    }
    return static_cast<uint64_t>(key) << 32 | index;
}

GGR_DEVICE int32_t* row_of_indices(const View& dst, const Divisor& ne1, const Divisor& ne2, uint32_t row) {
    const uint32_t i23 = quotient(row, ne1), i3 = quotient(i23, ne2);
    return reinterpret_cast<int32_t*>(row_at(dst, row - i23 * ne1.divisor, i23 - i3 * ne2.divisor, i3));
}

GGR_KERNEL GGR_BOUNDS(1024, 1) sort_chunks(const SortArgs a) {
    uint64_t* const pairs = reinterpret_cast<uint64_t*>(dynamic_shared());
    const uint32_t row = quotient(static_cast<uint32_t>(block_x()), a.chunks);
    const int chunk = static_cast<int>(static_cast<uint32_t>(block_x()) - row * a.chunks.divisor);
    const uint32_t i23 = quotient(row, a.ne1), i3 = quotient(i23, a.ne2);
    const uint8_t* x = row_at(a.x, row - i23 * a.ne1.divisor, i23 - i3 * a.ne2.divisor, i3);
    for (int i = thread_index(); i < a.size; i += n_threads()) {
        const int at = chunk * a.size + i;
        uint64_t pair = LAST_PAIR;
        if (at < a.n) {
            if (a.in != nullptr) {
                pair = a.in[static_cast<int64_t>(row) * a.n + at];
            } else {
                const int64_t from = a.from_end ? a.n - 1 - at : at;
                pair = pair_of(*reinterpret_cast<const float*>(x + from * a.x.nb[0]), static_cast<uint32_t>(at),
                               a.descending != 0);
            }
        }
        pairs[i] = pair;
    }
    sync_block();
    for (int length = 2; length <= a.size; length *= 2) {
        for (int distance = length / 2; distance > 0; distance /= 2) {
            for (int t = thread_index(); t < a.size / 2; t += n_threads()) {
                // The t-th index whose bit `distance` is not set.
                const int lower = 2 * t - (t & (distance - 1)), upper = lower + distance;
                const uint64_t first = pairs[lower], second = pairs[upper];
                if ((first > second) == ((lower & length) == 0)) {
                    pairs[lower] = second;
                    pairs[upper] = first;
                }
            }
            sync_block();
        }
    }
    for (int i = thread_index(); i < a.keep; i += n_threads()) {
        if (a.out != nullptr) {
            a.out[static_cast<int64_t>(block_x()) * a.keep + i] = pairs[i];
        } else {
            const int32_t index = static_cast<int32_t>(pairs[i] & 0xffffffffu);
            row_of_indices(a.dst, a.ne1, a.ne2, row)[i] =
                a.from_end ? static_cast<int32_t>(a.x.ne[0]) - 1 - index : index;
        }
    }
}

GGR_KERNEL GGR_BOUNDS(256, 1) merge_runs(const MergeArgs a) {
    const uint32_t row = quotient(static_cast<uint32_t>(block_x()), a.blocks);
    const int i =
        static_cast<int>(static_cast<uint32_t>(block_x()) - row * a.blocks.divisor) * n_threads() + thread_index();
    if (i >= a.total) return;
    const uint64_t* in = a.in + static_cast<int64_t>(row) * a.total;
    const uint64_t own = in[i];
    const int run = i / a.width, other = (run ^ 1) * a.width;
    // How many of the other run come first: of equal pairs (the filling) those of the even run.
    int low = other < a.total ? other : a.total;
    const int begin = low;
    int high = other + a.width < a.total ? other + a.width : a.total;
    if (high < low) high = low;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (in[middle] < own || ((run & 1) != 0 && in[middle] == own))
            low = middle + 1;
        else
            high = middle;
    }
    const int place = run / 2 * 2 * a.width + i % a.width + (low - begin);
    if (a.out != nullptr) {
        a.out[static_cast<int64_t>(row) * a.total + place] = own;
    } else if (place < a.keep) {
        const int32_t index = static_cast<int32_t>(own & 0xffffffffu);
        row_of_indices(a.dst, a.ne1, a.ne2, row)[place] = a.from_end ? a.n - 1 - index : index;
    }
}

// The first k of a short row as std::partial_sort of the GNU library selects them, equal values included: a heap of
// indices whose root is the one that a greater value replaces.
struct Selection {
    const uint8_t* x;
    int64_t stride;
    int32_t* index;
};
GGR_DEVICE bool comes_before(const Selection& s, int32_t a, int32_t b) {
    return *reinterpret_cast<const float*>(s.x + a * s.stride) > *reinterpret_cast<const float*>(s.x + b * s.stride);
}
// Fill the hole at `top` of a heap of n: it sinks to a leaf, then `value` rises from there.
GGR_DEVICE void fill_hole(const Selection& s, int top, int n, int32_t value) {
    int hole = top;
    while (2 * hole + 1 < n) {
        int child = 2 * hole + 2;
        if (child == n || comes_before(s, s.index[child], s.index[child - 1])) --child;
        s.index[hole] = s.index[child];
        hole = child;
    }
    for (; hole > top && comes_before(s, s.index[(hole - 1) / 2], value); hole = (hole - 1) / 2)
        s.index[hole] = s.index[(hole - 1) / 2];
    s.index[hole] = value;
}
// The root of a heap of n goes to `at`, what lies there into the heap.
GGR_DEVICE void swap_root(const Selection& s, int at, int n) {
    const int32_t value = s.index[at];
    s.index[at] = s.index[0];
    fill_hole(s, 0, n, value);
}

// One thread a row, since each step depends on the last: some microseconds for the experts of a router.
GGR_KERNEL GGR_BOUNDS(32, 1) select_first(const SelectArgs a) {
    GGR_SHARED int32_t index[SELECT_MAX];
    if (thread_index() != 0) return;
    const uint32_t row = static_cast<uint32_t>(block_x()), i23 = quotient(row, a.ne1), i3 = quotient(i23, a.ne2);
    const int n = static_cast<int>(a.x.ne[0]);
    const Selection s = {row_at(a.x, row - i23 * a.ne1.divisor, i23 - i3 * a.ne2.divisor, i3), a.x.nb[0], index};
    for (int i = 0; i < n; ++i) index[i] = i;
    for (int i = a.k / 2; i-- > 0;) fill_hole(s, i, a.k, index[i]);
    for (int i = a.k; i < n; ++i)
        if (comes_before(s, index[i], index[0])) swap_root(s, i, a.k);
    for (int left = a.k - 1; left > 0; --left) swap_root(s, left, left);
    int32_t* out = row_of_indices(a.dst, a.ne1, a.ne2, row);
    for (int i = 0; i < n; ++i) out[i] = index[i];
}

}  // namespace cuda
}  // namespace ggr
