// Arguments of the kernels of matrix products, and how activations lie in memory once they are converted for them.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

// Formats of converted activations. A row of K elements (Kp: K rounded up to 32; what is beyond K is 0) takes:
//   Q8    Kp signed bytes, then for each 32 four floats: scale d, d * sum of the first 16, of the second 16, 0
//   F16   Kp halves of x * 2^e, then 2^-e as f32 (and 12 bytes): no row overflows, whatever its magnitude; e is 0 where
//         that is so without it
//   BF16  Kp bf16
//   F32   Kp floats
enum ActivationFormat : int32_t { ACTIVATION_Q8 = 1, ACTIVATION_F16, ACTIVATION_BF16, ACTIVATION_F32 };

constexpr int64_t padded_row(int64_t k) { return (k + 31) / 32 * 32; }
constexpr int64_t activation_bytes(int32_t format, int64_t k) {
    return format == ACTIVATION_Q8     ? padded_row(k) / 2 * 3
           : format == ACTIVATION_F16  ? padded_row(k) * 2 + 16
           : format == ACTIVATION_BF16 ? padded_row(k) * 2
                                       : padded_row(k) * 4;
}

constexpr int MAX_OTHERS = 3;

struct ConvertArgs {
    View x;
    uint8_t* to;
    int64_t stride;  // activation_bytes
    int32_t groups;  // of 32, a block of the grid (Q8)
};
GGR_SCRATCH_AT(ConvertArgs, GGR_AT(ConvertArgs, to));

// dst[m, columns] = w[k, m]^T x[k, columns], for matrices (w2, w3) of the weights. Column c of such a matrix is row
// (i1, w2 * r2 + t % r2, w3 * r3 + t / r2) of the activations, c = i1 + x_ne1 * t. Of a product by id column c is the
// c-th of its expert's pairs (token, slot).
struct ProductArgs {
    // Further matrices of the same layout of rows that meet the same activations in one launch, their results in
    // matrices of their own: blocks from `first_block` of the grid's x axis on are theirs. One matrix each, ne[2] and
    // ne[3] of the activations are 1.
    struct Other {
        const uint8_t* w;
        uint8_t* dst;
        int64_t dst_nb1;
        int32_t m, first_block;
    };
    Other others[MAX_OTHERS];
    int32_t n_others;

    const uint8_t* w;
    int64_t w_nb[3];  // of dimensions 1, 2, 3
    const uint8_t* x;
    int64_t x_nb[3];
    uint8_t* dst;
    int64_t dst_nb[3];
    int32_t k, m, columns;
    int32_t w_ne2, x_ne1, r2, r3;
    Divisor by_x_ne1, by_r2;
    int32_t split;   // warps that share the rows of a warp (vector products)
    int32_t packed;  // rows of w can be copied 16 bytes at a time

    // Products by id.
    const uint8_t* ids;
    int64_t ids_nb[2];
    int32_t slots, experts;
    int32_t absent_is_zero;
    FaultSite site;
    const int32_t* pairs;  // sorted by expert
    const int32_t* tiles;  // three numbers a tile: expert, first of its pairs, their number
};
GGR_SCRATCH_AT(ProductArgs, GGR_AT(ProductArgs, x), GGR_AT(ProductArgs, dst), GGR_AT(ProductArgs, pairs),
               GGR_AT(ProductArgs, tiles));

// A vector product of one column with two matrices of one layout: dst = activation(w^T x) * (up^T x), of products by id
// with biases.
struct GatedArgs {
    ProductArgs product;
    const uint8_t* up;
    const uint8_t *gate_bias, *up_bias;  // f32, a row an expert; nullptr: none
    int64_t gate_bias_nb, up_bias_nb;    // bytes from one expert to the next
    int32_t kind;
    float alpha, limit;
};
GGR_SCRATCH_AT(GatedArgs, GGR_AT(GatedArgs, product.x));

// Rows of quantised weights to packed rows of halves: `pieces` of 16 elements each.
struct UnpackArgs {
    const uint8_t* w;
    int64_t w_nb1;
    uint8_t* to;
    int32_t pieces;
};
GGR_SCRATCH_AT(UnpackArgs, GGR_AT(UnpackArgs, to));
// Multiply row r of dst by the scale that lies `scale_at` bytes into row r of the activations.
struct ScaleArgs {
    View dst;
    const uint8_t* x;
    int64_t x_stride, scale_at;
};
GGR_SCRATCH_AT(ScaleArgs, GGR_AT(ScaleArgs, dst.data), GGR_AT(ScaleArgs, x));

// Pairs (token, slot) by expert: `pairs` gets their numbers, `tiles` up to `max_tiles` descriptions of at most `width`
// pairs each; those not needed have no pairs.
struct PairArgs {
    const uint8_t* ids;
    int64_t ids_nb[2];
    int32_t slots, n_pairs, experts, absent_is_zero;
    int32_t width, max_tiles;
    FaultSite site;
    int32_t* pairs;
    int32_t* tiles;
};
GGR_SCRATCH_AT(PairArgs, GGR_AT(PairArgs, pairs), GGR_AT(PairArgs, tiles));
constexpr int MAX_EXPERTS = 2047;  // that the sorting block counts in shared memory

// Sizes of the kernels, for the host.
constexpr int VECTOR_THREADS = 128, VECTOR_ROWS = 2;  // rows a warp
constexpr int TILE_THREADS = 256, TILE_ROWS = 128;
constexpr int Q8_THREADS = 256, UNPACK_THREADS = 128, SCALE_THREADS = 128;
constexpr int PLAIN_TILE = 64;  // rows and columns of a tile of f32

}  // namespace cuda
}  // namespace ggr
