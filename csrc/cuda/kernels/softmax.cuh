// ALiBi's slopes.
#pragma once

#include "cuda/kernels/base.cuh"

namespace ggr {
namespace cuda {

// The factor by which head `head` of n_head multiplies its mask: with n = the largest power of two <= n_head, heads
// below n take 2^(-max_bias (h + 1) / n), the others 2^(-max_bias (2 (h - n) + 1) / 2n). Without bias it is 1.
GGR_DEVICE float alibi_slope(float max_bias, int n_head, int head) {
    if (!(max_bias > 0.0f)) return 1.0f;
    int n = 1;
    while (n * 2 <= n_head) n *= 2;
    const float steps = head < n ? static_cast<float>(head + 1) : static_cast<float>(head - n) + 0.5f;
    return power(2.0f, -max_bias * steps / static_cast<float>(n));
}

}  // namespace cuda
}  // namespace ggr
