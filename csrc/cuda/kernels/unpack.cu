// What products by cuBLASLt need around them. Floors: the weights read and their halves written; the results read and
// written, of columns whose activations were scaled (few, if any).
#include "cuda/kernels/plain.cuh"
#include "cuda/kernels/products.h"
#include "cuda/types/all.cuh"

namespace ggr {
namespace cuda {

// Grid: x rows, y pieces of 16 elements.
template <class T>
GGR_KERNEL GGR_BOUNDS(UNPACK_THREADS, 1) unpack_rows(const UnpackArgs a) {
    constexpr int PIECES = T::ELEMENTS / 16;
    const int64_t row = block_x();
    const int number = block_y() * UNPACK_THREADS + thread_index();
    if (number >= a.pieces) return;
    const int block = number / PIECES, i = number - block * PIECES;
    const Row from = product_row<T>(a.w + row * a.w_nb1, 0, 0);
    float v[16];
    piece_values(piece_of<T>(from, block, T::unit_of(i), T::part_of(i)), v);
    Bytes16* const to = reinterpret_cast<Bytes16*>(a.to + 32 * (row * a.pieces + number));
    GGR_UNROLL
    for (int h = 0; h < 2; ++h) {
        Bytes16 packed;
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) packed.word[j] = pack_halves(v[8 * h + 2 * j], v[8 * h + 2 * j + 1]);
        to[h] = packed;
    }
}

// A block a row.
GGR_KERNEL GGR_BOUNDS(SCALE_THREADS, 1) scale_columns(const ScaleArgs a) {
    const int64_t row = block_x();
    const float scale = *reinterpret_cast<const float*>(a.x + row * a.x_stride + a.scale_at);
    if (scale == 1.0f) return;
    const int64_t i1 = row % a.dst.ne[1], i2 = row / a.dst.ne[1] % a.dst.ne[2], i3 = row / a.dst.ne[1] / a.dst.ne[2];
    float* const dst = reinterpret_cast<float*>(a.dst.data + i1 * a.dst.nb[1] + i2 * a.dst.nb[2] + i3 * a.dst.nb[3]);
    for (int64_t i = thread_index(); i < a.dst.ne[0]; i += n_threads()) dst[i] *= scale;
}

}  // namespace cuda
}  // namespace ggr
