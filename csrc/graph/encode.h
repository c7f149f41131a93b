// A program's tensors -> wire records and GRAPH_COMPUTE payloads: the parser's other direction.
#pragma once

#include <cstdint>
#include <vector>

#include "core/device.h"
#include "core/status.h"
#include "core/tensor.h"
#include "wire/dialect.h"

namespace ggr {

constexpr int32_t NOT_SPOKEN = -1;  // the dialect has no number for it
constexpr int32_t AMBIGUOUS = -2;   // the tables that the peer's version stands for number it differently

// Internal numbers -> those of the dialect.
struct EncodeTable {
    const DialectTable* dialect;
    int32_t op_to[256];
    int32_t type_to[512];
    int32_t enum_to[ENUM_COUNT_][MAX_ENUM_VALUE + 1];
};

// One record, as commands about a single tensor carry it: without op and sources. `to` takes
// table.dialect->tensor.bytes.
bool encode_tensor(const EncodeTable& table, const Tensor& t, uint8_t* to, Error* err);

// One record with its op and the ids of its sources, as GET_ALLOC_SIZE carries it.
bool encode_node(const EncodeTable& table, const Tensor& t, uint8_t* to, Error* err);

// The payload of a GRAPH_COMPUTE that runs `nodes` in this order. A tensor that a node reads and that is neither among
// the nodes nor a view counts as a leaf: its contents were made before.
bool encode_graph(const EncodeTable& table, const Tensor* const* nodes, uint32_t n_nodes, uint32_t device, uint64_t uid,
                  std::vector<uint8_t>* out, Error* err);

}  // namespace ggr
