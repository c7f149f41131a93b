// Reading rpc_tensor records out of a payload.
#pragma once

#include <cstdint>

#include "core/device.h"
#include "core/status.h"
#include "core/tensor.h"
#include "wire/dialect.h"

namespace ggr {

// One record as it came, before anything in it was believed.
struct WireTensor {
    uint64_t id, buffer, view_src, view_offs, data;
    uint64_t ne[MAX_DIMS], nb[MAX_DIMS];
    uint32_t type, op;
    int32_t flags, use_count;
    int32_t params[OP_PARAMS_WORDS];
    uint64_t src[MAX_SRC];
    char name[MAX_NAME];  // always ends with NUL; bytes that are not printable ASCII become '?'
};

uint32_t load_u32(const uint8_t* p);
uint64_t load_u64(const uint8_t* p);

// The whole record; `record` holds layout.bytes bytes.
void read_tensor(const TensorLayout& layout, const uint8_t* record, WireTensor* out);

// Check type, shape and strides of a record and write them to `out` in internal numbers (type, ne, nb, name). On
// success the tensor's extent fits in 62 bits. `command` names the request in the message.
bool check_layout(const DialectTable& dialect, const WireTensor& wire, const char* command, Tensor* out, Error* err);

// Resolve the record's address inside `buffer` to out->data: the whole extent must lie inside.
bool check_placement(const WireTensor& wire, Buffer* buffer, const char* command, Tensor* out, Error* err);

}  // namespace ggr
