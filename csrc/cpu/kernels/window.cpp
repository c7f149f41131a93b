// WIN_PART, WIN_UNPART: an image cut into square windows, zeros behind its edges, and put together again. GET_REL_POS,
// ADD_REL_POS: rows of a table by relative position, and such terms added to attention scores.
// Floor: bytes of sources and result over memory bandwidth.
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/simd.h"

GGR_KERNELS_BEGIN

namespace {

bool refuse(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s -> %s", type_traits(node.src[0]->type)->name,
                               type_traits(node.type)->name);
}
bool both(const Tensor& node, int32_t type) { return node.src[0]->type == type && node.type == type; }

// Parameters: windows across and down, their side. Items are rows of the result [n, side, side, windows].
bool run_part(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const int64_t across = dst.params[0], side = dst.params[2];
    const size_t bytes = static_cast<size_t>(dst.ne[0]) * sizeof(float);
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const int64_t column = at.i3 % across * side + at.i1, line = at.i3 / across * side + at.i2;
        if (column < x.ne[1] && line < x.ne[2])
            std::memmove(at.of(dst), x.data + column * x.nb[1] + line * x.nb[2], bytes);
        else
            std::memset(at.of(dst), 0, bytes);
    }
    return true;
}

// Parameter: the side. Items are rows of the result [n, w, h].
bool run_unpart(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const int64_t side = dst.params[0], across = (dst.ne[1] + side - 1) / side;
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const int64_t window = at.i2 / side * across + at.i1 / side;
        std::memmove(at.of(dst), x.data + at.i1 % side * x.nb[1] + at.i2 % side * x.nb[2] + window * x.nb[3],
                     static_cast<size_t>(dst.ne[0]) * sizeof(float));
    }
    return true;
}

// Row (i1, i2) of the result is that of position i2 - i1, the table's middle row being position 0.
bool run_get_rel_pos(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next())
        std::memmove(at.of(dst), x.data + (dst.ne[1] - 1 - at.i1 + at.i2) * x.nb[1],
                     static_cast<size_t>(row_bytes(dst.type, dst.ne[0])));
    return true;
}

// y = (x + b) + a, element by element, with one b.
void add_first(float* y, const float* x, float b, const float* a, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(y + i, (vload(x + i) + b) + vload(a + i));
    for (; i < n; ++i) y[i] = (x[i] + b) + a[i];
}
void add_last(float* y, const float* x, float b, const float* a, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(y + i, (vload(x + i) + vload(a + i)) + b);
    for (; i < n; ++i) y[i] = (x[i] + a[i]) + b;
}

// Items are rows of the terms, each with the n x n scores of one query: element (i, j) takes term i of the heights and
// term j of the widths, the one of the smaller number first, as in references.
bool run_add_rel_pos(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &widths = *step.src[1], &heights = *step.src[2], &dst = *step.dst;
    const int64_t n = widths.ne[0];
    for (int64_t item = begin; item < end; ++item) {
        const float* w = reinterpret_cast<const float*>(widths.data) + item * n;
        const float* h = reinterpret_cast<const float*>(heights.data) + item * n;
        const float* from = reinterpret_cast<const float*>(x.data) + item * n * n;
        float* to = reinterpret_cast<float*>(dst.data) + item * n * n;
        for (int64_t i = 0; i < n; ++i, from += n, to += n) {
            add_last(to, from, h[i], w, i);
            add_first(to + i, from + i, h[i], w + i, n - i);
        }
    }
    return true;
}

// Relies on: shapes as above, packed rows.
template <Step::Fn RUN, int32_t TYPE>
bool prepare_rows(PlanBuilder& builder, const Tensor& node) {
    if (!both(node, TYPE)) return refuse(builder, node);
    builder.add(RUN, node, n_rows(node), n_elements(node));
    return true;
}

// Relies on: all contiguous; n * n scores in a row, a row of n terms for each.
bool prepare_add_rel_pos(PlanBuilder& builder, const Tensor& node) {
    if (!both(node, TYPE_F32) || node.src[1]->type != TYPE_F32 || node.src[2]->type != TYPE_F32)
        return refuse(builder, node);
    builder.add(run_add_rel_pos, node, n_rows(*node.src[1]), 2 * n_elements(node));
    return true;
}

}  // namespace

void register_window(OpTable& table) {
    table.prepare[OP_WIN_PART] = prepare_rows<run_part, TYPE_F32>;
    table.prepare[OP_WIN_UNPART] = prepare_rows<run_unpart, TYPE_F32>;
    table.prepare[OP_GET_REL_POS] = prepare_rows<run_get_rel_pos, TYPE_F16>;
    table.prepare[OP_ADD_REL_POS] = prepare_add_rel_pos;
}

GGR_KERNELS_END
