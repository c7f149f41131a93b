// The quantised types that kernels are made for (cuda/types), and what the families of products, rows and copies share.
#pragma once

#include "cuda/plan.h"

namespace ggr {
namespace cuda {

struct QuantisedType {
    int32_t type;
    const char* name;  // of the struct, as kernels' expressions have it
    int align;         // what addresses of rows must be multiples of
    int parts;         // pieces of 16 elements a lane takes at once
};

static constexpr QuantisedType QUANTISED_TYPES[] = {
    {TYPE_Q4_0, "Q4_0", 2, 2},       {TYPE_Q4_1, "Q4_1", 4, 2},     {TYPE_Q5_0, "Q5_0", 2, 2},
    {TYPE_Q5_1, "Q5_1", 4, 2},       {TYPE_Q8_0, "Q8_0", 2, 1},     {TYPE_IQ4_NL, "IQ4_NL", 2, 2},
    {TYPE_MXFP4, "MXFP4", 1, 2},     {TYPE_Q2_K, "Q2_K", 4, 4},     {TYPE_Q3_K, "Q3_K", 2, 4},
    {TYPE_Q4_K, "Q4_K", 16, 4},      {TYPE_Q5_K, "Q5_K", 16, 4},    {TYPE_Q6_K, "Q6_K", 2, 4},
    {TYPE_IQ4_XS, "IQ4_XS", 8, 2},   {TYPE_TQ1_0, "TQ1_0", 2, 1},   {TYPE_TQ2_0, "TQ2_0", 2, 4},
    {TYPE_Q1_0, "Q1_0", 2, 2},       {TYPE_Q2_0, "Q2_0", 2, 2},     {TYPE_NVFP4, "NVFP4", 4, 1},
    {TYPE_IQ2_XXS, "IQ2_XXS", 2, 2}, {TYPE_IQ2_XS, "IQ2_XS", 2, 2}, {TYPE_IQ2_S, "IQ2_S", 2, 2},
    {TYPE_IQ3_XXS, "IQ3_XXS", 2, 2}, {TYPE_IQ3_S, "IQ3_S", 2, 2},   {TYPE_IQ1_S, "IQ1_S", 2, 2},
    {TYPE_IQ1_M, "IQ1_M", 4, 2},
};

static inline const QuantisedType* quantised_type(int32_t type) {
    for (const QuantisedType& t : QUANTISED_TYPES)
        if (t.type == type) return &t;
    return nullptr;
}
// The struct of a plain floating-point type, or nullptr.
static inline const char* float_name(int32_t type) {
    return type == TYPE_F32 ? "F32" : type == TYPE_F16 ? "F16" : type == TYPE_BF16 ? "BF16" : nullptr;
}

// All rows begin at multiples of `bytes`.
static inline bool rows_at(const Tensor& t, int64_t bytes) {
    if (reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) != 0) return false;
    for (int i = 1; i < MAX_DIMS; ++i)
        if (t.ne[i] > 1 && t.nb[i] % bytes != 0) return false;
    return true;
}
// A kernel can read the elements (of a plain type) or blocks where they lie.
static inline bool readable(const Tensor& t) {
    const QuantisedType* q = quantised_type(t.type);
    if (q != nullptr) return rows_at(t, q->align);
    return !is_quantized(t.type) && rows_at(t, block_bytes(t.type)) && t.nb[0] % block_bytes(t.type) == 0;
}

// What a kernel can write quantised: the types of caches, all in blocks of 32.
static inline bool is_cache_type(int32_t type) {
    return type == TYPE_Q8_0 || type == TYPE_Q4_0 || type == TYPE_Q4_1 || type == TYPE_Q5_0 || type == TYPE_Q5_1 ||
           type == TYPE_IQ4_NL;
}

constexpr int64_t MAX_GRID = 65535;  // of y and z

static constexpr const char* FLOATS[] = {"F32", "F16", "BF16"};

// Name a kernel of list_kernels as printf does.
template <class... Values>
static inline void list_kernel(void* context, KernelSink sink, const char* file, const char* expression,
                               Values... values) {
    char name[256];
    std::snprintf(name, sizeof name, expression, values...);
    sink(context, {file, name});
}

}  // namespace cuda
}  // namespace ggr
