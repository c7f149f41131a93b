// MUL_MAT, MUL_MAT_ID, and two of them that a gate joins: activations converted once a tensor, then vector products
// (few columns) or tiles.
#include "cuda/families/families.h"
#include "cuda/families/gates.h"
#include "cuda/families/products.h"

namespace ggr {
namespace cuda {

namespace {

// A product with all that its kernels are told, but for activations.
struct Product {
    ProductArgs args;
    int64_t matrices, columns;  // columns of each matrix; of a product by id its pairs
};

// ---- MUL_MAT ----

// Relies on: rows of weights and result contiguous; x.ne[2], x.ne[3] multiples of w's; node = [w.ne[1], x.ne[1..3]].
bool matrix_product(const Tensor& node, Product* product) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    if (!operands_fit(node)) return false;
    product->matrices = w.ne[2] * w.ne[3];
    product->columns = n_rows(x) / product->matrices;
    ProductArgs args = product_args(node);
    args.columns = static_cast<int32_t>(product->columns);
    args.w_ne2 = static_cast<int32_t>(w.ne[2]);
    args.x_ne1 = static_cast<int32_t>(x.ne[1]);
    args.r2 = static_cast<int32_t>(x.ne[2] / w.ne[2]);
    args.r3 = static_cast<int32_t>(x.ne[3] / w.ne[3]);
    args.by_x_ne1 = divisor_of(static_cast<uint32_t>(args.x_ne1));
    args.by_r2 = divisor_of(static_cast<uint32_t>(args.r2));
    product->args = args;
    return product->matrices <= MAX_GRID;
}

// ---- Further products of the same activations ----

// How many nodes are looked at for them: from the queries to the values of a layer there are 10, and biases and norms
// in between.
constexpr uint32_t SIBLINGS_WITHIN = 24;

// A GLU right behind it takes the result: it is better off with that.
bool feeds_glu(const Graph& graph, uint32_t i) {
    for (uint32_t k = i + 1; k < graph.n_nodes && k <= i + 2; ++k) {
        const Tensor& glu = *graph.nodes[k];
        if (glu.op == OP_GLU && (glu.src[0] == graph.nodes[i] || glu.src[1] == graph.nodes[i])) return true;
    }
    return false;
}

// Queries, keys and values are products of the same activations that stand apart: what is done with the queries comes
// before the keys. One launch has them all: a matrix of 1024 rows alone leaves most of a GPU idle. They must be of one
// type; others stay where they are.
void take_siblings(PlanBuilder& builder, const Tensor& node, ProductArgs* args) {
    const Graph& graph = builder.graph();
    const Tensor &w = *node.src[0], &x = *node.src[1];
    if (w.ne[2] * w.ne[3] != 1 || x.ne[2] * x.ne[3] != 1 || graph.nodes[builder.present()] != &node) return;
    const uint32_t first = builder.present() + 1;
    for (uint32_t j = first; j < graph.n_nodes && j < first + SIBLINGS_WITHIN && args->n_others < MAX_OTHERS; ++j) {
        const Tensor& other = *graph.nodes[j];
        if (other.op != OP_MUL_MAT || other.src[1] != &x || builder.is_taken(j) || !operands_fit(other)) continue;
        const Tensor& v = *other.src[0];
        if (v.type != w.type || v.ne[2] * v.ne[3] != 1 || v.nb[1] != w.nb[1] || packed_rows(v) != packed_rows(w) ||
            (args->columns == 1 && feeds_glu(graph, j)) || !builder.may_advance(j))
            continue;
        builder.take(j);
        add_other(args, other);
    }
}

bool prepare_mul_mat(PlanBuilder& builder, const Tensor& node) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    Product product;
    Engine engine;
    if (!matrix_product(node, &product) || !find_engine(builder, w, product.columns <= most_columns(w.type), &engine))
        return false;
    ProductArgs& args = product.args;
    const uint32_t z = static_cast<uint32_t>(product.matrices);
    if (engine.means == Means::vector) {
        take_activations(builder, node, x, engine.format, &args);
        take_siblings(builder, node, &args);
        launch_vector(builder, node, engine, args, {1, 1, z});
        return true;
    }
    if (prepare_by_library(builder, node, engine)) return true;
    take_activations(builder, node, x, engine.format, &args);
    take_siblings(builder, node, &args);
    const int width = tile_width(builder, w, engine, rows_of(args), product.columns, product.matrices);
    const int64_t column_tiles = ceil_div(product.columns, width);
    if (column_tiles > MAX_GRID) return false;
    launch_tiles(builder, node, engine, args, width, {1, static_cast<uint32_t>(column_tiles), z});
    return true;
}

// ---- MUL_MAT_ID ----

// Relies on: w [k, m, experts], x [k, 1 or a divisor of slots, tokens] with contiguous rows, ids I32 [slots, tokens],
// node = [m, slots, tokens].
bool pair_product(const PlanBuilder& builder, const Tensor& node, Product* product) {
    const Tensor &w = *node.src[0], &x = *node.src[1], &ids = *node.src[2];
    if (!operands_fit(node) || ids.type != TYPE_I32 || !readable(ids) || w.ne[2] == 0 || w.ne[2] >= MAX_EXPERTS)
        return false;
    product->matrices = 1;
    product->columns = ids.ne[0] * ids.ne[1];
    ProductArgs args = product_args(node);
    args.x_ne1 = static_cast<int32_t>(x.ne[1]);
    args.slots = args.r2 = static_cast<int32_t>(ids.ne[0]);
    args.by_x_ne1 = divisor_of(static_cast<uint32_t>(args.x_ne1));
    args.by_r2 = divisor_of(static_cast<uint32_t>(args.r2));
    args.ids = ids.data;
    args.ids_nb[0] = ids.nb[0];
    args.ids_nb[1] = ids.nb[1];
    args.experts = static_cast<int32_t>(w.ne[2]);
    args.absent_is_zero = (node.flags & FLAG_ABSENT_ROWS_ARE_ZERO) != 0;
    args.site = builder.fault_site(node, 2);
    product->args = args;
    return product->columns <= (1 << 30);
}

// Sort pairs by expert, once for all products of the same ids with as many experts and tiles as wide.
void sort_pairs(PlanBuilder& builder, const Tensor& node, int width, int64_t max_tiles, int64_t n_pairs,
                ProductArgs* args) {
    const Tensor& ids = *node.src[2];
    const uint64_t pair_bytes = (static_cast<uint64_t>(n_pairs) * sizeof(int32_t) + 255) / 256 * 256;
    const uint64_t bytes = pair_bytes + static_cast<uint64_t>(3 * max_tiles) * sizeof(int32_t);
    // No format of activations: those are small numbers.
    const int32_t format = 1 << 30 | (args->absent_is_zero != 0 ? 1 << 29 : 0) | width << 12 | args->experts;
    uint8_t* at = builder.find_activation(ids, format);
    const bool sorted = at != nullptr;
    if (!sorted) at = builder.scratch(bytes);
    args->pairs = reinterpret_cast<const int32_t*>(at);
    args->tiles = reinterpret_cast<const int32_t*>(at + pair_bytes);
    if (sorted) return;
    PairArgs sort = {};
    sort.ids = ids.data;
    sort.ids_nb[0] = ids.nb[0];
    sort.ids_nb[1] = ids.nb[1];
    sort.slots = args->slots;
    sort.n_pairs = static_cast<int32_t>(n_pairs);
    sort.experts = args->experts;
    sort.absent_is_zero = args->absent_is_zero;
    sort.width = width;
    sort.max_tiles = static_cast<int32_t>(max_tiles);
    sort.site = args->site;
    sort.pairs = reinterpret_cast<int32_t*>(at);
    sort.tiles = reinterpret_cast<int32_t*>(at + pair_bytes);
    builder.launch(node, {1, 1, 1}, 1024, 0, sort, "experts", "sort_pairs");
    builder.keep_activation(ids, format, at, bytes);
}

bool prepare_mul_mat_id(PlanBuilder& builder, const Tensor& node) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    Product product;
    Engine engine;
    if (!pair_product(builder, node, &product) ||
        !find_engine(builder, w, product.columns <= MAX_VECTOR_PAIRS, &engine))
        return false;
    ProductArgs& args = product.args;
    const int64_t pairs = product.columns;
    if (engine.means == Means::vector) {
        args.columns = 1;
        take_activations(builder, node, x, engine.format, &args);
        launch_vector(builder, node, engine, args, {1, static_cast<uint32_t>(pairs), 1});
        return true;
    }
    const int64_t busy = pairs < w.ne[2] ? pairs : w.ne[2];
    const int width = width_of(engine, w, pairs / busy > MIDDLE ? WIDE : pairs / busy > NARROW ? MIDDLE : NARROW);
    // Every expert can have one tile that is not full, and so can the pairs without an expert.
    const int64_t max_tiles = pairs / width + (pairs < w.ne[2] + 1 ? pairs : w.ne[2] + 1);
    if (max_tiles > MAX_GRID) return false;
    take_activations(builder, node, x, engine.format, &args);
    sort_pairs(builder, node, width, max_tiles, pairs, &args);
    launch_tiles(builder, node, engine, args, width, {1, static_cast<uint32_t>(max_tiles), 1});
    return true;
}

// ---- gate and up -> GLU ----

// What two products of one source by matrices of one layout give is only multiplied: they may be one kernel.
bool same_products(const PlanBuilder& builder, const Tensor& a, const Tensor& b, const Tensor& glu) {
    const Tensor &w = *a.src[0], &v = *b.src[0];
    if (b.op != a.op || a.src[1] != b.src[1] || (a.op == OP_MUL_MAT_ID && a.src[2] != b.src[2])) return false;
    if (w.type != v.type || !same_shape(w, v) || !readable(v) || a.flags != b.flags) return false;
    for (int i = 0; i < MAX_DIMS; ++i)
        if (w.nb[i] != v.nb[i]) return false;
    if (glu.op != OP_GLU || glu.type != TYPE_F32 || !same_shape(glu, a) || !rows_contiguous(glu) || !readable(glu))
        return false;
    if (glu.params[0] < 0 || glu.params[0] >= GLU_COUNT_) return false;
    const bool in_order = glu.src[0] == &a && glu.src[1] == &b, swapped = glu.src[0] == &b && glu.src[1] == &a;
    if (!in_order && !swapped) return false;
    if (a.view_src != nullptr || b.view_src != nullptr || !builder.can_elide(a, 1) || !builder.can_elide(b, 1))
        return false;
    // Blocks that end early must not change what others still read, nor may the two products have changed it.
    for (const Tensor* result : {&a, &b, &glu})
        for (const Tensor* source : {a.src[0], b.src[0], a.src[1], a.op == OP_MUL_MAT_ID ? a.src[2] : nullptr})
            if (source != nullptr && overlap(*result, *source)) {
                // Activations that are converted first are read before anything is written.
                if (source != a.src[1] || result != &glu || !is_quantized(w.type)) return false;
            }
    return true;
}

uint32_t fuse_gated(PlanBuilder& builder, uint32_t i) {
    const Graph& graph = builder.graph();
    if (i + 2 >= graph.n_nodes) return 0;
    const Tensor &a = *graph.nodes[i], &b = *graph.nodes[i + 1], &glu = *graph.nodes[i + 2];
    if (!operands_fit(a) || !same_products(builder, a, b, glu)) return 0;
    GatedArgs gate = {};
    gate.kind = glu.params[0];
    gate.alpha = param_f32(glu, 2);
    gate.limit = param_f32(glu, 3);
    return add_gated_vector(builder, glu, *glu.src[0], *glu.src[1]->src[0], gate) ? 3 : 0;
}

void enter(OpTable& table) {
    table.prepare[OP_MUL_MAT] = prepare_mul_mat;
    table.prepare[OP_MUL_MAT_ID] = prepare_mul_mat_id;
    table.fuse[OP_MUL_MAT] = fuse_gated;
    table.fuse[OP_MUL_MAT_ID] = fuse_gated;
}

void list_kernels(void* context, KernelSink sink) { list_products(context, sink); }

}  // namespace

bool add_product(PlanBuilder& builder, const Tensor& node) {
    return node.op == OP_MUL_MAT_ID ? prepare_mul_mat_id(builder, node) : prepare_mul_mat(builder, node);
}

bool add_gated_vector(PlanBuilder& builder, const Tensor& to, const Tensor& gate, const Tensor& up,
                      const GatedArgs& gated) {
    const Tensor& w = *gate.src[0];
    const bool by_id = gate.op == OP_MUL_MAT_ID;
    Engine engine;
    Product product;
    if (!variants_of(w.type).gated || !find_engine(builder, w, true, &engine)) return false;
    if (by_id ? !pair_product(builder, gate, &product) || product.columns > MAX_VECTOR_PAIRS
              : !matrix_product(gate, &product) || product.columns > 1)
        return false;
    GatedArgs args = gated;
    args.product = product.args;
    args.up = up.data;
    args.product.columns = 1;
    args.product.dst = to.data;
    for (int k = 0; k < 3; ++k) args.product.dst_nb[k] = to.nb[k + 1];
    args.product.packed = args.product.packed && rows_at(up, 16);
    take_activations(builder, to, *gate.src[1], engine.format, &args.product);
    const int64_t blocks = by_id ? product.columns : product.matrices;
    args.product.split = split_of(builder, w, engine, w.ne[1], 2 * blocks);
    const int64_t rows = VECTOR_THREADS / WARP / args.product.split;
    const Grid grid = {static_cast<uint32_t>(ceil_div(w.ne[1], rows)), static_cast<uint32_t>(by_id ? blocks : 1),
                       static_cast<uint32_t>(by_id ? 1 : blocks)};
    if (engine.quantised != nullptr)
        builder.launch(to, grid, VECTOR_THREADS, 0, args, "matvec", "gated_quantised<%s>", engine.quantised->name);
    else
        builder.launch(to, grid, VECTOR_THREADS, 0, args, "matvec", "gated_plain<%s>", engine.plain);
    return true;
}

const Family MATMUL = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
