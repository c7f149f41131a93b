// SUM, SUM_ROWS, MEAN, CUMSUM, ARGMAX, COUNT_EQUAL. Sums run in f64 and are rounded once; how a tensor is cut depends
// on its size alone, so results do not change with the number of threads. Floor: bytes of the source over memory
// bandwidth.
#include "cpu/elementwise.h"
#include "cpu/elementwise_sums.h"
#include "cpu/level.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

bool refuse(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s -> %s", type_traits(node.src[0]->type)->name,
                               type_traits(node.type)->name);
}

void keep_rows(Step& step, const Tensor& dst) { keep_split(step, {1, 1, 1, n_rows(dst)}); }

// ---- A tensor to one number: parts in parallel, then their total ----

constexpr int64_t MAX_PARTS = 256;
constexpr int64_t PART_ELEMENTS = 16384;

// The rows of a source in at most MAX_PARTS ranges; a packed source counts as rows of PART_ELEMENTS.
struct Ranges {
    int64_t row;  // elements
    int64_t rows, rows_a_part, parts;
};
Ranges cut(const Tensor& x, bool packed) {
    Ranges r;
    const int64_t all = n_elements(x);
    r.row = packed ? (all < PART_ELEMENTS ? all : PART_ELEMENTS) : x.ne[0];
    r.rows = packed ? (all + r.row - 1) / r.row : n_rows(x);
    int64_t wanted = all / PART_ELEMENTS + 1;
    wanted = wanted < MAX_PARTS ? wanted : MAX_PARTS;
    r.rows_a_part = (r.rows + wanted - 1) / wanted;
    r.parts = (r.rows + r.rows_a_part - 1) / r.rows_a_part;
    return r;
}

struct Row {
    int64_t i1, i2, i3;
};
Row row_of(const Tensor& t, int64_t row) {
    const int64_t i23 = row / t.ne[1];
    return {row - i23 * t.ne[1], i23 % t.ne[2], i23 / t.ne[2]};
}

double sum_elements(int32_t type, const uint8_t* p, int64_t stride, int64_t n) {
    if (type == TYPE_F32) return sum_row<Plain>(p, stride, n);
    float tile[TILE];
    double sum = 0.0;
    for (int64_t i = 0; i < n; i += TILE) {
        const int64_t m = n - i < TILE ? n - i : TILE;
        load_tile(tile, type, p + i * stride, stride, m);
        sum += sum_packed<Plain>(tile, m, 0.0);
    }
    return sum;
}

int64_t count_equal(const uint8_t* a, int64_t stride_a, const uint8_t* b, int64_t stride_b, int64_t n) {
    int64_t count = 0, i = 0;
    if (stride_a == sizeof(int32_t) && stride_b == sizeof(int32_t)) {
        const int32_t *pa = reinterpret_cast<const int32_t*>(a), *pb = reinterpret_cast<const int32_t*>(b);
        while (i + VL <= n) {
            // Lanes hold at most 2^20 a stretch, so that they cannot overflow.
            vi equal = {};
            const int64_t end = n - i < (VL << 20) ? n : i + (VL << 20);
            for (; i + VL <= end; i += VL) {
                vi va, vb;
                std::memcpy(&va, pa + i, sizeof va);
                std::memcpy(&vb, pb + i, sizeof vb);
                equal -= va == vb;
            }
            for (int lane = 0; lane < VL; ++lane) count += equal[lane];
        }
    }
    for (; i < n; ++i)
        count +=
            *reinterpret_cast<const int32_t*>(a + i * stride_a) == *reinterpret_cast<const int32_t*>(b + i * stride_b);
    return count;
}

// arg: the Ranges (row, rows, rows_a_part), then whether the sources are packed.
template <class Each>
void over_ranges(const Step& step, int64_t begin, int64_t end, Each each) {
    const Tensor& x = *step.src[0];
    const int64_t row = step.arg.i64[0], rows = step.arg.i64[1], rows_a_part = step.arg.i64[2];
    const bool packed = step.arg.i64[3] != 0;
    for (int64_t part = begin; part < end; ++part) {
        const int64_t last = (part + 1) * rows_a_part < rows ? (part + 1) * rows_a_part : rows;
        for (int64_t r = part * rows_a_part; r < last; ++r) {
            if (packed) {
                const int64_t left = n_elements(x) - r * row;
                each(part, Row{0, 0, 0}, r * row, left < row ? left : row);
            } else {
                each(part, row_of(x, r), int64_t{0}, row);
            }
        }
    }
}

bool run_sum_parts(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor& x = *step.src[0];
    double* totals = reinterpret_cast<double*>(worker.shared + step.offset[0]);
    for (int64_t i = begin; i < end; ++i) totals[i] = 0.0;
    over_ranges(step, begin, end, [&](int64_t part, Row r, int64_t at, int64_t n) {
        totals[part] += sum_elements(x.type, row_at(x, r.i1, r.i2, r.i3) + at * x.nb[0], x.nb[0], n);
    });
    return true;
}
bool run_sum_total(const Step& step, int64_t, int64_t, Worker& worker) {
    const double* totals = reinterpret_cast<const double*>(worker.shared + step.offset[0]);
    double sum = 0.0;
    for (int64_t i = 0; i < step.arg.i64[0]; ++i) sum += totals[i];
    const float rounded = static_cast<float>(sum);
    store_tile(step.dst->type, step.dst->data, 0, &rounded, 1);
    return true;
}

bool run_equal_parts(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &a = *step.src[0], &b = *step.src[1];
    int64_t* totals = reinterpret_cast<int64_t*>(worker.shared + step.offset[0]);
    for (int64_t i = begin; i < end; ++i) totals[i] = 0;
    over_ranges(step, begin, end, [&](int64_t part, Row r, int64_t at, int64_t n) {
        totals[part] += count_equal(row_at(a, r.i1, r.i2, r.i3) + at * a.nb[0], a.nb[0],
                                    row_at(b, r.i1, r.i2, r.i3) + at * b.nb[0], b.nb[0], n);
    });
    return true;
}
bool run_equal_total(const Step& step, int64_t, int64_t, Worker& worker) {
    const int64_t* totals = reinterpret_cast<const int64_t*>(worker.shared + step.offset[0]);
    int64_t sum = 0;
    for (int64_t i = 0; i < step.arg.i64[0]; ++i) sum += totals[i];
    std::memcpy(step.dst->data, &sum, sizeof sum);
    return true;
}

void add_two_phases(PlanBuilder& builder, const Tensor& node, Step::Fn each, Step::Fn total, bool packed) {
    const Tensor& x = *node.src[0];
    const Ranges r = cut(x, packed);
    const int64_t bytes = r.parts * 8, offset = builder.scratch(bytes);
    Step& first = builder.add_bare(each, &node, r.parts, n_elements(x));
    first.src[0] = node.src[0];
    first.src[1] = node.src[1];
    first.offset[0] = offset;
    first.arg.i64[0] = r.row;
    first.arg.i64[1] = r.rows;
    first.arg.i64[2] = r.rows_a_part;
    first.arg.i64[3] = packed;
    builder.reads(x);
    if (node.src[1] != nullptr) builder.reads(*node.src[1]);
    builder.writes_scratch(offset, bytes);
    Step& second = builder.add_bare(total, &node, 1, r.parts);
    second.offset[0] = offset;
    second.arg.i64[0] = r.parts;
    builder.reads_scratch(offset, bytes);
    builder.writes(node);
}

// Relies on: a result of one element.
bool prepare_sum(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[0];
    if (!is_float(x.type) || !is_float(node.type)) return refuse(builder, node);
    add_two_phases(builder, node, run_sum_parts, run_sum_total, is_contiguous(x));
    return true;
}

// Relies on: sources of one shape, a result of one element.
bool prepare_count_equal(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    if (a.type != TYPE_I32 || b.type != TYPE_I32 || node.type != TYPE_I64) return refuse(builder, node);
    add_two_phases(builder, node, run_equal_parts, run_equal_total, is_contiguous(a) && is_contiguous(b));
    return true;
}

// ---- A row to one number or to its running sums; items are rows ----

bool run_sum_rows(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const double divisor = step.arg.i64[0] != 0 ? static_cast<double>(x.ne[0]) : 1.0;
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const double sum = sum_row<Plain>(row_at(x, item.i1, item.i2, item.i3), x.nb[0], x.ne[0]);
        *reinterpret_cast<float*>(row_at(dst, item.i1, item.i2, item.i3)) = static_cast<float>(sum / divisor);
    }
    return true;
}

// Relies on: dst [1, ne1, ne2, ne3] of the source.
template <bool MEAN>
bool prepare_sum_rows(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return refuse(builder, node);
    Step& step = builder.add(run_sum_rows, node, n_rows(node), n_elements(*node.src[0]));
    keep_rows(step, node);
    step.arg.i64[0] = MEAN;
    return true;
}

bool run_cumsum(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const uint8_t* px = row_at(x, item.i1, item.i2, item.i3);
        uint8_t* pd = row_at(dst, item.i1, item.i2, item.i3);
        double sum = 0.0;  // the chain of additions, four cycles each, is the bound
        for (int64_t i = 0; i < x.ne[0]; ++i) {
            sum += static_cast<double>(*reinterpret_cast<const float*>(px + i * x.nb[0]));
            *reinterpret_cast<float*>(pd + i * dst.nb[0]) = static_cast<float>(sum);
        }
    }
    return true;
}

// Relies on: source and result of one shape.
bool prepare_cumsum(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return refuse(builder, node);
    Step& step = builder.add(run_cumsum, node, n_rows(node), n_elements(node) * 4);
    keep_rows(step, node);
    return true;
}

// ---- ARGMAX: among equal maxima the last, as the stock library; NaN never wins; 0 for a row of NaN ----

int64_t argmax_packed(const float* x, int64_t n) {
    const float low = -__builtin_inff();
    vf m0 = vset(low), m1 = m0;
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        m0 = vmax(vload(x + i), m0);  // NaN leaves the maximum as it is
        m1 = vmax(vload(x + i + VL), m1);
    }
    float max = vmax_of(vmax(m0, m1));
    for (; i < n; ++i) max = x[i] > max ? x[i] : max;
    // The place, from the end.
    const vf wanted = vset(max);
    int64_t end = n;
    while (end >= VL && !vany(vload(x + end - VL) == wanted)) end -= VL;
    for (int64_t j = end - 1; j >= 0; --j)
        if (x[j] == max) return j;
    return 0;
}

bool run_argmax(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    for (int64_t row = begin; row < end; ++row) {
        const uint8_t* px = x.data + row * x.nb[1];
        int64_t best = 0;
        if (x.nb[0] == sizeof(float)) {
            best = argmax_packed(reinterpret_cast<const float*>(px), x.ne[0]);
        } else {
            float max = -__builtin_inff();
            for (int64_t i = 0; i < x.ne[0]; ++i) {
                const float value = *reinterpret_cast<const float*>(px + i * x.nb[0]);
                if (value >= max) {
                    max = value;
                    best = i;
                }
            }
        }
        const int32_t index = static_cast<int32_t>(best);
        std::memcpy(dst.data + row * dst.nb[0], &index, sizeof index);
    }
    return true;
}

// Relies on: a source of two dimensions with rows shorter than 2^31, dst [ne1].
bool prepare_argmax(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_I32) return refuse(builder, node);
    builder.add(run_argmax, node, node.ne[0], n_elements(*node.src[0]));
    return true;
}

}  // namespace

void register_reduce(OpTable& table) {
    table.prepare[OP_SUM] = prepare_sum;
    table.prepare[OP_SUM_ROWS] = prepare_sum_rows<false>;
    table.prepare[OP_MEAN] = prepare_sum_rows<true>;
    table.prepare[OP_CUMSUM] = prepare_cumsum;
    table.prepare[OP_ARGMAX] = prepare_argmax;
    table.prepare[OP_COUNT_EQUAL] = prepare_count_equal;
}

GGR_KERNELS_END
