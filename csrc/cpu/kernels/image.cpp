// UPSCALE: nearest, bilinear (also antialiased) and bicubic interpolation. PAD_REFLECT_1D, ROLL: rows mirrored at their
// ends, rows shifted around. TIMESTEP_EMBEDDING: cosines and sines of a time at falling frequencies.
// Items are rows of the result. Floor: bytes of source and result over memory bandwidth.
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/simd.h"

GGR_KERNELS_BEGIN

namespace {

bool refuse(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s -> %s", type_traits(node.src[0]->type)->name,
                               type_traits(node.type)->name);
}
bool both_f32(const Tensor& node) { return node.src[0]->type == TYPE_F32 && node.type == TYPE_F32; }

inline float& float_at(uint8_t* p) { return *reinterpret_cast<float*>(p); }
inline float float_at(const uint8_t* p) { return *reinterpret_cast<const float*>(p); }
inline int64_t clamp(int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n - 1; }
inline float clamp_unit(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

// ---- UPSCALE ----

enum : int32_t { MODE = 0xff, NEAREST = 0, BILINEAR = 1, BICUBIC = 2, ALIGN_CORNERS = 256, ANTIALIAS = 512 };

// Positions are f32 throughout: clients' references round them so, and a nearest element hangs on it.
struct Grid {
    float scale[4];  // elements of the result an element of the source
    float offset;    // of an element's centre
};
Grid grid_of(const Tensor& x, const Tensor& dst) {
    Grid g;
    for (int i = 0; i < 4; ++i) g.scale[i] = static_cast<float>(dst.ne[i]) / static_cast<float>(x.ne[i]);
    g.offset = 0.5f;
    if ((dst.params[0] & ALIGN_CORNERS) == 0) return g;
    g.offset = 0.0f;
    for (int i = 0; i < 2; ++i)
        if (dst.ne[i] > 1 && x.ne[i] > 1)
            g.scale[i] = static_cast<float>(dst.ne[i] - 1) / static_cast<float>(x.ne[i] - 1);
    return g;
}
inline int64_t nearest(int64_t i, float scale, int64_t n) {
    return clamp(static_cast<int64_t>(static_cast<float>(i) / scale), n);
}

// A place between elements: the first of them, and how far from it.
struct Between {
    int64_t first;
    float rest;
};
inline Between between(int64_t i, float scale, float offset) {
    const float at = (static_cast<float>(i) + offset) / scale - offset;
    const float whole = __builtin_floorf(at);
    return {static_cast<int64_t>(whole), at - whole};
}

void nearest_row(float* y, int64_t y_stride, const uint8_t* line, int64_t nb, int64_t size, const Grid& g, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        float_at(reinterpret_cast<uint8_t*>(y) + i * y_stride) = float_at(line + nearest(i, g.scale[0], size) * nb);
}

void bilinear_row(float* y, int64_t row, const uint8_t* plane, const Tensor& x, const Grid& g, int64_t n) {
    Between v = between(row, g.scale[1], g.offset);
    const int64_t y0 = clamp(v.first, x.ne[1]), y1 = clamp(v.first + 1, x.ne[1]);
    // Before the first element and behind the last both are the same one.
    const float dy = clamp_unit(static_cast<float>(v.first - y0) + v.rest);
    const uint8_t *upper = plane + y0 * x.nb[1], *lower = plane + y1 * x.nb[1];
    for (int64_t i = 0; i < n; ++i) {
        const Between h = between(i, g.scale[0], g.offset);
        const int64_t x0 = clamp(h.first, x.ne[0]), x1 = clamp(h.first + 1, x.ne[0]);
        const float dx = clamp_unit(static_cast<float>(h.first - x0) + h.rest);
        const float a = float_at(upper + x0 * x.nb[0]), b = float_at(upper + x1 * x.nb[0]);
        const float c = float_at(lower + x0 * x.nb[0]), d = float_at(lower + x1 * x.nb[0]);
        y[i] = a * (1.0f - dx) * (1.0f - dy) + b * dx * (1.0f - dy) + c * (1.0f - dx) * dy + d * dx * dy;
    }
}

// Elements [begin, end) of the source under a triangle around `at`.
struct Support {
    float at, width;
    int64_t begin, end;
};
inline Support support(int64_t i, float scale, float offset, int64_t size) {
    Support s;
    s.at = (static_cast<float>(i) + offset) / scale;
    s.width = 1.0f / scale > 1.0f ? 1.0f / scale : 1.0f;
    s.begin = static_cast<int64_t>(s.at - s.width + offset);
    s.end = least(static_cast<int64_t>(s.at + s.width + offset), size);
    if (s.begin < 0) s.begin = 0;
    return s;
}
inline float triangle(const Support& s, int64_t i, float offset) {
    const float weight = 1.0f - __builtin_fabsf((static_cast<float>(i) - s.at + offset) * (1.0f / s.width));
    return weight > 0.0f ? weight : 0.0f;
}

void antialiased_row(float* y, int64_t row, const uint8_t* plane, const Tensor& x, const Grid& g, int64_t n) {
    const Support v = support(row, g.scale[1], g.offset, x.ne[1]);
    for (int64_t i = 0; i < n; ++i) {
        const Support h = support(i, g.scale[0], g.offset, x.ne[0]);
        float sum = 0.0f, total = 0.0f;
        for (int64_t sy = v.begin; sy < v.end; ++sy) {
            const float down = triangle(v, sy, g.offset);
            for (int64_t sx = h.begin; sx < h.end; ++sx) {
                const float weight = triangle(h, sx, g.offset) * down;
                if (weight <= 0.0f) continue;  // an infinite element outside must not make a NaN
                sum += float_at(plane + sx * x.nb[0] + sy * x.nb[1]) * weight;
                total += weight;
            }
        }
        y[i] = total > 0.0f ? sum / total : sum;
    }
}

// Weights of four neighbours at distance t behind the second: cubic convolution with a = -3/4.
inline void cubic_weights(float w[4], float t) {
    constexpr float A = -0.75f;
    const auto far = [](float d) { return ((A * d - 5.0f * A) * d + 8.0f * A) * d - 4.0f * A; };
    const auto near = [](float d) { return ((A + 2.0f) * d - (A + 3.0f)) * d * d + 1.0f; };
    w[0] = far(t + 1.0f);
    w[1] = near(t);
    w[2] = near(1.0f - t);
    w[3] = far(2.0f - t);
}

void bicubic_row(float* y, int64_t row, const uint8_t* plane, const Tensor& x, const Grid& g, int64_t n) {
    const Between v = between(row, g.scale[1], g.offset);
    float down[4], across[4];
    cubic_weights(down, v.rest);
    for (int64_t i = 0; i < n; ++i) {
        const Between h = between(i, g.scale[0], g.offset);
        cubic_weights(across, h.rest);
        float sum = 0.0f;
        for (int64_t j = 0; j < 4; ++j) {
            const uint8_t* line = plane + clamp(v.first + j - 1, x.ne[1]) * x.nb[1];
            float part = 0.0f;
            for (int64_t k = 0; k < 4; ++k)
                part += float_at(line + clamp(h.first + k - 1, x.ne[0]) * x.nb[0]) * across[k];
            sum += part * down[j];
        }
        y[i] = sum;
    }
}

bool run_upscale(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const Grid g = grid_of(x, dst);
    const int32_t mode = dst.params[0] & MODE;
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const uint8_t* plane =
            x.data + nearest(at.i2, g.scale[2], x.ne[2]) * x.nb[2] + nearest(at.i3, g.scale[3], x.ne[3]) * x.nb[3];
        float* y = reinterpret_cast<float*>(at.of(dst));
        if (mode == NEAREST)
            nearest_row(y, dst.nb[0], plane + nearest(at.i1, g.scale[1], x.ne[1]) * x.nb[1], x.nb[0], x.ne[0], g,
                        dst.ne[0]);
        else if (mode == BICUBIC)
            bicubic_row(y, at.i1, plane, x, g, dst.ne[0]);
        else if ((dst.params[0] & ANTIALIAS) != 0)
            antialiased_row(y, at.i1, plane, x, g, dst.ne[0]);
        else
            bilinear_row(y, at.i1, plane, x, g, dst.ne[0]);
    }
    return true;
}

// Relies on: a known mode, packed rows of the result, a source that is not empty.
bool prepare_upscale(PlanBuilder& builder, const Tensor& node) {
    if (!both_f32(node)) return refuse(builder, node);
    const Tensor& x = *node.src[0];
    const int32_t mode = node.params[0] & MODE;
    int64_t work = n_elements(node) * (mode == NEAREST ? 6 : mode == BILINEAR ? 20 : 60);
    if ((node.params[0] & ANTIALIAS) != 0) {
        const auto width = [](int64_t from, int64_t to) { return 2 * (from / to) + 2; };
        work *= width(x.ne[0], node.ne[0]) * width(x.ne[1], node.ne[1]);
    }
    builder.add(run_upscale, node, n_rows(node), work);
    return true;
}

// ---- PAD_REFLECT_1D ----

// Parameters: elements mirrored before and behind; the end elements themselves are not repeated.
bool run_reflect(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const int64_t before = dst.params[0], n = x.ne[0];
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const uint8_t* from = at.of(x);
        float* to = reinterpret_cast<float*>(at.of(dst));
        for (int64_t i = 0; i < dst.ne[0]; ++i) {
            const int64_t j = i < before ? before - i : i - before;
            to[i] = float_at(from + (j < n ? j : 2 * (n - 1) - j) * x.nb[0]);
        }
    }
    return true;
}

// Relies on: less padding than a row has elements.
bool prepare_reflect(PlanBuilder& builder, const Tensor& node) {
    if (!both_f32(node)) return refuse(builder, node);
    builder.add(run_reflect, node, n_rows(node), 2 * n_elements(node));
    return true;
}

// ---- ROLL ----

inline int64_t around(int64_t i, int64_t n) { return i < 0 ? i + n : i < n ? i : i - n; }

bool run_roll(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const int64_t n = dst.ne[0], head = around(dst.params[0], n);  // elements that come round from the row's end
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        RowCursor from = at;
        from.i1 = around(at.i1 - dst.params[1], dst.ne[1]);
        from.i2 = around(at.i2 - dst.params[2], dst.ne[2]);
        from.i3 = around(at.i3 - dst.params[3], dst.ne[3]);
        const uint8_t* row = from.of(x);
        std::memmove(at.of(dst), row + (n - head) * 4, static_cast<size_t>(head) * 4);
        std::memmove(at.of(dst) + head * 4, row, static_cast<size_t>(n - head) * 4);
    }
    return true;
}

// Relies on: packed rows, one shape, shifts shorter than their dimension.
bool prepare_roll(PlanBuilder& builder, const Tensor& node) {
    if (!both_f32(node)) return refuse(builder, node);
    builder.add(run_roll, node, n_rows(node), n_elements(node));
    return true;
}

// ---- TIMESTEP_EMBEDDING ----

// Angles reach thousands, so that the last place of a frequency shows: the C library's functions, as in references.
bool run_timestep(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const int64_t half = dst.params[0] / 2;
    const float slope = -__builtin_logf(static_cast<float>(dst.params[1]));
    for (int64_t item = begin; item < end; ++item) {
        float* to = reinterpret_cast<float*>(dst.data + item * dst.nb[1]);
        const float time = float_at(x.data + item * x.nb[0]);
        for (int64_t i = 0; i < half; ++i) {
            const float frequency = __builtin_expf(slope * static_cast<float>(i) / static_cast<float>(half));
            const float angle = time * frequency;
            to[i] = __builtin_cosf(angle);
            to[i + half] = __builtin_sinf(angle);
        }
        if (dst.params[0] % 2 != 0) to[2 * half] = 0.0f;
    }
    return true;
}

// Relies on: a vector of times, a row of params[0] elements for each.
bool prepare_timestep(PlanBuilder& builder, const Tensor& node) {
    if (!both_f32(node)) return refuse(builder, node);
    builder.add(run_timestep, node, node.ne[1], 40 * n_elements(node));
    return true;
}

}  // namespace

void register_image(OpTable& table) {
    table.prepare[OP_UPSCALE] = prepare_upscale;
    table.prepare[OP_PAD_REFLECT_1D] = prepare_reflect;
    table.prepare[OP_ROLL] = prepare_roll;
    table.prepare[OP_TIMESTEP_EMBEDDING] = prepare_timestep;
}

GGR_KERNELS_END
