// NORM, RMS_NORM, L2_NORM, GROUP_NORM of f32 rows, with a factor and an addend where the plan saw the chain. A row is
// a block's, or a warp's if it is short (heads). Floor: bytes of source and result over memory bandwidth; the second
// and third pass over a row come from the caches.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/norm.h"

namespace ggr {
namespace cuda {

// A total over the threads that share a row.
template <bool BLOCK>
GGR_DEVICE float total(float v, float* shared) {
    if constexpr (BLOCK) return block_sum(v, shared);
    return warp_sum(v);
}
GGR_DEVICE double warp_total(double v) {
    GGR_UNROLL
    for (int m = 16; m > 0; m >>= 1) v += shuffle_xor(v, m);
    return v;
}

// Sum of (x - centre)^2, or of x where !SQUARE, over a row that `count` threads share.
template <bool SQUARE, class T>
GGR_DEVICE T row_sum(const Operand& x, const uint8_t* row, int64_t n, int first, int count, T centre) {
    T sum = 0;
    for (int64_t i = static_cast<int64_t>(first) * 4; i < n; i += static_cast<int64_t>(count) * 4) {
        float v[4];
        const int left = n - i < 4 ? static_cast<int>(n - i) : 4;
        load_quad(v, x, row + i * x.t.nb[0], left);
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) {
            const T d = static_cast<T>(v[j]) - centre;
            if (j < left) sum += SQUARE ? d * d : d;
        }
    }
    return sum;
}

// Squares of very large or small elements leave f32: the sum anew in f64, every warp all of the row.
GGR_DEVICE double wide_squares(const Operand& x, const uint8_t* row, int64_t n, double centre) {
    return warp_total(row_sum<true, double>(x, row, n, lane(), WARP, centre));
}

template <bool BLOCK>
GGR_KERNEL GGR_BOUNDS(1024, 1) norm(const NormArgs a) {
    GGR_SHARED float shared[WARP];
    const int first = BLOCK ? thread_index() : lane(), count = BLOCK ? n_threads() : WARP;
    const uint32_t row = BLOCK ? static_cast<uint32_t>(block_x())
                               : static_cast<uint32_t>(block_x()) * (static_cast<uint32_t>(n_threads()) / WARP) +
                                     static_cast<uint32_t>(warp_index());
    if (row >= a.rows) return;  // a whole warp, or none where barriers follow
    const uint32_t i23 = quotient(row, a.ne1), i1 = row - i23 * a.ne1.divisor, i3 = quotient(i23, a.ne2),
                   i2 = i23 - i3 * a.ne2.divisor;
    const int64_t n = a.dst.t.ne[0];
    const uint8_t* px = row_at(a.x.t, i1, i2, i3);
    const float size = static_cast<float>(n);
    float centre = 0.0f;
    if (a.kind == NORM_CENTRED) centre = total<BLOCK>(row_sum<false>(a.x, px, n, first, count, 0.0f), shared) / size;
    const float squares = total<BLOCK>(row_sum<true>(a.x, px, n, first, count, centre), shared);
    float scale;
    if (squares > 1e-25f && squares < 1e35f) {
        if (a.kind == NORM_LENGTH)
            scale = 1.0f / largest(square_root(squares), a.eps);
        else
            scale = 1.0f / square_root(squares / size + a.eps);
    } else {
        const double wide = wide_squares(a.x, px, n, static_cast<double>(centre));
        if constexpr (BLOCK) sync_block();  // dst may be x: nobody may write before all have read
        const double inside = a.kind == NORM_LENGTH ? wide : wide / static_cast<double>(n) + static_cast<double>(a.eps);
        const double root = square_root(inside), least = static_cast<double>(a.eps);
        scale = static_cast<float>(1.0 / (a.kind == NORM_LENGTH && root < least ? least : root));
    }
    uint8_t* pd = row_at(a.dst.t, i1, i2, i3);
    const bool with_factor = a.factor.t.data != nullptr, with_addend = a.addend.t.data != nullptr;
    const uint8_t* pf = row_at(a.factor.t, remainder_of(i1, a.factor_ne[0]), remainder_of(i2, a.factor_ne[1]),
                               remainder_of(i3, a.factor_ne[2]));
    const uint8_t* pa = row_at(a.addend.t, remainder_of(i1, a.addend_ne[0]), remainder_of(i2, a.addend_ne[1]),
                               remainder_of(i3, a.addend_ne[2]));
    for (int64_t i = static_cast<int64_t>(first) * 4; i < n; i += static_cast<int64_t>(count) * 4) {
        float v[4], w[4];
        const int left = n - i < 4 ? static_cast<int>(n - i) : 4;
        load_quad(v, a.x, px + i * a.x.t.nb[0], left);
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) v[j] = (v[j] - centre) * scale;
        if (with_factor) {
            load_quad(w, a.factor, pf + i * a.factor.t.nb[0], left);
            GGR_UNROLL
            for (int j = 0; j < 4; ++j) v[j] *= w[j];
        }
        if (with_addend) {
            load_quad(w, a.addend, pa + i * a.addend.t.nb[0], left);
            GGR_UNROLL
            for (int j = 0; j < 4; ++j) v[j] += w[j];
        }
        store_quad(a.dst, pd + i * a.dst.t.nb[0], v, left);
    }
}

// One block a group of one i3: blocks x are groups, y are i3. Sums in f32 by thread, then by tree.
GGR_KERNEL GGR_BOUNDS(1024, 1) group_norm(const GroupNormArgs a) {
    GGR_SHARED float shared[WARP];
    const int64_t first = static_cast<int64_t>(block_x()) * a.size, i3 = block_y();
    const int64_t channels = a.x.ne[2] - first < a.size ? a.x.ne[2] - first : a.size;
    const int64_t rows = channels * a.x.ne[1], n = a.x.ne[0], all = rows * n;
    const auto offset = [&](const View& t, int64_t i) {
        const int64_t row = i / n, i0 = i - row * n, i2 = row / t.ne[1], i1 = row - i2 * t.ne[1];
        return i0 * t.nb[0] + row_offset(t, i1, first + i2, i3);
    };
    float sum = 0.0f;
    for (int64_t i = thread_index(); i < all; i += n_threads())
        sum += *reinterpret_cast<const float*>(a.x.data + offset(a.x, i));
    const float mean = block_sum(sum, shared) / static_cast<float>(all);
    float squares = 0.0f;
    for (int64_t i = thread_index(); i < all; i += n_threads()) {
        const float d = *reinterpret_cast<const float*>(a.x.data + offset(a.x, i)) - mean;
        squares += d * d;
    }
    const float scale = 1.0f / square_root(block_sum(squares, shared) / static_cast<float>(all) + a.eps);
    for (int64_t i = thread_index(); i < all; i += n_threads()) {
        const float x = *reinterpret_cast<const float*>(a.x.data + offset(a.x, i));
        *reinterpret_cast<float*>(a.dst.data + offset(a.dst, i)) = (x - mean) * scale;
    }
}

}  // namespace cuda
}  // namespace ggr
