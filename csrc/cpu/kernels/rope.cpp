// ROPE and ROPE_BACK: rotate pairs of channels of each head by angles proportional to the token's position. f32 or f16.
//
// The angle of pair i is pos * f(i), f(i) = freq_base^(-2 i / n_dims) / freq_factors[i], scaled by freq_scale and
// blended by YaRN's ramp. Powers and angles are held in f64, so that the angle at position 10^6 is still exact to
// 10^-8.
//
// An item is a token: its cosines and sines are computed once (about n_dims / 2 angles) and serve all its heads.
// Floor: bytes of a and dst over memory bandwidth.
#include "cpu/attention/rows.h"
#include "cpu/attention/sincos.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

enum RopeMode : int32_t { ROPE_NORMAL = 0, ROPE_NEOX = 2, ROPE_MROPE = 8, ROPE_VISION = 24, ROPE_IMROPE = 40 };

constexpr int MROPE_STREAMS = 4;  // time, height, width, extra: rows of the position tensor

// Words of the op's parameters.
enum : int {
    PARAM_N_DIMS = 1,
    PARAM_MODE = 2,
    PARAM_N_CTX_ORIG = 4,
    PARAM_FREQ_BASE = 5,
    PARAM_FREQ_SCALE = 6,
    PARAM_EXT_FACTOR = 7,
    PARAM_ATTN_FACTOR = 8,
    PARAM_BETA_FAST = 9,
    PARAM_BETA_SLOW = 10,
    PARAM_SECTIONS = 11,
    PARAM_OFFSET = 15
};

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
    int32_t* stream;  // which row of positions

    static int64_t bytes(int64_t pairs) { return pairs * (2 * 8 + 4 * 4 + 3 * 4); }
    Scratch(uint8_t* local, int64_t pairs) {
        rate = reinterpret_cast<double*>(local);
        theta = rate + pairs;
        cosine = reinterpret_cast<float*>(theta + pairs);
        sine = cosine + 2 * pairs;
        reduced = sine + 2 * pairs;
        quadrant = reinterpret_cast<int32_t*>(reduced + pairs);
        stream = quadrant + pairs;
    }
};

int64_t padded(int64_t pairs) { return (pairs + VL - 1) / VL * VL; }

// Pairs that turn: the vision mode turns the whole row, with n_dims as the distance within a pair.
int64_t pairs_of(const Tensor& node) {
    return node.params[PARAM_MODE] == ROPE_VISION ? node.params[PARAM_N_DIMS] : node.params[PARAM_N_DIMS] / 2;
}

// Constants computed when the step is made.
struct Constants {
    double step;       // freq_base^(-2 / n_dims)
    float magnitude;   // factor of cosines and sines
    float ramp_begin;  // YaRN: pairs before it keep their frequency, pairs from ramp_end on are interpolated
    float ramp_end;
};
static_assert(sizeof(Constants) <= sizeof(Step::arg), "");

// YaRN: the channel that turns n_rot times over the original context. In f32 and in this order of operations, since its
// floor or ceiling is taken and must not fall on the other side.
float correction_dim(const Tensor& node, float n_rot) {
    constexpr float PI = 3.14159265358979323846f;
    const float n_dims = (float)node.params[PARAM_N_DIMS], n_ctx = (float)node.params[PARAM_N_CTX_ORIG];
    return n_dims * __builtin_logf(n_ctx / (n_rot * 2 * PI)) / (2 * __builtin_logf(param_f32(node, PARAM_FREQ_BASE)));
}

Constants constants(const Tensor& node) {
    const int32_t n_dims = node.params[PARAM_N_DIMS];
    Constants c = {};
    c.step = __builtin_pow((double)param_f32(node, PARAM_FREQ_BASE), -2.0 / n_dims);
    double magnitude = (double)param_f32(node, PARAM_ATTN_FACTOR);
    if (param_f32(node, PARAM_EXT_FACTOR) != 0.0f) {
        magnitude *= 1.0 + 0.1 * __builtin_log(1.0 / (double)param_f32(node, PARAM_FREQ_SCALE));
        const float begin = __builtin_floorf(correction_dim(node, param_f32(node, PARAM_BETA_FAST)));
        const float end = __builtin_ceilf(correction_dim(node, param_f32(node, PARAM_BETA_SLOW)));
        c.ramp_begin = 0.0f > begin ? 0.0f : begin;
        c.ramp_end = (float)(n_dims - 1) < end ? (float)(n_dims - 1) : end;
    }
    c.magnitude = (float)magnitude;
    return c;
}

// The stream of positions that pair number `sector` of a cycle of sections follows.
int32_t stream_of(int32_t mode, const int32_t* sections, int64_t sector) {
    if (mode == ROPE_IMROPE) {  // the streams take turns for as long as their sections last
        for (int32_t s = 0; s < 3; ++s)
            if (sector % 3 == s && sector < 3 * int64_t{sections[s]}) return s;
        return 3;
    }
    int64_t end = 0;
    for (int32_t s = 0; s < 3; ++s) {
        end += sections[s];
        if (sector < end) return s;
    }
    return 3;
}

// Fill rate and stream. In the vision mode each stream's powers start anew where its section starts.
void rates(const Step& step, const Constants& c, const Scratch& scratch, int64_t pairs) {
    const Tensor &node = *step.dst, *factors = step.src[2];
    const int32_t mode = node.params[PARAM_MODE];
    const int32_t* sections = node.params + PARAM_SECTIONS;
    const bool multi = (mode & ROPE_MROPE) != 0;
    const double freq_scale = (double)param_f32(node, PARAM_FREQ_SCALE);
    const double ext_factor = (double)param_f32(node, PARAM_EXT_FACTOR);
    int64_t start[MROPE_STREAMS] = {}, cycle = 0;
    for (int s = 0; multi && s < MROPE_STREAMS; ++s) {
        start[s] = cycle;
        cycle += sections[s];
    }
    double power[MROPE_STREAMS] = {1.0, 1.0, 1.0, 1.0};
    for (int64_t i = 0; i < pairs; ++i) {
        int32_t stream = 0;
        if (multi) {
            const int64_t sector = i % cycle;
            if (mode == ROPE_VISION)
                for (int s = 0; s < MROPE_STREAMS; ++s)
                    if (sector == start[s]) {  // of sections that start at one place (empty ones) the first only
                        power[s] = 1.0;
                        break;
                    }
            stream = stream_of(mode, sections, sector);
        }
        double rate = power[stream];
        if (factors != nullptr) rate /= (double)*at<float>(factors->data, i * factors->nb[0]);
        double blend = freq_scale;
        if (ext_factor != 0.0) {
            const float width = c.ramp_end - c.ramp_begin;
            const double y = ((double)i - (double)c.ramp_begin) / (double)(width > 0.001f ? width : 0.001f);
            const double ramp = (1.0 - (y < 0.0 ? 0.0 : y > 1.0 ? 1.0 : y)) * ext_factor;
            blend = freq_scale * (1.0 - ramp) + ramp;
        }
        scratch.rate[i] = rate * blend;
        scratch.stream[i] = stream;
        for (double& p : power) p *= c.step;
    }
    for (int64_t i = pairs; i < padded(pairs); ++i) scratch.rate[i] = scratch.stream[i] = 0;
}

// Cosines and sines of one token.
void angles(const Step& step, const Constants& c, const Scratch& scratch, int64_t pairs, int64_t token) {
    const Tensor &node = *step.dst, &positions = *step.src[1];
    const int64_t stride = positions.nb[0];
    if ((node.params[PARAM_MODE] & ROPE_MROPE) == 0) {
        const double pos = (double)*at<int32_t>(positions.data, token * stride);
        for (int64_t i = 0; i < padded(pairs); ++i) scratch.theta[i] = pos * scratch.rate[i];
    } else {
        double pos[MROPE_STREAMS];
        for (int s = 0; s < MROPE_STREAMS; ++s)
            pos[s] = (double)*at<int32_t>(positions.data, (token + s * node.ne[2]) * stride);
        for (int64_t i = 0; i < padded(pairs); ++i) scratch.theta[i] = pos[scratch.stream[i]] * scratch.rate[i];
    }
    sincos_f64(scratch.theta, padded(pairs), c.magnitude, scratch.cosine, scratch.sine, scratch.reduced,
               scratch.quadrant);
    if (node.op == OP_ROPE_BACK)
        for (int64_t i = 0; i < pairs; ++i) scratch.sine[i] = -scratch.sine[i];
    if (node.params[PARAM_MODE] == ROPE_NORMAL)
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
    const int32_t mode = dst.params[PARAM_MODE];
    const int64_t pairs = pairs_of(dst), offset = dst.params[PARAM_OFFSET], n_dims = dst.params[PARAM_N_DIMS];
    const int64_t distance = mode == ROPE_VISION ? n_dims : n_dims / 2, after = offset + 2 * pairs;
    const Scratch scratch(worker.local, padded(pairs));
    Constants c;
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

// Relies on: a and dst of one shape and type. All else that keeps accesses inside the tensors is checked here, since it
// hangs on parameters.
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor &a = *node.src[0], &positions = *node.src[1], *factors = node.src[2];
    if (node.type != a.type || (a.type != TYPE_F32 && a.type != TYPE_F16))
        return builder.unsupported(node, "types %s -> %s", type_traits(a.type)->name, type_traits(node.type)->name);
    if (positions.type != TYPE_I32 || (factors != nullptr && factors->type != TYPE_F32))
        return builder.unsupported(node, "positions must be I32 and frequency factors F32");
    if (!rows_contiguous(a) || !rows_contiguous(node))
        return builder.unsupported(node, "rows with gaps between elements");
    const int32_t mode = node.params[PARAM_MODE];
    const int64_t n_dims = node.params[PARAM_N_DIMS], offset = node.params[PARAM_OFFSET];
    const int32_t* sections = node.params + PARAM_SECTIONS;
    if (mode != ROPE_NORMAL && mode != ROPE_NEOX && mode != ROPE_MROPE && mode != ROPE_VISION && mode != ROPE_IMROPE)
        return builder.unsupported(node, "rope mode %d", mode);
    if (n_dims <= 0 || n_dims % 2 != 0 || n_dims > MAX_ROPE_DIMS || offset < 0 || offset + n_dims > node.ne[0])
        return builder.unsupported(node, "%lld dimensions at %lld of %lld", static_cast<long long>(n_dims),
                                   static_cast<long long>(offset), static_cast<long long>(node.ne[0]));
    if (mode == ROPE_VISION && (offset != 0 || n_dims * 2 != node.ne[0]))
        return builder.unsupported(node, "vision mode turns whole rows of 2 * n_dims");
    const bool multi = (mode & ROPE_MROPE) != 0;
    if (multi) {
        int64_t sum = 0;
        for (int s = 0; s < MROPE_STREAMS; ++s) {
            if (sections[s] < 0) return builder.unsupported(node, "a section of negative length");
            sum += sections[s];
        }
        if (sum == 0 || sum == sections[3] || sum > node.ne[0])
            return builder.unsupported(node, "sections of %lld channels in all", static_cast<long long>(sum));
    }
    const int64_t pairs = pairs_of(node);
    if (positions.ne[0] < node.ne[2] * (multi ? MROPE_STREAMS : 1))
        return builder.unsupported(node, "%lld positions for %lld tokens", static_cast<long long>(positions.ne[0]),
                                   static_cast<long long>(node.ne[2]));
    if (factors != nullptr && factors->ne[0] < pairs)
        return builder.unsupported(node, "%lld frequency factors for %lld pairs",
                                   static_cast<long long>(factors->ne[0]), static_cast<long long>(pairs));
    builder.need_local(Scratch::bytes(padded(pairs)));
    const int64_t work = n_elements(node) * 2 + node.ne[2] * pairs * 4;
    Step& step = builder.add(a.type == TYPE_F32 ? run<RowF32> : run<RowF16>, node, node.ne[2], work);
    const Constants c = constants(node);
    std::memcpy(&step.arg, &c, sizeof c);
    return true;
}

}  // namespace

void register_rope(OpTable& table) {
    table.prepare[OP_ROPE] = prepare;
    table.prepare[OP_ROPE_BACK] = prepare;
}

GGR_KERNELS_END
