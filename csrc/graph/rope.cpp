#include "graph/rope.h"

#include <algorithm>
#include <cmath>

namespace ggr {

namespace {

// YaRN: the channel that turns n_rot times over the original context. In f32 and in this order of operations, since its
// floor or ceiling is taken and must not fall on the other side.
float correction_dim(const Tensor& node, float n_rot) {
    constexpr float PI = 3.14159265358979323846f;
    const float n_dims = static_cast<float>(node.params[ROPE_N_DIMS]);
    const float n_ctx = static_cast<float>(node.params[ROPE_N_CTX_ORIG]);
    return n_dims * std::log(n_ctx / (n_rot * 2 * PI)) / (2 * std::log(param_f32(node, ROPE_FREQ_BASE)));
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

}  // namespace

RopeConstants rope_constants(const Tensor& node) {
    const int32_t n_dims = node.params[ROPE_N_DIMS];
    RopeConstants c = {};
    c.step = std::pow(static_cast<double>(param_f32(node, ROPE_FREQ_BASE)), -2.0 / n_dims);
    double magnitude = static_cast<double>(param_f32(node, ROPE_ATTN_FACTOR));
    if (param_f32(node, ROPE_EXT_FACTOR) != 0.0f) {
        magnitude *= 1.0 + 0.1 * std::log(1.0 / static_cast<double>(param_f32(node, ROPE_FREQ_SCALE)));
        const float begin = std::floor(correction_dim(node, param_f32(node, ROPE_BETA_FAST)));
        const float end = std::ceil(correction_dim(node, param_f32(node, ROPE_BETA_SLOW)));
        c.ramp_begin = 0.0f > begin ? 0.0f : begin;
        c.ramp_end = static_cast<float>(n_dims - 1) < end ? static_cast<float>(n_dims - 1) : end;
    }
    c.magnitude = static_cast<float>(magnitude);
    return c;
}

void rope_rates(const Tensor& node, const RopeConstants& constants, int64_t pairs, double* rate, uint8_t* stream) {
    const int32_t mode = node.params[ROPE_MODE];
    const int32_t* sections = node.params + ROPE_SECTIONS;
    const bool multi = rope_has_streams(node);
    const double freq_scale = static_cast<double>(param_f32(node, ROPE_FREQ_SCALE));
    const double ext_factor = static_cast<double>(param_f32(node, ROPE_EXT_FACTOR));
    const double begin = static_cast<double>(constants.ramp_begin);
    const double width = static_cast<double>(std::max(constants.ramp_end - constants.ramp_begin, 0.001f));
    int64_t start[ROPE_STREAMS] = {}, cycle = 0;
    for (int s = 0; multi && s < ROPE_STREAMS; ++s) {
        start[s] = cycle;
        cycle += sections[s];
    }
    double power[ROPE_STREAMS] = {1.0, 1.0, 1.0, 1.0};
    for (int64_t i = 0; i < pairs; ++i) {
        int of = 0;
        if (multi) {
            const int64_t sector = i % cycle;
            if (mode == ROPE_VISION)
                for (int s = 0; s < ROPE_STREAMS; ++s)
                    if (sector == start[s]) {  // of sections that start at one place (empty ones) the first only
                        power[s] = 1.0;
                        break;
                    }
            of = stream_of(mode, sections, sector);
        }
        double blend = freq_scale;
        if (ext_factor != 0.0) {
            const double y = std::min(std::max((static_cast<double>(i) - begin) / width, 0.0), 1.0);
            const double ramp = (1.0 - y) * ext_factor;
            blend = freq_scale * (1.0 - ramp) + ramp;
        }
        rate[i] = power[of] * blend;
        stream[i] = static_cast<uint8_t>(of);
        for (double& p : power) p *= constants.step;
    }
}

}  // namespace ggr
