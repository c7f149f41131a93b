// Products by cuBLASLt.
#include <algorithm>

#include "cuda/families/products.h"

namespace ggr {
namespace cuda {

namespace {

// Operations below which a launch takes as long as the product, and columns below which unpacking the weights does.
constexpr int64_t LEAST_OPERATIONS = int64_t{1} << 26;
constexpr int64_t LEAST_COLUMNS = 64, LEAST_COLUMNS_UNPACKED = 256;
// Unpacked weights at a time: some times the L2 cache, so that a part of them is read from there, but never so much
// that scratch would be missed elsewhere. Most matrices fit whole, the head of a large vocabulary goes in slabs.
constexpr int64_t SLAB_CACHES = 3, SLAB_BYTES_LEAST = int64_t{1} << 20, SLAB_BYTES_MOST = int64_t{160} << 20;

// The columns of every matrix of the weights lie one after the other, in x (converted, so it is packed) and in the
// result; and all addresses that the library gets are multiples of 16.
bool shape_of(const Tensor& node, const Engine& engine, ProductShape* s) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    const int64_t r2 = w.ne[2] == 0 ? 0 : x.ne[2] / w.ne[2];
    if (x.ne[3] != 1 || !rows_at(node, 16) || (r2 > 1 && node.nb[2] != node.nb[1] * node.ne[1])) return false;
    const int64_t stride = activation_bytes(engine.format, x.ne[0]);
    const int64_t w_stride = engine.quantised != nullptr ? 2 * w.ne[0] : w.nb[1];
    *s = {w.ne[1],
          x.ne[1] * r2,
          w.ne[0],
          w_stride,
          stride,
          node.nb[1],
          w.nb[2],
          stride * x.ne[1] * r2,
          node.nb[2] * r2,
          static_cast<int32_t>(w.ne[2]),
          engine.format == ACTIVATION_BF16};
    if (s->matrices == 1) s->w_matrix = s->x_matrix = s->dst_matrix = 0;
    return 2 * s->m * s->n * s->k * s->matrices >= LEAST_OPERATIONS && s->n >= LEAST_COLUMNS &&
           s->dst_stride >= 4 * s->m;
}

// The results of rows of activations that were multiplied by a power of two.
void scale_columns(PlanBuilder& builder, const Tensor& node, const ProductArgs& args, int64_t k) {
    ScaleArgs scale = {};
    scale.dst = view_of(node);
    scale.x = args.x;
    scale.x_stride = args.x_nb[0];
    scale.scale_at = 2 * padded_row(k);
    builder.launch(node, {static_cast<uint32_t>(n_rows(node)), 1, 1}, SCALE_THREADS, 0, scale, "unpack",
                   "scale_columns");
}

// Unpack the weights, as many rows at a time as fit a slab, and multiply each slab.
bool prepare_unpacked(PlanBuilder& builder, const Tensor& node, const Engine& engine, const ProductShape& whole) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    if (engine.quantised->supply == SUPPLY_INTERLEAVED || whole.matrices != 1 || whole.n < LEAST_COLUMNS_UNPACKED ||
        ceil_div(whole.k / 16, UNPACK_THREADS) > MAX_GRID)
        return false;
    const int64_t bytes =
        std::clamp(SLAB_CACHES * static_cast<int64_t>(builder.hardware().l2_bytes), SLAB_BYTES_LEAST, SLAB_BYTES_MOST);
    const int64_t slabs = ceil_div(whole.m * whole.w_stride, bytes);
    const int64_t rows = std::min(ceil_div(ceil_div(whole.m, slabs), TILE_ROWS) * TILE_ROWS, whole.m);
    const int64_t rest = whole.m % rows;
    ProductShape slab = whole, last = whole;
    slab.m = rows;
    last.m = rest;
    uint32_t slab_number, last_number = 0;
    if (!builder.by_library(slab, &slab_number) || (rest != 0 && !builder.by_library(last, &last_number))) return false;
    ProductArgs args = {};
    take_activations(builder, node, x, engine.format, &args);
    uint8_t* const unpacked = builder.scratch(static_cast<uint64_t>(rows * whole.w_stride));
    for (int64_t row = 0; row < whole.m; row += rows) {
        const int64_t n = whole.m - row < rows ? whole.m - row : rows, pieces = w.ne[0] / 16;
        const UnpackArgs unpack = {w.data + row * w.nb[1], w.nb[1], unpacked, static_cast<int32_t>(pieces)};
        const Grid grid = {static_cast<uint32_t>(n), static_cast<uint32_t>(ceil_div(pieces, UNPACK_THREADS)), 1};
        builder.launch(node, grid, UNPACK_THREADS, 0, unpack, "unpack", "unpack_rows<%s>", engine.quantised->name);
        const LibraryProduct product = {unpacked, args.x, node.data + 4 * row};
        builder.launch_library(node, n == rows ? slab_number : last_number, product);
    }
    scale_columns(builder, node, args, w.ne[0]);
    return true;
}

}  // namespace

bool prepare_by_library(PlanBuilder& builder, const Tensor& node, const Engine& engine) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    ProductShape shape;
    if (engine.means != Means::halves || w.ne[3] != 1 || !shape_of(node, engine, &shape)) return false;
    if (engine.quantised != nullptr) return prepare_unpacked(builder, node, engine, shape);
    uint32_t number;
    if (!packed_rows(w) || w.nb[1] % 16 != 0 || !builder.by_library(shape, &number)) return false;
    ProductArgs args = {};
    take_activations(builder, node, x, engine.format, &args);
    builder.launch_library(node, number, {w.data, args.x, node.data});
    if (engine.format == ACTIVATION_F16) scale_columns(builder, node, args, w.ne[0]);
    return true;
}

}  // namespace cuda
}  // namespace ggr
