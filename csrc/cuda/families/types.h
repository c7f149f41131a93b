// The quantised types that kernels are made for (cuda/types), and what the families of products, rows and copies share.
#pragma once

#include "cuda/plan.h"

namespace ggr {
namespace cuda {

// For how many forms of products a type has kernels: fewer where it is seldom met.
enum Supply : int32_t { SUPPLY_COMMON, SUPPLY_IK, SUPPLY_INTERLEAVED };

struct QuantisedType {
    int32_t type;
    const char* name;  // of the struct, as kernels' expressions have it
    int align;         // what addresses of rows, or of groups of rows, must be multiples of
    int parts;         // pieces of 16 elements a lane takes at once
    Supply supply = SUPPLY_COMMON;
};

// clang-format off
static constexpr QuantisedType QUANTISED_TYPES[] = {
    {TYPE_Q4_0, "Q4_0", 2, 2},
    {TYPE_Q4_1, "Q4_1", 4, 2},
    {TYPE_Q5_0, "Q5_0", 2, 2},
    {TYPE_Q5_1, "Q5_1", 4, 2},
    {TYPE_Q8_0, "Q8_0", 2, 1},
    {TYPE_IQ4_NL, "IQ4_NL", 2, 2},
    {TYPE_MXFP4, "MXFP4", 1, 2},
    {TYPE_Q2_K, "Q2_K", 4, 4},
    {TYPE_Q3_K, "Q3_K", 2, 4},
    {TYPE_Q4_K, "Q4_K", 16, 4},
    {TYPE_Q5_K, "Q5_K", 16, 4},
    {TYPE_Q6_K, "Q6_K", 2, 4},
    {TYPE_IQ4_XS, "IQ4_XS", 8, 2},
    {TYPE_TQ1_0, "TQ1_0", 2, 1},
    {TYPE_TQ2_0, "TQ2_0", 2, 4},
    {TYPE_Q1_0, "Q1_0", 2, 2},
    {TYPE_Q2_0, "Q2_0", 2, 2},
    {TYPE_NVFP4, "NVFP4", 4, 1},
    {TYPE_IQ2_XXS, "IQ2_XXS", 2, 2},
    {TYPE_IQ2_XS, "IQ2_XS", 2, 2},
    {TYPE_IQ2_S, "IQ2_S", 2, 2},
    {TYPE_IQ3_XXS, "IQ3_XXS", 2, 2},
    {TYPE_IQ3_S, "IQ3_S", 2, 2},
    {TYPE_IQ1_S, "IQ1_S", 2, 2},
    {TYPE_IQ1_M, "IQ1_M", 4, 2},
    {TYPE_Q6_0, "Q6_0", 2, 2, SUPPLY_IK},
    {TYPE_IQ1_BN, "IQ1_BN", 1, 4, SUPPLY_IK},
    {TYPE_IQ2_BN, "IQ2_BN", 4, 4, SUPPLY_IK},
    {TYPE_IQ2_K, "IQ2_K", 4, 4, SUPPLY_IK},
    {TYPE_IQ3_K, "IQ3_K", 2, 4, SUPPLY_IK},
    {TYPE_IQ4_K, "IQ4_K", 16, 2, SUPPLY_IK},
    {TYPE_IQ5_K, "IQ5_K", 16, 4, SUPPLY_IK},
    {TYPE_IQ6_K, "IQ6_K", 4, 4, SUPPLY_IK},
    {TYPE_IQ4_KS, "IQ4_KS", 4, 2, SUPPLY_IK},
    {TYPE_IQ2_KS, "IQ2_KS", 2, 4, SUPPLY_IK},
    {TYPE_IQ4_KSS, "IQ4_KSS", 4, 2, SUPPLY_IK},
    {TYPE_Q8_KV, "Q8_KV", 4, 1, SUPPLY_IK},
    {TYPE_IQ5_KS, "IQ5_KS", 4, 4, SUPPLY_IK},
    {TYPE_IQ2_KT, "IQ2_KT", 4, 2, SUPPLY_IK},
    {TYPE_IQ3_KT, "IQ3_KT", 4, 2, SUPPLY_IK},
    {TYPE_IQ4_KT, "IQ4_KT", 4, 2, SUPPLY_IK},
    {TYPE_IQ3_KS, "IQ3_KS", 2, 4, SUPPLY_IK},
    {TYPE_IQ2_KL, "IQ2_KL", 2, 4, SUPPLY_IK},
    {TYPE_IQ1_KT, "IQ1_KT", 4, 2, SUPPLY_IK},
    {TYPE_Q4_0_R8, "Q4_0_R8", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q5_0_R4, "Q5_0_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q8_0_R8, "Q8_0_R8", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q2_K_R4, "Q2_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q3_K_R4, "Q3_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q4_K_R4, "Q4_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q5_K_R4, "Q5_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q6_K_R4, "Q6_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ2_XXS_R4, "IQ2_XXS_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ2_XS_R4, "IQ2_XS_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ3_XXS_R4, "IQ3_XXS_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ1_S_R4, "IQ1_S_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ4_NL_R4, "IQ4_NL_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ3_S_R4, "IQ3_S_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ2_S_R4, "IQ2_S_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ4_XS_R8, "IQ4_XS_R8", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ1_M_R4, "IQ1_M_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q6_0_R4, "Q6_0_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ2_BN_R4, "IQ2_BN_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ2_K_R4, "IQ2_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ3_K_R4, "IQ3_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ4_K_R4, "IQ4_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ5_K_R4, "IQ5_K_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ4_KS_R4, "IQ4_KS_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_IQ5_KS_R4, "IQ5_KS_R4", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_MXFP4_R8, "MXFP4_R8", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q8_K_R16, "Q8_K_R16", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q8_KV_R8, "Q8_KV_R8", 4, 2, SUPPLY_INTERLEAVED},
    {TYPE_Q8_K_R8, "Q8_K_R8", 4, 2, SUPPLY_INTERLEAVED},
};
// clang-format on

static inline const QuantisedType* quantised_type(int32_t type) {
    for (const QuantisedType& t : QUANTISED_TYPES)
        if (t.type == type) return &t;
    return nullptr;
}
// Columns of vector products and of tiles that there are kernels for, rising, 0 at the end. Others take the next
// larger.
struct Variants {
    int columns[5];
    int widths[4];
    bool gated;  // vector products of two matrices that a gate joins
};
static inline const Variants& variants_of(int32_t type) {
    static constexpr Variants LIST[] = {
        {{1, 2, 4, 8, 0}, {32, 64, 128, 0}, true},  // SUPPLY_COMMON
        {{1, 4, 0}, {32, 128, 0}, true},            // SUPPLY_IK
        {{1, 0}, {64, 0}, false},                   // SUPPLY_INTERLEAVED
    };
    const QuantisedType* quantised = quantised_type(type);
    return LIST[quantised != nullptr ? quantised->supply : type == TYPE_BF16_R16 ? SUPPLY_INTERLEAVED : SUPPLY_COMMON];
}

// Columns up to which products are vector products.
static inline int most_columns(int32_t type) {
    const int* columns = variants_of(type).columns;
    while (columns[1] != 0) ++columns;
    return *columns;
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
    if (q != nullptr) {
        Tensor groups = t;
        groups.nb[1] *= type_traits(t.type)->row_group;
        return rows_at(groups, q->align);
    }
    const int64_t item = t.type == TYPE_BF16_R16 ? 4 : block_bytes(t.type);  // a pair of elements
    return !is_quantized(t.type) && rows_at(t, item) && t.nb[0] % block_bytes(t.type) == 0;
}

// Rows of a quantised type, not interleaved, to a result of f32 with as many elements; false if there are too many.
bool add_dequantised(PlanBuilder& builder, const Tensor& node, const Tensor& src);

// What a kernel can write quantised: the types of caches, all in blocks of 32.
static inline bool is_cache_type(int32_t type) {
    return type == TYPE_Q8_0 || type == TYPE_Q4_0 || type == TYPE_Q4_1 || type == TYPE_Q5_0 || type == TYPE_Q5_1 ||
           type == TYPE_IQ4_NL || type == TYPE_Q6_0;
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
