// SUM, SUM_ROWS, MEAN, CUMSUM, ARGMAX, COUNT_EQUAL. Sums run in f64 and are rounded once: an addition an element, which
// even a GPU with a 64th of its rate in f64 hides behind the memory. How a tensor is cut depends on its size alone.
// Floor: bytes of the source over memory bandwidth.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/reduce.h"

namespace ggr {
namespace cuda {

GGR_DEVICE double warp_total(double v) {
    GGR_UNROLL
    for (int m = 16; m > 0; m >>= 1) v += shuffle_xor(v, m);
    return v;
}
// Over the whole block, for every thread of it; `shared`: one double a warp.
GGR_DEVICE double block_total(double v, double* shared) {
    v = warp_total(v);
    sync_block();
    if (lane() == 0) shared[warp_index()] = v;
    sync_block();
    return warp_total(lane() < n_threads() / WARP ? shared[lane()] : 0.0);
}

GGR_DEVICE uint8_t* row_in(const View& t, const RowReduceArgs& a, uint32_t row) {
    const uint32_t i23 = quotient(row, a.ne1), i3 = quotient(i23, a.ne2);
    return row_at(t, row - i23 * a.ne1.divisor, i23 - i3 * a.ne2.divisor, i3);
}

// A block a row.
GGR_KERNEL GGR_BOUNDS(1024, 1) sum_rows(const RowReduceArgs a) {
    GGR_SHARED double shared[WARP];
    const uint32_t row = static_cast<uint32_t>(block_x());
    const uint8_t* x = row_in(a.x, a, row);
    double sum = 0.0;
    for (int64_t i = thread_index(); i < a.x.ne[0]; i += n_threads())
        sum += static_cast<double>(*reinterpret_cast<const float*>(x + i * a.x.nb[0]));
    sum = block_total(sum, shared);
    if (thread_index() == 0)
        *reinterpret_cast<float*>(row_in(a.dst, a, row)) =
            static_cast<float>(a.mean ? sum / static_cast<double>(a.x.ne[0]) : sum);
}

// A block a row: stretches of an element a thread, each stretch begins at the total of those before.
GGR_KERNEL GGR_BOUNDS(1024, 1) cumulative_sum(const RowReduceArgs a) {
    GGR_SHARED double shared[WARP];
    const uint32_t row = static_cast<uint32_t>(block_x());
    const uint8_t* x = row_in(a.x, a, row);
    uint8_t* y = row_in(a.dst, a, row);
    double before = 0.0;
    for (int64_t first = 0; first < a.x.ne[0]; first += n_threads()) {
        const int64_t i = first + thread_index();
        double v = i < a.x.ne[0] ? static_cast<double>(*reinterpret_cast<const float*>(x + i * a.x.nb[0])) : 0.0;
        GGR_UNROLL
        for (int distance = 1; distance < WARP; distance *= 2) {
            const double other = shuffle_up(v, distance);
            if (lane() >= distance) v += other;
        }
        sync_block();
        if (lane() == WARP - 1) shared[warp_index()] = v;
        sync_block();
        double whole = 0.0, lower = 0.0;
        for (int w = 0; w < n_threads() / WARP; ++w) {
            if (w == warp_index()) lower = whole;
            whole += shared[w];
        }
        if (i < a.x.ne[0]) *reinterpret_cast<float*>(y + i * a.dst.nb[0]) = static_cast<float>(before + lower + v);
        before += whole;
    }
}

// A block a row; among equal maxima the last, NaN never wins, 0 for a row of NaN.
GGR_KERNEL GGR_BOUNDS(1024, 1) arg_max(const RowReduceArgs a) {
    GGR_SHARED float tops[WARP];
    GGR_SHARED int32_t places[WARP];
    const uint8_t* x = a.x.data + static_cast<int64_t>(block_x()) * a.x.nb[1];
    float top = -infinity();
    int32_t place = -1;
    for (int64_t i = thread_index(); i < a.x.ne[0]; i += n_threads()) {
        const float v = *reinterpret_cast<const float*>(x + i * a.x.nb[0]);
        if (v >= top) {
            top = v;
            place = static_cast<int32_t>(i);
        }
    }
    const auto join = [&](float other, int32_t at) {
        if (other > top || (other == top && at > place)) {
            top = other;
            place = at;
        }
    };
    GGR_UNROLL
    for (int m = 16; m > 0; m >>= 1) {
        const float other = shuffle_xor(top, m);
        const int32_t at = shuffle_xor(place, m);
        join(other, at);
    }
    if (lane() == 0) {
        tops[warp_index()] = top;
        places[warp_index()] = place;
    }
    sync_block();
    if (thread_index() != 0) return;
    for (int w = 1; w < n_threads() / WARP; ++w) join(tops[w], places[w]);
    *reinterpret_cast<int32_t*>(a.dst.data + static_cast<int64_t>(block_x()) * a.dst.nb[0]) = place < 0 ? 0 : place;
}

// Sums of a, or how many elements of a and b (I32) are equal.
template <bool EQUAL>
GGR_KERNEL GGR_BOUNDS(1024, 1) total_parts(const TotalArgs a) {
    GGR_SHARED double shared[WARP];
    double sum = 0.0;
    const uint32_t step = static_cast<uint32_t>(a.n_parts) * static_cast<uint32_t>(n_threads());
    for (uint32_t i = static_cast<uint32_t>(block_x()) * static_cast<uint32_t>(n_threads()) +
                      static_cast<uint32_t>(thread_index());
         i < a.elements; i += step) {
        const uint32_t i123 = quotient(i, a.ne[0]), i23 = quotient(i123, a.ne[1]), i3 = quotient(i23, a.ne[2]);
        const int64_t i0 = i - i123 * a.ne[0].divisor, i1 = i123 - i23 * a.ne[1].divisor,
                      i2 = i23 - i3 * a.ne[2].divisor;
        const uint8_t* pa = row_at(a.a, i1, i2, i3) + i0 * a.a.nb[0];
        if constexpr (EQUAL) {
            const uint8_t* pb = row_at(a.b, i1, i2, i3) + i0 * a.b.nb[0];
            sum += *reinterpret_cast<const int32_t*>(pa) == *reinterpret_cast<const int32_t*>(pb) ? 1.0 : 0.0;
        } else {
            sum += static_cast<double>(load_element(pa, a.type));
        }
    }
    sum = block_total(sum, shared);
    if (thread_index() == 0) a.parts[block_x()] = sum;
}

template <bool EQUAL>
GGR_KERNEL GGR_BOUNDS(256, 1) total_of_parts(const TotalArgs a) {
    GGR_SHARED double shared[WARP];
    double sum = 0.0;
    for (int i = thread_index(); i < a.n_parts; i += n_threads()) sum += a.parts[i];
    sum = block_total(sum, shared);
    if (thread_index() != 0) return;
    if constexpr (EQUAL)
        *reinterpret_cast<int64_t*>(a.dst.data) = static_cast<int64_t>(sum);
    else
        store_element(a.dst.data, a.type, static_cast<float>(sum));
}

}  // namespace cuda
}  // namespace ggr
