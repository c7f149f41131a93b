// ADD, SUB, MUL, DIV: dst = a op b, b repeated to a's shape. f32, f16 and bf16 in any mix; computed in f32.
// Floor: bytes of a, b and dst over memory bandwidth.
#include "cpu/level.h"
#include "cpu/simd.h"

GGR_KERNELS_BEGIN

namespace {

struct Add {
    static inline vf vector(vf a, vf b) { return a + b; }
    static inline float scalar(float a, float b) { return a + b; }
};
struct Sub {
    static inline vf vector(vf a, vf b) { return a - b; }
    static inline float scalar(float a, float b) { return a - b; }
};
struct Mul {
    static inline vf vector(vf a, vf b) { return a * b; }
    static inline float scalar(float a, float b) { return a * b; }
};
struct Div {
    static inline vf vector(vf a, vf b) { return a / b; }
    static inline float scalar(float a, float b) { return a / b; }
};

// Storage formats: how a lane vector and a single element are read and written.
struct F32 {
    using Element = float;
    static inline vf load(const float* p) { return vload(p); }
    static inline void store(float* p, vf v) { vstore(p, v); }
    static inline float get(const float* p) { return *p; }
    static inline void put(float* p, float x) { *p = x; }
};
struct F16 {
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_f16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_f16(p, v); }
    static inline float get(const uint16_t* p) { return f16_to_f32(*p); }
    static inline void put(uint16_t* p, float x) { *p = f32_to_f16(x); }
};
struct BF16 {
    using Element = uint16_t;
    static inline vf load(const uint16_t* p) { return vload_bf16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_bf16(p, v); }
    static inline float get(const uint16_t* p) { return bf16_to_f32(*p); }
    static inline void put(uint16_t* p, float x) { *p = f32_to_bf16(x); }
};

// Items are rows of dst.
template <class Op, class A, class B, class D>
bool run(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &a = *step.src[0], &b = *step.src[1];
    const int64_t n = dst.ne[0], nb0 = b.ne[0];
    const bool packed = rows_contiguous(a) && rows_contiguous(b) && rows_contiguous(dst);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t i1 = row % dst.ne[1], i2 = row / dst.ne[1] % dst.ne[2], i3 = row / (dst.ne[1] * dst.ne[2]);
        const uint8_t* pa = a.data + i1 * a.nb[1] + i2 * a.nb[2] + i3 * a.nb[3];
        const uint8_t* pb = b.data + i1 % b.ne[1] * b.nb[1] + i2 % b.ne[2] * b.nb[2] + i3 % b.ne[3] * b.nb[3];
        uint8_t* pd = dst.data + i1 * dst.nb[1] + i2 * dst.nb[2] + i3 * dst.nb[3];
        int64_t i = 0;
        if (packed && (nb0 == n || nb0 == 1)) {
            const typename A::Element* ra = reinterpret_cast<const typename A::Element*>(pa);
            const typename B::Element* rb = reinterpret_cast<const typename B::Element*>(pb);
            typename D::Element* rd = reinterpret_cast<typename D::Element*>(pd);
            if (nb0 == 1) {
                const vf same = vset(B::get(rb));
                for (; i + VL <= n; i += VL) D::store(rd + i, Op::vector(A::load(ra + i), same));
            } else {
                for (; i + VL <= n; i += VL) D::store(rd + i, Op::vector(A::load(ra + i), B::load(rb + i)));
            }
        }
        for (; i < n; ++i) {
            const float x = A::get(reinterpret_cast<const typename A::Element*>(pa + i * a.nb[0]));
            const float y = B::get(reinterpret_cast<const typename B::Element*>(pb + i % nb0 * b.nb[0]));
            D::put(reinterpret_cast<typename D::Element*>(pd + i * dst.nb[0]), Op::scalar(x, y));
        }
    }
    return true;
}

int slot(int32_t type) { return type == TYPE_F32 ? 0 : type == TYPE_F16 ? 1 : type == TYPE_BF16 ? 2 : -1; }

template <class Op>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    static constexpr Step::Fn FN[3][3][3] = {
        {{run<Op, F32, F32, F32>, run<Op, F32, F32, F16>, run<Op, F32, F32, BF16>},
         {run<Op, F32, F16, F32>, run<Op, F32, F16, F16>, run<Op, F32, F16, BF16>},
         {run<Op, F32, BF16, F32>, run<Op, F32, BF16, F16>, run<Op, F32, BF16, BF16>}},
        {{run<Op, F16, F32, F32>, run<Op, F16, F32, F16>, run<Op, F16, F32, BF16>},
         {run<Op, F16, F16, F32>, run<Op, F16, F16, F16>, run<Op, F16, F16, BF16>},
         {run<Op, F16, BF16, F32>, run<Op, F16, BF16, F16>, run<Op, F16, BF16, BF16>}},
        {{run<Op, BF16, F32, F32>, run<Op, BF16, F32, F16>, run<Op, BF16, F32, BF16>},
         {run<Op, BF16, F16, F32>, run<Op, BF16, F16, F16>, run<Op, BF16, F16, BF16>},
         {run<Op, BF16, BF16, F32>, run<Op, BF16, BF16, F16>, run<Op, BF16, BF16, BF16>}},
    };
    const int a = slot(node.src[0]->type), b = slot(node.src[1]->type), d = slot(node.type);
    if (a < 0 || b < 0 || d < 0)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(node.src[0]->type)->name,
                                   type_traits(node.src[1]->type)->name, type_traits(node.type)->name);
    builder.add(FN[a][b][d], node, n_rows(node), n_elements(node));
    return true;
}

}  // namespace

void register_binary(OpTable& table) {
    table.prepare[OP_ADD] = prepare<Add>;
    table.prepare[OP_SUB] = prepare<Sub>;
    table.prepare[OP_MUL] = prepare<Mul>;
    table.prepare[OP_DIV] = prepare<Div>;
}

GGR_KERNELS_END
