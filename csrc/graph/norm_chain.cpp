#include "graph/norm_chain.h"

namespace ggr {

namespace {

bool packed_f32(const Tensor& t) { return t.type == TYPE_F32 && rows_contiguous(t); }

// The other source of a two-source node that takes `link`, if that can be an operand of the fused row: whole rows of
// f32 that are repeated, `link` itself not being repeated. nullptr otherwise.
const Tensor* operand_beside(const Tensor& node, const Tensor& link) {
    const Tensor *a = node.src[0], *b = node.src[1];
    const Tensor* other = a == &link ? b : b == &link ? a : nullptr;
    if (other == nullptr || other == &link || !packed_f32(*other) || other->ne[0] != node.ne[0]) return nullptr;
    if (node.type != TYPE_F32 || !same_shape(node, link) || !can_repeat(*other, node)) return nullptr;
    return other;
}

// What one row writes, no other row reads: the result lies beside the source, or exactly on it.
bool rows_independent(const Tensor& result, const Tensor& source) {
    return !overlap(result, source) || same_layout(result, source);
}

bool rows_independent(const NormChain& chain) {
    const Tensor& result = *chain.last;
    return packed_f32(result) && rows_independent(result, *chain.norm->src[0]) &&
           rows_independent(result, *chain.factor) &&
           (chain.addend == nullptr || rows_independent(result, *chain.addend));
}

}  // namespace

NormChain norm_chain(const Graph& graph, uint32_t i, bool (*may_skip)(const void*, const Tensor&),
                     const void* context) {
    const NormChain none = {};
    // Writing an intermediate must not be a way of changing another tensor, and its memory must hold nothing that a
    // later node of the chain reads.
    const auto skip = [&](const Tensor& node) { return node.view_src == nullptr && may_skip(context, node); };
    if (i + 1 >= graph.n_nodes) return none;
    const Tensor &norm = *graph.nodes[i], &mul = *graph.nodes[i + 1];
    if (mul.op != OP_MUL || !packed_f32(*norm.src[0]) || norm.type != TYPE_F32 || !skip(norm)) return none;
    const Tensor* factor = operand_beside(mul, norm);
    if (factor == nullptr || overlap(*factor, norm)) return none;
    const NormChain pair = {&norm, factor, nullptr, &mul, 2};
    if (i + 2 < graph.n_nodes && graph.nodes[i + 2]->op == OP_ADD && skip(mul)) {
        const Tensor& add = *graph.nodes[i + 2];
        const NormChain triple = {&norm, factor, operand_beside(add, mul), &add, 3};
        if (triple.addend != nullptr && !overlap(*triple.addend, norm) && !overlap(*triple.addend, mul) &&
            rows_independent(triple))
            return triple;
    }
    return rows_independent(pair) ? pair : none;
}

}  // namespace ggr
