// SOFT_MAX: dst = softmax(a * scale + slope(head) * mask) along rows, with an optional sink per head: a logit that
// takes part in the sum and has no place in the result. A row whose logits are all -inf and that has no sink becomes
// NaN. SOFT_CAP_MAX: the same of after * tanh(before * a). A row is a block's, or a warp's if it is short. Two passes:
// maximum and sum together, then the result. Floor: bytes of a, mask and dst over memory bandwidth, a and the mask
// once more from the L2 cache.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/softmax.cuh"
#include "cuda/kernels/softmax.h"

namespace ggr {
namespace cuda {

struct LogitRow {
    const float* a;
    const uint8_t* mask;
    float slope;
};

GGR_DEVICE float logit(const SoftmaxArgs& p, const LogitRow& row, int64_t i) {
    float x = row.a[i];
    if (p.capped) x = hyperbolic_tangent(x * p.before) * p.after;
    x *= p.scale;
    if (p.mask_type == MASK_F16) x += half_to_float(reinterpret_cast<const uint16_t*>(row.mask)[i]) * row.slope;
    if (p.mask_type == MASK_F32) x += reinterpret_cast<const float*>(row.mask)[i] * row.slope;
    return x;
}

template <bool BLOCK>
GGR_KERNEL GGR_BOUNDS(1024, 1) softmax(const SoftmaxArgs a) {
    GGR_SHARED float shared[WARP];
    const int first = BLOCK ? thread_index() : lane(), count = BLOCK ? n_threads() : WARP;
    const uint32_t row = BLOCK ? static_cast<uint32_t>(block_x())
                               : static_cast<uint32_t>(block_x()) * (static_cast<uint32_t>(n_threads()) / WARP) +
                                     static_cast<uint32_t>(warp_index());
    if (row >= a.rows) return;  // a whole warp, or none where barriers follow
    const uint32_t i23 = quotient(row, a.ne1), i1 = row - i23 * a.ne1.divisor, i3 = quotient(i23, a.ne2),
                   i2 = i23 - i3 * a.ne2.divisor;
    const int64_t n = a.dst.ne[0];
    LogitRow in;
    in.a = reinterpret_cast<const float*>(row_at(a.a, i1, i2, i3));
    in.mask = row_at(a.mask, i1, remainder_of(i2, a.mask_ne2), remainder_of(i3, a.mask_ne3));
    in.slope = alibi_slope(a.max_bias, static_cast<int>(a.dst.ne[2]), static_cast<int>(i2));

    float top = -infinity(), sum = 0.0f;
    for (int64_t i = first; i < n; i += count) {
        const float x = logit(a, in, i);
        if (x > top) {
            sum = sum * exponential(top - x) + 1.0f;
            top = x;
        } else if (x != -infinity()) {  // a NaN spoils the sum
            sum += exponential(x - top);
        }
    }
    float all = BLOCK ? block_max(top, shared) : warp_max(top);
    sum = top == -infinity() ? sum : sum * exponential(top - all);
    sum = BLOCK ? block_sum(sum, shared) : warp_sum(sum);
    if (a.sinks.data != nullptr) {
        const float sink = *reinterpret_cast<const float*>(a.sinks.data + i2 * a.sinks.nb[0]);
        const float both = largest(all, sink);
        sum = (all == -infinity() ? sum : sum * exponential(all - both)) + exponential(sink - both);
        all = both;
    }
    const float inverse = 1.0f / sum + (all - all);  // an infinite maximum makes the row NaN
    float* out = reinterpret_cast<float*>(row_at(a.dst, i1, i2, i3));
    for (int64_t i = first; i < n; i += count) out[i] = exponential(logit(a, in, i) - all) * inverse;
}

}  // namespace cuda
}  // namespace ggr
