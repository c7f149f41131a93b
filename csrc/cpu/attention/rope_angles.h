// What the kernels of ROPE and its kin share: angles, their cosines and sines, pairs that turn.
#pragma once

#include "cpu/attention/sincos.h"
#include "cpu/step.h"
#include "graph/rope.h"

namespace ggr {
namespace GGR_LEVEL {
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

static inline int64_t padded(int64_t pairs) { return (pairs + VL - 1) / VL * VL; }

static_assert(sizeof(RopeConstants) <= sizeof(Step::arg), "");

// The cache of a rotation has more pairs than factors: those past the factors are never used.
static inline void rates(const Step& step, const RopeConstants& c, const Scratch& scratch, int64_t pairs) {
    const Tensor &node = *step.dst, *factors = step.src[2];
    rope_rates(node, c, pairs, scratch.rate, scratch.stream);
    for (int64_t i = 0; factors != nullptr && i < pairs && i < factors->ne[0]; ++i)
        scratch.rate[i] /= (double)*at<float>(factors->data, i * factors->nb[0]);
    for (int64_t i = pairs; i < padded(pairs); ++i) scratch.rate[i] = scratch.stream[i] = 0;
}

// Values of pairs as turn_neighbours wants them: for both elements of each.
static inline void spread_pairs(const Scratch& scratch, int64_t pairs) {
    for (int64_t i = pairs - 1; i >= 0; --i) {  // backwards: in place
        const float cosine = scratch.cosine[i], sine = scratch.sine[i];
        scratch.cosine[2 * i] = scratch.cosine[2 * i + 1] = cosine;
        scratch.sine[2 * i] = -sine;
        scratch.sine[2 * i + 1] = sine;
    }
}

// Cosines and sines of one token.
static inline void angles(const Step& step, const RopeConstants& c, const Scratch& scratch, int64_t pairs,
                          int64_t token) {
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
    if (node.op != OP_ROPE_CACHE && node.params[ROPE_MODE] == ROPE_NORMAL) spread_pairs(scratch, pairs);
}

// Exchange the two lanes of each pair.
static inline vf swap_pairs(vf v) {
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

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
