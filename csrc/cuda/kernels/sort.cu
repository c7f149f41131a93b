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

}  // namespace cuda
}  // namespace ggr
