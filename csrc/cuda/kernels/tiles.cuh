// Which columns a tile of a product has, and where their activations and results lie.
#pragma once

#include "cuda/kernels/place.cuh"

namespace ggr {
namespace cuda {

struct TileColumns {
    ProductArgs::Other matrix;
    const uint8_t* w;
    const int32_t* pairs;  // of a product by id, else nullptr
    int first, count, w2, w3;
    bool empty;  // the result is 0
};

GGR_DEVICE TileColumns tile_columns(const ProductArgs& a, int width) {
    TileColumns t;
    t.matrix = matrix_of_block(a);
    t.empty = false;
    if (a.ids != nullptr) {
        const int32_t* tile = a.tiles + 3 * block_y();
        t.pairs = a.pairs + tile[1];
        t.first = 0;
        t.count = tile[2];
        t.w2 = t.w3 = 0;
        t.empty = tile[0] >= a.experts;
        t.w = t.matrix.w + (t.empty ? 0 : tile[0]) * a.w_nb[1];
    } else {
        t.pairs = nullptr;
        t.w3 = block_z() / a.w_ne2;
        t.w2 = block_z() - t.w3 * a.w_ne2;
        t.first = block_y() * width;
        t.count = a.columns - t.first < width ? a.columns - t.first : width;
        t.w = t.matrix.w + t.w2 * a.w_nb[1] + t.w3 * a.w_nb[2];
    }
    return t;
}
GGR_DEVICE Column column_of_tile(const ProductArgs& a, const TileColumns& t, int c) {
    return t.pairs != nullptr ? column_of_pair(a, t.matrix, t.pairs[c])
                              : column_of_matrix(a, t.matrix, t.first + c, t.w2, t.w3);
}

}  // namespace cuda
}  // namespace ggr
