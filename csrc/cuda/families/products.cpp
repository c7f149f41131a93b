// Engines of products: activations converted once a tensor, then vector products (few columns) or tiles.
#include "cuda/families/products.h"

namespace ggr {
namespace cuda {

namespace {

// Types whose weights meet activations in bytes (kernels/matmul_q8.cu). The others are rare in files, or small enough
// for halves to be no loss.
constexpr int32_t BYTE_TYPES[] = {TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1,  TYPE_Q8_0,   TYPE_Q2_K,  TYPE_Q3_K,
                                  TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_MXFP4, TYPE_IQ4_NL, TYPE_IQ4_XS};

// Tensor cores that multiply bytes at least four times as fast as halves with sums in f32: those of all GPUs but the
// largest, which take halves at half the rate of bytes, or at a higher one.
bool bytes_are_fast(int capability) {
    return capability != 80 && capability != 90 && capability / 10 != 10 && capability != 110;
}

bool meets_bytes(const PlanBuilder& builder, int32_t type) {
    if (!bytes_are_fast(builder.hardware().capability)) return false;
    for (const int32_t t : BYTE_TYPES)
        if (t == type) return true;
    return false;
}

bool usable_as_f32(const Tensor& x) { return x.type == TYPE_F32 && rows_contiguous(x) && rows_at(x, 16); }

// Number the blocks of the launch's matrices, each with `rows` rows; returns how many there are.
uint32_t number_blocks(ProductArgs* args, int64_t rows) {
    int64_t next = ceil_div(args->m, rows);
    for (int i = 0; i < args->n_others; ++i) {
        args->others[i].first_block = static_cast<int32_t>(next);
        next += ceil_div(args->others[i].m, rows);
    }
    return static_cast<uint32_t>(next);
}

}  // namespace

bool packed_rows(const Tensor& w) {
    return float_name(w.type) != nullptr && rows_at(w, 16) && w.ne[0] * block_bytes(w.type) % 16 == 0;
}

bool find_engine(const PlanBuilder& builder, const Tensor& w, bool vector, Engine* engine) {
    engine->quantised = quantised_type(w.type);
    const bool interleaved = w.type == TYPE_BF16_R16;
    engine->plain = interleaved ? "BF16_R16" : float_name(w.type);
    if (engine->quantised == nullptr && engine->plain == nullptr) return false;
    if (interleaved && builder.hardware().capability < 80) return false;  // its tiles are for tensor cores alone
    // Elements of BF16 that must be read one by one take the simple tiles, as where tensor cores do not know the type.
    const bool brain = w.type == TYPE_BF16 || interleaved;
    const bool in_cores = interleaved || (builder.hardware().capability >= 80 && packed_rows(w));
    if (vector) {
        engine->means = Means::vector;
        engine->format = engine->quantised != nullptr ? ACTIVATION_Q8 : ACTIVATION_F32;
    } else if (w.type == TYPE_F32 || (brain && !in_cores)) {
        engine->means = Means::floats;
        engine->format = ACTIVATION_F32;
    } else if (meets_bytes(builder, w.type)) {
        engine->means = Means::bytes;
        engine->format = ACTIVATION_Q8;
    } else {
        engine->means = Means::halves;
        engine->format = brain ? ACTIVATION_BF16 : ACTIVATION_F16;
    }
    return true;
}

bool operands_fit(const Tensor& node) {
    const Tensor &w = *node.src[0], &x = *node.src[1];
    return node.type == TYPE_F32 && float_name(x.type) != nullptr && readable(w) && readable(x) && readable(node) &&
           w.ne[0] > 0 && w.ne[0] <= (1 << 30) && w.ne[1] <= (1 << 30) && n_rows(x) <= (1 << 30) && !is_empty(node);
}

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
        ConvertArgs convert = {view_of(x), at, stride, Q8_THREADS / WARP};
        const Grid grid = {static_cast<uint32_t>(rows), 1, 1};
        const int threads = x.ne[0] <= 1024 ? 64 : 256;
        const char* type = float_name(x.type);
        if (format == ACTIVATION_Q8) {
            const int64_t groups = padded_row(x.ne[0]) / 32;
            while (ceil_div(groups, convert.groups) > MAX_GRID) convert.groups *= 2;
            const Grid split = {grid.x, static_cast<uint32_t>(ceil_div(groups, convert.groups)), 1};
            builder.launch(node, split, Q8_THREADS, 0, convert, "activations", "activations_q8<%s>", type);
        } else if (format == ACTIVATION_F16) {
            builder.launch(node, grid, threads, 0, convert, "activations", "activations_f16<%s>", type);
        } else {
            builder.launch(node, grid, threads, 0, convert, "activations", "activations_plain<%s, %s>", type,
                           format == ACTIVATION_BF16 ? "BF16" : "F32");
        }
        builder.keep_activation(x, format, at, bytes);
    }
    args->x = at;
    args->x_nb[0] = stride;
    args->x_nb[1] = stride * x.ne[1];
    args->x_nb[2] = stride * x.ne[1] * x.ne[2];
}

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

void add_other(ProductArgs* args, const Tensor& node) {
    const Tensor& w = *node.src[0];
    args->others[args->n_others++] = {w.data, node.data, node.nb[1], static_cast<int32_t>(w.ne[1]), 0};
    args->packed = args->packed && packed_rows(w);
}

int64_t rows_of(const ProductArgs& args) {
    int64_t rows = args.m;
    for (int i = 0; i < args.n_others; ++i) rows += args.others[i].m;
    return rows;
}

int32_t split_of(const PlanBuilder& builder, const Tensor& w, const Engine& engine, int64_t rows, int64_t matrices) {
    const int64_t lane_elements = engine.quantised != nullptr ? 16 * engine.quantised->parts : 16 / block_bytes(w.type);
    const int64_t warps = ceil_div(rows, VECTOR_ROWS) * matrices, wanted = 16 * builder.hardware().multiprocessors;
    int32_t split = 1;
    while (split < VECTOR_THREADS / WARP && warps * split < wanted && w.ne[0] >= 2 * split * WARP * lane_elements)
        split *= 2;
    return split;
}

void launch_vector(PlanBuilder& builder, const Tensor& node, const Engine& engine, ProductArgs& args, Grid yz) {
    const Tensor& w = *node.src[0];
    args.split = split_of(builder, w, engine, rows_of(args), static_cast<int64_t>(yz.y) * yz.z);
    const Grid grid = {number_blocks(&args, VECTOR_ROWS * (VECTOR_THREADS / WARP) / args.split), yz.y, yz.z};
    const int* columns = variants_of(w.type).columns;
    while (*columns < args.columns) ++columns;
    if (engine.quantised != nullptr)
        builder.launch(node, grid, VECTOR_THREADS, 0, args, "matvec", "vector_quantised<%s, %d>",
                       engine.quantised->name, *columns);
    else
        builder.launch(node, grid, VECTOR_THREADS, 0, args, "matvec", "vector_plain<%s, %d>", engine.plain, *columns);
}

int width_of(const Engine& engine, const Tensor& w, int wanted) {
    if (engine.means == Means::floats) return PLAIN_TILE;
    const int* widths = variants_of(w.type).widths;
    while (*widths < wanted && widths[1] != 0) ++widths;
    return *widths;
}

int tile_width(const PlanBuilder& builder, const Tensor& w, const Engine& engine, int64_t rows, int64_t n,
               int64_t matrices) {
    // As wide as the columns are, if that still makes enough blocks: two wide ones fit on a multiprocessor.
    const int64_t row_tiles = ceil_div(rows, TILE_ROWS) * matrices, units = builder.hardware().multiprocessors;
    if (n > MIDDLE && 2 * row_tiles * ceil_div(n, WIDE) >= 3 * units) return width_of(engine, w, WIDE);
    return width_of(engine, w, n > NARROW && row_tiles * ceil_div(n, MIDDLE) >= units ? MIDDLE : NARROW);
}

void launch_tiles(PlanBuilder& builder, const Tensor& node, const Engine& engine, ProductArgs& args, int width,
                  Grid yz) {
    const Grid grid = {number_blocks(&args, engine.means == Means::floats ? PLAIN_TILE : TILE_ROWS), yz.y, yz.z};
    if (engine.means == Means::floats)
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul", "tiles_plain<%s>", engine.plain);
    else if (engine.means == Means::bytes)
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul_q8", "tiles_q8<%s, %d>", engine.quantised->name,
                       width);
    else if (engine.quantised != nullptr)
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul", "tiles<QuantisedRows<%s>, %d>",
                       engine.quantised->name, width);
    else if (node.src[0]->type == TYPE_BF16_R16)
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul", "tiles<InterleavedRows, %d>", width);
    else
        builder.launch(node, grid, TILE_THREADS, 0, args, "matmul", "tiles<PlainRows<%s>, %d>",
                       node.src[0]->type == TYPE_BF16 ? "true" : "false", width);
}

void list_products(void* context, KernelSink sink) {
    const Variants& plain = variants_of(TYPE_F32);
    for (const char* from : FLOATS) {
        list_kernel(context, sink, "activations", "activations_q8<%s>", from);
        list_kernel(context, sink, "activations", "activations_f16<%s>", from);
        list_kernel(context, sink, "activations", "activations_plain<%s, BF16>", from);
        list_kernel(context, sink, "activations", "activations_plain<%s, F32>", from);
        for (const int* n = plain.columns; *n != 0; ++n)
            list_kernel(context, sink, "matvec", "vector_plain<%s, %d>", from, *n);
        list_kernel(context, sink, "matvec", "gated_plain<%s>", from);
    }
    for (const QuantisedType& type : QUANTISED_TYPES) {
        const Variants& variants = variants_of(type.type);
        if (variants.gated) list_kernel(context, sink, "matvec", "gated_quantised<%s>", type.name);
        for (const int* n = variants.columns; *n != 0; ++n)
            list_kernel(context, sink, "matvec", "vector_quantised<%s, %d>", type.name, *n);
        for (const int* width = variants.widths; *width != 0; ++width)
            list_kernel(context, sink, "matmul", "tiles<QuantisedRows<%s>, %d>", type.name, *width);
        if (type.supply != SUPPLY_INTERLEAVED) list_kernel(context, sink, "unpack", "unpack_rows<%s>", type.name);
    }
    sink(context, {"unpack", "scale_columns"});
    sink(context, {"matvec", "vector_plain<BF16_R16, 1>"});
    sink(context, {"matmul", "tiles<InterleavedRows, 64>"});
    for (const int width : {NARROW, MIDDLE, WIDE}) {
        for (const int32_t type : BYTE_TYPES)
            list_kernel(context, sink, "matmul_q8", "tiles_q8<%s, %d>", quantised_type(type)->name, width);
        list_kernel(context, sink, "matmul", "tiles<PlainRows<false>, %d>", width);
        list_kernel(context, sink, "matmul", "tiles<PlainRows<true>, %d>", width);
    }
    list_kernel(context, sink, "matmul", "tiles_plain<%s>", "F32");
    list_kernel(context, sink, "matmul", "tiles_plain<%s>", "BF16");
    sink(context, {"experts", "sort_pairs"});
}

}  // namespace cuda
}  // namespace ggr
