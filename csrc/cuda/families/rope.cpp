// ROPE and ROPE_BACK. Rates and YaRN's blend are computed here, in f64; see csrc/cpu/kernels/rope.cpp for the meaning.
#include "cuda/kernels/rope.h"

#include <cmath>

#include "cuda/families/families.h"
#include "cuda/families/operands.h"

namespace ggr {
namespace cuda {

namespace {

constexpr int STREAMS = 4;  // time, height, width, extra: rows of the position tensor

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

// YaRN: the channel that turns n_rot times over the original context. In f32 and in this order of operations, since its
// floor or ceiling is taken and must not fall on the other side.
float correction_dim(const Tensor& node, float n_rot) {
    constexpr float PI = 3.14159265358979323846f;
    const float n_dims = static_cast<float>(node.params[PARAM_N_DIMS]);
    const float n_ctx = static_cast<float>(node.params[PARAM_N_CTX_ORIG]);
    return n_dims * std::log(n_ctx / (n_rot * 2 * PI)) / (2 * std::log(param_f32(node, PARAM_FREQ_BASE)));
}

struct Yarn {
    double magnitude;  // factor of cosines and sines
    float begin, end;  // pairs before it keep their frequency, pairs from `end` on are interpolated
};

Yarn yarn_of(const Tensor& node) {
    Yarn y = {static_cast<double>(param_f32(node, PARAM_ATTN_FACTOR)), 0.0f, 0.0f};
    if (param_f32(node, PARAM_EXT_FACTOR) == 0.0f) return y;
    y.magnitude *= 1.0 + 0.1 * std::log(1.0 / static_cast<double>(param_f32(node, PARAM_FREQ_SCALE)));
    const float begin = std::floor(correction_dim(node, param_f32(node, PARAM_BETA_FAST)));
    const float end = std::ceil(correction_dim(node, param_f32(node, PARAM_BETA_SLOW)));
    const float last = static_cast<float>(node.params[PARAM_N_DIMS] - 1);
    y.begin = 0.0f > begin ? 0.0f : begin;
    y.end = last < end ? last : end;
    return y;
}

// The stream of positions that pair number `sector` of a cycle of sections follows.
int stream_of(int32_t mode, const int32_t* sections, int64_t sector) {
    if (mode == ROPE_IMROPE) {  // the streams take turns for as long as their sections last
        for (int s = 0; s < 3; ++s)
            if (sector % 3 == s && sector < 3 * int64_t{sections[s]}) return s;
        return 3;
    }
    int64_t end = 0;
    for (int s = 0; s < 3; ++s) {
        end += sections[s];
        if (sector < end) return s;
    }
    return 3;
}

// Radians a position of every pair, frequency factors apart, and the streams. In the vision mode each stream's powers
// start anew where its section starts.
void rates(const Tensor& node, const Yarn& yarn, int64_t pairs, double* rate, uint8_t* stream) {
    const int32_t mode = node.params[PARAM_MODE];
    const int32_t* sections = node.params + PARAM_SECTIONS;
    const bool multi = (mode & ROPE_MROPE) != 0;
    const double freq_scale = static_cast<double>(param_f32(node, PARAM_FREQ_SCALE));
    const double ext_factor = static_cast<double>(param_f32(node, PARAM_EXT_FACTOR));
    const double step = std::pow(static_cast<double>(param_f32(node, PARAM_FREQ_BASE)),
                                 -2.0 / static_cast<double>(node.params[PARAM_N_DIMS]));
    int64_t start[STREAMS] = {}, cycle = 0;
    for (int s = 0; multi && s < STREAMS; ++s) {
        start[s] = cycle;
        cycle += sections[s];
    }
    double power[STREAMS] = {1.0, 1.0, 1.0, 1.0};
    for (int64_t i = 0; i < pairs; ++i) {
        int of = 0;
        if (multi) {
            const int64_t sector = i % cycle;
            if (mode == ROPE_VISION)
                for (int s = 0; s < STREAMS; ++s)
                    if (sector == start[s]) {  // of sections that start at one place (empty ones) the first only
                        power[s] = 1.0;
                        break;
                    }
            of = stream_of(mode, sections, sector);
        }
        double blend = freq_scale;
        if (ext_factor != 0.0) {
            const float width = yarn.end - yarn.begin;
            const double y = (static_cast<double>(i) - static_cast<double>(yarn.begin)) /
                             static_cast<double>(width > 0.001f ? width : 0.001f);
            const double ramp = (1.0 - (y < 0.0 ? 0.0 : y > 1.0 ? 1.0 : y)) * ext_factor;
            blend = freq_scale * (1.0 - ramp) + ramp;
        }
        rate[i] = power[of] * blend;
        stream[i] = static_cast<uint8_t>(of);
        for (double& p : power) p *= step;
    }
}

// What keeps accesses inside the tensors hangs on parameters and is checked here.
bool legal(const Tensor& node) {
    const Tensor &a = *node.src[0], &positions = *node.src[1], *factors = node.src[2];
    if (node.type != a.type || (a.type != TYPE_F32 && a.type != TYPE_F16)) return false;
    if (positions.type != TYPE_I32 || (factors != nullptr && factors->type != TYPE_F32)) return false;
    if (!rows_contiguous(a) || !rows_contiguous(node)) return false;
    const int32_t mode = node.params[PARAM_MODE];
    const int64_t n_dims = node.params[PARAM_N_DIMS], offset = node.params[PARAM_OFFSET];
    if (mode != ROPE_NORMAL && mode != ROPE_NEOX && mode != ROPE_MROPE && mode != ROPE_VISION && mode != ROPE_IMROPE)
        return false;
    if (n_dims <= 0 || n_dims % 2 != 0 || offset < 0 || offset + n_dims > node.ne[0]) return false;
    if (mode == ROPE_VISION && (offset != 0 || n_dims * 2 != node.ne[0])) return false;
    const bool multi = (mode & ROPE_MROPE) != 0;
    if (multi) {
        const int32_t* sections = node.params + PARAM_SECTIONS;
        int64_t sum = 0;
        for (int s = 0; s < STREAMS; ++s) {
            if (sections[s] < 0) return false;
            sum += sections[s];
        }
        if (sum == 0 || sum == sections[3] || sum > node.ne[0]) return false;
    }
    const int64_t pairs = mode == ROPE_VISION ? n_dims : n_dims / 2;
    return pairs <= MAX_ROPE_PAIRS && positions.ne[0] >= node.ne[2] * (multi ? STREAMS : 1) &&
           (factors == nullptr || factors->ne[0] >= pairs);
}

// Relies on: a and dst of one shape.
bool prepare(PlanBuilder& builder, const Tensor& node) {
    if (!legal(node)) return false;
    const Tensor &a = *node.src[0], &positions = *node.src[1], *factors = node.src[2];
    const int32_t mode = node.params[PARAM_MODE];
    const int64_t n_dims = node.params[PARAM_N_DIMS];
    const Yarn yarn = yarn_of(node);
    RopeArgs args = {};
    args.dst = view_of(node);
    args.a = view_of(a);
    args.positions = reinterpret_cast<const int32_t*>(positions.data);
    args.positions_nb = positions.nb[0];
    args.stream_elements = node.ne[2];
    args.factors = factors != nullptr ? factors->data : nullptr;
    args.factors_nb = factors != nullptr ? factors->nb[0] : 0;
    args.pairs = static_cast<int32_t>(mode == ROPE_VISION ? n_dims : n_dims / 2);
    args.distance = static_cast<int32_t>(mode == ROPE_NORMAL ? 1 : mode == ROPE_VISION ? n_dims : n_dims / 2);
    args.offset = node.params[PARAM_OFFSET];
    args.f16 = a.type == TYPE_F16;
    args.cosine_factor = static_cast<float>(yarn.magnitude);
    args.sine_factor = node.op == OP_ROPE_BACK ? -args.cosine_factor : args.cosine_factor;
    double rate[MAX_ROPE_PAIRS];
    rates(node, yarn, args.pairs, rate, args.stream);
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
