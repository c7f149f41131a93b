// The decoders of ik_llama.cpp's types, which one file compiles for all that convert rows.
#pragma once

#include "cpu/simd.h"

namespace ggr {
namespace GGR_LEVEL {

// Elements [begin, begin + n), whole blocks, of the row or of the group of interleaved rows whose bytes start at `rows`
// (a header stands there, so that no part of a row can be decoded without): row k to y + k * ld.
using DecodeRows = void (*)(const uint8_t* rows, int64_t begin, int64_t n, float* y, int64_t ld);

// A row of n elements from its start; nullptr for interleaved types and all others.
using IkRow = void (*)(const uint8_t* row, float* y, int64_t n);
IkRow ik_row_decoder(int32_t type);
// From f32; nullptr for all but the types of caches.
using IkQuantRow = void (*)(const float* x, uint8_t* row, int64_t n);
IkQuantRow ik_row_quantiser(int32_t type);

}  // namespace GGR_LEVEL
}  // namespace ggr
