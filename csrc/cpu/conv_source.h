// Reading the source of a convolution: elements under one tap of the kernel at consecutive places.
#pragma once

#include "cpu/elementwise.h"
#include "cpu/layout.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// Extents and strides of images or volumes; one of no depth has depth 1.
struct Source {
    const uint8_t* data;
    int32_t type;
    int64_t size[3];   // across, down, deep
    int64_t nb[3];     // bytes
    int64_t channel;   // bytes from one to the next
    int64_t sequence;  // bytes from one image to the next
    int64_t channels;
};

struct Window {
    int64_t taps[3], stride[3], padding[3], dilation[3];
    int64_t count() const { return taps[0] * taps[1] * taps[2]; }
};

// Places i in [begin, end) of `n` at which tap `tap` lies inside the source.
struct Inside {
    int64_t begin, end;
};
inline Inside places_inside(const Window& w, int64_t size, int64_t tap, int64_t n) {
    const int64_t shift = tap * w.dilation[0] - w.padding[0], stride = w.stride[0];
    Inside in;
    in.begin = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
    in.end = size - shift <= 0 ? 0 : (size - shift + stride - 1) / stride;
    if (in.end > n) in.end = n;
    if (in.begin > in.end) in.begin = in.end;
    return in;
}

// out[i] = the element under a tap (x, y, z) of a channel at place (first + i, py, pz), 0 outside.
[[maybe_unused]] void load_places(float* out, const Source& s, const Window& w, const uint8_t* channel,
                                  const int64_t tap[3], int64_t first, int64_t py, int64_t pz, int64_t n) {
    const int64_t y = py * w.stride[1] + tap[1] * w.dilation[1] - w.padding[1];
    const int64_t z = pz * w.stride[2] + tap[2] * w.dilation[2] - w.padding[2];
    if (y < 0 || y >= s.size[1] || z < 0 || z >= s.size[2]) {
        std::memset(out, 0, static_cast<size_t>(n) * sizeof(float));
        return;
    }
    const Inside in = places_inside(w, s.size[0], tap[0], first + n);
    const int64_t begin = in.begin > first ? (in.begin < first + n ? in.begin : first + n) : first;
    const int64_t end = in.end > begin ? in.end : begin;
    for (int64_t i = first; i < begin; ++i) out[i - first] = 0.0f;
    if (end > begin) {
        const int64_t x = begin * w.stride[0] + tap[0] * w.dilation[0] - w.padding[0];
        load_tile(out + (begin - first), s.type, channel + x * s.nb[0] + y * s.nb[1] + z * s.nb[2],
                  w.stride[0] * s.nb[0], end - begin);
    }
    for (int64_t i = end; i < first + n; ++i) out[i - first] = 0.0f;
}

// Rounded to half and back, as a half kernel's products take their other side.
[[maybe_unused]] inline vf rounded_to_half(vf x) {
    uint16_t half[VL];
    vstore_f16(half, x);
    return vload_f16(half);
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
