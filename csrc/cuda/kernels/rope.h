// Arguments of the rotation kernel.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

// The rates travel with the launch.
constexpr int MAX_ROPE_PAIRS = 384;

struct RopeArgs {
    View dst, a;
    const int32_t* positions;
    const uint8_t* factors;  // f32 by pair; nullptr: none
    int64_t positions_nb, factors_nb;
    int64_t stream_elements;  // from a stream of positions to the next
    Divisor columns, chunks, tokens;
    uint32_t total;
    int32_t pairs, distance, offset;  // of the first pair; distance 1: neighbours
    int32_t heads_a_chunk;
    int32_t f16;
    float cosine_factor, sine_factor;
    uint64_t rate[MAX_ROPE_PAIRS];  // turns a position: fraction in units of 2^-64; with factors the bits of a double
    uint8_t stream[MAX_ROPE_PAIRS];
};
static_assert(sizeof(RopeArgs) <= MAX_ARGS, "fits");

}  // namespace cuda
}  // namespace ggr
