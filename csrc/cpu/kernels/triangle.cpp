// SOLVE_TRI: equations whose matrix is a lower triangle. TRI: a triangle of a matrix, zeros elsewhere. DIAG: a matrix
// with a row on its diagonal. All f32.
#include "cpu/level.h"
#include "cpu/state.h"

GGR_KERNELS_BEGIN

namespace {

constexpr int64_t COLUMNS = STATE_VECTORS * VL;

// Rows of the solution in order, NV vectors of columns: x_i = (b_i - sum over j < i of a_ij x_j) / a_ii. The sum runs
// in two halves, so that one fused operation does not wait for the last. Floor: half a vector operation per VL columns
// and element of a.
template <int NV, bool WHOLE>
inline void solve(const float* a, const float* b, float* x, int64_t n, int64_t width, int64_t left) {
    for (int64_t i = 0; i < n; ++i) {
        vf even[NV] = {}, odd[NV] = {};
        const float* row = a + i * n;
        int64_t j = 0;
        for (; j + 2 <= i; j += 2) {
            for (int v = 0; v < NV; ++v) {
                even[v] = load_some<WHOLE>(x + j * width + v * VL, left) * row[j] + even[v];
                odd[v] = load_some<WHOLE>(x + (j + 1) * width + v * VL, left) * row[j + 1] + odd[v];
            }
        }
        for (int v = 0; v < NV; ++v) {
            if (j < i) even[v] = load_some<WHOLE>(x + j * width + v * VL, left) * row[j] + even[v];
            const vf rest = load_some<WHOLE>(b + i * width + v * VL, left) - (even[v] + odd[v]);
            store_some<WHOLE>(x + i * width + v * VL, rest / row[i], left);
        }
    }
}

// Items are blocks of columns of one system.
bool run_solve_tri(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &a = *step.src[0], &b = *step.src[1];
    const int64_t n = a.ne[0], width = dst.ne[0], blocks = blocks_of(width, COLUMNS);
    for (int64_t index = begin; index < end; ++index) {
        const int64_t system = index / blocks, column1 = least((index % blocks + 1) * COLUMNS, width);
        int64_t column = index % blocks * COLUMNS;
        const float* pa = floats(a) + system * n * n;
        const float* pb = floats(b) + system * n * width;
        float* x = floats(dst) + system * n * width;
        if (column + COLUMNS <= column1) {
            solve<STATE_VECTORS, true>(pa, pb + column, x + column, n, width, VL);
        } else {
            for (; column < column1; column += VL)
                solve<1, false>(pa, pb + column, x + column, n, width, column1 - column);
        }
    }
    return true;
}

// Relies on: a [n, n, ...], b and dst [columns, n, ...], all contiguous.
bool prepare_solve_tri(PlanBuilder& builder, const Tensor& node) {
    const int64_t items = blocks_of(node.ne[0], COLUMNS) * node.ne[2] * node.ne[3];
    builder.add(run_solve_tri, node, items, work_of(n_elements(node) * node.ne[1] / 2, 1));
    return true;
}

// Items are rows, for TRI and DIAG alike. Floor: bytes of source and result.
bool run_tri(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const int64_t n = dst.ne[0];
    const int32_t kind = step.arg.i32[0];
    const bool lower = kind == TRI_LOWER || kind == TRI_LOWER_DIAG;
    const int64_t diagonal = kind == TRI_LOWER_DIAG || kind == TRI_UPPER ? 1 : 0;
    RowCursor row(dst, begin);
    for (int64_t index = begin; index < end; ++index, row.next()) {
        const int64_t edge = row.i1 + diagonal, first = lower ? 0 : edge, last = lower ? edge : n;
        float* out = reinterpret_cast<float*>(row.of(dst));
        const float* in = reinterpret_cast<const float*>(row.of(x));
        std::memmove(out + first, in + first, static_cast<size_t>(last - first) * sizeof(float));
        std::memset(out, 0, static_cast<size_t>(first) * sizeof(float));
        std::memset(out + last, 0, static_cast<size_t>(n - last) * sizeof(float));
    }
    return true;
}

// Relies on: x and dst of one square shape, rows contiguous, a known kind.
bool prepare_tri(PlanBuilder& builder, const Tensor& node) {
    Step& step = builder.add(run_tri, node, n_rows(node), n_elements(node));
    step.arg.i32[0] = node.params[0];
    return true;
}

bool run_diag(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    RowCursor row(dst, begin);
    for (int64_t index = begin; index < end; ++index, row.next()) {
        float* out = reinterpret_cast<float*>(row.of(dst));
        const float element = floats(x, 0, row.i2, row.i3)[row.i1];
        std::memset(out, 0, static_cast<size_t>(dst.ne[0]) * sizeof(float));
        out[row.i1] = element;
    }
    return true;
}

// Relies on: x [n, 1, ...], dst [n, n, ...], rows contiguous.
bool prepare_diag(PlanBuilder& builder, const Tensor& node) {
    builder.add(run_diag, node, n_rows(node), n_elements(node));
    return true;
}

}  // namespace

void register_triangle(OpTable& table) {
    table.prepare[OP_SOLVE_TRI] = prepare_solve_tri;
    table.prepare[OP_TRI] = prepare_tri;
    table.prepare[OP_DIAG] = prepare_diag;
}

GGR_KERNELS_END
