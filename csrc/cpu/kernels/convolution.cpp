// CONV_2D, CONV_3D: each result is the product of a kernel with the elements under it. CONV_2D_DW: a kernel a channel.
// CONV_TRANSPOSE_1D, CONV_TRANSPOSE_2D: the source stretched, each element spread by the kernel.
// A half kernel takes the source rounded to half. Floor: two operations a tap, channel and result.
#include "cpu/conv_source.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

bool refuse(PlanBuilder& builder, const Tensor& node) {
    return builder.unsupported(node, "types %s, %s -> %s", type_traits(node.src[0]->type)->name,
                               type_traits(node.src[1]->type)->name, type_traits(node.type)->name);
}
bool types_known(const Tensor& node) {
    const int32_t kernel = node.src[0]->type;
    return (kernel == TYPE_F32 || kernel == TYPE_F16) && node.src[1]->type == TYPE_F32 && node.type == TYPE_F32;
}

// ---- CONV_2D, CONV_3D ----

constexpr int64_t PLACES = 64;     // of the result a work item gathers, whose vectors are places
constexpr int64_t CHANNELS = 128;  // of the result a work item makes from what it gathered
constexpr int64_t DEPTH = 256;     // taps a pass: PLACES x DEPTH f32 are 64 KiB, in the second-level cache
constexpr int TILE_ROWS = 4;       // 8 sums of 16 registers, 16 of 32
constexpr int TILE_VECTORS = VL == 16 ? 4 : 2;

struct Problem {
    Source source;
    Window window;
    int64_t out[3];        // places across, down, deep
    int64_t channels_out;  // the result is packed: [out[0], out[1], out[2], channels_out, sequences]
    int64_t sequences;
    int64_t planes() const { return out[0] * out[1] * out[2]; }
    int64_t depth() const { return window.count() * source.channels; }
};

Problem problem_of(const Tensor& node) {
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const bool flat = node.op == OP_CONV_2D;
    const int dims = flat ? 2 : 3;
    Problem p = {};
    p.source.data = x.data;
    p.source.type = x.type;
    for (int i = 0; i < 3; ++i) {
        const bool there = i < dims;
        p.source.size[i] = there ? x.ne[i] : 1;
        p.source.nb[i] = there ? x.nb[i] : 0;
        p.window.taps[i] = there ? kernel.ne[i] : 1;
        p.window.stride[i] = there ? node.params[i] : 1;
        p.window.padding[i] = there ? node.params[dims + i] : 0;
        p.window.dilation[i] = there ? node.params[2 * dims + i] : 1;
        p.out[i] = there ? node.ne[i] : 1;
    }
    p.source.channels = flat ? x.ne[2] : node.params[9];
    p.source.channel = flat ? x.nb[2] : x.nb[3];
    p.source.sequence = flat ? x.nb[3] : x.nb[3] * p.source.channels;
    p.channels_out = flat ? node.ne[2] : node.params[11];
    p.sequences = flat ? node.ne[3] : node.params[10];
    return p;
}

// panel[k - k0][i]: the element under tap k (x fastest, then y, z, channel) at place first + i of the result.
void gather(float* panel, const Problem& p, int64_t sequence, int64_t first, int64_t n, int64_t k0, int64_t k1,
            bool half) {
    const Window& w = p.window;
    const uint8_t* image = p.source.data + sequence * p.source.sequence;
    int64_t tap[3] = {k0 % w.taps[0], k0 / w.taps[0] % w.taps[1], k0 / (w.taps[0] * w.taps[1]) % w.taps[2]};
    int64_t channel = k0 / w.count();
    for (int64_t k = k0; k < k1; ++k, panel += PLACES) {
        for (int64_t i = 0; i < n;) {
            const int64_t x = (first + i) % p.out[0], line = (first + i) / p.out[0];
            const int64_t m = least(n - i, p.out[0] - x);
            load_places(panel + i, p.source, w, image + channel * p.source.channel, tap, x, line % p.out[1],
                        line / p.out[1], m);
            i += m;
        }
        for (int64_t i = n; i < PLACES; ++i) panel[i] = 0.0f;
        if (half)
            for (int64_t i = 0; i < PLACES; i += VL) vstore(panel + i, rounded_to_half(vload(panel + i)));
        for (int d = 0; d < 3; ++d) {
            if (++tap[d] < w.taps[d]) break;
            tap[d] = 0;
            if (d == 2) ++channel;
        }
    }
}

struct Tile {
    float sum[TILE_ROWS][TILE_VECTORS * VL];
};
inline void multiply(Tile* tile, const float* panel, const float (*factor)[DEPTH], int64_t depth) {
    vf s[TILE_ROWS][TILE_VECTORS] = {};
    for (int64_t k = 0; k < depth; ++k) {
        vf a[TILE_VECTORS];
        for (int v = 0; v < TILE_VECTORS; ++v) a[v] = vload(panel + k * PLACES + v * VL);
        for (int r = 0; r < TILE_ROWS; ++r)
            for (int v = 0; v < TILE_VECTORS; ++v) s[r][v] += a[v] * factor[r][k];
    }
    for (int r = 0; r < TILE_ROWS; ++r)
        for (int v = 0; v < TILE_VECTORS; ++v) vstore(tile->sum[r] + v * VL, s[r][v]);
}

// Channels [c0, c1) of the result at n places, over taps [k0, k1): `to` is place 0 of channel 0.
void apply_kernel(float* to, const Problem& p, const Tensor& kernel, const float* panel, int64_t k0, int64_t k1,
                  int64_t c0, int64_t c1, int64_t n) {
    const int64_t bytes = block_bytes(kernel.type), planes = p.planes();
    alignas(64) float factor[TILE_ROWS][DEPTH];
    Tile tile;
    for (int64_t c = c0; c < c1; c += TILE_ROWS) {
        const int64_t rows = least(TILE_ROWS, c1 - c);
        for (int64_t r = 0; r < TILE_ROWS; ++r)  // the last row stands in for what is not there
            load_tile(factor[r], kernel.type, kernel.data + ((c + least(r, rows - 1)) * p.depth() + k0) * bytes, bytes,
                      k1 - k0);
        for (int64_t i = 0; i < n; i += TILE_VECTORS * VL) {
            multiply(&tile, panel + i, factor, k1 - k0);
            const int64_t m = least(TILE_VECTORS * VL, n - i);
            for (int64_t r = 0; r < rows; ++r) {
                float* y = to + (c + r) * planes + i;
                for (int64_t j = 0; j < m; ++j) y[j] = k0 == 0 ? tile.sum[r][j] : y[j] + tile.sum[r][j];
            }
        }
    }
}

// Items are PLACES places of CHANNELS channels of one image. arg.i64[0 .. 1]: blocks of places and of channels.
bool run_convolution(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &kernel = *step.src[0], &dst = *step.dst;
    const Problem p = problem_of(dst);
    const int64_t place_blocks = step.arg.i64[0], channel_blocks = step.arg.i64[1];
    float* panel = reinterpret_cast<float*>(worker.local);
    const int64_t depth = p.depth();
    for (int64_t item = begin; item < end; ++item) {
        const int64_t c0 = item % channel_blocks * CHANNELS, block = item / channel_blocks;
        const int64_t first = block % place_blocks * PLACES, sequence = block / place_blocks;
        const int64_t n = least(PLACES, p.planes() - first);
        float* to = reinterpret_cast<float*>(dst.data) + sequence * p.channels_out * p.planes() + first;
        for (int64_t k0 = 0; k0 < depth; k0 += DEPTH) {
            const int64_t k1 = least(k0 + DEPTH, depth);
            gather(panel, p, sequence, first, n, k0, k1, kernel.type == TYPE_F16);
            apply_kernel(to, p, kernel, panel, k0, k1, c0, least(c0 + CHANNELS, p.channels_out), n);
        }
    }
    return true;
}

// Relies on: a contiguous kernel and result, shapes and parameters that fit each other.
bool prepare_convolution(PlanBuilder& builder, const Tensor& node) {
    if (!types_known(node)) return refuse(builder, node);
    const Problem p = problem_of(node);
    const int64_t place_blocks = (p.planes() + PLACES - 1) / PLACES;
    const int64_t channel_blocks = (p.channels_out + CHANNELS - 1) / CHANNELS;
    builder.need_local(DEPTH * PLACES * static_cast<int64_t>(sizeof(float)));
    Step& step = builder.add(run_convolution, node, place_blocks * channel_blocks * p.sequences,
                             n_elements(node) * p.depth() / 4 + n_elements(node));
    step.arg.i64[0] = place_blocks;
    step.arg.i64[1] = channel_blocks;
    return true;
}

// ---- CONV_2D_DW ----

inline float kernel_at(const Tensor& kernel, int64_t x, int64_t y, int64_t channel) {
    const uint8_t* at = kernel.data + x * kernel.nb[0] + y * kernel.nb[1] + channel * kernel.nb[3];
    if (kernel.type == TYPE_F32) return *reinterpret_cast<const float*>(at);
    return f16_to_f32(*reinterpret_cast<const uint16_t*>(at));
}

// Items are lines of one channel.
bool run_by_line(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &kernel = *step.src[0], &x = *step.src[1], &dst = *step.dst;
    const int32_t* p = dst.params;
    Source s = {x.data, x.type, {x.ne[0], x.ne[1], 1}, {x.nb[0], x.nb[1], 0}, x.nb[2], x.nb[3], x.ne[2]};
    Window w = {{kernel.ne[0], kernel.ne[1], 1}, {p[0], p[1], 1}, {p[2], p[3], 0}, {p[4], p[5], 1}};
    RowCursor at(dst, begin);
    float sum[TILE], in[TILE];
    for (int64_t item = begin; item < end; ++item, at.next()) {
        const uint8_t* channel = x.data + at.i2 * x.nb[2] + at.i3 * x.nb[3];
        for (int64_t first = 0; first < dst.ne[0]; first += TILE) {
            const int64_t n = least(TILE, dst.ne[0] - first);
            std::memset(sum, 0, static_cast<size_t>(n) * sizeof(float));
            int64_t tap[3] = {0, 0, 0};
            for (tap[1] = 0; tap[1] < w.taps[1]; ++tap[1])
                for (tap[0] = 0; tap[0] < w.taps[0]; ++tap[0]) {
                    const float f = kernel_at(kernel, tap[0], tap[1], at.i2);
                    load_places(in, s, w, channel, tap, first, at.i1, 0, n);
                    int64_t i = 0;
                    for (; i + VL <= n; i += VL) vstore(sum + i, vload(sum + i) + vload(in + i) * f);
                    for (; i < n; ++i) sum[i] += in[i] * f;
                }
            store_tile(TYPE_F32, at.of(dst) + first * dst.nb[0], dst.nb[0], sum, n);
        }
    }
    return true;
}

// The same where channels are adjacent in memory: items are places, their vectors channels.
bool run_by_channel(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &kernel = *step.src[0], &x = *step.src[1], &dst = *step.dst;
    const int32_t* p = dst.params;
    const int64_t ow = dst.ne[0], oh = dst.ne[1], channels = dst.ne[2];
    float sum[TILE], in[TILE], factor[TILE];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t ox = item % ow, oy = item / ow % oh, image = item / (ow * oh);
        for (int64_t c = 0; c < channels; c += TILE) {
            const int64_t n = least(TILE, channels - c);
            std::memset(sum, 0, static_cast<size_t>(n) * sizeof(float));
            for (int64_t ky = 0; ky < kernel.ne[1]; ++ky) {
                const int64_t y = oy * p[1] + ky * p[5] - p[3];
                if (y < 0 || y >= x.ne[1]) continue;
                for (int64_t kx = 0; kx < kernel.ne[0]; ++kx) {
                    const int64_t xx = ox * p[0] + kx * p[4] - p[2];
                    if (xx < 0 || xx >= x.ne[0]) continue;
                    load_tile(in, x.type, x.data + xx * x.nb[0] + y * x.nb[1] + c * x.nb[2] + image * x.nb[3], x.nb[2],
                              n);
                    load_tile(factor, kernel.type,
                              kernel.data + kx * kernel.nb[0] + ky * kernel.nb[1] + c * kernel.nb[3], kernel.nb[3], n);
                    int64_t i = 0;
                    for (; i + VL <= n; i += VL) vstore(sum + i, vload(sum + i) + vload(in + i) * vload(factor + i));
                    for (; i < n; ++i) sum[i] += in[i] * factor[i];
                }
            }
            store_tile(TYPE_F32, dst.data + ox * dst.nb[0] + oy * dst.nb[1] + c * dst.nb[2] + image * dst.nb[3],
                       dst.nb[2], sum, n);
        }
    }
    return true;
}

// Relies on: kernel [w, h, 1, channels], the result's channels those of the source.
bool prepare_depthwise(PlanBuilder& builder, const Tensor& node) {
    if (!types_known(node)) return refuse(builder, node);
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    // A tap costs about 10 ns besides its elements, which are few in short lines.
    const bool by_channel = x.nb[2] < x.nb[0];
    const int64_t items = by_channel ? node.ne[0] * node.ne[1] * node.ne[3] : n_rows(node);
    const int64_t taps = kernel.ne[0] * kernel.ne[1];
    const int64_t work = work_of(n_elements(node) * taps, 3) + items * taps * 32;
    builder.add(by_channel ? run_by_channel : run_by_line, node, items, work);
    return true;
}

// ---- CONV_TRANSPOSE_1D, CONV_TRANSPOSE_2D ----

constexpr int64_t STRETCH = TILE;  // elements of a line of the result an item makes

// v[i] = sum over channels of x[i] times the kernel's element for the channel.
void sum_channels(float* v, const uint8_t* x, int64_t x_channel, const uint8_t* kernel, int64_t kernel_channel,
                  bool half, int64_t channels, int64_t n) {
    std::memset(v, 0, static_cast<size_t>(n) * sizeof(float));
    for (int64_t c = 0; c < channels; ++c, x += x_channel, kernel += kernel_channel) {
        const float* px = reinterpret_cast<const float*>(x);
        const float f =
            half ? f16_to_f32(*reinterpret_cast<const uint16_t*>(kernel)) : *reinterpret_cast<const float*>(kernel);
        int64_t i = 0;
        if (half) {
            for (; i + VL <= n; i += VL) vstore(v + i, vload(v + i) + rounded_to_half(vload(px + i)) * f);
            for (; i < n; ++i) v[i] += f16_to_f32(f32_to_f16(px[i])) * f;
        } else {
            for (; i + VL <= n; i += VL) vstore(v + i, vload(v + i) + vload(px + i) * f);
            for (; i < n; ++i) v[i] += px[i] * f;
        }
    }
}

// Items are parts of lines of the result: element t takes what x[i] spreads with tap k where i * stride + k = t.
// arg.i64[0]: parts a line.
bool run_transposed(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &kernel = *step.src[0], &x = *step.src[1], &dst = *step.dst;
    const bool flat = dst.op == OP_CONV_TRANSPOSE_1D, half = kernel.type == TYPE_F16;
    const int64_t stride = dst.params[0], parts = step.arg.i64[0];
    const int out = flat ? 1 : 2;  // dimension of the kernel's and of the result's channels
    const int64_t lines = flat ? 1 : dst.ne[1], taps_down = flat ? 1 : kernel.ne[1], x_lines = flat ? 1 : x.ne[1];
    const int64_t channels = kernel.ne[out + 1];
    float sum[STRETCH], v[STRETCH];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t t0 = item % parts * STRETCH, line = item / parts, t1 = least(t0 + STRETCH, dst.ne[0]);
        const int64_t row = line % lines, channel = line / lines % dst.ne[out], image = line / (lines * dst.ne[out]);
        std::memset(sum, 0, sizeof sum);
        for (int64_t ky = 0; ky < taps_down; ++ky) {
            const int64_t down = row - ky;
            if (down < 0 || down % stride != 0 || down / stride >= x_lines) continue;
            const uint8_t* source = x.data + (flat ? 0 : down / stride * x.nb[1] + image * x.nb[3]);
            const uint8_t* factor = kernel.data + (flat ? 0 : ky * kernel.nb[1]) + channel * kernel.nb[out];
            for (int64_t kx = 0; kx < kernel.ne[0]; ++kx) {
                const int64_t i0 = t0 <= kx ? 0 : (t0 - kx + stride - 1) / stride;
                const int64_t i1 = t1 <= kx ? 0 : least(x.ne[0], (t1 - 1 - kx) / stride + 1);
                if (i1 <= i0) continue;
                sum_channels(v, source + i0 * 4, x.nb[out], factor + kx * kernel.nb[0], kernel.nb[out + 1], half,
                             channels, i1 - i0);
                float* to = sum + i0 * stride + kx - t0;
                for (int64_t i = 0; i < i1 - i0; ++i) to[i * stride] += v[i];
            }
        }
        uint8_t* to = dst.data + t0 * 4 + channel * dst.nb[out];
        if (!flat) to += row * dst.nb[1] + image * dst.nb[3];
        std::memcpy(to, sum, static_cast<size_t>(t1 - t0) * sizeof(float));
    }
    return true;
}

// Relies on: packed rows, a contiguous result as large as the stretched source, channels that fit.
bool prepare_transposed(PlanBuilder& builder, const Tensor& node) {
    if (!types_known(node)) return refuse(builder, node);
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const int64_t parts = (node.ne[0] + STRETCH - 1) / STRETCH;
    const int64_t images = node.op == OP_CONV_TRANSPOSE_1D ? 1 : x.ne[3], lines = x.ne[0] * (images * x.ne[1]);
    const int64_t products =
        node.op == OP_CONV_TRANSPOSE_1D ? n_elements(kernel) * x.ne[0] : n_elements(kernel) * lines;
    Step& step = builder.add(run_transposed, node, parts * n_rows(node), products / 2 + n_elements(node));
    step.arg.i64[0] = parts;
    // Each part looks at all taps of its channel, at 2 ns or more.
    const int64_t channels = node.op == OP_CONV_TRANSPOSE_1D ? kernel.ne[1] : kernel.ne[2];
    builder.largest_item(node, n_elements(kernel) / channels * 8);
    return true;
}

}  // namespace

void register_convolution(OpTable& table) {
    table.prepare[OP_CONV_2D] = prepare_convolution;
    table.prepare[OP_CONV_3D] = prepare_convolution;
    table.prepare[OP_CONV_2D_DW] = prepare_depthwise;
    table.prepare[OP_CONV_TRANSPOSE_1D] = prepare_transposed;
    table.prepare[OP_CONV_TRANSPOSE_2D] = prepare_transposed;
}

GGR_KERNELS_END
