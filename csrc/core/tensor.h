// One tensor of a validated graph, in internal numbers and real addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "spec/ids.h"
#include "spec/tables.h"

namespace ggr {

struct Buffer;

struct Tensor {
    uint8_t* data;         // address in the device's memory; nullptr when no buffer of this device holds it
    int64_t ne[MAX_DIMS];  // elements, dimension 0 fastest
    int64_t nb[MAX_DIMS];  // bytes; that of a dimension of size 1 is set to its contiguous value
    int32_t type;
    int32_t op;
    int32_t flags;      // TensorFlag, those that travel and the internal ones
    int32_t use_count;  // uses in the client's whole graph; -1 when the dialect does not say
    int32_t n_src;      // highest present source + 1
    bool compute;       // a node that is to be run
    const Tensor* src[MAX_SRC];
    const Tensor* view_src;
    uint64_t view_offs;
    Buffer* buffer;
    int32_t params[OP_PARAMS_WORDS];
    char name[MAX_NAME];
    uint64_t id;  // the client's name of it
};

static inline int64_t n_elements(const Tensor& t) { return t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3]; }
static inline int64_t n_rows(const Tensor& t) { return t.ne[1] * t.ne[2] * t.ne[3]; }
static inline bool is_empty(const Tensor& t) { return t.ne[0] == 0 || t.ne[1] == 0 || t.ne[2] == 0 || t.ne[3] == 0; }

// Bytes of one packed row of ne0 elements. The type must be live.
static inline int64_t row_bytes(int32_t type, int64_t ne0) {
    const TypeTraits* tt = type_traits(type);
    return tt->row_meta + ne0 / tt->block * tt->bytes;
}
static inline int64_t block_size(int32_t type) { return type_traits(type)->block; }
static inline int64_t block_bytes(int32_t type) { return type_traits(type)->bytes; }
static inline bool is_quantized(int32_t type) { return type_traits(type)->quantized; }

// Bytes from the first to the last byte that the strides reach.
static inline int64_t extent_bytes(const Tensor& t) {
    if (is_empty(t)) return 0;
    const TypeTraits* tt = type_traits(t.type);
    int64_t bytes;
    int first;
    if (tt->block == 1) {
        bytes = tt->bytes;
        first = 0;
    } else {
        bytes = tt->row_meta + t.ne[0] / tt->block * t.nb[0];
        first = 1;
    }
    for (int i = first; i < MAX_DIMS; ++i) bytes += (t.ne[i] - 1) * t.nb[i];
    return bytes;
}

static inline bool same_shape(const Tensor& a, const Tensor& b) {
    return a.ne[0] == b.ne[0] && a.ne[1] == b.ne[1] && a.ne[2] == b.ne[2] && a.ne[3] == b.ne[3];
}
// b may be repeated to fill a.
static inline bool can_repeat(const Tensor& b, const Tensor& a) {
    if (is_empty(b)) return is_empty(a);
    return a.ne[0] % b.ne[0] == 0 && a.ne[1] % b.ne[1] == 0 && a.ne[2] % b.ne[2] == 0 && a.ne[3] % b.ne[3] == 0;
}
static inline bool rows_contiguous(const Tensor& t) { return t.nb[0] == block_bytes(t.type); }
static inline bool is_contiguous(const Tensor& t) {
    return rows_contiguous(t) && t.nb[1] == row_bytes(t.type, t.ne[0]) && t.nb[2] == t.nb[1] * t.ne[1] &&
           t.nb[3] == t.nb[2] * t.ne[2];
}

// Both tensors lie on exactly the same elements, so that a kernel which reads an element before it writes it, and reads
// no other, may use one as source and the other as result.
static inline bool same_layout(const Tensor& a, const Tensor& b) {
    return a.data == b.data && a.type == b.type && same_shape(a, b) && a.nb[0] == b.nb[0] && a.nb[1] == b.nb[1] &&
           a.nb[2] == b.nb[2] && a.nb[3] == b.nb[3];
}
// The byte ranges of the two tensors overlap. A program checks its nodes before it gives them places.
static inline bool overlap(const Tensor& a, const Tensor& b) {
    if (a.data == nullptr || b.data == nullptr) return false;
    const uintptr_t a0 = reinterpret_cast<uintptr_t>(a.data), b0 = reinterpret_cast<uintptr_t>(b.data);
    return a0 < b0 + static_cast<uintptr_t>(extent_bytes(b)) && b0 < a0 + static_cast<uintptr_t>(extent_bytes(a));
}

static inline float param_f32(const Tensor& t, int word) {
    float v;
    std::memcpy(&v, &t.params[word], sizeof v);
    return v;
}

}  // namespace ggr
