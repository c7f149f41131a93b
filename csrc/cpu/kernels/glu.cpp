// GLU: dst = activation(gate) * up, gate and up being the halves of one tensor's rows or two tensors. f32, f16 and
// bf16, computed in f32. Floor: bytes of gate, up and dst over memory bandwidth; an exponential a lane from the caches.
#include "cpu/gates.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

// d[0 .. n) = f(gate) * up; d may be either. `p`: alpha, limit.
using Apply = void (*)(float* d, const float* gate, const float* up, int64_t n, const float* p);

template <vf (*F)(vf gate, vf up, const float* p)>
void apply(float* d, const float* gate, const float* up, int64_t n, const float* p) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(d + i, F(vload(gate + i), vload(up + i), p));
    if (i < n) vstore_part(d + i, F(vload_part(gate + i, n - i), vload_part(up + i, n - i), p), n - i);
}

inline vf reglu(vf gate, vf up, const float*) { return vselect(gate > vset(0.0f), gate * up, vset(0.0f)); }
inline vf geglu(vf gate, vf up, const float*) { return vgelu(gate) * up; }
inline vf swiglu(vf gate, vf up, const float*) { return vsilu(gate) * up; }
inline vf geglu_erf(vf gate, vf up, const float*) { return vgelu_erf(gate) * up; }
inline vf geglu_quick(vf gate, vf up, const float*) { return vgelu_quick(gate) * up; }

inline vf swiglu_oai(vf gate, vf up, const float* p) {
    const vf x = at_most(gate, p[1]);
    return vgate(x, x * p[0]) * (within(up, p[1]) + 1.0f);
}
inline vf swiglu_clamp(vf gate, vf up, const float* p) { return vsilu(at_most(gate, p[1])) * within(up, p[1]); }

bool run(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &a = *step.src[0];
    const bool halves = step.src[1] == nullptr;
    const Tensor& b = halves ? a : *step.src[1];
    // Elements by which gate and up are shifted in the rows of one source.
    const int64_t half = halves ? dst.ne[0] : 0;
    const int64_t gate_at = step.arg.i64[1] != 0 ? half : 0, up_at = half - gate_at;
    const Apply fn = reinterpret_cast<Apply>(step.arg.i64[6]);
    const bool direct = a.type == TYPE_F32 && b.type == TYPE_F32 && dst.type == TYPE_F32 && rows_contiguous(a) &&
                        rows_contiguous(b) && rows_contiguous(dst);
    float tg[TILE], tu[TILE];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const uint8_t* pg = row_at(a, item.i1, item.i2, item.i3) + (item.at + gate_at) * a.nb[0];
        const uint8_t* pu = row_at(b, item.i1, item.i2, item.i3) + (item.at + up_at) * b.nb[0];
        uint8_t* pd = row_at(dst, item.i1, item.i2, item.i3) + item.at * dst.nb[0];
        if (direct) {
            fn(reinterpret_cast<float*>(pd), reinterpret_cast<const float*>(pg), reinterpret_cast<const float*>(pu),
               item.n, step.arg.f32);
            continue;
        }
        for (int64_t i = 0; i < item.n; i += TILE) {
            const int64_t n = item.n - i < TILE ? item.n - i : TILE;
            load_tile(tg, a.type, pg + i * a.nb[0], a.nb[0], n);
            load_tile(tu, b.type, pu + i * b.nb[0], b.nb[0], n);
            fn(tg, tg, tu, n, step.arg.f32);
            store_tile(dst.type, pd + i * dst.nb[0], dst.nb[0], tg, n);
        }
    }
    return true;
}

// Relies on: two sources of dst's shape, or one with rows twice as long; `swapped` says that up comes first then.
bool prepare(PlanBuilder& builder, const Tensor& node) {
    static constexpr struct {
        Apply fn;
        int cost;
    } KIND[GLU_COUNT_] = {
        {apply<reglu>, 1},     {apply<geglu>, 6},       {apply<swiglu>, 5},       {apply<swiglu_oai>, 6},
        {apply<geglu_erf>, 9}, {apply<geglu_quick>, 6}, {apply<swiglu_clamp>, 6},
    };
    const Tensor &a = *node.src[0], *b = node.src[1];
    const int32_t kind = node.params[0];
    if (kind < 0 || kind >= GLU_COUNT_) return builder.unsupported(node, "GLU kind %d", kind);
    if (!is_float(a.type) || !is_float(node.type) || (b != nullptr && !is_float(b->type)))
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(a.type)->name,
                                   b != nullptr ? type_traits(b->type)->name : "none", type_traits(node.type)->name);
    const bool flat = b != nullptr && is_contiguous(a) && is_contiguous(*b) && is_contiguous(node);
    const Split split = split_rows(node, flat);
    Step& step = builder.add(run, node, split.items, work_of(n_elements(node), KIND[kind].cost));
    keep_split(step, split);
    step.arg.f32[0] = param_f32(node, 2);
    step.arg.f32[1] = param_f32(node, 3);
    step.arg.i64[1] = b == nullptr && node.params[1] != 0;
    step.arg.i64[6] = reinterpret_cast<int64_t>(KIND[kind].fn);
    return true;
}

}  // namespace

void register_glu(OpTable& table) { table.prepare[OP_GLU] = prepare; }

GGR_KERNELS_END
