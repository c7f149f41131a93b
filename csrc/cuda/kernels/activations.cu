// Activations for products: converted once a tensor, packed rows. One block a row but for Q8.
// Floor: one read of x, 1.5 (Q8), 2 (F16, BF16) or 4 bytes written an element.
#include "cuda/kernels/plain.cuh"
#include "cuda/kernels/products.h"

namespace ggr {
namespace cuda {

struct RowOfBlock {
    const uint8_t* from;
    uint8_t* to;
    int64_t k, nb0;
};
GGR_DEVICE RowOfBlock row_of_block(const ConvertArgs& a) {
    const int64_t row = block_x();
    const int64_t i1 = row % a.x.ne[1], i2 = row / a.x.ne[1] % a.x.ne[2], i3 = row / a.x.ne[1] / a.x.ne[2];
    return {a.x.data + i1 * a.x.nb[1] + i2 * a.x.nb[2] + i3 * a.x.nb[3], a.to + row * a.stride, a.x.ne[0], a.x.nb[0]};
}

// Blocks of 32, a warp each: d = max|x| / 127, quants x * (127 / max|x|) to nearest even. Grid: x rows, y blocks of 32
// (a.groups of them a block of the grid): a single row, as in decoding, would keep one multiprocessor busy alone.
template <class X>
GGR_KERNEL GGR_BOUNDS(256, 1) activations_q8(const ConvertArgs a) {
    const RowOfBlock row = row_of_block(a);
    const int64_t groups = padded_row(row.k) / 32;
    float* const scales = reinterpret_cast<float*>(row.to + groups * 32);
    const int64_t first = static_cast<int64_t>(block_y()) * a.groups;
    const int64_t end = first + a.groups < groups ? first + a.groups : groups;
    for (int64_t g = first + warp_index(); g < end; g += n_threads() / WARP) {
        const int64_t i = g * 32 + lane();
        const float x = i < row.k ? element<X>(row.from + i * row.nb0) : 0.0f;
        const float most = warp_max(absolute(x));
        const float d = most / 127.0f;
        const float q = round_even(x * (most != 0.0f ? 127.0f / most : 0.0f));
        const int32_t code = static_cast<int32_t>(smallest(largest(q, -127.0f), 127.0f));
        row.to[i] = static_cast<uint8_t>(code);
        int32_t sum = code;
        GGR_UNROLL
        for (int m = 8; m > 0; m >>= 1) sum += shuffle_xor(sum, m);
        const int32_t second = shuffle(sum, 16);
        if (lane() < 4) {
            const float v = lane() == 0   ? d
                            : lane() == 1 ? d * static_cast<float>(sum)
                            : lane() == 2 ? d * static_cast<float>(second)
                                          : 0.0f;
            scales[4 * g + lane()] = v;
        }
    }
}

// Halves. A row whose largest magnitude is not in [2^-4, 2^15) is multiplied by the power of two that puts it between
// 128 and 256. So none overflows, and what is 2^-10 of the largest is still a normal number; what is less is rounded to
// 2^-20 of it at most.
template <class X>
GGR_KERNEL GGR_BOUNDS(256, 1) activations_f16(const ConvertArgs a) {
    GGR_SHARED float parts[WARP];
    const RowOfBlock row = row_of_block(a);
    const int64_t padded = padded_row(row.k);
    float most = 0.0f;
    for (int64_t i = thread_index(); i < row.k; i += n_threads())
        most = largest(most, absolute(element<X>(row.from + i * row.nb0)));
    most = block_max(most, parts);
    int exponent = static_cast<int>(float_to_bits(most) >> 23 & 255);
    exponent = exponent < 8 ? 8 : exponent > 250 ? 250 : exponent >= 123 && exponent < 142 ? 134 : exponent;
    const float scale = bits_to_float(static_cast<uint32_t>(261 - exponent) << 23);
    for (int64_t i = thread_index(); i < padded; i += n_threads()) {
        const float x = i < row.k ? element<X>(row.from + i * row.nb0) : 0.0f;
        reinterpret_cast<uint16_t*>(row.to)[i] = float_to_half(x * scale);
    }
    if (thread_index() == 0)
        *reinterpret_cast<float*>(row.to + 2 * padded) = bits_to_float(static_cast<uint32_t>(exponent - 7) << 23);
}

template <class X, class To>
GGR_KERNEL GGR_BOUNDS(256, 1) activations_plain(const ConvertArgs a) {
    const RowOfBlock row = row_of_block(a);
    for (int64_t i = thread_index(); i < padded_row(row.k); i += n_threads())
        set_element<To>(row.to + i * static_cast<int64_t>(sizeof(typename To::Bits)),
                        i < row.k ? element<X>(row.from + i * row.nb0) : 0.0f);
}

}  // namespace cuda
}  // namespace ggr
