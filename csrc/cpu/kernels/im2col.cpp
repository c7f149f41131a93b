// IM2COL, IM2COL_3D: the elements under a kernel at each place, one place a row. IM2COL_BACK, COL2IM_1D: such rows
// added up where they came from. Floor: bytes of source and result over memory bandwidth.
#include "cpu/elementwise.h"
#include "cpu/layout.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

bool refuse(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s -> %s", type_traits(node.src[node.n_src > 1 ? 1 : 0]->type)->name,
                               type_traits(node.type)->name);
}

// Sizes and strides of what IM2COL reads, by dimension: across, down, deep.
struct Shape {
    int64_t taps[3], size[3], nb[3], stride[3], padding[3], dilation[3], out[3];
    int64_t channels, channel, image;
};

Shape shape_of(const Tensor& node) {
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const int32_t* p = node.params;
    const bool volume = node.op == OP_IM2COL_3D;
    const int dims = volume ? 3 : p[6] != 0 ? 2 : 1, step = volume ? 3 : 2;
    Shape s = {};
    for (int i = 0; i < 3; ++i) {
        const bool there = i < dims;
        s.taps[i] = there ? kernel.ne[i] : 1;
        s.size[i] = there ? x.ne[i] : 1;
        s.nb[i] = there ? x.nb[i] : 0;
        s.stride[i] = there ? p[i] : 1;
        s.padding[i] = there ? p[step + i] : 0;
        s.dilation[i] = there ? p[2 * step + i] : 1;
        s.out[i] = i < dims && i < 2 ? node.ne[1 + i] : 1;
    }
    if (volume) {
        s.channels = p[9];
        s.channel = x.nb[3];
        s.image = x.nb[3] * s.channels;
        s.out[2] = node.ne[3] / (x.ne[3] / s.channels);
    } else {
        s.channels = x.ne[dims];
        s.channel = x.nb[dims];
        s.image = x.nb[dims + 1];
    }
    return s;
}

// Items are places of all images.
template <class To, class From>
bool run_im2col(const Step& step, int64_t begin, int64_t end, Worker&) {
    using E = typename To::Element;
    const Tensor &x = *step.src[1], &dst = *step.dst;
    const Shape s = shape_of(dst);
    E* to = reinterpret_cast<E*>(dst.data) + begin * dst.ne[0];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t px = item % s.out[0], py = item / s.out[0] % s.out[1];
        const int64_t pz = item / (s.out[0] * s.out[1]) % s.out[2], image = item / (s.out[0] * s.out[1] * s.out[2]);
        const int64_t x0 = px * s.stride[0] - s.padding[0], y0 = py * s.stride[1] - s.padding[1];
        const int64_t z0 = pz * s.stride[2] - s.padding[2];
        // Taps [first, last) lie inside a line.
        const int64_t d = s.dilation[0];
        int64_t first = x0 >= 0 ? 0 : (-x0 + d - 1) / d, last = s.size[0] <= x0 ? 0 : (s.size[0] - x0 + d - 1) / d;
        first = least(first, s.taps[0]);
        last = least(last, s.taps[0]);
        for (int64_t c = 0; c < s.channels; ++c)
            for (int64_t kz = 0; kz < s.taps[2]; ++kz)
                for (int64_t ky = 0; ky < s.taps[1]; ++ky, to += s.taps[0]) {
                    const int64_t y = y0 + ky * s.dilation[1], z = z0 + kz * s.dilation[2];
                    const bool inside = y >= 0 && y < s.size[1] && z >= 0 && z < s.size[2];
                    if (!inside || last <= first) {
                        std::memset(to, 0, static_cast<size_t>(s.taps[0]) * sizeof(E));
                        continue;
                    }
                    const uint8_t* from = x.data + image * s.image + c * s.channel + z * s.nb[2] + y * s.nb[1];
                    int64_t k = 0;
                    for (; k < first; ++k) to[k] = 0;
                    for (; k < last; ++k)
                        To::put(to + k, From::get(reinterpret_cast<const typename From::Element*>(from + (x0 + k * d) *
                                                                                                             s.nb[0])));
                    for (; k < s.taps[0]; ++k) to[k] = 0;
                }
    }
    return true;
}

// Relies on: a contiguous result with a row for each place, channels that fit.
bool prepare_im2col(PlanBuilder& builder, const Tensor& node) {
    const Tensor& x = *node.src[1];
    Step::Fn fn = nullptr;
    if (x.type == TYPE_F32 && node.type == TYPE_F32) fn = run_im2col<F32, F32>;
    if (x.type == TYPE_F32 && node.type == TYPE_F16) fn = run_im2col<F16, F32>;
    if (x.type == TYPE_F16 && node.type == TYPE_F16) fn = run_im2col<F16, F16>;
    if (fn == nullptr) return refuse(builder, node);
    Step& step = builder.add_bare(fn, &node, n_rows(node), 3 * n_elements(node));
    step.src[1] = &x;  // of the kernel only the shape counts
    builder.reads(x);
    builder.writes(node);
    return true;
}

// Items are lines of the result: [w, h, channels, images], or [w, channels, images]; each element adds up the taps that
// saw it.
bool run_im2col_back(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &grad = *step.src[0], &kernel = *step.src[1], &dst = *step.dst;
    const int32_t* p = dst.params;  // s0 s1 p0 p1 d0 d1 is_2d
    const bool flat = p[6] == 0;
    const int64_t kw = kernel.ne[0], kh = flat ? 1 : kernel.ne[1], ow = grad.ne[1], oh = flat ? 1 : grad.ne[2];
    const float* rows = reinterpret_cast<const float*>(grad.data);
    RowCursor at(dst, begin);
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const int64_t y = flat ? 0 : at.i1, channel = flat ? at.i1 : at.i2, image = flat ? at.i2 : at.i3;
        float* to = reinterpret_cast<float*>(at.of(dst));
        for (int64_t x = 0; x < dst.ne[0]; ++x) {
            float sum = 0.0f;
            for (int64_t ky = 0; ky < kh; ++ky) {
                const int64_t down = flat ? 0 : y + p[3] - ky * p[5], py = flat ? 0 : down / p[1];
                if (down < 0 || (!flat && down % p[1] != 0) || py >= oh) continue;
                for (int64_t kx = 0; kx < kw; ++kx) {
                    const int64_t across = x + p[2] - kx * p[4];
                    if (across < 0 || across % p[0] != 0 || across / p[0] >= ow) continue;
                    sum += rows[((image * oh + py) * ow + across / p[0]) * grad.ne[0] + (channel * kh + ky) * kw + kx];
                }
            }
            to[x] = sum;
        }
    }
    return true;
}

// Relies on: a contiguous gradient of the shape that IM2COL gives a source of the result's shape; packed rows.
bool prepare_im2col_back(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != TYPE_F32 || node.type != TYPE_F32) return refuse(builder, node);
    const Tensor& kernel = *node.src[1];
    const int64_t taps = kernel.ne[0] * (node.params[6] == 0 ? 1 : kernel.ne[1]);
    Step& step = builder.add_bare(run_im2col_back, &node, n_rows(node), 4 * n_elements(node) * taps);
    step.src[0] = node.src[0];
    step.src[1] = &kernel;  // its shape
    builder.reads(*node.src[0]);
    builder.writes(node);
    return true;
}

constexpr int64_t STRETCH = 256;  // elements of the result an item makes

// x [taps * channels, n]: element t of a channel takes tap k of column i where i * stride + k = t + padding.
template <class F>
bool run_col2im(const Step& step, int64_t begin, int64_t end, Worker&) {
    using E = typename F::Element;
    const Tensor &x = *step.src[0], &dst = *step.dst;
    const int64_t stride = dst.params[0], channels = dst.params[1], padding = dst.params[2];
    const int64_t width = x.ne[0], taps = width / channels, columns = x.ne[1], parts = step.arg.i64[0];
    const E* from = reinterpret_cast<const E*>(x.data);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t channel = item / parts, t0 = item % parts * STRETCH;
        E* to = reinterpret_cast<E*>(dst.data) + channel * dst.ne[0];
        for (int64_t t = t0; t < least(t0 + STRETCH, dst.ne[0]); ++t) {
            const int64_t place = t + padding;
            const int64_t first = place < taps ? 0 : (place - taps) / stride + 1, last = place / stride;
            float sum = 0.0f;
            for (int64_t i = first; i <= last && i < columns; ++i)
                sum += F::get(from + i * width + channel * taps + place - i * stride);
            F::put(to + t, sum);
        }
    }
    return true;
}

// Relies on: both contiguous, taps * channels in a row, the result as long as the folded columns.
bool prepare_col2im(PlanBuilder& builder, const Tensor& node) {
    if (node.src[0]->type != node.type || !is_float(node.type)) return refuse(builder, node);
    const int64_t parts = (node.ne[0] + STRETCH - 1) / STRETCH;
    const Step::Fn fn = node.type == TYPE_F32   ? run_col2im<F32>
                        : node.type == TYPE_F16 ? run_col2im<F16>
                                                : run_col2im<BF16>;
    builder.add(fn, node, parts * node.ne[1], 2 * n_elements(*node.src[0]) + 8 * n_elements(node)).arg.i64[0] = parts;
    return true;
}

}  // namespace

void register_im2col(OpTable& table) {
    table.prepare[OP_IM2COL] = prepare_im2col;
    table.prepare[OP_IM2COL_3D] = prepare_im2col;
    table.prepare[OP_IM2COL_BACK] = prepare_im2col_back;
    table.prepare[OP_COL2IM_1D] = prepare_col2im;
}

GGR_KERNELS_END
