// Arguments of the kernels of recurrent layers.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

// Numbers of an input: strides in elements.
struct Strip {
    const float* data;
    int64_t element, token, head, sequence;
};

struct ConvArgs {
    View dst, x, kernel;  // dst [channels, tokens, sequences], x [tokens + taps - 1, channels, sequences]
    int32_t taps, channels, tokens, blocks;  // blocks of channels
};
constexpr int CONV_TILE = 32;  // channels and tokens of a block

struct ScanArgs {
    const float *state, *a, *dt;  // a [1 or n, heads], dt [heads, tokens, sequences]
    View x, b, c, ids;
    float *values, *states;
    int32_t n, dim, heads, heads_a_group, tokens, sequences, stored, snapshots;
    FaultSite site;
};

// Attention whose memory is a matrix a head. Which inputs there are depends on the kernel.
struct LinearArgs {
    Strip q, k, v, decay, extra, other;
    const float* state;
    float *values, *states;
    float* store;  // states after all tokens but the last, or nullptr
    int32_t n, heads, tokens, sequences, snapshots;
    int32_t q_heads, k_heads;    // that the heads share in turn
    int32_t q_repeat, k_repeat;  // sequences, or heads, that share one
    float scale;
};

struct SolveArgs {
    const float *a, *b;
    float* x;
    int32_t n, width;
};

// ---- ik_llama.cpp's ----
struct MapConvArgs {
    const float *state, *x, *kernel;
    View map;
    float *values, *states, *store;
    int64_t state_pitch, x_pitch;  // elements between sequences of the state, tokens of x
    int32_t taps, channels, tokens, sequences;
    FaultSite site;
};

struct MapScanArgs {
    const float *state, *x, *dt, *a;
    View b, c, map;
    float *values, *states;
    int32_t n, channels, tokens, sequences;
    FaultSite site;
};

}  // namespace cuda
}  // namespace ggr
