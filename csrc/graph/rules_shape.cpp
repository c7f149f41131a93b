// Rules of ops that make or rearrange whole tensors: ranges, triangles, padding, windows, interpolation.
#include "graph/rules.h"

namespace ggr {

namespace {

bool diag(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(x.ne[1] == 1, "each matrix of the source must have one row");
    REQUIRE(is_shape(node, x.ne[0], x.ne[0], x.ne[2], x.ne[3]), "the result must have a square matrix for each row");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    return true;
}

bool tri(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(x.ne[0] == x.ne[1], "the source must be square");
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(is_contiguous(x) && rows_contiguous(node), "the source and rows of the result must be contiguous");
    REQUIRE(node.params[0] >= 0 && node.params[0] <= 3, "parameter 0 (kind) must be a known triangle");
    return true;
}

bool pad(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int32_t circular = node.params[8];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(is_flag(circular), "parameter 8 (circular) must be 0 or 1");
    for (int i = 0; i < MAX_DIMS; ++i) {
        const int64_t before = node.params[2 * i], after = node.params[2 * i + 1];
        REQUIRE(before >= 0 && after >= 0, "parameters 0 to 7 (padding) must not be negative");
        REQUIRE(circular == 0 || (before <= x.ne[i] && after <= x.ne[i]),
                "circular padding must not exceed one period");
        REQUIRE(node.ne[i] == x.ne[i] + before + after, "the result must have the padded shape");
    }
    REQUIRE(is_contiguous(node), "the result must be contiguous");
    return true;
}

bool pad_reflect_1d(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int64_t before = node.params[0], after = node.params[1];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(before >= 0 && after >= 0, "the padding must not be negative");
    REQUIRE(before < x.ne[0] && after < x.ne[0], "the padding must be shorter than a row");
    REQUIRE(is_shape(node, x.ne[0] + before + after, x.ne[1], x.ne[2], x.ne[3]),
            "the result must have the padded shape");
    REQUIRE(is_contiguous(x) && rows_contiguous(node), "the source and rows of the result must be contiguous");
    return true;
}

bool roll(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of the source");
    REQUIRE(rows_contiguous(x) && rows_contiguous(node), "rows must be contiguous");
    for (int i = 0; i < MAX_DIMS; ++i) {
        const int64_t shift = node.params[i];
        REQUIRE(shift < x.ne[i] && -shift < x.ne[i], "parameters 0 to 3 (shifts) must be shorter than their dimension");
    }
    return true;
}

bool arange(const Tensor& node, Error* err) {
    const float start = param_f32(node, 0), stop = param_f32(node, 1), step = param_f32(node, 2);
    REQUIRE(is_f32(node) && is_vector(node) && rows_contiguous(node), "the result must be a vector of F32");
    REQUIRE(param_finite(node, 0) && param_finite(node, 1) && param_finite(node, 2), "parameters must be finite");
    REQUIRE(stop > start && step > 0, "the range must grow");
    // The client counted in F32 too.
    const float steps = __builtin_ceilf((stop - start) / step);
    REQUIRE(steps < 0x1p62f && node.ne[0] == static_cast<int64_t>(steps),
            "the result must have an element for each step");
    return true;
}

bool timestep_embedding(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(is_vector(x) && rows_contiguous(x), "the source must be a vector");
    REQUIRE(node.params[0] > 0 && node.params[1] > 0, "parameters 0 and 1 (dim, max_period) must be positive");
    REQUIRE(is_shape(node, node.params[0], x.ne[0], 1, 1), "the result must have a row of dim elements for each time");
    REQUIRE(rows_contiguous(node), "rows of the result must be contiguous");
    return true;
}

bool upscale(const Tensor& node, Error* err) {
    constexpr int32_t MODE = 0xff, BILINEAR = 1, BICUBIC = 2, ALIGN_CORNERS = 256, ANTIALIAS = 512;
    const Tensor& x = *node.src[0];
    const int32_t word = node.params[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE((word & ~(MODE | ALIGN_CORNERS | ANTIALIAS)) == 0 && (word & MODE) <= BICUBIC,
            "parameter 0 (mode) must be a known interpolation");
    REQUIRE((word & ANTIALIAS) == 0 || (word & MODE) == BILINEAR, "only bilinear interpolation takes antialiasing");
    REQUIRE(rows_contiguous(node), "rows of the result must be contiguous");
    // Antialiasing reads a window of source elements for each element of the result.
    REQUIRE((word & ANTIALIAS) == 0 || work_fits(n_elements(node), x.ne[0], x.ne[1]),
            "the interpolation must not take more than 2^50 operations");
    return true;
}

bool win_part(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int64_t npx = node.params[0], npy = node.params[1], w = node.params[2];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(w > 0 && npx >= 0 && npy >= 0, "the window must be positive, the counts not negative");
    REQUIRE(npx == (x.ne[1] + w - 1) / w && npy == (x.ne[2] + w - 1) / w, "the windows must cover the source");
    REQUIRE(x.ne[3] == 1, "the source must have three dimensions");
    REQUIRE(is_shape(node, x.ne[0], w, w, times(npx, npy)), "the result must have a matrix for each window");
    REQUIRE(is_contiguous(x) && is_contiguous(node), "source and result must be contiguous");
    return true;
}

bool win_unpart(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    const int64_t w = node.params[0];
    REQUIRE(is_f32(x) && is_f32(node), "source and result must be F32");
    REQUIRE(w > 0, "the window must be positive");
    REQUIRE(node.ne[0] == x.ne[0] && node.ne[3] == 1, "the result must have three dimensions and the source's rows");
    REQUIRE(x.ne[1] == w && x.ne[2] == w && x.ne[3] == times((node.ne[1] + w - 1) / w, (node.ne[2] + w - 1) / w),
            "the source must have a matrix for each window of the result");
    REQUIRE(is_contiguous(x) && is_contiguous(node), "source and result must be contiguous");
    return true;
}

bool get_rel_pos(const Tensor& node, Error* err) {
    const Tensor& x = *node.src[0];
    REQUIRE(x.type == TYPE_F16 && node.type == TYPE_F16, "source and result must be F16");
    REQUIRE(is_matrix(x), "the source must have two dimensions");
    REQUIRE(node.ne[0] == x.ne[0] && node.ne[1] == node.ne[2] && node.ne[3] == 1,
            "the result must be square in dimensions 1 and 2 and have the source's rows");
    REQUIRE(x.ne[1] == 2 * node.ne[1] - 1, "the source must have a row for each relative position");
    REQUIRE(is_contiguous(x) && is_contiguous(node), "source and result must be contiguous");
    return true;
}

bool add_rel_pos(const Tensor& node, Error* err) {
    const Tensor &x = *node.src[0], &pw = *node.src[1], &ph = *node.src[2];
    REQUIRE(is_f32(x) && is_f32(pw) && is_f32(ph) && is_f32(node), "sources and result must be F32");
    REQUIRE(same_shape(x, node), "the result must have the shape of source 0");
    REQUIRE(same_shape(pw, ph), "sources 1 and 2 must have one shape");
    REQUIRE(is_contiguous(x) && is_contiguous(pw) && is_contiguous(ph) && is_contiguous(node),
            "sources and result must be contiguous");
    REQUIRE(
        x.ne[3] == 1 && pw.ne[3] == x.ne[2] && times(pw.ne[0], pw.ne[0]) == x.ne[0] && pw.ne[1] * pw.ne[2] == x.ne[1],
        "sources 1 and 2 must fit source 0");
    REQUIRE(is_flag(node.params[0]), "parameter 0 (inplace) must be 0 or 1");
    REQUIRE(node.params[0] == 0 || same_place(x, node), "an in-place result must lie on source 0");
    return true;
}

constexpr Rule RULES[] = {
    {OP_DIAG, diag},
    {OP_TRI, tri},
    {OP_PAD, pad},
    {OP_PAD_REFLECT_1D, pad_reflect_1d},
    {OP_ROLL, roll},
    {OP_ARANGE, arange},
    {OP_TIMESTEP_EMBEDDING, timestep_embedding},
    {OP_UPSCALE, upscale},
    {OP_WIN_PART, win_part},
    {OP_WIN_UNPART, win_unpart},
    {OP_GET_REL_POS, get_rel_pos},
    {OP_ADD_REL_POS, add_rel_pos},
};

}  // namespace

RuleFamily shape_rules() { return {RULES, sizeof RULES / sizeof RULES[0]}; }

}  // namespace ggr
