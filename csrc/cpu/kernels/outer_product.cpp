// OUT_PROD: dst[i, j] = sum over k of a[i, k] b[j, k], a in F32, F16 or blocks, matrices of a repeated over b's.
// Floor: 2 ne0 ne1 K operations. Panels of a are decoded to f32 once for ROWS rows of the result, and a tile of the
// result stays in registers along a panel.
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/quants/dequant.h"

GGR_KERNELS_BEGIN

namespace {

constexpr int64_t COLUMNS = 256;  // of the result, and a multiple of every type's block
constexpr int64_t DEPTH = 64;     // of a panel: COLUMNS x DEPTH f32 are 64 KiB, in the second-level cache
constexpr int64_t ROWS = 32;      // of the result that share a panel
constexpr int TILE_ROWS = 4;      // rows and vectors of a tile: 8 sums of 16 registers, 16 of 32
constexpr int TILE_VECTORS = VL == 16 ? 4 : 2;

struct Tile {
    float sum[TILE_ROWS][TILE_VECTORS * VL];
};

// A tile's sums over `depth` rows of a panel, b[r][k] one after another.
inline void multiply(Tile* tile, const float* panel, const float (*b)[DEPTH], int64_t depth) {
    vf s[TILE_ROWS][TILE_VECTORS] = {};
    for (int64_t k = 0; k < depth; ++k) {
        vf a[TILE_VECTORS];
        for (int v = 0; v < TILE_VECTORS; ++v) a[v] = vload(panel + k * COLUMNS + v * VL);
        for (int r = 0; r < TILE_ROWS; ++r)
            for (int v = 0; v < TILE_VECTORS; ++v) s[r][v] += a[v] * b[r][k];
    }
    for (int r = 0; r < TILE_ROWS; ++r)
        for (int v = 0; v < TILE_VECTORS; ++v) vstore(tile->sum[r] + v * VL, s[r][v]);
}

struct Place {
    int64_t column, columns, row, rows, i2, i3;
};

// Rows [row, row + rows) of the result, over one panel.
void add_panel(const Tensor& dst, const Tensor& b, const Place& at, const float* panel, int64_t k0, int64_t depth) {
    alignas(64) float factors[TILE_ROWS][DEPTH];
    Tile tile;
    for (int64_t r0 = 0; r0 < at.rows; r0 += TILE_ROWS) {
        const int64_t rows = least(TILE_ROWS, at.rows - r0);
        for (int64_t r = 0; r < TILE_ROWS; ++r) {
            const uint8_t* from = b.data + (at.row + r0 + r) * b.nb[0] + at.i2 * b.nb[2] + at.i3 * b.nb[3];
            for (int64_t k = 0; k < depth; ++k)
                factors[r][k] = r < rows ? *reinterpret_cast<const float*>(from + (k0 + k) * b.nb[1]) : 0.0f;
        }
        for (int64_t c = 0; c < at.columns; c += TILE_VECTORS * VL) {
            multiply(&tile, panel + c, factors, depth);
            const int64_t n = least(TILE_VECTORS * VL, at.columns - c);
            for (int64_t r = 0; r < rows; ++r) {
                float* to = reinterpret_cast<float*>(dst.data + (at.row + r0 + r) * dst.nb[1] + at.i2 * dst.nb[2] +
                                                     at.i3 * dst.nb[3]) +
                            at.column + c;
                for (int64_t i = 0; i < n; ++i) to[i] = k0 == 0 ? tile.sum[r][i] : to[i] + tile.sum[r][i];
            }
        }
    }
}

// Items are blocks of COLUMNS x ROWS of the result. arg.i64[0 .. 1]: blocks across and down.
bool run_out_prod(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &a = *step.src[0], &b = *step.src[1], &dst = *step.dst;
    const int64_t across = step.arg.i64[0], down = step.arg.i64[1];
    const DequantRow decode = dequant_row_for(a.type);
    float* panel = reinterpret_cast<float*>(worker.local);
    for (int64_t item = begin; item < end; ++item) {
        Place at;
        at.column = item % across * COLUMNS;
        at.row = item / across % down * ROWS;
        const int64_t matrix = item / (across * down);
        at.i2 = matrix % dst.ne[2];
        at.i3 = matrix / dst.ne[2];
        at.columns = least(COLUMNS, dst.ne[0] - at.column);
        at.rows = least(ROWS, dst.ne[1] - at.row);
        const uint8_t* from = a.data + row_bytes(a.type, at.column) + at.i2 / (dst.ne[2] / a.ne[2]) * a.nb[2] +
                              at.i3 / (dst.ne[3] / a.ne[3]) * a.nb[3];
        for (int64_t k0 = 0; k0 < a.ne[1]; k0 += DEPTH) {
            const int64_t depth = least(DEPTH, a.ne[1] - k0);
            for (int64_t k = 0; k < depth; ++k) decode(from + (k0 + k) * a.nb[1], panel + k * COLUMNS, at.columns);
            add_panel(dst, b, at, panel, k0, depth);
        }
    }
    return true;
}

// Relies on: packed rows of a and of the result, dst [a.ne0, b.ne0], matrices of a dividing those of b.
bool prepare_out_prod(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    const bool decodes = dequant_row_for(a.type) != nullptr && type_traits(a.type)->row_meta == 0 &&
                         block_size(a.type) <= COLUMNS && COLUMNS % block_size(a.type) == 0;
    if (!decodes || b.type != TYPE_F32 || node.type != TYPE_F32)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(a.type)->name, type_traits(b.type)->name,
                                   type_traits(node.type)->name);
    const int64_t across = (node.ne[0] + COLUMNS - 1) / COLUMNS, down = (node.ne[1] + ROWS - 1) / ROWS;
    builder.need_local(COLUMNS * DEPTH * static_cast<int64_t>(sizeof(float)));
    Step& step = builder.add(run_out_prod, node, across * down * node.ne[2] * node.ne[3],
                             n_elements(node) * a.ne[1] / 4 + n_elements(node));
    step.arg.i64[0] = across;
    step.arg.i64[1] = down;
    return true;
}

}  // namespace

void register_outer_product(OpTable& table) { table.prepare[OP_OUT_PROD] = prepare_out_prod; }

GGR_KERNELS_END
