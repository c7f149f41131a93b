// MUL_MAT, MUL_MAT_ID, and two of them that a gate joins: activations converted once a tensor, then vector products
// (few columns) or tiles.
#include "cuda/families/families.h"
#include "cuda/families/gates.h"
#include "cuda/families/types.h"

namespace ggr {
namespace cuda {

namespace {

constexpr int64_t MAX_VECTOR_PAIRS =
    64;  // each pair reads its expert's weights itself; the L2 cache has the repeated ones
constexpr int NARROW = 32, MIDDLE = 64, WIDE = 128;  // columns of a tile

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a product of weights of one type and a number of columns is done.
struct Engine {
    const QuantisedType* quantised;  // nullptr: plain
    const char* plain;
    int32_t format;  // of activations
    bool vector;
    bool tensor_cores;
};

// Rows of plain types can be copied 16 bytes at a time.
bool packed_rows(const Tensor& w) {
    return float_name(w.type) != nullptr && rows_at(w, 16) && w.ne[0] * block_bytes(w.type) % 16 == 0;
}

bool find_engine(const PlanBuilder& builder, const Tensor& w, bool vector, Engine* engine) {
    engine->quantised = quantised_type(w.type);
    const bool interleaved = w.type == TYPE_BF16_R16;
    engine->plain = interleaved ? "BF16_R16" : float_name(w.type);
    engine->vector = vector;
    if (engine->quantised == nullptr && engine->plain == nullptr) return false;
    if (interleaved && builder.hardware().capability < 80) return false;  // its tiles are for tensor cores alone
    // Elements of BF16 that must be read one by one take the simple tiles, as where tensor cores do not know the type.
    const bool brain = w.type == TYPE_BF16 || interleaved;
    const bool in_cores = interleaved || (builder.hardware().capability >= 80 && packed_rows(w));
    engine->tensor_cores = w.type != TYPE_F32 && (!brain || in_cores);
    if (vector)
        engine->format = engine->quantised != nullptr ? ACTIVATION_Q8 : ACTIVATION_F32;
    else
        engine->format = !engine->tensor_cores ? ACTIVATION_F32 : brain ? ACTIVATION_BF16 : ACTIVATION_F16;
    return true;
}

bool operands_fit(const Tensor& node) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    return node.type == TYPE_F32 && float_name(x.type) != nullptr && readable(w) && readable(x) && readable(node) &&
           w.ne[0] > 0 && w.ne[0] <= (1 << 30) && w.ne[1] <= (1 << 30) && n_rows(x) <= (1 << 30) && !is_empty(node);
}

// ---- Activations ----

bool usable_as_f32(const Tensor& x) { return x.type == TYPE_F32 && rows_contiguous(x) && rows_at(x, 16); }

// Sets where the rows of x lie in the format that the engine takes, converting them if need be.
void take_activations(PlanBuilder& builder, const Tensor& node, const Tensor& x, int32_t format, ProductArgs* args) {
    if (format == ACTIVATION_F32 && usable_as_f32(x)) {
        args->x = x.data;
        for (int i = 0; i < 3; ++i) args->x_nb[i] = x.nb[i + 1];
        return;
    }
    const int64_t stride = activation_bytes(format, x.ne[0]), rows = n_rows(x);
    uint8_t* at = builder.find_activation(x, format);
    if (at == nullptr) {
        const uint64_t bytes = static_cast<uint64_t>(stride * rows);
        at = builder.scratch(bytes);
        const ConvertArgs convert = {view_of(x), at, stride};
        const Grid grid = {static_cast<uint32_t>(rows), 1, 1};
        const int threads = x.ne[0] <= 1024 ? 64 : 256;
        const char* type = float_name(x.type);
        if (format == ACTIVATION_Q8)
            builder.launch(node, grid, threads, 0, convert, "activations", "activations_q8<%s>", type);
        else if (format == ACTIVATION_F16)
            builder.launch(node, grid, threads, 0, convert, "activations", "activations_f16<%s>", type);
        else
            builder.launch(node, grid, threads, 0, convert, "activations", "activations_plain<%s, %s>", type,
                           format == ACTIVATION_BF16 ? "BF16" : "F32");
        builder.keep_activation(x, format, at, bytes);
    }
    args->x = at;
    args->x_nb[0] = stride;
    args->x_nb[1] = stride * x.ne[1];
    args->x_nb[2] = stride * x.ne[1] * x.ne[2];
}

// ---- Launches ----

ProductArgs product_args(const Tensor& node) {
    const Tensor& w = *node.src[0];
    ProductArgs args = {};
    args.w = w.data;
    args.dst = node.data;
    for (int i = 0; i < 3; ++i) {
        args.w_nb[i] = w.nb[i + 1];
        args.dst_nb[i] = node.nb[i + 1];
    }
    args.k = static_cast<int32_t>(w.ne[0]);
    args.m = static_cast<int32_t>(w.ne[1]);
    args.split = 1;
    args.packed = packed_rows(w);
    return args;
}

// Warps that share rows: as many as keep all multiprocessors busy and still have a step of the loop each.
int32_t split_of(const PlanBuilder& builder, const Tensor& w, const Engine& engine, int64_t matrices) {
    const int64_t lane_elements = engine.quantised != nullptr ? 16 * engine.quantised->parts : 16 / block_bytes(w.type);
    const int64_t warps = ceil_div(w.ne[1], VECTOR_ROWS) * matrices, wanted = 16 * builder.hardware().multiprocessors;
    int32_t split = 1;
    while (split < VECTOR_THREADS / WARP && warps * split < wanted && w.ne[0] >= 2 * split * WARP * lane_elements)
        split *= 2;
    return split;
}

void launch_vector(PlanBuilder& builder, const Tensor& node, const Engine& engine, ProductArgs& args, Grid yz) {
    const Tensor& w = *node.src[0];
    args.split = split_of(builder, w, engine, static_cast<int64_t>(yz.y) * yz.z);
    const int64_t rows = VECTOR_ROWS * (VECTOR_THREADS / WARP) / args.split;
    const Grid grid = {static_cast<uint32_t>(ceil_div(w.ne[1], rows)), yz.y, yz.z};
    const int* columns = variants_of(w.type).columns;
    while (*columns < args.columns) ++columns;
    if (engine.quantised != nullptr)
        builder.launch(node, grid, VECTOR_THREADS, 0, args, "matvec", "vector_quantised<%s, %d>",
                       engine.quantised->name, *columns);
    else
        builder.launch(node, grid, VECTOR_THREADS, 0, args, "matvec", "vector_plain<%s, %d>", engine.plain, *columns);
}

// Rows of the weights that a tile has, and its columns for `n` of them in `matrices` products.
int64_t tile_rows(const Engine& engine) { return engine.tensor_cores ? TILE_ROWS : PLAIN_TILE; }
// The width of tiles that there are for a type, at least `wanted` if there are such.
int width_of(const Engine& engine, const Tensor& w, int wanted) {
    if (!engine.tensor_cores) return PLAIN_TILE;
    const int* widths = variants_of(w.type).widths;
    while (*widths < wanted && widths[1] != 0) ++widths;
    return *widths;
}
int tile_width(const PlanBuilder& builder, const Tensor& w, const Engine& engine, int64_t n, int64_t matrices) {
    // As wide as the columns are, if that still makes enough blocks: two wide ones fit on a multiprocessor.
    const int64_t row_tiles = ceil_div(w.ne[1], TILE_ROWS) * matrices, units = builder.hardware().multiprocessors;
    if (n > MIDDLE && 2 * row_tiles * ceil_div(n, WIDE) >= 3 * units) return width_of(engine, w, WIDE);
    return width_of(engine, w, n > NARROW && row_tiles * ceil_div(n, MIDDLE) >= units ? MIDDLE : NARROW);
}

void launch_tiles(PlanBuilder& builder, const Tensor& node, const Engine& engine, const ProductArgs& args, int width,
                  Grid yz) {
    const Grid grid = {static_cast<uint32_t>(ceil_div(args.m, tile_rows(engine))), yz.y, yz.z};
    if (!engine.tensor_cores)
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul", "tiles_plain<%s>", engine.plain);
    else if (engine.quantised != nullptr)
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul", "tiles<QuantisedRows<%s>, %d>",
                       engine.quantised->name, width);
    else if (node.src[0]->type == TYPE_BF16_R16)
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul", "tiles<InterleavedRows, %d>", width);
    else
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul", "tiles<PlainRows<%s>, %d>",
                       node.src[0]->type == TYPE_BF16 ? "true" : "false", width);
}

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

bool prepare_mul_mat(PlanBuilder& builder, const Tensor& node) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    Product product;
    Engine engine;
    if (!matrix_product(node, &product) || !find_engine(builder, w, product.columns <= most_columns(w.type), &engine))
        return false;
    ProductArgs& args = product.args;
    const uint32_t z = static_cast<uint32_t>(product.matrices);
    if (engine.vector) {
        take_activations(builder, node, x, engine.format, &args);
        launch_vector(builder, node, engine, args, {1, 1, z});
        return true;
    }
    const int width = tile_width(builder, w, engine, product.columns, product.matrices);
    const int64_t column_tiles = ceil_div(product.columns, width);
    if (column_tiles > MAX_GRID) return false;
    take_activations(builder, node, x, engine.format, &args);
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

bool prepare_mul_mat_id(PlanBuilder& builder, const Tensor& node) {
    const Tensor &w = *node.src[0], &x = *node.src[1], &ids = *node.src[2];
    Product product;
    Engine engine;
    if (!pair_product(builder, node, &product) ||
        !find_engine(builder, w, product.columns <= MAX_VECTOR_PAIRS, &engine))
        return false;
    ProductArgs& args = product.args;
    const int64_t pairs = product.columns;
    if (engine.vector) {
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
    SortArgs sort = {};
    sort.ids = ids.data;
    sort.ids_nb[0] = ids.nb[0];
    sort.ids_nb[1] = ids.nb[1];
    sort.slots = args.slots;
    sort.n_pairs = static_cast<int32_t>(pairs);
    sort.experts = args.experts;
    sort.absent_is_zero = args.absent_is_zero;
    sort.width = width;
    sort.max_tiles = static_cast<int32_t>(max_tiles);
    sort.site = args.site;
    sort.pairs = reinterpret_cast<int32_t*>(builder.scratch(static_cast<uint64_t>(pairs) * sizeof(int32_t)));
    sort.tiles = reinterpret_cast<int32_t*>(builder.scratch(static_cast<uint64_t>(3 * max_tiles) * sizeof(int32_t)));
    builder.launch(node, {1, 1, 1}, 1024, 0, sort, "experts", "sort_pairs");
    args.pairs = sort.pairs;
    args.tiles = sort.tiles;
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

void list_kernels(void* context, KernelSink sink) {
    const Variants& plain = variants_of(TYPE_F32);
    for (const char* from : FLOATS) {
        list_kernel(context, sink, "activations", "activations_q8<%s>", from);
        list_kernel(context, sink, "activations", "activations_f16<%s>", from);
        list_kernel(context, sink, "activations", "activations_plain<%s, BF16>", from);
        list_kernel(context, sink, "activations", "activations_plain<%s, F32>", from);
        for (const int* n = plain.columns; *n != 0; ++n)
            list_kernel(context, sink, "matvec", "vector_plain<%s, %d>", from, *n);
    }
    for (const char* from : FLOATS) list_kernel(context, sink, "matvec", "gated_plain<%s>", from);
    for (const QuantisedType& type : QUANTISED_TYPES) {
        const Variants& variants = variants_of(type.type);
        if (variants.gated) list_kernel(context, sink, "matvec", "gated_quantised<%s>", type.name);
        for (const int* n = variants.columns; *n != 0; ++n)
            list_kernel(context, sink, "matvec", "vector_quantised<%s, %d>", type.name, *n);
        for (const int* width = variants.widths; *width != 0; ++width)
            list_kernel(context, sink, "matmul", "tiles<QuantisedRows<%s>, %d>", type.name, *width);
    }
    sink(context, {"matvec", "vector_plain<BF16_R16, 1>"});
    sink(context, {"matmul", "tiles<InterleavedRows, 64>"});
    for (const int width : {NARROW, MIDDLE, WIDE}) {
        list_kernel(context, sink, "matmul", "tiles<PlainRows<false>, %d>", width);
        list_kernel(context, sink, "matmul", "tiles<PlainRows<true>, %d>", width);
    }
    list_kernel(context, sink, "matmul", "tiles_plain<%s>", "F32");
    list_kernel(context, sink, "matmul", "tiles_plain<%s>", "BF16");
    sink(context, {"experts", "sort_pairs"});
}

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
    args.product.split = split_of(builder, w, engine, 2 * blocks);
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
