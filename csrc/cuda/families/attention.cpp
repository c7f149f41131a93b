// FLASH_ATTN_EXT: rows in f32 for few rows, tiles on the tensor cores for many, with a kernel of their own for heads of
// latent attention. Long ranges with few heads are split and joined.
#include "cuda/kernels/attention.h"

#include <algorithm>

#include "cuda/families/families.h"
#include "cuda/families/operands.h"
#include "cuda/families/types.h"

namespace ggr {
namespace cuda {

namespace {

enum : int { PARAM_SCALE = 0, PARAM_MAX_BIAS = 1, PARAM_SOFTCAP = 2 };

// Rows of a K head from which on the tensor cores take F16, and queries from which on they take other types: quantised
// K and V are rounded to half there, queries and weights beside BF16 to that, F32 is taken in two parts.
constexpr int64_t MIN_TILE_ROWS = 5;
constexpr int64_t MIN_TILE_QUERIES = 64;
// A range shorter than this is not split: four warps of 32 positions.
constexpr int64_t MIN_SPLIT = 128;
// Key of converted masks, beyond the numbers of other families; the number of queries is added.
constexpr int MASK_FORMAT = 1 << 28;

bool is_cache_block(int32_t type) {
    return type == TYPE_Q8_0 || type == TYPE_Q4_0 || type == TYPE_Q4_1 || type == TYPE_Q5_0 || type == TYPE_Q5_1 ||
           type == TYPE_IQ4_NL || type == TYPE_Q6_0 || type == TYPE_Q8_KV;
}
int64_t common_divisor(int64_t a, int64_t b) {
    while (b != 0) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

bool divides(int64_t part, int64_t whole) { return part > 0 && whole % part == 0; }

// Relies on: dst [dv, n_head, n_q, batch]. What the kernels trust beyond that is checked here.
bool legal(const Tensor& node) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2];
    const Tensor *mask = node.src[3], *sinks = node.src[4];
    if (!packed_f32(q) || !packed_f32(node)) return false;
    if ((!is_float(k.type) && !is_cache_block(k.type)) || (!is_float(v.type) && !is_cache_block(v.type))) return false;
    if (!rows_contiguous(k) || !rows_contiguous(v) || !readable(k) || !readable(v)) return false;
    if (k.ne[0] > 768 || v.ne[0] > 768) return false;
    if (k.ne[0] != q.ne[0] || k.ne[1] != v.ne[1] || !divides(k.ne[2], q.ne[2]) || !divides(v.ne[2], q.ne[2]))
        return false;
    if (k.ne[3] != q.ne[3] || v.ne[3] != q.ne[3]) return false;
    if (mask != nullptr && (mask->type != TYPE_F16 || !rows_contiguous(*mask) || mask->ne[0] < k.ne[1] ||
                            mask->ne[1] < q.ne[1] || mask->ne[2] < 1 || mask->ne[3] < 1 || mask->ne[2] > 65535))
        return false;
    if (sinks != nullptr && (sinks->type != TYPE_F32 || !rows_contiguous(*sinks) || sinks->ne[0] < q.ne[2]))
        return false;
    return q.ne[3] <= 65535 && k.ne[1] < MAX_COUNT / 2 && q.ne[1] * q.ne[2] < MAX_COUNT / 64;
}

int64_t parts_of(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// Split the positions into so many ranges that there are `wanted` blocks, and reserve what the ranges give.
void split(PlanBuilder& builder, AttentionArgs& args, int64_t blocks, int64_t wanted, int64_t n_batch) {
    int64_t parts = parts_of(wanted, blocks);
    const int64_t most = parts_of(args.n_kv, MIN_SPLIT);
    parts = parts < most ? parts : most;
    parts = parts < 1 ? 1 : parts > 256 ? 256 : parts;
    args.split_length = static_cast<int32_t>(parts_of(parts_of(args.n_kv, parts), MIN_SPLIT) * MIN_SPLIT);
    args.n_splits = static_cast<int32_t>(parts_of(args.n_kv, args.split_length));
    if (args.n_splits > 1) {
        const int64_t rows = n_batch * args.n_heads * args.n_queries;
        args.partials = reinterpret_cast<float*>(
            builder.scratch(static_cast<uint64_t>(rows) * static_cast<uint64_t>(args.n_splits) *
                            static_cast<uint64_t>(args.dv + 2) * 4));
    }
}

void join(PlanBuilder& builder, const Tensor& node, const AttentionArgs& args, int64_t n_batch) {
    if (args.n_splits == 1) return;
    builder.launch(node, {static_cast<uint32_t>(args.n_heads * args.n_queries), static_cast<uint32_t>(n_batch), 1}, 128,
                   0, args, "attention_rows", "attention_join");
}

// In f32: `lanes` lanes a position, `chunks` chunks of 8 channels a lane.
void launch_rows(PlanBuilder& builder, const Tensor& node, AttentionArgs& args, int64_t n_groups, int64_t n_batch) {
    const int longest = args.dk > args.dv ? args.dk : args.dv;
    const int lanes = longest <= 64 ? 8 : longest <= 128 ? 16 : 32, chunks = longest <= 256 ? 1 : 3;
    // Whole chunks of K are read: what lies behind a row may be NaN, which no zero in the queries makes harmless.
    const bool f16 = args.k_type == TYPE_F16 && args.v_type == TYPE_F16 && args.k_aligned && args.v_aligned &&
                     chunks == 1 && args.dk % 8 == 0;
    const int64_t all = int64_t{args.group} * args.n_queries;
    const int rows = all <= 2 || chunks == 3 ? 2 : 4;
    const int64_t blocks = parts_of(all, rows) * n_groups;
    split(builder, args, blocks * n_batch, 3 * int64_t{builder.hardware().multiprocessors}, n_batch);
    const int shared = 4 * rows * (WARP + args.dv + 2) * 4;
    builder.launch(
        node, {static_cast<uint32_t>(blocks), static_cast<uint32_t>(args.n_splits), static_cast<uint32_t>(n_batch)},
        128, shared, args, "attention_rows", "attention_rows<%s,%d,%d,%d>", f16 ? "true" : "false", lanes, chunks,
        rows);
    join(builder, node, args, n_batch);
}

// What blocks of queries see of the mask: the same for all layers.
const MaskTile* mask_tiles(PlanBuilder& builder, const Tensor& node, const Tensor& mask, const AttentionArgs& args) {
    const int format = MASK_FORMAT + args.n_queries;
    if (uint8_t* found = builder.find_activation(mask, format)) return reinterpret_cast<const MaskTile*>(found);
    MaskTilesArgs tiles = {};
    tiles.mask = view_of(mask);
    tiles.n_queries = args.n_queries;
    tiles.n_kv = args.n_kv;
    const int64_t columns = parts_of(args.n_kv, MASK_KEYS), blocks = parts_of(args.n_queries, MASK_QUERIES);
    const int64_t matrices = mask.ne[2] * mask.ne[3];
    const uint64_t bytes = static_cast<uint64_t>(columns * blocks * matrices) * sizeof(MaskTile);
    uint8_t* at = builder.scratch(bytes);
    tiles.out = reinterpret_cast<MaskTile*>(at);
    builder.launch(node,
                   {static_cast<uint32_t>(columns), static_cast<uint32_t>(blocks), static_cast<uint32_t>(matrices)},
                   128, 0, tiles, "attention_tiles", "mask_tiles");
    builder.keep_activation(mask, format, at, bytes);
    return tiles.out;
}

// What numbers are on the tensor cores: attention_tiles.cuh.
constexpr const char *HALF = "TILE_HALF", *BRAIN = "TILE_BRAIN", *SPLIT = "TILE_SPLIT";
const char* mode_of(int32_t k, int32_t v) {
    const auto near_half = [](int32_t type) { return type == TYPE_F16 || is_cache_block(type); };
    if (near_half(k) && near_half(v)) return HALF;
    return k == TYPE_BF16 && v == TYPE_BF16 ? BRAIN : SPLIT;
}

// On the tensor cores. False if that does not fit.
bool launch_tiles(PlanBuilder& builder, const Tensor& node, AttentionArgs& args, const char* mode, int64_t n_groups,
                  int64_t n_batch) {
    const Tensor* mask = node.src[3];
    const int longest = args.dk > args.dv ? args.dk : args.dv;
    if (longest > 256 || args.dk % 8 != 0 || args.dv % 8 != 0) return false;
    if (mask != nullptr && (mask->ne[2] * mask->ne[3] > 65535 || args.n_queries > 65535 * MASK_QUERIES)) return false;
    const int d = longest <= 64 ? 64 : longest <= 128 ? 128 : 256, planes = mode == SPLIT ? 2 : 1;
    const int keys = d <= 128 && planes == 1 ? 64 : 32;
    const int64_t all = int64_t{args.group} * args.n_queries;
    const int warps = all <= 16 ? 1 : 4, rows = 16 * warps;
    const int shared = planes * (2 * keys + (d > 128 || planes > 1 ? rows : 0)) * (d + 8) * 2;
    if (shared > builder.hardware().shared_bytes) return false;
    if (mask != nullptr) args.tiles = mask_tiles(builder, node, *mask, args);
    const int64_t blocks = parts_of(all, rows) * n_groups;
    split(builder, args, blocks * n_batch, (warps == 1 ? 6 : 2) * int64_t{builder.hardware().multiprocessors}, n_batch);
    builder.launch(
        node, {static_cast<uint32_t>(blocks), static_cast<uint32_t>(args.n_splits), static_cast<uint32_t>(n_batch)},
        warps * WARP, shared, args, "attention_tiles", "attention_tiles<%d,%d,%s>", d, warps, mode);
    join(builder, node, args, n_batch);
    return true;
}

// The same for longer heads. A block has 32 rows of 32 positions.
bool launch_wide(PlanBuilder& builder, const Tensor& node, AttentionArgs& args, const char* mode, int64_t n_groups,
                 int64_t n_batch) {
    constexpr int64_t DK = 576, DV = 512, SIDE = 32;
    const Tensor *mask = node.src[3], &k = *node.src[1], &v = *node.src[2];
    if (args.dk > DK || args.dv > DV || args.dk % 8 != 0 || args.dv % 8 != 0) return false;
    if (mask != nullptr && (mask->ne[2] * mask->ne[3] > 65535 || args.n_queries > 65535 * MASK_QUERIES)) return false;
    args.v_in_k = v.data == k.data && v.type == k.type && args.dv <= args.dk && args.heads_a_k == args.heads_a_v &&
                  std::equal(v.nb + 1, v.nb + MAX_DIMS, k.nb + 1);
    const int64_t halves = SIDE * (SIDE + 8) + 2 * SIDE * (DK + 8) + (args.v_in_k ? 0 : SIDE * (DV + 8));
    const int shared = static_cast<int>(2 * halves + (2 * SIDE * (SIDE + 4) + 2 * SIDE) * 4);
    if (shared > builder.hardware().shared_bytes) return false;
    if (mask != nullptr) args.tiles = mask_tiles(builder, node, *mask, args);
    const int64_t blocks = parts_of(int64_t{args.group} * args.n_queries, SIDE) * n_groups;
    split(builder, args, blocks * n_batch, 2 * int64_t{builder.hardware().multiprocessors}, n_batch);
    builder.launch(
        node, {static_cast<uint32_t>(blocks), static_cast<uint32_t>(args.n_splits), static_cast<uint32_t>(n_batch)},
        256, shared, args, "attention_wide", "attention_wide<%d,%d,%s>", static_cast<int>(DK), static_cast<int>(DV),
        mode);
    join(builder, node, args, n_batch);
    return true;
}

bool prepare(PlanBuilder& builder, const Tensor& node) {
    if (!legal(node)) return false;
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2];
    const Tensor *mask = node.src[3], *sinks = node.src[4];
    AttentionArgs args = {};
    args.dst = view_of(node);
    args.q = view_of(q);
    args.k = view_of(k);
    args.v = view_of(v);
    if (mask != nullptr) args.mask = view_of(*mask);
    args.sinks = sinks != nullptr ? reinterpret_cast<const float*>(sinks->data) : nullptr;
    args.k_type = k.type;
    args.v_type = v.type;
    args.k_aligned = rows_aligned(args.k, block_bytes(k.type), 16);
    args.v_aligned = rows_aligned(args.v, block_bytes(v.type), 16);
    args.mask_aligned = mask != nullptr && rows_aligned(args.mask, 2, 4);
    args.heads_a_k = static_cast<int32_t>(q.ne[2] / k.ne[2]);
    args.heads_a_v = static_cast<int32_t>(q.ne[2] / v.ne[2]);
    args.group = static_cast<int32_t>(common_divisor(args.heads_a_k, args.heads_a_v));
    args.n_heads = static_cast<int32_t>(q.ne[2]);
    args.n_queries = static_cast<int32_t>(q.ne[1]);
    args.n_kv = static_cast<int32_t>(k.ne[1]);
    args.dk = static_cast<int32_t>(k.ne[0]);
    args.dv = static_cast<int32_t>(v.ne[0]);
    args.scale = param_f32(node, PARAM_SCALE);
    args.max_bias = param_f32(node, PARAM_MAX_BIAS);
    args.softcap = param_f32(node, PARAM_SOFTCAP);
    const int64_t n_groups = q.ne[2] / args.group, n_batch = q.ne[3], rows = int64_t{args.group} * q.ne[1];
    const char* mode = mode_of(k.type, v.type);
    const bool tiles = k.type == TYPE_F16 && v.type == TYPE_F16 ? rows >= MIN_TILE_ROWS : q.ne[1] >= MIN_TILE_QUERIES;
    if (tiles && builder.hardware().capability >= (mode == HALF ? 75 : 80) &&
        (launch_tiles(builder, node, args, mode, n_groups, n_batch) ||
         (mode != SPLIT && launch_wide(builder, node, args, mode, n_groups, n_batch))))
        return true;
    launch_rows(builder, node, args, n_groups, n_batch);
    return true;
}

void enter(OpTable& table) { table.prepare[OP_FLASH_ATTN_EXT] = prepare; }

void list_kernels(void* context, KernelSink sink) {
    static const char* const ROWS[] = {
        "attention_rows<true,8,1,2>",   "attention_rows<true,8,1,4>",
        "attention_rows<true,16,1,2>",  "attention_rows<true,16,1,4>",
        "attention_rows<true,32,1,2>",  "attention_rows<true,32,1,4>",
        "attention_rows<false,8,1,2>",  "attention_rows<false,8,1,4>",
        "attention_rows<false,16,1,2>", "attention_rows<false,16,1,4>",
        "attention_rows<false,32,1,2>", "attention_rows<false,32,1,4>",
        "attention_rows<false,32,3,2>", "attention_join",
    };
    static const char* const TILES[] = {
        "attention_tiles<64,1,TILE_HALF>",
        "attention_tiles<64,4,TILE_HALF>",
        "attention_tiles<128,1,TILE_HALF>",
        "attention_tiles<128,4,TILE_HALF>",
        "attention_tiles<256,1,TILE_HALF>",
        "attention_tiles<256,4,TILE_HALF>",
        "attention_tiles<64,4,TILE_BRAIN>",
        "attention_tiles<128,4,TILE_BRAIN>",
        "attention_tiles<256,4,TILE_BRAIN>",
        "attention_tiles<64,4,TILE_SPLIT>",
        "attention_tiles<128,4,TILE_SPLIT>",
        "attention_tiles<256,4,TILE_SPLIT>",
        "mask_tiles",
    };
    for (const char* expression : ROWS) sink(context, {"attention_rows", expression});
    for (const char* expression : TILES) sink(context, {"attention_tiles", expression});
    for (const char* expression : {"attention_wide<576,512,TILE_HALF>", "attention_wide<576,512,TILE_BRAIN>"})
        sink(context, {"attention_wide", expression});
}

}  // namespace

const Family ATTENTION = {enter, list_kernels};

}  // namespace cuda
}  // namespace ggr
