// From tensors to products: activations in scratch, pointers to columns and results, pairs of token and expert.
#pragma once

#include "cpu/elementwise.h"
#include "cpu/matmul/product.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int64_t CHUNK = 2048;            // elements of a column that are quantised at a time
constexpr int64_t FEW_PAIRS = 16;          // up to here the pairs of a product with experts are not sorted
constexpr int64_t FEW_WORK = 524288;       // elements of weights in an item of streamed rows, where there are enough
constexpr int64_t POINTERS = LOCAL_BYTES;  // in the worker's scratch: pointers to columns, then to results

[[maybe_unused]] int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Activations ----

// ik_llama.cpp multiplies weights in blocks of 32 with activations on a grid of its own. The records differ in their
// contents only, so that the engine stays.
[[maybe_unused]] void fit_activations(const Tensor& node, int32_t weights, Engine* engine) {
    const bool blocks_of_32 = engine->format == ACT_Q8_0 || engine->format == ACT_Q8_1;
    if ((node.flags & FLAG_BF16_SCALES) != 0 && blocks_of_32 && block_size(weights) == QK) engine->format = ACT_Q8_2;
}

// Items are chunks of rows of src[0]. Floor: one read of the source.
[[maybe_unused]] bool run_activations(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor& x = *step.src[0];
    const ActFormat format = (ActFormat)step.arg.i64[0];
    const int64_t k = x.ne[0], chunks = step.arg.i64[1];
    const ColumnLayout layout = column_layout(format, k);
    float* copy = reinterpret_cast<float*>(worker.local);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item / chunks, i = item % chunks * CHUNK, n = k - i < CHUNK ? k - i : CHUNK;
        const int64_t i1 = row % x.ne[1], i2 = row / x.ne[1] % x.ne[2], i3 = row / (x.ne[1] * x.ne[2]);
        const uint8_t* from = x.data + i * x.nb[0] + i1 * x.nb[1] + i2 * x.nb[2] + i3 * x.nb[3];
        const float* elements = copy;
        if (x.type == TYPE_F32 && rows_contiguous(x))
            elements = reinterpret_cast<const float*>(from);
        else
            load_tile(copy, x.type, from, x.nb[0], n);
        write_column(format, layout, elements, i, n, worker.shared + step.offset[0] + row * layout.stride);
    }
    return true;
}

// Floats that need no rounding are read where they are.
[[maybe_unused]] bool reads_in_place(const Tensor& x, ActFormat format) {
    return format == ACT_F32 && x.type == TYPE_F32 && rows_contiguous(x);
}

// The record of row (i1, i2, i3) of the activations `x`, in scratch at `offset` or (offset < 0) in place.
[[maybe_unused]] const uint8_t* column(const Tensor& x, const uint8_t* records, int64_t stride, int64_t i1, int64_t i2,
                                       int64_t i3) {
    if (records == nullptr) return x.data + i1 * x.nb[1] + i2 * x.nb[2] + i3 * x.nb[3];
    return records + ((i3 * x.ne[2] + i2) * x.ne[1] + i1) * stride;
}

struct Activations {
    int64_t offset;  // -1: read in place
    int64_t bytes;
    int64_t own;  // offset of the node's own scratch
};

// Have the activations in scratch, and `own` bytes more for the node.
[[maybe_unused]] Activations prepare_activations(PlanBuilder& builder, const Tensor& x, ActFormat format, int64_t own) {
    if (reads_in_place(x, format)) return {-1, 0, own > 0 ? builder.scratch(own) : 0};
    const int64_t k = x.ne[0], bytes = n_rows(x) * column_layout(format, k).stride;
    own = (own + 63) & ~int64_t{63};
    if (builder.find_activation(x, format) >= 0) {
        const int64_t at = own > 0 ? builder.scratch(own) : 0;
        const int64_t found = builder.find_activation(x, format);  // the scratch may have taken its place
        if (found >= 0) return {found, bytes, at};
    }
    const int64_t at = builder.scratch(own + bytes), offset = at + own;
    const int64_t chunks = ceil_div(k, CHUNK);
    Step& step = builder.add_bare(run_activations, &x, n_rows(x) * chunks, n_elements(x) * 2);
    step.src[0] = &x;
    step.offset[0] = offset;
    step.arg.i64[0] = format;
    step.arg.i64[1] = chunks;
    builder.need_local(CHUNK * 4);
    builder.reads(x);
    builder.writes_scratch(offset, bytes);
    builder.keep_activation(x, format, offset, bytes);
    return {offset, bytes, at};
}

[[maybe_unused]] void reads_activations(PlanBuilder& builder, const Tensor& x, const Activations& activations) {
    if (activations.offset < 0)
        builder.reads(x);
    else
        builder.reads_scratch(activations.offset, activations.bytes);
}

[[maybe_unused]] const uint8_t* records_of(const Step& step, const Worker& worker) {
    return step.offset[0] < 0 ? nullptr : worker.shared + step.offset[0];
}

struct Pointers {
    const uint8_t** columns;
    float** out;
    explicit Pointers(const Worker& worker)
        : columns(reinterpret_cast<const uint8_t**>(worker.local + POINTERS)),
          out(reinterpret_cast<float**>(worker.local + POINTERS + MAX_COLUMNS * 8)) {}
};
constexpr int64_t LOCAL_NEEDED = POINTERS + 2 * MAX_COLUMNS * 8;

// Rows of an item of streamed rows: many, since each item prepares the column anew and starts a stream that the
// processor's prefetching has to find (items of 16 times the bytes: 8 to 25 % less time a token), few enough that all
// workers end together.
[[maybe_unused]] int64_t few_rows(const Engine& engine, int64_t m, int64_t k, int64_t batches, int n_workers) {
    const int64_t least_rows = engine.group > 4 ? engine.group : 4;
    int64_t rows = ceil_div(FEW_WORK, k);
    rows = rows < 16 ? 16 : rows > 256 ? 256 : ceil_div(rows, 16) * 16;
    while (rows > least_rows && ceil_div(m, rows) * batches < 8 * n_workers) rows /= 2;
    return ceil_div(rows, least_rows) * least_rows;
}

// Hand items out finely: they are large enough for it, and all workers wait for the last.
[[maybe_unused]] void set_grain(Step& step, bool few, int n_workers) {
    if (step.serial) return;
    const int64_t grain = few ? step.n_items / (n_workers * 32) : 1;
    step.grain = grain > 1 ? grain : 1;
}

// ---- Pairs of token and expert ----

[[maybe_unused]] int32_t expert_of(const Tensor& ids, int64_t slot, int64_t token) {
    int32_t expert;
    std::memcpy(&expert, ids.data + slot * ids.nb[0] + token * ids.nb[1], 4);
    return expert;
}

// Whether an expert that is not there means a row of zeros, not an error.
[[maybe_unused]] bool absent_is_zero(const Tensor& node) { return (node.flags & FLAG_ABSENT_ROWS_ARE_ZERO) != 0; }

// A pair (numbered token * n_slots + slot) without an expert: elements [row, row + n) of its result.
[[maybe_unused]] void clear_pair(const Tensor& dst, int64_t pair, int64_t n_slots, int64_t row, int64_t n) {
    const int64_t slot = pair % n_slots, token = pair / n_slots;
    std::memset(dst.data + slot * dst.nb[1] + token * dst.nb[2] + row * 4, 0, (size_t)n * 4);
}

// Pairs sorted by expert, in scratch: where each expert's begin (n_experts + 1), the pairs, the expert of each pair
// (-1: none, and the pair is not listed). src = {., ., ids}.
[[maybe_unused]] bool run_sort_pairs(const Step& step, int64_t, int64_t, Worker& worker) {
    const Tensor& ids = *step.src[2];
    const int64_t n_experts = step.src[0]->ne[2], n_pairs = ids.ne[0] * ids.ne[1];
    int32_t* first = reinterpret_cast<int32_t*>(worker.shared + step.offset[1]);
    int32_t *pairs = first + n_experts + 1, *experts = pairs + n_pairs;
    std::memset(first, 0, (size_t)(n_experts + 1) * 4);
    for (int64_t pair = 0; pair < n_pairs; ++pair) {
        const int32_t expert = expert_of(ids, pair % ids.ne[0], pair / ids.ne[0]);
        const bool there = expert >= 0 && expert < n_experts;
        if (there)
            ++first[expert];
        else if (absent_is_zero(*step.dst))
            clear_pair(*step.dst, pair, ids.ne[0], 0, step.dst->ne[0]);
        else
            return fail_index(worker, step, &ids, expert, n_experts);
        experts[pair] = there ? expert : -1;
    }
    for (int64_t e = 0; e < n_experts; ++e) first[e + 1] += first[e];  // where each expert's end
    for (int64_t pair = n_pairs - 1; pair >= 0; --pair)
        if (experts[pair] >= 0) pairs[--first[experts[pair]]] = (int32_t)pair;
    return true;
}

[[maybe_unused]] int64_t sorted_bytes(int64_t n_experts, int64_t n_pairs) { return (n_experts + 1 + 2 * n_pairs) * 4; }

// Have the pairs of a node of experts `w` sorted, in scratch at `offset`.
[[maybe_unused]] void sort_pairs(PlanBuilder& builder, const Tensor& node, const Tensor& w, const Tensor& ids,
                                 int64_t offset) {
    const int64_t n_pairs = ids.ne[0] * ids.ne[1];
    Step& step = builder.add_bare(run_sort_pairs, &node, 1, n_pairs * 8);
    step.src[0] = &w;
    step.src[2] = &ids;
    step.offset[1] = offset;
    builder.reads(ids);
    builder.writes_scratch(offset, sorted_bytes(w.ne[2], n_pairs));
    if (absent_is_zero(node)) builder.writes(node);
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
