// A compact form of a GRAPH_COMPUTE payload, for graphs that are kept but seldom run. Neighbouring records are alike,
// so most bytes are zero once each is combined with the one a record before it; what is left is stored between runs of
// zeros. About 70 bytes a tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ggr {

// `stride`: bytes of one record, at least 1.
std::vector<uint8_t> pack_payload(const std::vector<uint8_t>& payload, size_t stride);
// The inverse; `packed` must come from pack_payload with the same stride.
std::vector<uint8_t> unpack_payload(const std::vector<uint8_t>& packed, size_t stride);

}  // namespace ggr
