// A graph as a device takes it: validated, in internal numbers, one allocation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/device.h"
#include "core/status.h"
#include "core/tensor.h"

namespace ggr {

struct DialectTable;

struct Graph {
    Tensor* tensors;       // in the client's order: each after all that it refers to
    const Tensor** nodes;  // those to run, in order: op is no no-op and the COMPUTE flag does not forbid it
    uint32_t n_tensors;
    uint32_t n_nodes;
    uint64_t uid;  // 0: not to be kept
    uint32_t device;
    size_t bytes;  // of the allocation
};

// Maps the handles of one session to its buffers.
struct BufferLookup {
    Buffer* (*find)(void* context, uint64_t handle);
    void* context;
};

void free_graph(Graph*);

// Parse and validate the payload of a GRAPH_COMPUTE. nullptr on failure, with the command, tensor and rule in *err.
// `device`: the device of the session that the payload names must equal the device of every buffer that a node touches.
Graph* parse_graph(const DialectTable& dialect, const uint8_t* payload, uint64_t length, const BufferLookup& lookup,
                   Device* const* devices, uint32_t n_devices, Error* err);

// Check one node against the rules of its op: sources, types, shapes, strides, parameters (graph/rules*.cpp).
bool check_node(const Tensor& node, Error* err);

}  // namespace ggr
