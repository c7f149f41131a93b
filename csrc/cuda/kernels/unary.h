// Arguments of the kernels of functions of one element, and of gated ones.
#pragma once

#include "cuda/kernels/elementwise.h"

namespace ggr {
namespace cuda {

// What is computed: kinds of UNARY keep their numbers (below 64), other ops have one of these.
enum FunctionKind : int32_t {
    FUNCTION_SQR = 64,
    FUNCTION_SQRT,
    FUNCTION_LOG,
    FUNCTION_SIN,
    FUNCTION_COS,
    FUNCTION_SCALE,    // p: factor, addend
    FUNCTION_ZERO,     // whatever the element is
    FUNCTION_SOFTCAP,  // p: before, after
    FUNCTION_CLAMP,    // p: least, largest
    FUNCTION_LEAKY_RELU,
};

struct UnaryArgs {
    Operand dst, x;
    Cut cut;
    int32_t kind;
    float p[4];
};

// Gates besides the kinds of GLU. With GATE_BOUNDED added, ik_llama.cpp's limit: it bounds what the activation gave
// (and up on both sides), where SWIGLU_CLAMP bounds what it gets. The constants of its SWIGLU_OAI are not sent.
constexpr int32_t GATE_SIGMOID = 7, GATE_BOUNDED = 8;
constexpr float OAI_ALPHA = 1.702f, OAI_LIMIT = 7.0f;

struct GluArgs {
    Operand dst, gate, up;
    Cut cut;
    int32_t kind;
    float alpha, limit;
};
GGR_SCRATCH_AT(GluArgs, GGR_AT(GluArgs, gate.t.data));

// Of products by id: rows [m, slots, tokens], with biases of the experts. Rows without an expert become 0.
struct GluExpertsArgs {
    GluArgs glu;
    View ids;                            // [slots, tokens]
    const uint8_t *gate_bias, *up_bias;  // f32, a row an expert; nullptr: none
    int64_t gate_bias_nb, up_bias_nb;
    int32_t experts;
};
GGR_SCRATCH_AT(GluExpertsArgs, GGR_AT(GluExpertsArgs, glu.gate.t.data));

}  // namespace cuda
}  // namespace ggr
