// MUL_MAT and MUL_MAT_ID: tensors and experts to products of rows with columns; the engines are in matmul_*.cpp.
//
// Two steps a node: activations to records in scratch (shared by all products that read the same source), then the
// product. A product of experts that many tokens share sorts its rows by expert first.
#include "cpu/level.h"
#include "cpu/matmul/tensors.h"

GGR_KERNELS_BEGIN

bool find_engine(int32_t type, Engine* engine) {
    return float_engine(type, engine) || small_engine(type, engine) || super_engine(type, engine) ||
           grid_engine(type, engine) || ik_engine(type, engine);
}

namespace {

// ---- MUL_MAT ----

constexpr int A_ENGINE = 0, A_BLOCK_ROWS = 1, A_BLOCK_COLUMNS = 2, A_STRIDE = 3;

// Items are blocks of rows (fastest), blocks of columns, matrices of src0. The matrices of src1 that share one of src0
// are its columns.
bool run_mul_mat(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &w = *step.src[0], &x = *step.src[1], &dst = *step.dst;
    const auto engine = reinterpret_cast<void (*)(const Product&)>(const_cast<void*>(step.arg.ptr[A_ENGINE]));
    const int64_t rows = step.arg.i64[A_BLOCK_ROWS], columns = step.arg.i64[A_BLOCK_COLUMNS];
    const int64_t stride = step.arg.i64[A_STRIDE];
    const int64_t r2 = x.ne[2] / w.ne[2], r3 = x.ne[3] / w.ne[3], all = x.ne[1] * r2 * r3;
    const int64_t row_blocks = ceil_div(w.ne[1], rows), column_blocks = ceil_div(all, columns);
    const uint8_t* records = records_of(step, worker);
    const Pointers p(worker);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item % row_blocks * rows, c0 = item / row_blocks % column_blocks * columns;
        const int64_t matrix = item / (row_blocks * column_blocks);
        const int64_t w2 = matrix % w.ne[2], w3 = matrix / w.ne[2];
        const int64_t n = all - c0 < columns ? all - c0 : columns;
        int64_t i1 = c0 % x.ne[1], i2 = c0 / x.ne[1] % r2, i3 = c0 / (x.ne[1] * r2);
        for (int64_t c = 0; c < n; ++c) {  // counted, not divided: short rows have little else to do
            const int64_t x2 = w2 * r2 + i2, x3 = w3 * r3 + i3;
            p.columns[c] = column(x, records, stride, i1, x2, x3);
            p.out[c] = reinterpret_cast<float*>(dst.data + i1 * dst.nb[1] + x2 * dst.nb[2] + x3 * dst.nb[3]) + row;
            if (++i1 == x.ne[1]) {
                i1 = 0;
                if (++i2 == r2) i2 = 0, ++i3;
            }
        }
        engine({w.data + row * w.nb[1] + w2 * w.nb[2] + w3 * w.nb[3], w.nb[1],
                w.ne[1] - row < rows ? w.ne[1] - row : rows, w.ne[0], p.columns, p.out, n, worker.local});
    }
    return true;
}

bool types_fit(PlanBuilder& builder, const Tensor& node, Engine* engine) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    if (node.type != TYPE_F32 || (x.type != TYPE_F32 && x.type != TYPE_F16 && x.type != TYPE_BF16) ||
        !find_engine(w.type, engine))
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(w.type)->name, type_traits(x.type)->name,
                                   type_traits(node.type)->name);
    fit_activations(node, w.type, engine);
    return true;
}

// Few columns: items are blocks of rows (fastest) and matrices of src0. Rows of neighbouring items are one stream.
bool run_streamed(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &w = *step.src[0], &x = *step.src[1], &dst = *step.dst;
    const auto engine = reinterpret_cast<void (*)(const Product&)>(const_cast<void*>(step.arg.ptr[A_ENGINE]));
    const int64_t rows = step.arg.i64[A_BLOCK_ROWS], row_blocks = ceil_div(w.ne[1], rows);
    const int64_t r2 = x.ne[2] / w.ne[2], r3 = x.ne[3] / w.ne[3], n = x.ne[1] * r2 * r3;
    const uint8_t* records = records_of(step, worker);
    const Pointers p(worker);
    while (begin < end) {
        const int64_t matrix = begin / row_blocks, row = begin % row_blocks * rows;
        const int64_t stop = (matrix + 1) * row_blocks < end ? (matrix + 1) * row_blocks : end;
        const int64_t last = row + (stop - begin) * rows, w2 = matrix % w.ne[2], w3 = matrix / w.ne[2];
        int64_t c = 0;
        for (int64_t x3 = w3 * r3; x3 < (w3 + 1) * r3; ++x3)
            for (int64_t x2 = w2 * r2; x2 < (w2 + 1) * r2; ++x2)
                for (int64_t i1 = 0; i1 < x.ne[1]; ++i1, ++c) {
                    p.columns[c] = column(x, records, step.arg.i64[A_STRIDE], i1, x2, x3);
                    p.out[c] = reinterpret_cast<float*>(row_at(dst, i1, x2, x3)) + row;
                }
        engine({w.data + row * w.nb[1] + w2 * w.nb[2] + w3 * w.nb[3], w.nb[1], (last < w.ne[1] ? last : w.ne[1]) - row,
                w.ne[0], p.columns, p.out, n, worker.local});
        begin = stop;
    }
    return true;
}

// Elements of weights in the smallest part of a stream: half a microsecond of it.
constexpr int64_t STREAM_PART = 16384;

// The blocks of rows that are shared out: as small as pays.
int64_t streamed_rows(const Engine& engine, int64_t k) {
    const int64_t least_rows = engine.group > 16 ? engine.group : 16;
    return ceil_div(ceil_div(STREAM_PART, k), least_rows) * least_rows;
}

// Relies on: rows of all contiguous; w.ne[0] = x.ne[0], a whole number of blocks; x.ne[2], x.ne[3] multiples of w's;
// node = [w.ne[1], x.ne[1], x.ne[2], x.ne[3]].
bool prepare_product(PlanBuilder& builder, const Tensor& node) {
    Engine engine;
    if (!types_fit(builder, node, &engine)) return false;
    const Tensor &w = *node.src[0], &x = *node.src[1];
    const Activations activations = prepare_activations(builder, x, engine.format, 0);
    const int64_t k = w.ne[0], m = w.ne[1], matrices = w.ne[2] * w.ne[3], n = n_rows(x) / matrices;
    const bool few = n <= engine.few_columns;
    int64_t rows, columns;
    if (few) {
        rows = streamed_rows(engine, k);
        columns = n;
    } else {
        rows = most_rows(engine);
        columns = ceil_div(n, ceil_div(n, MAX_COLUMNS));
        // Several items a worker, so that all end together; the more rows an item has, the fewer times columns are
        // read.
        while (rows > panel_rows(engine) && ceil_div(m, rows) * matrices < 8 * builder.n_workers()) rows /= 2;
        while (columns > 64 && ceil_div(m, rows) * ceil_div(n, columns) * matrices < 4 * builder.n_workers())
            columns = ceil_div(columns, 2);
    }
    const int64_t items = ceil_div(m, rows) * ceil_div(n, columns) * matrices;
    Step& step = builder.add_bare(few ? run_streamed : run_mul_mat, &node, items, m * n * k / 8 * matrices);
    step.src[0] = &w;
    step.src[1] = &x;
    step.offset[0] = activations.offset;
    step.arg.ptr[A_ENGINE] = reinterpret_cast<const void*>(few ? engine.few : engine.many);
    step.arg.i64[A_BLOCK_ROWS] = rows;
    step.arg.i64[A_BLOCK_COLUMNS] = columns;
    step.arg.i64[A_STRIDE] = column_layout(engine.format, k).stride;
    set_grain(step, false, builder.n_workers());
    step.tapered = few && !step.serial;
    builder.need_local(LOCAL_NEEDED);
    builder.reads(w);
    reads_activations(builder, x, activations);
    builder.writes(node);
    return true;
}

// How many nodes are looked at for further products of the same activations: from the queries to the values of a
// layer there are 10, and biases and norms in between.
constexpr uint32_t SIBLINGS_WITHIN = 24;
constexpr int MAX_SIBLINGS = 3;

// The queries', keys' and values' products read the same activations, but stand apart: what is done with the queries
// comes before the keys. Together they need one barrier, not three, and leave one rest for which workers wait.
bool prepare_mul_mat(PlanBuilder& builder, const Tensor& node) {
    const Graph& graph = builder.graph();
    const Tensor& x = *node.src[1];
    const uint32_t first = builder.present() + 1;
    const Tensor* siblings[MAX_SIBLINGS];
    int n = 0;
    for (uint32_t j = first; j < graph.n_nodes && j < first + SIBLINGS_WITHIN && n < MAX_SIBLINGS; ++j) {
        const Tensor& other = *graph.nodes[j];
        Engine engine;
        if (other.op != OP_MUL_MAT || other.src[1] != &x || builder.is_taken(j) || is_empty(other) ||
            !find_engine(other.src[0]->type, &engine) || !builder.may_advance(j))
            continue;
        fit_activations(other, other.src[0]->type, &engine);
        prepare_activations(builder, x, engine.format, 0);  // before the products: they would wait for it
        builder.take(j);
        siblings[n++] = &other;
    }
    if (!prepare_product(builder, node)) return false;
    for (int i = 0; i < n; ++i)
        if (!prepare_product(builder, *siblings[i])) return false;
    return true;
}

// ---- MUL_MAT_ID ----

constexpr int A_MANY = 4, A_FEW_COLUMNS = 5;

// The columns and results of pairs (token, slot); a pair is numbered token * n_slots + slot.
void point_to_pair(const Step& step, const uint8_t* records, int64_t pair, int64_t row, const Pointers& p, int64_t c) {
    const Tensor &x = *step.src[1], &ids = *step.src[2], &dst = *step.dst;
    const int64_t token = pair / ids.ne[0], slot = pair % ids.ne[0];
    p.columns[c] = column(x, records, step.arg.i64[A_STRIDE], slot % x.ne[1], token, 0);
    p.out[c] = reinterpret_cast<float*>(dst.data + slot * dst.nb[1] + token * dst.nb[2]) + row;
}

// Few pairs: items are blocks of rows (fastest) and pairs.
bool run_pairs(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &w = *step.src[0], &ids = *step.src[2];
    const auto engine = reinterpret_cast<void (*)(const Product&)>(const_cast<void*>(step.arg.ptr[A_ENGINE]));
    const int64_t rows = step.arg.i64[A_BLOCK_ROWS], row_blocks = ceil_div(w.ne[1], rows);
    const uint8_t* records = records_of(step, worker);
    const Pointers p(worker);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item % row_blocks * rows, pair = item / row_blocks;
        const int32_t expert = expert_of(ids, pair % ids.ne[0], pair / ids.ne[0]);
        const int64_t n = w.ne[1] - row < rows ? w.ne[1] - row : rows;
        if (expert < 0 || expert >= w.ne[2]) {
            if (!absent_is_zero(*step.dst)) return fail_index(worker, step, &ids, expert, w.ne[2]);
            clear_pair(*step.dst, pair, ids.ne[0], row, n);
            continue;
        }
        point_to_pair(step, records, pair, row, p, 0);
        engine({w.data + row * w.nb[1] + expert * w.nb[2], w.nb[1], n, w.ne[0], p.columns, p.out, 1, worker.local});
    }
    return true;
}

// Many pairs: items are experts (fastest, so that chunks of items weigh the same) and panels of rows.
bool run_experts(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor& w = *step.src[0];
    const auto few = reinterpret_cast<void (*)(const Product&)>(const_cast<void*>(step.arg.ptr[A_ENGINE]));
    const auto many = reinterpret_cast<void (*)(const Product&)>(const_cast<void*>(step.arg.ptr[A_MANY]));
    const int64_t n_experts = w.ne[2], rows = step.arg.i64[A_BLOCK_ROWS];
    const int32_t* first = reinterpret_cast<const int32_t*>(worker.shared + step.offset[1]);
    const int32_t* pairs = first + n_experts + 1;
    const uint8_t* records = records_of(step, worker);
    const Pointers p(worker);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t expert = item % n_experts, row = item / n_experts * rows;
        for (int64_t i = first[expert]; i < first[expert + 1]; i += MAX_COLUMNS) {
            const int64_t n = first[expert + 1] - i < MAX_COLUMNS ? first[expert + 1] - i : MAX_COLUMNS;
            for (int64_t c = 0; c < n; ++c) point_to_pair(step, records, pairs[i + c], row, p, c);
            (n <= step.arg.i64[A_FEW_COLUMNS] ? few : many)({w.data + row * w.nb[1] + expert * w.nb[2], w.nb[1],
                                                             w.ne[1] - row < rows ? w.ne[1] - row : rows, w.ne[0],
                                                             p.columns, p.out, n, worker.local});
        }
    }
    return true;
}

// Relies on: rows of all contiguous; src = {w [k, m, n_experts], x [k, 1 or a divisor of n_slots, n_tokens], ids i32
// [n_slots, n_tokens]}, node = [m, n_slots, n_tokens]; fourth dimensions of 1.
bool prepare_mul_mat_id(PlanBuilder& builder, const Tensor& node) {
    Engine engine;
    if (!types_fit(builder, node, &engine)) return false;
    const Tensor &w = *node.src[0], &x = *node.src[1], &ids = *node.src[2];
    if (ids.type != TYPE_I32) return builder.unsupported(node, "ids of type %s", type_traits(ids.type)->name);
    const int64_t k = w.ne[0], m = w.ne[1], n_experts = w.ne[2], n_pairs = ids.ne[0] * ids.ne[1];
    if (n_pairs > INT32_MAX) return builder.unsupported(node, "more than 2^31 - 1 pairs of token and expert");
    const bool few = n_pairs <= FEW_PAIRS;
    const int64_t sorted = few ? 0 : sorted_bytes(n_experts, n_pairs);
    const Activations activations = prepare_activations(builder, x, engine.format, sorted);
    if (!few) sort_pairs(builder, node, w, ids, activations.own);
    int64_t rows = few ? few_rows(engine, m, k, n_pairs, builder.n_workers()) : most_rows(engine);
    // Experts have few columns each, so that finding them and bringing them near tells; but experts differ in weight.
    while (!few && rows > panel_rows(engine) && ceil_div(m, rows) * n_experts < 32 * builder.n_workers()) rows /= 2;
    const int64_t items = ceil_div(m, rows) * (few ? n_pairs : n_experts);
    Step& step = builder.add_bare(few ? run_pairs : run_experts, &node, items, m * k / 8 * n_pairs);
    if (!few) builder.largest_item(node, (m < rows ? m : rows) * k / 8 * n_pairs);  // all tokens ask for one expert
    step.src[0] = &w;
    step.src[1] = &x;
    step.src[2] = &ids;
    step.offset[0] = activations.offset;
    step.offset[1] = activations.own;
    step.arg.ptr[A_ENGINE] = reinterpret_cast<const void*>(engine.few);
    step.arg.i64[A_FEW_COLUMNS] = engine.few_columns;
    step.arg.ptr[A_MANY] = reinterpret_cast<const void*>(engine.many);
    step.arg.i64[A_BLOCK_ROWS] = rows;
    step.arg.i64[A_STRIDE] = column_layout(engine.format, k).stride;
    set_grain(step, true, builder.n_workers());
    builder.need_local(LOCAL_NEEDED);
    builder.reads(w);
    builder.reads(ids);
    reads_activations(builder, x, activations);
    if (!few) builder.reads_scratch(activations.own, sorted);
    builder.writes(node);
    return true;
}

}  // namespace

void register_matmul(OpTable& table) {
    table.prepare[OP_MUL_MAT] = prepare_mul_mat;
    table.prepare[OP_MUL_MAT_ID] = prepare_mul_mat_id;
}

GGR_KERNELS_END
