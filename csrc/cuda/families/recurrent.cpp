// SSM_CONV and SSM_SCAN, the attention whose memory is a matrix a head (GATED_DELTA_NET, RWKV_WKV6, RWKV_WKV7,
// GATED_LINEAR_ATTN), SOLVE_TRI, and ik_llama.cpp's forms of them.
#include "cuda/kernels/recurrent.h"

#include <initializer_list>

#include "cuda/families/families.h"
#include "cuda/families/types.h"

namespace ggr {
namespace cuda {

namespace {

constexpr int THREADS = 128;
constexpr int64_t MAX_STATE = 256;  // elements of a row that lie in registers
constexpr int64_t MAX_INT = INT32_MAX;
// Tokens from which on a convolution goes through tiles, and taps that fit them.
constexpr int64_t TILE_TOKENS = 8, TILE_TAPS = 64;
constexpr int64_t SOLVE_BYTES = 48 << 10;  // of shared memory: 384 rows

uint32_t ceil_div(int64_t a, int64_t b) { return static_cast<uint32_t>((a + b - 1) / b); }

// All sources that are there are F32 (but `index`, which is I32) at multiples of 4 bytes, and no number that a kernel
// holds in 32 bits is too large.
bool readable_f32(const Tensor& node, int index) {
    if (node.type != TYPE_F32 || !rows_at(node, 4)) return false;
    for (int i = 0; i < node.n_src; ++i) {
        const Tensor* t = node.src[i];
        if (t == nullptr) continue;
        if (t->type != (i == index ? TYPE_I32 : TYPE_F32) || !rows_at(*t, 4) || t->nb[0] % 4 != 0) return false;
        for (const int64_t n : t->ne)
            if (n > MAX_INT) return false;
    }
    return true;
}

float* floats(const Tensor& t) { return reinterpret_cast<float*>(t.data); }
Strip strip_of(const Tensor& t, int element, int token, int head, int sequence) {
    const auto stride = [&](int axis) { return axis < 0 ? 0 : t.nb[axis] / 4; };
    return {floats(t), stride(element), stride(token), stride(head), stride(sequence)};
}

// ---- Convolutions ----

// Relies on: x [tokens + taps - 1, channels, sequences] with adjacent rows, kernel [taps, channels] and dst
// [channels, tokens, sequences] contiguous.
bool prepare_ssm_conv(PlanBuilder& builder, const Tensor& node) {
    if (!readable_f32(node, -1)) return false;
    ConvArgs args = {};
    args.dst = view_of(node);
    args.x = view_of(*node.src[0]);
    args.kernel = view_of(*node.src[1]);
    args.taps = static_cast<int32_t>(args.kernel.ne[0]);
    args.channels = static_cast<int32_t>(node.ne[0]);
    args.tokens = static_cast<int32_t>(node.ne[1]);
    const int64_t tokens = node.ne[1], sequences = node.ne[2];
    const bool tiles = tokens >= TILE_TOKENS && args.taps <= TILE_TAPS;
    args.blocks = static_cast<int32_t>(ceil_div(args.channels, tiles ? CONV_TILE : THREADS));
    const int64_t blocks = args.blocks * (tiles ? ceil_div(tokens, CONV_TILE) : tokens);
    if (blocks > MAX_INT || sequences > MAX_GRID || args.taps > MAX_STEPS) return false;
    const Grid grid = {static_cast<uint32_t>(blocks), static_cast<uint32_t>(sequences), 1};
    const int shared = tiles ? CONV_TILE * ((CONV_TILE + args.taps - 1) | 1) * 4 : 0;
    builder.launch(node, grid, tiles ? 256 : THREADS, shared, args, "scan", tiles ? "ssm_conv_tile" : "ssm_conv");
    return true;
}

// Relies on: state [taps - 1, channels, sequences] with adjacent rows, x [channels, tokens] with contiguous rows,
// kernel [taps, channels] and dst contiguous, map I32 [sequences, tokens], the store contiguous and large enough, and
// one sequence if there is a store.
bool prepare_map_conv(PlanBuilder& builder, const Tensor& node) {
    if (!readable_f32(node, 3)) return false;
    const Tensor &state = *node.src[0], &x = *node.src[1], &kernel = *node.src[2], &map = *node.src[3];
    MapConvArgs args = {};
    args.state = floats(state);
    args.x = floats(x);
    args.kernel = floats(kernel);
    args.map = view_of(map);
    args.values = floats(node);
    args.states = floats(node) + n_elements(x);
    args.store = node.src[4] != nullptr ? floats(*node.src[4]) : nullptr;
    args.state_pitch = state.nb[2] / 4;
    args.x_pitch = x.nb[1] / 4;
    args.taps = static_cast<int32_t>(kernel.ne[0]);
    args.channels = static_cast<int32_t>(kernel.ne[1]);
    args.tokens = static_cast<int32_t>(x.ne[1]);
    args.sequences = static_cast<int32_t>(state.ne[2]);
    args.site = builder.fault_site(node, 3);
    const int64_t blocks = ceil_div(args.channels, THREADS), all = blocks * args.tokens;
    if (args.sequences < 1 || args.tokens < 1 || all > MAX_INT) return false;
    const bool one = args.sequences == 1;
    if ((one ? 1 : int64_t{args.tokens} * args.sequences) * args.taps > MAX_STEPS) return false;
    builder.launch(node, {static_cast<uint32_t>(one ? all : blocks), 1, 1}, THREADS, 0, args, "scan",
                   one ? "map_conv" : "map_conv_sequences");
    return true;
}

// ---- Scans ----

// How many lanes share a row of n elements, and how many each has; false if a row is too long.
bool share_row(int64_t n, int* lanes, int* per) {
    if (n < 1 || n > MAX_STATE) return false;
    *lanes = n <= 16 ? 4 : n <= 32 ? 8 : n <= 64 ? 16 : 32;
    *per = n <= 128 ? 4 : 8;
    return true;
}

// Relies on: state [n, dim, heads, stored], dt [heads, tokens, sequences], a [1 or n, heads] contiguous; x [dim, heads,
// tokens, sequences] and b, c [n, groups, tokens, sequences] with the rows of a token adjacent; ids I32 [sequences];
// dst contiguous.
bool prepare_ssm_scan(PlanBuilder& builder, const Tensor& node) {
    const Tensor &s = *node.src[0], &x = *node.src[1], &a = *node.src[3], &b = *node.src[4];
    int lanes, per;
    if (!readable_f32(node, 6) || !share_row(s.ne[0], &lanes, &per)) return false;
    const int64_t rows = s.ne[1] * s.ne[2], sequences = x.ne[3];
    if (rows < 1 || rows > MAX_INT / 2 || sequences < 1 || sequences > MAX_GRID || x.ne[2] > MAX_STEPS) return false;
    ScanArgs args = {};
    args.state = floats(s);
    args.dt = floats(*node.src[2]);
    args.a = floats(a);
    args.x = view_of(x);
    args.b = view_of(b);
    args.c = view_of(*node.src[5]);
    args.ids = view_of(*node.src[6]);
    args.values = floats(node);
    args.states = floats(node) + n_elements(x);
    args.n = static_cast<int32_t>(s.ne[0]);
    args.dim = static_cast<int32_t>(s.ne[1]);
    args.heads = static_cast<int32_t>(s.ne[2]);
    args.heads_a_group = static_cast<int32_t>(s.ne[2] / b.ne[1]);
    args.tokens = static_cast<int32_t>(x.ne[2]);
    args.sequences = static_cast<int32_t>(sequences);
    args.stored = static_cast<int32_t>(s.ne[3]);
    args.snapshots = node.params[0] == 0 ? 1 : node.params[0];
    args.site = builder.fault_site(node, 6);
    // A row of one element has the same decay either way.
    const char* by_element = a.ne[0] != 1 ? "true" : "false";
    builder.launch(node, {ceil_div(rows, THREADS / lanes), static_cast<uint32_t>(sequences), 1}, THREADS, 0, args,
                   "scan", "ssm_scan<%d,%d,%s>", lanes, per, by_element);
    return true;
}

// Relies on: state [n, channels, sequences], x and dt [channels, tokens], a [n, channels] and dst contiguous, b and c
// [n, tokens] with contiguous rows, map I32 [sequences, tokens].
bool prepare_map_scan(PlanBuilder& builder, const Tensor& node) {
    const Tensor &s = *node.src[0], &x = *node.src[1];
    int lanes, per;
    if (!readable_f32(node, 6) || !share_row(s.ne[0], &lanes, &per)) return false;
    if (s.ne[1] < 1 || s.ne[2] < 1 || x.ne[1] * s.ne[2] > MAX_STEPS) return false;
    MapScanArgs args = {};
    args.state = floats(s);
    args.x = floats(x);
    args.dt = floats(*node.src[2]);
    args.a = floats(*node.src[3]);
    args.b = view_of(*node.src[4]);
    args.c = view_of(*node.src[5]);
    args.map = view_of(*node.src[6]);
    args.values = floats(node);
    args.states = floats(node) + n_elements(x);
    args.n = static_cast<int32_t>(s.ne[0]);
    args.channels = static_cast<int32_t>(s.ne[1]);
    args.tokens = static_cast<int32_t>(x.ne[1]);
    args.sequences = static_cast<int32_t>(s.ne[2]);
    args.site = builder.fault_site(node, 6);
    builder.launch(node, {ceil_div(s.ne[1], THREADS / lanes), 1, 1}, THREADS, 0, args, "scan", "map_scan<%d,%d>", lanes,
                   per);
    return true;
}

// ---- A matrix a head ----

int elements_a_lane(int64_t n) { return n <= 32 ? 1 : n <= 64 ? 2 : n <= 128 ? 4 : 8; }

// The parts that all have: n, heads and sequences, the state, and the result, which holds values and states.
bool start(const Tensor& node, const Tensor& state, int64_t n, int64_t heads, int64_t tokens, int64_t sequences,
           LinearArgs* args) {
    if (!readable_f32(node, -1) || n < 1 || n > MAX_STATE || heads < 1 || heads > MAX_GRID || sequences < 1 ||
        sequences > MAX_GRID || tokens > MAX_STEPS)
        return false;
    *args = {};
    args->n = static_cast<int32_t>(n);
    args->heads = static_cast<int32_t>(heads);
    args->tokens = static_cast<int32_t>(tokens);
    args->sequences = static_cast<int32_t>(sequences);
    args->snapshots = 1;
    args->state = floats(state);
    args->values = floats(node);
    args->states = floats(node) + n * heads * tokens * sequences;
    args->q_heads = args->k_heads = args->heads;
    args->q_repeat = args->k_repeat = 1;
    args->scale = 1.0f;
    return true;
}

bool launch_rows(PlanBuilder& builder, const Tensor& node, const LinearArgs& args, const char* kind) {
    const int per = elements_a_lane(args.n), rows = per <= 4 ? 4 : 2, warps = THREADS / WARP;
    const Grid grid = {ceil_div(args.n, warps * rows), static_cast<uint32_t>(args.heads),
                       static_cast<uint32_t>(args.sequences)};
    builder.launch(node, grid, THREADS, 0, args, "linear", "state_rows<%d,%s>", per, kind);
    return true;
}

bool launch_columns(PlanBuilder& builder, const Tensor& node, const LinearArgs& args, const char* kind) {
    const int rows = args.n <= 64 ? 8 : args.n <= 128 ? 16 : 32;
    const int warps = (args.n + rows - 1) / rows;
    const Grid grid = {ceil_div(args.n, WARP), static_cast<uint32_t>(args.heads),
                       static_cast<uint32_t>(args.sequences)};
    builder.launch(node, grid, warps * WARP, 0, args, "linear", "state_columns<%d,%s>", rows, kind);
    return true;
}

// Relies on: v [n, heads, tokens, sequences], q and k the same but that heads and sequences may repeat, rows
// contiguous; g [1 or n, heads, tokens, sequences], beta [1, heads, tokens, sequences], the state (n * n for each head
// and sequence) and dst contiguous.
bool prepare_gated_delta_net(PlanBuilder& builder, const Tensor& node) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2], &g = *node.src[3], &beta = *node.src[4];
    LinearArgs args;
    if (!start(node, *node.src[5], v.ne[0], v.ne[1], v.ne[2], v.ne[3], &args)) return false;
    args.q = strip_of(q, 0, 2, 1, 3);
    args.k = strip_of(k, 0, 2, 1, 3);
    args.v = strip_of(v, 0, 2, 1, 3);
    args.decay = strip_of(g, g.ne[0] == 1 ? -1 : 0, 2, 1, 3);
    args.extra = strip_of(beta, 0, 2, 1, 3);
    args.q_heads = static_cast<int32_t>(q.ne[1]);
    args.k_heads = static_cast<int32_t>(k.ne[1]);
    args.q_repeat = static_cast<int32_t>(v.ne[3] / q.ne[3]);
    args.k_repeat = static_cast<int32_t>(v.ne[3] / k.ne[3]);
    args.snapshots = node.params[0] == 0 ? 1 : node.params[0];
    args.scale = 1.0f / __builtin_sqrtf(static_cast<float>(args.n));
    return launch_rows(builder, node, args, "ROWS_DELTA");
}

// Relies on (all three): inputs [n, heads, tokens] (the source "first" of WKV6 [n * heads]), the state n * n for each
// head and sequence with the sequences in its dimension 1, which share the tokens evenly; all contiguous.
bool start_tokens(const Tensor& node, const Tensor& state, LinearArgs* args) {
    const Tensor& first = *node.src[0];
    const int64_t sequences = state.ne[1];
    return sequences > 0 && start(node, state, first.ne[0], first.ne[1], first.ne[2] / sequences, sequences, args);
}
// Sequences follow each other in dimension 2.
Strip tokens_of(const Tensor& t, const LinearArgs& args) {
    Strip s = strip_of(t, 0, 2, 1, -1);
    s.sequence = s.token * args.tokens;
    return s;
}

bool prepare_wkv7(PlanBuilder& builder, const Tensor& node) {
    LinearArgs args;
    if (!start_tokens(node, *node.src[6], &args)) return false;
    args.q = tokens_of(*node.src[0], args);
    args.decay = tokens_of(*node.src[1], args);
    args.k = tokens_of(*node.src[2], args);
    args.v = tokens_of(*node.src[3], args);
    args.extra = tokens_of(*node.src[4], args);
    args.other = tokens_of(*node.src[5], args);
    return launch_rows(builder, node, args, "ROWS_WKV7");
}

bool prepare_wkv6(PlanBuilder& builder, const Tensor& node) {
    LinearArgs args;
    if (!start_tokens(node, *node.src[5], &args)) return false;
    args.k = tokens_of(*node.src[0], args);
    args.v = tokens_of(*node.src[1], args);
    args.q = tokens_of(*node.src[2], args);
    args.extra = {floats(*node.src[3]), 1, 0, args.n, 0};
    args.decay = tokens_of(*node.src[4], args);
    return launch_columns(builder, node, args, "COLUMNS_WKV6");
}

bool prepare_gated_linear(PlanBuilder& builder, const Tensor& node) {
    LinearArgs args;
    if (!start_tokens(node, *node.src[4], &args)) return false;
    args.k = tokens_of(*node.src[0], args);
    args.v = tokens_of(*node.src[1], args);
    args.q = tokens_of(*node.src[2], args);
    args.decay = tokens_of(*node.src[3], args);
    args.scale = param_f32(node, 0);
    return launch_columns(builder, node, args, "COLUMNS_GATED");
}

// Relies on: q and k [n, tokens, key heads, sequences] and the state (n * n for each head and sequence) contiguous, v
// [n, tokens, heads, sequences] with contiguous rows, g [tokens, 1 or n, heads, sequences], beta [1, tokens, heads,
// sequences], dst contiguous, the store contiguous with room for the states after all tokens but the last.
bool prepare_delta_net(PlanBuilder& builder, const Tensor& node) {
    const Tensor &q = *node.src[0], &v = *node.src[2], &g = *node.src[3];
    LinearArgs args;
    if (!start(node, *node.src[5], q.ne[0], v.ne[2], q.ne[1], q.ne[3], &args)) return false;
    args.q = strip_of(q, 0, 1, 2, 3);
    args.k = strip_of(*node.src[1], 0, 1, 2, 3);
    args.v = strip_of(v, 0, 1, 2, 3);
    args.decay = strip_of(g, g.ne[1] == 1 ? -1 : 1, 0, 2, 3);
    args.extra = strip_of(*node.src[4], 0, 1, 2, 3);
    args.store = node.src[6] != nullptr ? floats(*node.src[6]) : nullptr;
    args.q_heads = static_cast<int32_t>(q.ne[2]);
    args.q_repeat = node.params[0] == 0 ? static_cast<int32_t>(v.ne[2] / q.ne[2]) : 1;
    args.scale = 1.0f / __builtin_sqrtf(static_cast<float>(args.n));
    return launch_columns(builder, node, args, "COLUMNS_DELTA");
}

// Relies on: a [n, n, ...], b and dst [columns, n, ...], all contiguous.
bool prepare_solve_tri(PlanBuilder& builder, const Tensor& node) {
    const Tensor& a = *node.src[0];
    const int64_t n = a.ne[0], systems = node.ne[2] * node.ne[3], shared = n * WARP * 4;
    if (!readable_f32(node, -1) || shared > SOLVE_BYTES || systems > MAX_GRID || node.ne[0] > MAX_INT) return false;
    SolveArgs args = {};
    args.a = floats(a);
    args.b = floats(*node.src[1]);
    args.x = floats(node);
    args.n = static_cast<int32_t>(n);
    args.width = static_cast<int32_t>(node.ne[0]);
    builder.launch(node, {ceil_div(args.width, WARP), static_cast<uint32_t>(systems), 1}, WARP,
                   static_cast<int>(shared), args, "linear", "solve_triangle");
    return true;
}

void enter(OpTable& table) {
    table.prepare[OP_SSM_CONV] = prepare_ssm_conv;
    table.prepare[OP_SSM_SCAN] = prepare_ssm_scan;
    table.prepare[OP_GATED_DELTA_NET] = prepare_gated_delta_net;
    table.prepare[OP_RWKV_WKV6] = prepare_wkv6;
    table.prepare[OP_RWKV_WKV7] = prepare_wkv7;
    table.prepare[OP_GATED_LINEAR_ATTN] = prepare_gated_linear;
    table.prepare[OP_SOLVE_TRI] = prepare_solve_tri;
    table.prepare[OP_IK_SSM_CONV] = prepare_map_conv;
    table.prepare[OP_IK_SSM_SCAN] = prepare_map_scan;
    table.prepare[OP_DELTA_NET] = prepare_delta_net;
}

void list_kernels(void* context, KernelSink sink) {
    for (const char* expression : {"ssm_conv", "ssm_conv_tile", "map_conv", "map_conv_sequences"})
        sink(context, {"scan", expression});
    for (const int64_t n : {16, 32, 64, 128, 256}) {
        int lanes = 0, per = 0;
        share_row(n, &lanes, &per);
        for (const char* by_element : {"false", "true"})
            list_kernel(context, sink, "scan", "ssm_scan<%d,%d,%s>", lanes, per, by_element);
        list_kernel(context, sink, "scan", "map_scan<%d,%d>", lanes, per);
    }
    for (const int per : {1, 2, 4, 8})
        for (const char* kind : {"ROWS_DELTA", "ROWS_WKV7"})
            list_kernel(context, sink, "linear", "state_rows<%d,%s>", per, kind);
    for (const int rows : {8, 16, 32})
        for (const char* kind : {"COLUMNS_WKV6", "COLUMNS_GATED", "COLUMNS_DELTA"})
            list_kernel(context, sink, "linear", "state_columns<%d,%s>", rows, kind);
    sink(context, {"linear", "solve_triangle"});
}

}  // namespace

const Family RECURRENT = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
