// ROPE and ROPE_BACK: rotate pairs of channels of each head by angles proportional to the token's position. f32 or f16.
// graph/rope.h says by how much.
//
// An item is a token: its cosines and sines are computed once (about n_dims / 2 angles) and serve all its heads.
// Floor: bytes of a and dst over memory bandwidth.
#include "cpu/attention/rope_angles.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

// Items are tokens: index 2 of dst.
template <class F>
bool run(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    using Element = typename F::Element;
    const Tensor &dst = *step.dst, &a = *step.src[0];
    const int32_t mode = dst.params[ROPE_MODE];
    const int64_t pairs = rope_pairs(dst), distance = rope_distance(dst);
    const int64_t offset = dst.params[ROPE_N_OFFS], after = offset + 2 * pairs;
    const Scratch scratch(worker.local, padded(pairs));
    RopeConstants c;
    std::memcpy(&c, &step.arg, sizeof c);
    rates(step, c, scratch, pairs);
    for (int64_t token = begin; token < end; ++token) {
        angles(step, c, scratch, pairs, token);
        for (int64_t i3 = 0; i3 < dst.ne[3]; ++i3) {
            for (int64_t i1 = 0; i1 < dst.ne[1]; ++i1) {
                Element* out = at<Element>(dst.data, i1 * dst.nb[1] + token * dst.nb[2] + i3 * dst.nb[3]);
                const Element* in = at<Element>(a.data, i1 * a.nb[1] + token * a.nb[2] + i3 * a.nb[3]);
                if (mode == ROPE_NORMAL)
                    turn_neighbours<F>(out + offset, in + offset, scratch, pairs);
                else
                    turn_halves<F>(out + offset, in + offset, scratch, pairs, distance);
                if (out == in) continue;
                std::memmove(out, in, static_cast<size_t>(offset) * sizeof(Element));
                std::memmove(out + after, in + after, static_cast<size_t>(dst.ne[0] - after) * sizeof(Element));
            }
        }
    }
    return true;
}

// Relies on the op's rules (graph/rules_attention.cpp), which bound all that is read and written.
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor& a = *node.src[0];
    if (node.params[ROPE_N_DIMS] > MAX_ROPE_DIMS)
        return builder.unsupported(node, "%d dimensions", node.params[ROPE_N_DIMS]);
    const int64_t pairs = rope_pairs(node);
    builder.need_local(Scratch::bytes(padded(pairs)));
    const int64_t work = n_elements(node) * 2 + node.ne[2] * pairs * 4;
    Step& step = builder.add(a.type == TYPE_F32 ? run<RowF32> : run<RowF16>, node, node.ne[2], work);
    const RopeConstants c = rope_constants(node);
    std::memcpy(&step.arg, &c, sizeof c);
    return true;
}

}  // namespace

void register_rope(OpTable& table) {
    table.prepare[OP_ROPE] = prepare;
    table.prepare[OP_ROPE_BACK] = prepare;
}

GGR_KERNELS_END
