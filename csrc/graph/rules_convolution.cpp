// Rules of convolutions and pooling.
#include "graph/rules.h"

namespace ggr {

namespace {

// Places of a window of `k` taps over `in` elements; -1 where it does not fit once.
int64_t places(int64_t in, int64_t k, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t room = in + 2 * padding - times(dilation, k - 1) - 1;
    return room < 0 || k <= 0 ? -1 : room / stride + 1;
}

// Words first .. first + n - 1 are at least `least`.
bool words_at_least(const Tensor& node, int first, int n, int32_t least) {
    for (int i = first; i < first + n; ++i)
        if (node.params[i] < least) return false;
    return true;
}

bool im2col(const Tensor& node, Error* err) {
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const int32_t* p = node.params;  // s0 s1 p0 p1 d0 d1 is_2d
    REQUIRE(is_f32(node) || node.type == TYPE_F16, "the result must be F32 or F16");
    REQUIRE(is_f32(x) || (x.type == TYPE_F16 && node.type == TYPE_F16), "source 1 must be F32, or F16 as the result");
    REQUIRE(rows_contiguous(x) && is_contiguous(node), "rows of source 1 and the result must be contiguous");
    REQUIRE(is_flag(p[6]), "parameter 6 (is_2d) must be 0 or 1");
    const bool flat = p[6] == 0;
    REQUIRE(p[0] > 0 && p[4] > 0 && p[2] >= 0, "stride and dilation must be positive, padding not negative");
    const int64_t ow = places(x.ne[0], kernel.ne[0], p[0], p[2], p[4]);
    if (flat) {
        REQUIRE(kernel.ne[1] == x.ne[1] && x.ne[3] == 1, "source 1 must have the kernel's channels");
        REQUIRE(is_shape(node, kernel.ne[0] * kernel.ne[1], ow, x.ne[2], 1),
                "the result must have a row for each place");
        return true;
    }
    REQUIRE(p[1] > 0 && p[5] > 0 && p[3] >= 0, "stride and dilation must be positive, padding not negative");
    const int64_t oh = places(x.ne[1], kernel.ne[1], p[1], p[3], p[5]);
    REQUIRE(kernel.ne[2] == x.ne[2], "source 1 must have the kernel's channels");
    REQUIRE(is_shape(node, kernel.ne[0] * kernel.ne[1] * kernel.ne[2], ow, oh, x.ne[3]),
            "the result must have a row for each place");
    return true;
}

bool im2col_3d(const Tensor& node, Error* err) {
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const int32_t* p = node.params;  // s0 s1 s2 p0 p1 p2 d0 d1 d2 channels
    REQUIRE(is_f32(x) && is_f32_or_f16(node), "source 1 must be F32, the result F32 or F16");
    REQUIRE(rows_contiguous(x) && is_contiguous(node), "rows of source 1 and the result must be contiguous");
    REQUIRE(words_at_least(node, 0, 3, 1) && words_at_least(node, 3, 3, 0) && words_at_least(node, 6, 3, 1),
            "strides and dilations must be positive, paddings not negative");
    const int64_t channels = p[9];
    REQUIRE(channels > 0 && x.ne[3] % channels == 0 && kernel.ne[3] % channels == 0,
            "parameter 9 (channels) must divide both sources");
    int64_t out[3];
    for (int i = 0; i < 3; ++i) {
        out[i] = places(x.ne[i], kernel.ne[i], p[i], p[3 + i], p[6 + i]);
        REQUIRE(out[i] > 0, "the kernel must fit in source 1");
    }
    int64_t taps = kernel.ne[0] * kernel.ne[1], rows = 0;
    REQUIRE(!__builtin_mul_overflow(taps, kernel.ne[2], &taps) && !__builtin_mul_overflow(taps, channels, &taps) &&
                !__builtin_mul_overflow(out[2], x.ne[3] / channels, &rows),
            "the result must have a row for each place");
    REQUIRE(is_shape(node, taps, out[0], out[1], rows), "the result must have a row for each place");
    return true;
}

// CONV_2D and CONV_2D_DW.
bool conv_2d(const Tensor& node, Error* err) {
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const int32_t* p = node.params;  // s0 s1 p0 p1 d0 d1
    const bool depthwise = node.op == OP_CONV_2D_DW;
    REQUIRE(is_f32_or_f16(kernel), "source 0 (kernel) must be F32 or F16");
    REQUIRE(is_f32(x) && is_f32(node), "source 1 and the result must be F32");
    REQUIRE(words_at_least(node, 0, 2, 1) && words_at_least(node, 2, 2, 0) && words_at_least(node, 4, 2, 1),
            "strides and dilations must be positive, paddings not negative");
    if (depthwise)
        REQUIRE(kernel.ne[2] == 1 && kernel.ne[3] == x.ne[2], "the kernel must have a plane for each channel");
    else
        REQUIRE(kernel.ne[2] == x.ne[2], "source 1 must have the kernel's channels");
    REQUIRE(depthwise || (is_contiguous(kernel) && is_contiguous(node)), "kernel and result must be contiguous");
    const int64_t ow = places(x.ne[0], kernel.ne[0], p[0], p[2], p[4]);
    const int64_t oh = places(x.ne[1], kernel.ne[1], p[1], p[3], p[5]);
    REQUIRE(is_shape(node, ow, oh, kernel.ne[3], x.ne[3]),
            "the result must have an element for each place and channel");
    REQUIRE(work_fits(n_elements(node), kernel.ne[0], kernel.ne[1], kernel.ne[2]),
            "the convolution must not take more than 2^50 operations");
    return true;
}

bool conv_3d(const Tensor& node, Error* err) {
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const int32_t* p = node.params;  // s0 s1 s2 p0 p1 p2 d0 d1 d2 channels batch channels_out
    REQUIRE(is_f32_or_f16(kernel), "source 0 (kernel) must be F32 or F16");
    REQUIRE(is_f32(x) && is_f32(node), "source 1 and the result must be F32");
    REQUIRE(is_contiguous(kernel) && is_contiguous(node), "kernel and result must be contiguous");
    REQUIRE(words_at_least(node, 0, 3, 1) && words_at_least(node, 3, 3, 0) && words_at_least(node, 6, 3, 1) &&
                words_at_least(node, 9, 3, 1),
            "strides, dilations and counts must be positive, paddings not negative");
    const int64_t channels = p[9], batch = p[10], channels_out = p[11];
    REQUIRE(kernel.ne[3] == channels * channels_out && x.ne[3] == channels * batch,
            "the sources must have the channels of parameters 9 to 11");
    int64_t out[3];
    for (int i = 0; i < 3; ++i) out[i] = places(x.ne[i], kernel.ne[i], p[i], p[3 + i], p[6 + i]);
    REQUIRE(is_shape(node, out[0], out[1], out[2], channels_out * batch),
            "the result must have an element for each place and channel");
    REQUIRE(work_fits(n_elements(node), n_elements(kernel) / channels_out),
            "the convolution must not take more than 2^50 operations");
    return true;
}

bool conv_transpose_1d(const Tensor& node, Error* err) {
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const int64_t stride = node.params[0];
    REQUIRE(is_f32_or_f16(kernel), "source 0 (kernel) must be F32 or F16");
    REQUIRE(is_f32(x) && is_f32(node), "source 1 and the result must be F32");
    REQUIRE(rows_contiguous(kernel) && rows_contiguous(x) && is_contiguous(node), "rows must be contiguous");
    REQUIRE(stride > 0 && node.params[1] == 0 && node.params[2] == 1, "stride must be positive, padding 0, dilation 1");
    REQUIRE(is_matrix(x) && kernel.ne[3] == 1 && kernel.ne[2] == x.ne[1], "source 1 must have the kernel's channels");
    REQUIRE(!is_empty(kernel) && !is_empty(x), "the sources must not be empty");
    REQUIRE(is_shape(node, times(x.ne[0] - 1, stride) + kernel.ne[0], kernel.ne[1], 1, 1),
            "the result must have the length of the stretched source");
    REQUIRE(work_fits(n_elements(kernel), x.ne[0]), "the convolution must not take more than 2^50 operations");
    return true;
}

bool conv_transpose_2d(const Tensor& node, Error* err) {
    const Tensor &kernel = *node.src[0], &x = *node.src[1];
    const int64_t stride = node.params[0];
    REQUIRE(is_f32_or_f16(kernel), "source 0 (kernel) must be F32 or F16");
    REQUIRE(is_f32(x) && is_f32(node), "source 1 and the result must be F32");
    REQUIRE(rows_contiguous(kernel) && rows_contiguous(x) && is_contiguous(node), "rows must be contiguous");
    REQUIRE(stride > 0, "parameter 0 (stride) must be positive");
    REQUIRE(kernel.ne[3] == x.ne[2], "source 1 must have the kernel's channels");
    REQUIRE(!is_empty(kernel) && !is_empty(x), "the sources must not be empty");
    REQUIRE(is_shape(node, times(x.ne[0] - 1, stride) + kernel.ne[0], times(x.ne[1] - 1, stride) + kernel.ne[1],
                     kernel.ne[2], x.ne[3]),
            "the result must have the size of the stretched source");
    REQUIRE(work_fits(n_elements(kernel), x.ne[0], x.ne[1], x.ne[3]),
            "the convolution must not take more than 2^50 operations");
    return true;
}

bool col2im_1d(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int64_t stride = node.params[0], channels = node.params[1], padding = node.params[2];
    REQUIRE(is_float(x) && node.type == x.type, "source and result must have one type: F32, F16 or BF16");
    REQUIRE(is_matrix(x) && is_contiguous(x) && is_contiguous(node), "the source must be a matrix, both contiguous");
    REQUIRE(stride > 0 && channels > 0 && padding >= 0, "stride and channels must be positive, padding not negative");
    REQUIRE(x.ne[0] > 0 && x.ne[0] % channels == 0, "rows of the source must hold whole kernels");
    REQUIRE(x.ne[1] > 0 && node.ne[0] > 0, "source and result must not be empty");
    REQUIRE(is_shape(node, times(x.ne[1] - 1, stride) + x.ne[0] / channels - 2 * padding, channels, 1, 1),
            "the result must have the length of the folded source");
    return true;
}

bool pool(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int32_t* p = node.params;  // kind k0 s0 p0, or kind k0 k1 s0 s1 p0 p1
    const bool flat = node.op == OP_POOL_1D;
    const int dims = flat ? 1 : 2;
    REQUIRE(is_f32_or_f16(x) && is_f32(node), "the source must be F32 or F16, the result F32");
    REQUIRE(rows_contiguous(x) && is_contiguous(node), "rows of the source and the result must be contiguous");
    REQUIRE(p[0] == 0 || p[0] == 1, "parameter 0 (kind) must be 0 (largest) or 1 (mean)");
    REQUIRE(words_at_least(node, 1, 2 * dims, 1) && words_at_least(node, 1 + 2 * dims, dims, 0),
            "windows and strides must be positive, paddings not negative");
    const int64_t out0 = places(x.ne[0], p[1], p[1 + dims], p[1 + 2 * dims], 1);
    const int64_t out1 = flat ? x.ne[1] : places(x.ne[1], p[2], p[4], p[6], 1);
    REQUIRE(is_shape(node, out0, out1, x.ne[2], x.ne[3]), "the result must have an element for each window");
    REQUIRE(work_fits(n_elements(node), p[1], flat ? 1 : p[2]), "the windows must not take more than 2^50 operations");
    return true;
}

bool im2col_back(const Tensor& node, Error* err) {
    const Tensor &grad = *node.src[0], &kernel = *node.src[1];
    const int32_t* p = node.params;  // s0 s1 p0 p1 d0 d1 is_2d
    REQUIRE(is_f32(grad) && is_f32(node), "source 0 (gradient) and the result must be F32");
    REQUIRE(is_f32_or_f16(kernel), "source 1 (kernel) must be F32 or F16");
    REQUIRE(is_contiguous(grad) && rows_contiguous(node), "the gradient and rows of the result must be contiguous");
    REQUIRE(is_flag(p[6]), "parameter 6 (is_2d) must be 0 or 1");
    REQUIRE(p[0] > 0 && p[4] > 0 && p[2] >= 0, "stride and dilation must be positive, padding not negative");
    const int64_t ow = places(node.ne[0], kernel.ne[0], p[0], p[2], p[4]);
    if (p[6] == 0) {
        REQUIRE(kernel.ne[1] == node.ne[1] && node.ne[3] == 1, "the result must have the kernel's channels");
        REQUIRE(is_shape(grad, times(kernel.ne[0], kernel.ne[1]), ow, node.ne[2], 1),
                "source 0 must have a row for each place");
        REQUIRE(work_fits(n_elements(node), kernel.ne[0]), "the gradient must not take more than 2^50 operations");
        return true;
    }
    REQUIRE(p[1] > 0 && p[5] > 0 && p[3] >= 0, "stride and dilation must be positive, padding not negative");
    const int64_t oh = places(node.ne[1], kernel.ne[1], p[1], p[3], p[5]);
    REQUIRE(kernel.ne[2] == node.ne[2], "the result must have the kernel's channels");
    REQUIRE(is_shape(grad, times(times(kernel.ne[0], kernel.ne[1]), kernel.ne[2]), ow, oh, node.ne[3]),
            "source 0 must have a row for each place");
    REQUIRE(work_fits(n_elements(node), kernel.ne[0], kernel.ne[1]),
            "the gradient must not take more than 2^50 operations");
    return true;
}

bool pool_2d_back(const Tensor& node, Error* err) {
    const Tensor &grad = *node.src[0], &x = *node.src[1];
    const int32_t* p = node.params;  // kind k0 k1 s0 s1 p0 p1
    REQUIRE(is_f32(grad) && is_f32(x) && is_f32(node), "sources and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of source 1");
    REQUIRE(rows_contiguous(grad) && rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    REQUIRE(p[0] == 0 || p[0] == 1, "parameter 0 (kind) must be 0 (largest) or 1 (mean)");
    REQUIRE(words_at_least(node, 1, 4, 1) && words_at_least(node, 5, 2, 0),
            "windows and strides must be positive, paddings not negative");
    REQUIRE(
        is_shape(grad, places(x.ne[0], p[1], p[3], p[5], 1), places(x.ne[1], p[2], p[4], p[6], 1), x.ne[2], x.ne[3]),
        "source 0 must have an element for each window");
    REQUIRE(work_fits(n_elements(grad), p[1], p[2]), "the windows must not take more than 2^50 operations");
    return true;
}

constexpr Rule RULES[] = {
    {OP_IM2COL, im2col},
    {OP_IM2COL_BACK, im2col_back},
    {OP_POOL_2D_BACK, pool_2d_back},
    {OP_IM2COL_3D, im2col_3d},
    {OP_CONV_2D, conv_2d},
    {OP_CONV_2D_DW, conv_2d},
    {OP_CONV_3D, conv_3d},
    {OP_CONV_TRANSPOSE_1D, conv_transpose_1d},
    {OP_CONV_TRANSPOSE_2D, conv_transpose_2d},
    {OP_COL2IM_1D, col2im_1d},
    {OP_POOL_1D, pool},
    {OP_POOL_2D, pool},
};

}  // namespace

RuleFamily convolution_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
