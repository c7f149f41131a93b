// What ROPE and ROPE_BACK mean: the angle of pair i is position * rate(i), rate(i) = freq_base^(-2 i / n_dims), over a
// factor where there are some, scaled by freq_scale and blended by YaRN's ramp. Powers and rates are held in f64, so
// that the angle at position 10^6 is still exact to 10^-8.
#pragma once

#include "core/tensor.h"
#include "spec/ids.h"

namespace ggr {

// Words of the parameters.
enum RopeWord : int {
    ROPE_N_DIMS = 1,
    ROPE_MODE = 2,
    ROPE_N_CTX_ORIG = 4,
    ROPE_FREQ_BASE = 5,
    ROPE_FREQ_SCALE = 6,
    ROPE_EXT_FACTOR = 7,
    ROPE_ATTN_FACTOR = 8,
    ROPE_BETA_FAST = 9,
    ROPE_BETA_SLOW = 10,
    ROPE_SECTIONS = 11,
    ROPE_N_OFFS = 15
};

constexpr int ROPE_STREAMS = 4;  // time, height, width, extra: rows of the position tensor

static inline bool rope_has_streams(const Tensor& node) { return (node.params[ROPE_MODE] & ROPE_MROPE) != 0; }
// Pairs that turn: the vision mode turns the whole row.
static inline int64_t rope_pairs(const Tensor& node) {
    return node.params[ROPE_MODE] == ROPE_VISION ? node.params[ROPE_N_DIMS] : node.params[ROPE_N_DIMS] / 2;
}
// Channels from one of a pair to the other.
static inline int64_t rope_distance(const Tensor& node) {
    return node.params[ROPE_MODE] == ROPE_NORMAL ? 1 : rope_pairs(node);
}

// What all rates of a node have in common.
struct RopeConstants {
    double step;       // freq_base^(-2 / n_dims)
    float magnitude;   // factor of cosines and sines
    float ramp_begin;  // YaRN: pairs before it keep their frequency, pairs from ramp_end on are interpolated
    float ramp_end;
};
RopeConstants rope_constants(const Tensor& node);

// Radians a position of the first `pairs` pairs, frequency factors apart, and which stream of positions each follows.
// In the vision mode each stream's powers start anew where its section starts.
void rope_rates(const Tensor& node, const RopeConstants& constants, int64_t pairs, double* rate, uint8_t* stream);

}  // namespace ggr
