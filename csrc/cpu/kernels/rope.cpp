// ROPE and ROPE_BACK: rotate pairs of channels of each head by angles proportional to the token's position. f32 or f16.
// graph/rope.h says by how much.
//
// An item is a token: its cosines and sines are computed once (about n_dims / 2 angles) and serve all its heads.
// Floor: bytes of a and dst over memory bandwidth.
#include "graph/rope.h"

#include "cpu/attention/rows.h"
#include "cpu/attention/sincos.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

// More channels than this are refused: the angles' scratch must stay small beside the tensors.
constexpr int64_t MAX_ROPE_DIMS = 65536;

// Where things lie in a worker's scratch, for `pairs` pairs, a multiple of VL.
struct Scratch {
    double* rate;   // angle per position
    double* theta;  // angles of the present token
    float* cosine;  // for ROPE_NORMAL each value twice
    float* sine;    // for ROPE_NORMAL -sin, +sin
    float* reduced;
    int32_t* quadrant;
    uint8_t* stream;  // which row of positions

    static int64_t bytes(int64_t pairs) { return pairs * (2 * 8 + 4 * 4 + 2 * 4 + 1); }
    Scratch(uint8_t* local, int64_t pairs) {
        rate = reinterpret_cast<double*>(local);
        theta = rate + pairs;
        cosine = reinterpret_cast<float*>(theta + pairs);
        sine = cosine + 2 * pairs;
        reduced = sine + 2 * pairs;
        quadrant = reinterpret_cast<int32_t*>(reduced + pairs);
        stream = reinterpret_cast<uint8_t*>(quadrant + pairs);
    }
};

int64_t padded(int64_t pairs) { return (pairs + VL - 1) / VL * VL; }

static_assert(sizeof(RopeConstants) <= sizeof(Step::arg), "");

void rates(const Step& step, const RopeConstants& c, const Scratch& scratch, int64_t pairs) {
    const Tensor &node = *step.dst, *factors = step.src[2];
    rope_rates(node, c, pairs, scratch.rate, scratch.stream);
    for (int64_t i = 0; factors != nullptr && i < pairs; ++i)
        scratch.rate[i] /= (double)*at<float>(factors->data, i * factors->nb[0]);
    for (int64_t i = pairs; i < padded(pairs); ++i) scratch.rate[i] = scratch.stream[i] = 0;
}

// Cosines and sines of one token.
void angles(const Step& step, const RopeConstants& c, const Scratch& scratch, int64_t pairs, int64_t token) {
    const Tensor &node = *step.dst, &positions = *step.src[1];
    const int64_t stride = positions.nb[0];
    if (!rope_has_streams(node)) {
        const double pos = (double)*at<int32_t>(positions.data, token * stride);
        for (int64_t i = 0; i < padded(pairs); ++i) scratch.theta[i] = pos * scratch.rate[i];
    } else {
        double pos[ROPE_STREAMS];
        for (int s = 0; s < ROPE_STREAMS; ++s)
            pos[s] = (double)*at<int32_t>(positions.data, (token + s * node.ne[2]) * stride);
        for (int64_t i = 0; i < padded(pairs); ++i) scratch.theta[i] = pos[scratch.stream[i]] * scratch.rate[i];
    }
    sincos_f64(scratch.theta, padded(pairs), c.magnitude, scratch.cosine, scratch.sine, scratch.reduced,
               scratch.quadrant);
    if (node.op == OP_ROPE_BACK)
        for (int64_t i = 0; i < pairs; ++i) scratch.sine[i] = -scratch.sine[i];
    if (node.params[ROPE_MODE] == ROPE_NORMAL)
        for (int64_t i = pairs - 1; i >= 0; --i) {  // backwards: in place
            const float cosine = scratch.cosine[i], sine = scratch.sine[i];
            scratch.cosine[2 * i] = scratch.cosine[2 * i + 1] = cosine;
            scratch.sine[2 * i] = -sine;
            scratch.sine[2 * i + 1] = sine;
        }
}

// Exchange the two lanes of each pair.
inline vf swap_pairs(vf v) {
#if defined(__AVX512F__)
    return (vf)_mm512_permute_ps((__m512)v, 0xb1);
#elif defined(__AVX2__)
    return (vf)_mm256_permute_ps((__m256)v, 0xb1);
#elif defined(__x86_64__)
    return (vf)_mm_shuffle_ps((__m128)v, (__m128)v, 0xb1);
#elif defined(__aarch64__)
    return (vf)vrev64q_f32((float32x4_t)v);
#else
    float lanes[VL];
    vstore(lanes, v);
    for (int i = 0; i < VL; i += 2) {
        const float even = lanes[i];
        lanes[i] = lanes[i + 1];
        lanes[i + 1] = even;
    }
    return vload(lanes);
#endif
}

// Pairs of neighbours: 2 * pairs elements.
template <class F>
void turn_neighbours(typename F::Element* out, const typename F::Element* in, const Scratch& t, int64_t pairs) {
    const int64_t n = 2 * pairs;
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf x = F::load(in + i);
        F::store(out + i, x * vload(t.cosine + i) + swap_pairs(x) * vload(t.sine + i));
    }
    if (i < n) {
        const vf x = load_tail<F>(in + i, n - i);
        store_tail<F>(
            out + i, n - i,
            x * load_tail<RowF32>(t.cosine + i, n - i) + swap_pairs(x) * load_tail<RowF32>(t.sine + i, n - i));
    }
}

// Pairs of elements `distance` apart.
template <class F>
void turn_halves(typename F::Element* out, const typename F::Element* in, const Scratch& t, int64_t pairs,
                 int64_t distance) {
    int64_t i = 0;
    for (; i + VL <= pairs; i += VL) {
        const vf x = F::load(in + i), y = F::load(in + i + distance);
        const vf c = vload(t.cosine + i), s = vload(t.sine + i);
        F::store(out + i, x * c - y * s);
        F::store(out + i + distance, x * s + y * c);
    }
    for (; i < pairs; ++i) {
        const float x = F::get(in + i), y = F::get(in + i + distance);
        F::put(out + i, x * t.cosine[i] - y * t.sine[i]);
        F::put(out + i + distance, x * t.sine[i] + y * t.cosine[i]);
    }
}

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
