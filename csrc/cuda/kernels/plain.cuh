// Plain element types.
#pragma once

#include "cuda/kernels/base.cuh"

namespace ggr {
namespace cuda {

struct F32 {
    using Bits = uint32_t;
    static constexpr int GROUP = 1;
    GGR_DEVICE float get(uint32_t v) { return bits_to_float(v); }
    GGR_DEVICE uint32_t put(float v) { return float_to_bits(v); }
};
struct F16 {
    using Bits = uint16_t;
    static constexpr int GROUP = 1;
    GGR_DEVICE float get(uint16_t v) { return half_to_float(v); }
    GGR_DEVICE uint16_t put(float v) { return float_to_half(v); }
};
struct BF16 {
    using Bits = uint16_t;
    static constexpr int GROUP = 1;
    GGR_DEVICE float get(uint16_t v) { return bf16_to_float(v); }
    GGR_DEVICE uint16_t put(float v) { return float_to_bf16(v); }
};
// Integers, converted as C does; the GPU clamps what does not fit.
struct I32 {
    using Bits = uint32_t;
    GGR_DEVICE float get(uint32_t v) { return static_cast<float>(static_cast<int32_t>(v)); }
    GGR_DEVICE uint32_t put(float v) {
        // Outside of int32 the least one, as on x86.
        const bool fits = v >= -2147483648.0f && v < 2147483648.0f;
        return fits ? static_cast<uint32_t>(static_cast<int32_t>(v)) : 0x80000000u;
    }
};

// ik_llama.cpp's interleaved rows: pairs of neighbours of one row after the other, of 16 rows.
struct BF16_R16 : BF16 {
    static constexpr int GROUP = 16;
    // Of a row that would lie at `at` if it were alone.
    GGR_DEVICE const uint8_t* row(const uint8_t* at, int index, int64_t stride) {
        return at - index % GROUP * (stride - 4);
    }
    // Elements i and i + 1 of a row, i even.
    GGR_DEVICE uint32_t pair(const uint8_t* row, int i) {
        return *reinterpret_cast<const uint32_t*>(row + 2 * GROUP * static_cast<int64_t>(i));
    }
};

template <class T>
GGR_DEVICE float element(const uint8_t* p) {
    return T::get(*reinterpret_cast<const typename T::Bits*>(p));
}
template <class T>
GGR_DEVICE void set_element(uint8_t* p, float v) {
    *reinterpret_cast<typename T::Bits*>(p) = T::put(v);
}

// a * b rounded, never fused with an addition: where bytes must be those of the CPU.
GGR_DEVICE float product_rounded(float a, float b) {
#ifdef GGR_CUDA_HOST
    volatile float p = a * b;
    return p;
#else
    return __fmul_rn(a, b);
#endif
}

}  // namespace cuda
}  // namespace ggr
