// ADD, SUB, MUL, DIV, ADD1: dst = a op b, b repeated to a's shape; ADD_ID: dst = a + the row of b that an id names.
// f32, f16 and bf16 in any mix; computed in f32. Floor: bytes of a, b and dst over memory bandwidth.
#include "cpu/elementwise.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

struct Add {
    static inline vf vector(vf a, vf b) { return a + b; }
};
struct Sub {
    static inline vf vector(vf a, vf b) { return a - b; }
};
struct Mul {
    static inline vf vector(vf a, vf b) { return a * b; }
};
struct Div {
    static inline vf vector(vf a, vf b) { return a / b; }
};

// d[0 .. n) = a op b; d may be a or b.
using Apply = void (*)(float* d, const float* a, const float* b, int64_t n);

template <class Op>
void apply(float* d, const float* a, const float* b, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(d + i, Op::vector(vload(a + i), vload(b + i)));
    if (i < n) vstore_part(d + i, Op::vector(vload_part(a + i, n - i), vload_part(b + i, n - i)), n - i);
}
// The same with one b for all.
template <class Op>
void apply_same(float* d, const float* a, const float* b, int64_t n) {
    const vf same = vset(*b);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(d + i, Op::vector(vload(a + i), same));
    if (i < n) vstore_part(d + i, Op::vector(vload_part(a + i, n - i), same), n - i);
}

inline bool packed_f32(const Tensor& t) { return t.type == TYPE_F32 && t.nb[0] == sizeof(float); }

// One row part: d = a op b. `nb0`: elements after which b's row begins again; `at`: where in dst's row the part begins.
template <class Op>
inline void run_part(const Tensor& dst, const Tensor& a, const Tensor& b, uint8_t* pd, const uint8_t* pa,
                     const uint8_t* pb, int64_t nb0, int64_t at, int64_t n) {
    const bool one = nb0 == 1;
    const bool direct = packed_f32(dst) && packed_f32(a) && b.type == TYPE_F32 && (one || packed_f32(b));
    const Apply fn = one ? apply_same<Op> : apply<Op>;
    float ta[TILE], tb[TILE];
    if (one) load_tile(tb, b.type, pb, b.nb[0], 1);
    for (int64_t i = 0; i < n;) {
        // A stretch ends where b begins again.
        const int64_t from = one ? 0 : wrap(at + i, nb0);
        int64_t m = one || nb0 - from > n - i ? n - i : nb0 - from;
        if (direct) {
            fn(reinterpret_cast<float*>(pd) + i, reinterpret_cast<const float*>(pa) + i,
               one ? tb : reinterpret_cast<const float*>(pb) + from, m);
        } else {
            m = m < TILE ? m : TILE;
            load_tile(ta, a.type, pa + i * a.nb[0], a.nb[0], m);
            if (!one) load_tile(tb, b.type, pb + from * b.nb[0], b.nb[0], m);
            fn(ta, ta, tb, m);
            store_tile(dst.type, pd + i * dst.nb[0], dst.nb[0], ta, m);
        }
        i += m;
    }
}

template <class Op>
bool run(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &a = *step.src[0], &b = *step.src[1];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        uint8_t* pd = row_at(dst, item.i1, item.i2, item.i3) + item.at * dst.nb[0];
        const uint8_t* pa = row_at(a, item.i1, item.i2, item.i3) + item.at * a.nb[0];
        const uint8_t* pb = repeated_row_at(b, item.i1, item.i2, item.i3);
        run_part<Op>(dst, a, b, pd, pa, pb, step.arg.i64[0], item.at, item.n);
    }
    return true;
}

bool refuse(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s, %s -> %s", type_traits(node.src[0]->type)->name,
                               type_traits(node.src[1]->type)->name, type_traits(node.type)->name);
}

// Relies on: a and dst of one shape, b repeatable to it (for ADD1 a single element).
template <class Op>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    if (!is_float(a.type) || !is_float(b.type) || !is_float(node.type)) return refuse(builder, node);
    const bool flat = is_contiguous(a) && is_contiguous(b) && is_contiguous(node) && same_shape(a, b);
    const Split split = split_rows(node, flat);
    Step& step = builder.add(run<Op>, node, split.items, n_elements(node));
    keep_split(step, split);
    step.arg.i64[0] = flat ? split.n : b.ne[0];
    return true;
}

bool run_add_id(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &a = *step.src[0], &b = *step.src[1], &ids = *step.src[2];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        int32_t id;
        std::memcpy(&id, ids.data + item.i1 * ids.nb[0] + item.i2 * ids.nb[1], sizeof id);
        if (id < 0 || id >= b.ne[1]) return fail_index(worker, step, &ids, id, b.ne[1]);
        uint8_t* pd = row_at(dst, item.i1, item.i2, item.i3) + item.at * dst.nb[0];
        const uint8_t* pa = row_at(a, item.i1, item.i2, item.i3) + item.at * a.nb[0];
        run_part<Add>(dst, a, b, pd, pa, b.data + id * b.nb[1], b.ne[0], item.at, item.n);
    }
    return true;
}

// Relies on: a and dst [n, n_used, n_tokens, 1], b [n, n_expert], ids [n_used, n_tokens] of I32.
bool prepare_add_id(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &b = *node.src[1];
    if (!is_float(a.type) || !is_float(b.type) || !is_float(node.type)) return refuse(builder, node);
    if (node.src[2]->type != TYPE_I32)
        return builder.unsupported(node, "ids of type %s", type_traits(node.src[2]->type)->name);
    const Split split = split_rows(node, false);
    Step& step = builder.add(run_add_id, node, split.items, n_elements(node));
    keep_split(step, split);
    return true;
}

}  // namespace

void register_binary(OpTable& table) {
    table.prepare[OP_ADD] = prepare<Add>;
    table.prepare[OP_ADD1] = prepare<Add>;
    table.prepare[OP_SUB] = prepare<Sub>;
    table.prepare[OP_MUL] = prepare<Mul>;
    table.prepare[OP_DIV] = prepare<Div>;
    table.prepare[OP_ADD_ID] = prepare_add_id;
}

GGR_KERNELS_END
