// Where the columns of a product lie.
#pragma once

#include "cuda/kernels/base.cuh"
#include "cuda/kernels/products.h"

namespace ggr {
namespace cuda {

// The matrix that a block works on, and the number of its first block.
GGR_DEVICE ProductArgs::Other matrix_of_block(const ProductArgs& a) {
    ProductArgs::Other m = {a.w, a.dst, a.dst_nb[0], a.m, 0};
    GGR_UNROLL
    for (int i = 0; i < MAX_OTHERS; ++i) {
        if (i < a.n_others && block_x() >= a.others[i].first_block) m = a.others[i];
    }
    return m;
}

struct Column {
    const uint8_t* x;
    float* dst;
};

// Column c of matrix (w2, w3) of the weights.
GGR_DEVICE Column column_of_matrix(const ProductArgs& a, const ProductArgs::Other& m, int c, int w2, int w3) {
    const int t = static_cast<int>(quotient(static_cast<uint32_t>(c), a.by_x_ne1)), i1 = c - t * a.x_ne1;
    const int t3 = static_cast<int>(quotient(static_cast<uint32_t>(t), a.by_r2)), t2 = t - t3 * a.r2;
    const int64_t i2 = static_cast<int64_t>(w2) * a.r2 + t2, i3 = static_cast<int64_t>(w3) * a.r3 + t3;
    return {a.x + i1 * a.x_nb[0] + i2 * a.x_nb[1] + i3 * a.x_nb[2],
            reinterpret_cast<float*>(m.dst + i1 * m.dst_nb1 + i2 * a.dst_nb[1] + i3 * a.dst_nb[2])};
}
// Of a product by id: pair = token * slots + slot; by_x_ne1 divides by the rows of x a token, by_r2 by slots.
GGR_DEVICE Column column_of_pair(const ProductArgs& a, const ProductArgs::Other& m, int pair) {
    const int token = static_cast<int>(quotient(static_cast<uint32_t>(pair), a.by_r2)), slot = pair - token * a.r2;
    const int row = slot - static_cast<int>(quotient(static_cast<uint32_t>(slot), a.by_x_ne1)) * a.x_ne1;
    return {a.x + row * a.x_nb[0] + token * a.x_nb[1],
            reinterpret_cast<float*>(m.dst + slot * m.dst_nb1 + token * a.dst_nb[1])};
}

}  // namespace cuda
}  // namespace ggr
