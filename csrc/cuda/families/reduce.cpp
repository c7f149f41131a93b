// SUM, SUM_ROWS, MEAN, CUMSUM, ARGMAX, COUNT_EQUAL.
#include "cuda/kernels/reduce.h"

#include "cuda/families/families.h"
#include "cuda/families/operands.h"

namespace ggr {
namespace cuda {

namespace {

constexpr int64_t MAX_PARTS = 256;
constexpr int64_t PART_ELEMENTS = 4096;

int threads_for(int64_t n) {
    int threads = WARP;
    while (threads < 1024 && threads * 4 < n) threads *= 2;
    return threads;
}

// A block a row of x.
bool add_rows(PlanBuilder& builder, const Tensor& node, const char* kernel, bool mean) {
    const Tensor& x = *node.src[0];
    if (n_rows(x) >= MAX_COUNT || x.ne[0] / threads_for(x.ne[0]) > MAX_STEPS) return false;
    RowReduceArgs args = {};
    args.dst = view_of(node);
    args.x = view_of(x);
    args.ne1 = divisor_of_size(x.ne[1]);
    args.ne2 = divisor_of_size(x.ne[2]);
    args.rows = static_cast<uint32_t>(n_rows(x));
    args.mean = mean;
    builder.launch(node, {args.rows, 1, 1}, threads_for(x.ne[0]), 0, args, "reduce", kernel);
    return true;
}

// Relies on: dst [1, ne1, ne2, ne3] of the source.
template <bool MEAN>
bool prepare_sum_rows(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return false;
    return add_rows(builder, node, "sum_rows", MEAN);
}

// Relies on: source and result of one shape.
bool prepare_cumsum(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return false;
    return add_rows(builder, node, "cumulative_sum", false);
}

// Relies on: a source of two dimensions with rows shorter than 2^31, dst [ne1].
bool prepare_argmax(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_I32) return false;
    return add_rows(builder, node, "arg_max", false);
}

bool add_total(PlanBuilder& builder, const Tensor& node, const char* equal) {
    const Tensor& a = *node.src[0];
    const int64_t elements = n_elements(a);
    if (elements >= MAX_COUNT / 2) return false;
    TotalArgs args = {};
    args.dst = view_of(node);
    args.a = view_of(a);
    if (node.src[1] != nullptr) args.b = view_of(*node.src[1]);
    for (int i = 0; i < 3; ++i) args.ne[i] = divisor_of_size(a.ne[i]);
    args.elements = elements;
    args.type = a.type;
    const int64_t parts = (elements + PART_ELEMENTS - 1) / PART_ELEMENTS;
    args.n_parts = static_cast<int32_t>(parts < MAX_PARTS ? parts : MAX_PARTS);
    args.parts = reinterpret_cast<double*>(builder.scratch(MAX_PARTS * sizeof(double)));
    builder.launch(node, {static_cast<uint32_t>(args.n_parts), 1, 1}, 512, 0, args, "reduce", "total_parts<%s>", equal);
    builder.launch(node, {1, 1, 1}, 256, 0, args, "reduce", "total_of_parts<%s>", equal);
    return true;
}

// Relies on: a result of one element.
bool prepare_sum(PlanBuilder& builder, const Tensor& node) {
    return is_float(node.src[0]->type) && node.type == node.src[0]->type && add_total(builder, node, "false");
}

// Relies on: sources of one shape, a result of one element.
bool prepare_count_equal(PlanBuilder& builder, const Tensor& node) {
    const bool types = node.src[0]->type == TYPE_I32 && node.src[1]->type == TYPE_I32 && node.type == TYPE_I64;
    return types && add_total(builder, node, "true");
}

void enter(OpTable& table) {
    table.prepare[OP_SUM] = prepare_sum;
    table.prepare[OP_SUM_ROWS] = prepare_sum_rows<false>;
    table.prepare[OP_MEAN] = prepare_sum_rows<true>;
    table.prepare[OP_CUMSUM] = prepare_cumsum;
    table.prepare[OP_ARGMAX] = prepare_argmax;
    table.prepare[OP_COUNT_EQUAL] = prepare_count_equal;
}

void list_kernels(void* context, KernelSink sink) {
    for (const char* expression : {"sum_rows", "cumulative_sum", "arg_max", "total_parts<false>", "total_parts<true>",
                                   "total_of_parts<false>", "total_of_parts<true>"})
        sink(context, {"reduce", expression});
}

}  // namespace

const Family REDUCE = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
