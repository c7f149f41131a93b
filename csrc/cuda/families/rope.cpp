// ROPE and ROPE_BACK: graph/rope.h says by how much pairs turn. The rates are computed here and travel with the launch.
#include "cuda/kernels/rope.h"

#include <cmath>

#include "cuda/families/families.h"
#include "cuda/families/operands.h"
#include "graph/rope.h"

namespace ggr {
namespace cuda {

namespace {

// Relies on the op's rules (graph/rules_attention.cpp), which bound all that is read and written.
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &positions = *node.src[1], *factors = node.src[2];
    if (rope_pairs(node) > MAX_ROPE_PAIRS) return false;
    RopeArgs args = {};
    args.dst = view_of(node);
    args.a = view_of(a);
    args.positions = reinterpret_cast<const int32_t*>(positions.data);
    args.positions_nb = positions.nb[0];
    args.stream_elements = node.ne[2];
    args.factors = factors != nullptr ? factors->data : nullptr;
    args.factors_nb = factors != nullptr ? factors->nb[0] : 0;
    args.pairs = static_cast<int32_t>(rope_pairs(node));
    args.distance = static_cast<int32_t>(rope_distance(node));
    args.offset = node.params[ROPE_N_OFFS];
    args.f16 = a.type == TYPE_F16;
    const RopeConstants constants = rope_constants(node);
    args.cosine_factor = constants.magnitude;
    args.sine_factor = node.op == OP_ROPE_BACK ? -args.cosine_factor : args.cosine_factor;
    double rate[MAX_ROPE_PAIRS];
    rope_rates(node, constants, args.pairs, rate, args.stream);
    for (int i = 0; i < args.pairs; ++i) {
        const double turns = rate[i] / 6.283185307179586476925;
        if (factors != nullptr) {
            std::memcpy(&args.rate[i], &turns, sizeof turns);
        } else {
            if (!std::isfinite(turns)) return false;
            const double fraction = turns - std::floor(turns);
            args.rate[i] = fraction < 1.0 ? static_cast<uint64_t>(std::ldexp(fraction, 64)) : 0;
        }
    }
    const int64_t columns = args.pairs + (same_layout(node, a) ? 0 : node.ne[0] - 2 * int64_t{args.pairs});
    // A thread takes several heads where there are threads enough without.
    const int64_t all = columns * node.ne[1] * node.ne[2] * node.ne[3];
    args.heads_a_chunk = all >= int64_t{1} << 20 ? 8 : all >= int64_t{1} << 17 ? 2 : 1;
    const int64_t chunks = (node.ne[1] + args.heads_a_chunk - 1) / args.heads_a_chunk;
    if (columns >= MAX_COUNT || n_rows(node) >= MAX_COUNT || columns * chunks * node.ne[2] * node.ne[3] >= MAX_COUNT)
        return false;
    args.columns = divisor_of_size(columns);
    args.chunks = divisor_of_size(chunks);
    args.tokens = divisor_of_size(node.ne[2]);
    args.total = static_cast<uint32_t>(columns * chunks * node.ne[2] * node.ne[3]);
    const uint32_t threads = args.total <= 16384 ? 64 : 256;
    builder.launch(node, {(args.total + threads - 1) / threads, 1, 1}, static_cast<int>(threads), 0, args, "rope",
                   "rope");
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_ROPE] = prepare;
    table.prepare[OP_ROPE_BACK] = prepare;
}

void list_kernels(void* context, KernelSink sink) { sink(context, {"rope", "rope"}); }

}  // namespace

const Family ROPE = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
