// Products that a gate joins, for the families of the ops that ask for them.
#pragma once

#include "cuda/kernels/products.h"
#include "cuda/plan.h"

namespace ggr {
namespace cuda {

// All launches of a MUL_MAT or MUL_MAT_ID, which need not be a node of the graph; false if there are no kernels for it.
bool add_product(PlanBuilder& builder, const Tensor& node);

// The launch of two vector products of one column (a column a pair of token and expert) and of what a gate makes of
// them; false if there is no kernel for types or sizes. `gate` is the product with the gate's matrix; up's matrix has
// its type, shape and strides; `gated`: gate and biases. The result goes to `to`, of the shape of the products.
bool add_gated_vector(PlanBuilder& builder, const Tensor& to, const Tensor& gate, const Tensor& up,
                      const GatedArgs& gated);

}  // namespace cuda
}  // namespace ggr
