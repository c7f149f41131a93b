// ROPE_CACHE of ik_llama.cpp: the cosine and sine of each pair for each position. ROPE_FAST: rotate by them.
// Floor: bytes of sources and results over memory bandwidth, and for ROPE_CACHE a sine and cosine a pair.
#include "cpu/attention/rope_angles.h"
#include "cpu/ik_families.h"

GGR_KERNELS_BEGIN

namespace {

// Items are positions. A row of the result holds ne0 / 2 pairs; those past n_dims / 2 are never used.
bool run_cache(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor& dst = *step.dst;
    const int64_t pairs = dst.ne[0] / 2;
    const Scratch scratch(worker.local, padded(pairs));
    RopeConstants c;
    std::memcpy(&c, &step.arg, sizeof c);
    rates(step, c, scratch, pairs);
    for (int64_t token = begin; token < end; ++token) {
        angles(step, c, scratch, pairs, token);
        float* out = at<float>(dst.data, token * dst.nb[1]);
        for (int64_t i = 0; i < pairs; ++i) {
            out[2 * i] = scratch.cosine[i];
            out[2 * i + 1] = scratch.sine[i];
        }
    }
    return true;
}

bool is_plain_mode(int32_t mode) { return mode == ROPE_NORMAL || mode == ROPE_NEOX; }

// Relies on: positions [tokens], frequency factors for half of n_dims, the result [ne0, tokens] in packed rows, ne0
// even.
bool prepare_cache(PlanBuilder& builder, const Tensor& node) {
    const Tensor &positions = *node.src[0], *factors = node.src[1];
    if (node.type != TYPE_F32 || positions.type != TYPE_I32 || (factors != nullptr && factors->type != TYPE_F32))
        return builder.unsupported(node, "types %s -> %s", type_traits(positions.type)->name,
                                   type_traits(node.type)->name);
    if (!is_plain_mode(node.params[ROPE_MODE]))
        return builder.unsupported(node, "rope mode %d", node.params[ROPE_MODE]);
    if (node.ne[0] > MAX_ROPE_DIMS)
        return builder.unsupported(node, "%lld dimensions", static_cast<long long>(node.ne[0]));
    const int64_t pairs = node.ne[0] / 2;
    builder.need_local(Scratch::bytes(padded(pairs)));
    Step& step = builder.add(run_cache, node, node.ne[1], n_elements(node) * 4);
    step.src[1] = &positions;
    step.src[2] = factors;
    const RopeConstants c = rope_constants(node);
    std::memcpy(&step.arg, &c, sizeof c);
    return true;
}

enum : int { FAST_N_DIMS = 0, FAST_MODE = 1 };

// Items are tokens: index 2 of dst.
bool run_fast(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &a = *step.src[0], &cache = *step.src[1];
    const int64_t n_dims = dst.params[FAST_N_DIMS], pairs = n_dims / 2;
    const bool neighbours = dst.params[FAST_MODE] == ROPE_NORMAL;
    const Scratch scratch(worker.local, padded(pairs));
    for (int64_t token = begin; token < end; ++token) {
        const float* row = at<float>(cache.data, token * cache.nb[1]);
        for (int64_t i = 0; i < pairs; ++i) {
            scratch.cosine[i] = row[2 * i];
            scratch.sine[i] = row[2 * i + 1];
        }
        if (neighbours) spread_pairs(scratch, pairs);
        for (int64_t i3 = 0; i3 < dst.ne[3]; ++i3) {
            for (int64_t i1 = 0; i1 < dst.ne[1]; ++i1) {
                float* out = at<float>(dst.data, i1 * dst.nb[1] + token * dst.nb[2] + i3 * dst.nb[3]);
                const float* in = at<float>(a.data, i1 * a.nb[1] + token * a.nb[2] + i3 * a.nb[3]);
                if (neighbours)
                    turn_neighbours<RowF32>(out, in, scratch, pairs);
                else
                    turn_halves<RowF32>(out, in, scratch, pairs, pairs);
                if (out != in)
                    std::memmove(out + n_dims, in + n_dims, static_cast<size_t>(dst.ne[0] - n_dims) * sizeof(float));
            }
        }
    }
    return true;
}

// Relies on: a and dst of one shape, a cache [n_dims or more, tokens or more], all in packed rows; n_dims even.
bool prepare_fast(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &cache = *node.src[1];
    if (node.type != TYPE_F32 || a.type != TYPE_F32 || cache.type != TYPE_F32)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(a.type)->name, type_traits(cache.type)->name,
                                   type_traits(node.type)->name);
    const int64_t n_dims = node.params[FAST_N_DIMS];
    if (!is_plain_mode(node.params[FAST_MODE]))
        return builder.unsupported(node, "rope mode %d", node.params[FAST_MODE]);
    if (n_dims > MAX_ROPE_DIMS) return builder.unsupported(node, "%lld dimensions", static_cast<long long>(n_dims));
    builder.need_local(Scratch::bytes(padded(n_dims / 2)));
    builder.add(run_fast, node, node.ne[2], n_elements(node) * 2);
    return true;
}

}  // namespace

void register_rope_cached(OpTable& table) {
    table.prepare[OP_ROPE_CACHE] = prepare_cache;
    table.prepare[OP_ROPE_FAST] = prepare_fast;
}

GGR_KERNELS_END
