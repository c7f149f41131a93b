// Walking the elements of a strided tensor in logical order, in runs that are as long as the strides allow.
#pragma once

#include "core/tensor.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

// A tensor's units (elements, or blocks of a quantised type) with dimensions that follow each other in memory merged.
struct Layout {
    uint8_t* data;
    int64_t ne[MAX_DIMS], nb[MAX_DIMS];
};

[[maybe_unused]] static Layout layout_of(const Tensor& t) {
    Layout l = {t.data, {t.ne[0] / block_size(t.type), 1, 1, 1}, {t.nb[0], 0, 0, 0}};
    int last = 0;
    for (int i = 1; i < MAX_DIMS; ++i) {
        if (t.ne[i] == 1) continue;
        if (l.ne[last] == 1) {
            l.ne[last] = t.ne[i];
            l.nb[last] = t.nb[i];
        } else if (t.nb[i] == l.nb[last] * l.ne[last]) {
            l.ne[last] *= t.ne[i];
        } else {
            ++last;
            l.ne[last] = t.ne[i];
            l.nb[last] = t.nb[i];
        }
    }
    if (l.ne[0] == 1) l.nb[0] = block_bytes(t.type);
    return l;
}

// A place in a layout.
struct Cursor {
    Layout l;
    int64_t i[MAX_DIMS];
    uint8_t* p;

    Cursor(const Tensor& t, int64_t unit) : l(layout_of(t)) {
        p = l.data;
        for (int k = 0; k < MAX_DIMS; ++k) {
            i[k] = k < MAX_DIMS - 1 ? unit % l.ne[k] : unit;
            unit /= l.ne[k];
            p += i[k] * l.nb[k];
        }
    }
    int64_t stride() const { return l.nb[0]; }
    int64_t room() const { return l.ne[0] - i[0]; }  // units to the end of the run
    // Go on by n <= room() units. Past the last unit the cursor points at nothing.
    void advance(int64_t n) {
        i[0] += n;
        p += n * l.nb[0];
        for (int k = 0; k < MAX_DIMS - 1 && i[k] == l.ne[k]; ++k) {
            p += l.nb[k + 1] - i[k] * l.nb[k];
            i[k] = 0;
            ++i[k + 1];
        }
    }
};

// The rows of a tensor in order, without a division for each.
struct RowCursor {
    int64_t ne1, ne2, i1, i2, i3;

    RowCursor(const Tensor& t, int64_t row) : ne1(t.ne[1]), ne2(t.ne[2]) {
        i1 = row % ne1;
        i2 = row / ne1 % ne2;
        i3 = row / (ne1 * ne2);
    }
    void next() {
        if (++i1 < ne1) return;
        i1 = 0;
        if (++i2 < ne2) return;
        i2 = 0;
        ++i3;
    }
    uint8_t* of(const Tensor& t) const { return t.data + i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3]; }
};

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
