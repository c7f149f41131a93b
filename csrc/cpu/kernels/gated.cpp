// FUSED_UP_GATE and MOE_FUSED_UP_GATE: activation(gate * x) * (up * x), the two products by the engines of MUL_MAT over
// activations that are quantised once. An item takes the same rows of both matrices: the gate's results wait in the
// worker's scratch until up's have come, so neither product is ever written to memory as a whole. Floor: that of the
// two products.
#include "cpu/gates.h"
#include "cpu/level.h"
#include "cpu/matmul/tensors.h"

GGR_KERNELS_BEGIN

namespace {

enum Slot { UP = 0, GATE = 1, X = 2, IDS = 3, UP_BIAS = 4, GATE_BIAS = 5 };
constexpr int A_FEW = 0, A_MANY = 1, A_GATE = 2, A_ROWS = 3, A_COLUMNS = 4, A_STRIDE = 5, A_FEW_COLUMNS = 6;
constexpr int A_LIMIT = 14;  // of the f32

// In the worker's scratch behind what a product needs: where the gate's results go, then these.
constexpr int64_t GATE_POINTERS = LOCAL_NEEDED, GATES = GATE_POINTERS + MAX_COLUMNS * 8;

using Multiply = void (*)(const Product&);
Multiply engine_of(const Step& step, int word) {
    return reinterpret_cast<Multiply>(const_cast<void*>(step.arg.ptr[word]));
}

// What a block of rows is computed from.
struct Rows {
    const uint8_t *up, *gate;  // row 0 of the block
    int64_t up_stride, gate_stride;
    const float *up_bias, *gate_bias;  // nullptr: none
};

// The matrices of an expert. Without a tensor of gates the first half of each matrix is the gate's, and of each bias.
Rows rows_at(const Tensor& node, int64_t expert, int64_t row) {
    const Tensor &up = *node.src[UP], *gate = node.src[GATE], *bias = node.src[UP_BIAS], *other = node.src[GATE_BIAS];
    const int64_t m = node.ne[0];
    const uint8_t* matrix = up.data + expert * up.nb[2] + row * up.nb[1];
    Rows r = {matrix, matrix, up.nb[1], up.nb[1], nullptr, nullptr};
    if (gate != nullptr) {
        r.gate = gate->data + expert * gate->nb[2] + row * gate->nb[1];
        r.gate_stride = gate->nb[1];
    } else {
        r.up += m * up.nb[1];
    }
    if (bias != nullptr) {
        const float* of = reinterpret_cast<const float*>(bias->data + expert * bias->nb[1]) + row;
        r.up_bias = gate != nullptr ? of : of + m;
        r.gate_bias = gate != nullptr ? nullptr : of;
    }
    if (other != nullptr) r.gate_bias = reinterpret_cast<const float*>(other->data + expert * other->nb[1]) + row;
    return r;
}

void add_bias(float* y, const float* bias, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(y + i, vload(y + i) + vload(bias + i));
    for (; i < n; ++i) y[i] += bias[i];
}

// `n_rows` rows for the columns whose records and results `p` points to.
void block(const Step& step, Multiply multiply, const Rows& r, int64_t n_rows, int64_t k, const Pointers& p, int64_t n,
           Worker& worker) {
    float** gates = reinterpret_cast<float**>(worker.local + GATE_POINTERS);
    float* results = reinterpret_cast<float*>(worker.local + GATES);
    for (int64_t c = 0; c < n; ++c) gates[c] = results + c * n_rows;
    multiply({r.gate, r.gate_stride, n_rows, k, p.columns, gates, n, worker.local});
    multiply({r.up, r.up_stride, n_rows, k, p.columns, p.out, n, worker.local});
    const Gate apply = reinterpret_cast<Gate>(const_cast<void*>(step.arg.ptr[A_GATE]));
    for (int64_t c = 0; c < n; ++c) {
        if (r.gate_bias != nullptr) add_bias(gates[c], r.gate_bias, n_rows);
        if (r.up_bias != nullptr) add_bias(p.out[c], r.up_bias, n_rows);
        apply(p.out[c], gates[c], p.out[c], n_rows, step.arg.f32[A_LIMIT]);
    }
}

int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Items are blocks of rows (fastest) and blocks of columns.
bool run_dense(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &node = *step.dst, &x = *node.src[X];
    const int64_t m = node.ne[0], rows = step.arg.i64[A_ROWS], columns = step.arg.i64[A_COLUMNS];
    const int64_t row_blocks = ceil_div(m, rows);
    const uint8_t* records = records_of(step, worker);
    const Pointers p(worker);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item % row_blocks * rows, c0 = item / row_blocks * columns;
        const int64_t n = least_of(node.ne[1] - c0, columns);
        for (int64_t c = 0; c < n; ++c) {
            p.columns[c] = column(x, records, step.arg.i64[A_STRIDE], c0 + c, 0, 0);
            p.out[c] = reinterpret_cast<float*>(node.data + (c0 + c) * node.nb[1]) + row;
        }
        block(step, engine_of(step, A_FEW), rows_at(node, 0, row), least_of(m - row, rows), x.ne[0], p, n, worker);
    }
    return true;
}

// The column and result of pair (token, slot), numbered token * n_slots + slot.
void point_to_pair(const Step& step, const uint8_t* records, int64_t pair, int64_t row, const Pointers& p, int64_t c) {
    const Tensor &node = *step.dst, &x = *node.src[X];
    const int64_t token = pair / node.ne[1], slot = pair % node.ne[1];
    p.columns[c] = column(x, records, step.arg.i64[A_STRIDE], slot % x.ne[1], token, 0);
    p.out[c] = reinterpret_cast<float*>(node.data + slot * node.nb[1] + token * node.nb[2]) + row;
}

// Few pairs: items are blocks of rows (fastest) and pairs.
bool run_pairs(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &node = *step.dst, &ids = *node.src[IDS];
    const int64_t m = node.ne[0], n_experts = node.src[UP]->ne[2], rows = step.arg.i64[A_ROWS];
    const int64_t row_blocks = ceil_div(m, rows);
    const uint8_t* records = records_of(step, worker);
    const Pointers p(worker);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item % row_blocks * rows, pair = item / row_blocks, n = least_of(m - row, rows);
        const int32_t expert = expert_of(ids, pair % ids.ne[0], pair / ids.ne[0]);
        if (expert < 0 || expert >= n_experts) {
            if (!absent_is_zero(node)) return fail_index(worker, step, &ids, expert, n_experts);
            clear_pair(node, pair, ids.ne[0], row, n);
            continue;
        }
        point_to_pair(step, records, pair, row, p, 0);
        block(step, engine_of(step, A_FEW), rows_at(node, expert, row), n, node.src[X]->ne[0], p, 1, worker);
    }
    return true;
}

// Many pairs, sorted: items are experts (fastest, so that chunks of items weigh the same) and panels of rows.
bool run_experts(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor& node = *step.dst;
    const int64_t m = node.ne[0], n_experts = node.src[UP]->ne[2], rows = step.arg.i64[A_ROWS];
    const int32_t* first = reinterpret_cast<const int32_t*>(worker.shared + step.offset[1]);
    const int32_t* pairs = first + n_experts + 1;
    const uint8_t* records = records_of(step, worker);
    const Pointers p(worker);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t expert = item % n_experts, row = item / n_experts * rows;
        for (int64_t i = first[expert]; i < first[expert + 1]; i += MAX_COLUMNS) {
            const int64_t n = least_of(first[expert + 1] - i, MAX_COLUMNS);
            for (int64_t c = 0; c < n; ++c) point_to_pair(step, records, pairs[i + c], row, p, c);
            block(step, engine_of(step, n <= step.arg.i64[A_FEW_COLUMNS] ? A_FEW : A_MANY), rows_at(node, expert, row),
                  least_of(m - row, rows), node.src[X]->ne[0], p, n, worker);
        }
    }
    return true;
}

struct Choice {
    Engine engine;
    Gate gate;
    float limit;
};

bool choose(PlanBuilder& builder, const Tensor& node, Choice* choice) {
    const Tensor &up = *node.src[UP], &x = *node.src[X];
    const float limit = param_f32(node, 1);
    choice->limit = limit;
    choice->gate = gate_of(node.params[0], limit > LEAST_LIMIT);
    if (choice->gate == nullptr) return builder.unsupported(node, "activation %d", node.params[0]);
    if (node.type != TYPE_F32 || x.type != TYPE_F32 || !find_engine(up.type, &choice->engine))
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(up.type)->name, type_traits(x.type)->name,
                                   type_traits(node.type)->name);
    fit_activations(node, up.type, &choice->engine);
    return true;
}

// The step of the products; at most `columns` of them in an item.
Step& add_products(PlanBuilder& builder, const Tensor& node, const Choice& choice, Step::Fn fn, int64_t n_items,
                   int64_t work, const Activations& activations, int64_t rows, int64_t columns) {
    Step& step = builder.add_bare(fn, &node, n_items, work);
    step.offset[0] = activations.offset;
    step.offset[1] = activations.own;
    step.arg.ptr[A_FEW] = reinterpret_cast<const void*>(choice.engine.few);
    step.arg.ptr[A_MANY] = reinterpret_cast<const void*>(choice.engine.many);
    step.arg.ptr[A_GATE] = reinterpret_cast<const void*>(choice.gate);
    step.arg.i64[A_ROWS] = rows;
    step.arg.i64[A_COLUMNS] = columns;
    step.arg.i64[A_STRIDE] = column_layout(choice.engine.format, node.src[X]->ne[0]).stride;
    step.arg.i64[A_FEW_COLUMNS] = choice.engine.few_columns;
    step.arg.f32[A_LIMIT] = choice.limit;
    builder.need_local(GATES + rows * columns * 4);
    for (int i = 0; i < node.n_src; ++i)
        if (i != X && node.src[i] != nullptr) builder.reads(*node.src[i]);
    reads_activations(builder, *node.src[X], activations);
    builder.writes(node);
    return step;
}

// Relies on: up and gate of one type [k, m], x [k, n], node [m, n], packed rows.
bool prepare_dense(PlanBuilder& builder, const Tensor& node) {
    Choice choice;
    if (!choose(builder, node, &choice)) return false;
    const Tensor& x = *node.src[X];
    const int64_t k = x.ne[0], m = node.ne[0], n = node.ne[1];
    const Activations activations = prepare_activations(builder, x, choice.engine.format, 0);
    const bool few = n <= choice.engine.few_columns;
    int64_t rows = panel_rows(choice.engine), columns = n;
    if (few) {
        rows = few_rows(choice.engine, m, k, 1, builder.n_workers());
    } else {
        columns = ceil_div(n, ceil_div(n, MAX_COLUMNS));
        while (columns > 64 && ceil_div(m, rows) * ceil_div(n, columns) < 4 * builder.n_workers())
            columns = ceil_div(columns, 2);
    }
    Step& step = add_products(builder, node, choice, run_dense, ceil_div(m, rows) * ceil_div(n, columns), m * n * k / 4,
                              activations, rows, columns);
    if (!few) step.arg.ptr[A_FEW] = step.arg.ptr[A_MANY];
    set_grain(step, few, builder.n_workers());
    return true;
}

// Relies on: up [k, m, n_experts] (2 m rows if there is no gate, which else is like up), x [k, 1 or a divisor of
// n_slots, n_tokens], ids i32 [n_slots, n_tokens], biases [m or 2 m, n_experts] of f32, node [m, n_slots, n_tokens].
bool prepare_experts(PlanBuilder& builder, const Tensor& node) {
    Choice choice;
    if (!choose(builder, node, &choice)) return false;
    const Tensor &up = *node.src[UP], &x = *node.src[X], &ids = *node.src[IDS];
    const int64_t k = x.ne[0], m = node.ne[0], n_experts = up.ne[2], n_pairs = ids.ne[0] * ids.ne[1];
    if (n_pairs > INT32_MAX) return builder.unsupported(node, "more than 2^31 - 1 pairs of token and expert");
    const bool few = n_pairs <= FEW_PAIRS;
    const int64_t sorted = few ? 0 : sorted_bytes(n_experts, n_pairs);
    const Activations activations = prepare_activations(builder, x, choice.engine.format, sorted);
    if (!few) sort_pairs(builder, node, up, ids, activations.own);
    const int64_t rows = few ? few_rows(choice.engine, m, k, n_pairs, builder.n_workers()) : panel_rows(choice.engine);
    Step& step = add_products(builder, node, choice, few ? run_pairs : run_experts,
                              ceil_div(m, rows) * (few ? n_pairs : n_experts), m * k / 4 * n_pairs, activations, rows,
                              few ? 1 : MAX_COLUMNS);
    if (!few) builder.largest_item(node, least_of(m, rows) * k / 4 * n_pairs);  // all tokens ask for one expert
    if (!few) builder.reads_scratch(activations.own, sorted);
    set_grain(step, true, builder.n_workers());
    return true;
}

}  // namespace

void register_gated(OpTable& table) {
    table.prepare[OP_FUSED_UP_GATE] = prepare_dense;
    table.prepare[OP_MOE_FUSED_UP_GATE] = prepare_experts;
}

GGR_KERNELS_END
