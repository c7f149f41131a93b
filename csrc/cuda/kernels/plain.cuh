// Plain element types.
#pragma once

#include "cuda/kernels/base.cuh"

namespace ggr {
namespace cuda {

struct F32 {
    using Bits = uint32_t;
    GGR_DEVICE float get(uint32_t v) { return bits_to_float(v); }
    GGR_DEVICE uint32_t put(float v) { return float_to_bits(v); }
};
struct F16 {
    using Bits = uint16_t;
    GGR_DEVICE float get(uint16_t v) { return half_to_float(v); }
    GGR_DEVICE uint16_t put(float v) { return float_to_half(v); }
};
struct BF16 {
    using Bits = uint16_t;
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
