// What products of matrices share on the host's side: how they are done, where their activations come from, launches.
#pragma once

#include "cuda/families/types.h"
#include "cuda/kernels/products.h"
#include "cuda/plan.h"

namespace ggr {
namespace cuda {

constexpr int64_t MAX_VECTOR_PAIRS =
    64;  // each pair reads its expert's weights itself; the L2 cache has the repeated ones
constexpr int NARROW = 32, MIDDLE = 64, WIDE = 128;  // columns of a tile

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Kernels of few columns; of many: tensor cores on bytes, on halves (or bf16), or the f32 units.
enum class Means { vector, bytes, halves, floats };

// How a product of weights of one type and a number of columns is done.
struct Engine {
    const QuantisedType* quantised;  // nullptr: plain
    const char* plain;
    int32_t format;  // of activations
    Means means;
};

// Rows of plain types can be copied 16 bytes at a time.
bool packed_rows(const Tensor& w);
// False if there are no kernels for weights of this type.
bool find_engine(const PlanBuilder& builder, const Tensor& w, bool vector, Engine* engine);
// Types, layouts and sizes are such that kernels can read and write them.
bool operands_fit(const Tensor& node);

// Set where the rows of x lie in the format that the engine takes, converting them if need be.
void take_activations(PlanBuilder& builder, const Tensor& node, const Tensor& x, int32_t format, ProductArgs* args);

// What every product's kernel is told of weights and result.
ProductArgs product_args(const Tensor& node);
// Another product of the same activations for the same launch.
void add_other(ProductArgs* args, const Tensor& node);

// Warps that share rows: as many as keep all multiprocessors busy and still have a step of the loop each.
int32_t split_of(const PlanBuilder& builder, const Tensor& w, const Engine& engine, int64_t rows, int64_t matrices);
// Columns of a tile where there are `n` of each of `matrices`.
int tile_width(const PlanBuilder& builder, const Tensor& w, const Engine& engine, int64_t rows, int64_t n,
               int64_t matrices);
// The width of tiles that there are for a type, at least `wanted` if there are such.
int width_of(const Engine& engine, const Tensor& w, int wanted);
int64_t rows_of(const ProductArgs& args);  // of all matrices of the launch

void launch_vector(PlanBuilder& builder, const Tensor& node, const Engine& engine, ProductArgs& args, Grid yz);
void launch_tiles(PlanBuilder& builder, const Tensor& node, const Engine& engine, ProductArgs& args, int width,
                  Grid yz);

// A product of many columns by cuBLASLt, if that is there and expected to be faster than the tiles: F16 and BF16
// weights as they are, quantised ones unpacked to halves first. False if not, or if it does not take the shape.
bool prepare_by_library(PlanBuilder& builder, const Tensor& node, const Engine& engine);

void list_products(void* context, KernelSink sink);

}  // namespace cuda
}  // namespace ggr
