// FLASH_ATTN_EXT: out = softmax(cap(q k^T * scale) + slope * mask) v, without the score matrix in memory. q is f32, K
// and V of any type that can be turned into f32, each. Arithmetic is in f32 whatever precision the node asks for, save
// that F16 V and few queries are summed up in half, as stock does (half_sums.h).
//
// Long KV ranges with too few heads to occupy all workers are split; a second step then joins the parts.
//
// FLASH_ATTN_ROWS: the same over the rows of K and V that a list names for each query. All in f32.
#include "cpu/attention/few_rows.h"
#include "cpu/attention/many_rows.h"
#include "cpu/level.h"

GGR_KERNELS_BEGIN

namespace {

// Refused beyond: scratch grows with the head's size (48 rows of a part), and none in use has more than 576.
constexpr int64_t MAX_HEAD_SIZE = 8192;
// A range shorter than this is not split further.
constexpr int64_t MIN_SPLIT = 128;
// Nodes of less work (see below) than this are not split: joining costs a barrier.
constexpr int64_t MIN_SPLIT_WORK = 32768;
// Items wanted per worker, so that they end together although masks make them unequal.
constexpr int64_t ITEMS_PER_WORKER = 4;
// Parts of an item share the conversion of K and V while their scratch fits the second level of caches.
constexpr int64_t PARTS_BYTES = 640 << 10;

using Attend = void (*)(const Problem&, int64_t, Worker&, uint8_t*);

// Items: see Problem and Item.
template <Attend FN>
bool run(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Problem p(step);
    for (int64_t item = begin; item < end; ++item) FN(p, item, worker, worker.shared + step.offset[0]);
    return true;
}

// Items are rows of dst, the partial results of each lie side by side.
bool join(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Problem p(step);
    const int64_t dv = p.v.ne[0], stride = p.partial_stride();
    for (int64_t item = begin; item < end; ++item) {
        const int64_t query = item % p.q.ne[1], head = item / p.q.ne[1] % p.q.ne[2];
        const int64_t batch = item / (p.q.ne[1] * p.q.ne[2]);
        const float* parts = p.partial(worker.shared + step.offset[0], query, head, batch, 0);
        float* out = p.out_row(query, head, batch);
        float top = MINUS_INF, sum = 0.0f;
        for (int64_t s = 0; s < p.n_splits; ++s) top = parts[s * stride] > top ? parts[s * stride] : top;
        const float base = top == MINUS_INF ? 0.0f : top;
        for (int64_t s = 0; s < p.n_splits; ++s)
            sum += parts[s * stride + 1] * __builtin_expf(parts[s * stride] - base);
        const float factor = final_factor(p, head, top, sum);
        std::memset(out, 0, static_cast<size_t>(dv) * sizeof(float));
        for (int64_t s = 0; s < p.n_splits; ++s) {
            const float weight = __builtin_expf(parts[s * stride] - base) * factor;
            const float* part = parts + s * stride + 2;
            int64_t i = 0;
            for (; i + VL <= dv; i += VL) vstore(out + i, vload(out + i) + vload(part + i) * weight);
            for (; i < dv; ++i) out[i] += part[i] * weight;
        }
    }
    return true;
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

// Relies on: dst [dv, n_head, n_q, batch]. What the loops trust beyond that is checked here.
bool check(PlanBuilder& builder, const Tensor& node) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2];
    const Tensor *mask = node.src[3], *sinks = node.src[4];
    if (q.type != TYPE_F32 || node.type != TYPE_F32 || dequant_row_for(k.type) == nullptr ||
        dequant_row_for(v.type) == nullptr)
        return builder.unsupported(node, "q %s, K %s, V %s", type_traits(q.type)->name, type_traits(k.type)->name,
                                   type_traits(v.type)->name);
    if (mask != nullptr && mask->type != TYPE_F16)
        return builder.unsupported(node, "a mask of type %s", type_traits(mask->type)->name);
    if (!rows_contiguous(q) || !rows_contiguous(k) || !rows_contiguous(v) || !rows_contiguous(node) ||
        (mask != nullptr && !rows_contiguous(*mask)))
        return builder.unsupported(node, "rows with gaps between elements");
    if (k.ne[0] > MAX_HEAD_SIZE || v.ne[0] > MAX_HEAD_SIZE)
        return builder.unsupported(node, "heads of more than %lld channels", static_cast<long long>(MAX_HEAD_SIZE));
    if (k.ne[0] != q.ne[0] || k.ne[1] != v.ne[1] || !divides(k.ne[2], q.ne[2]) || !divides(v.ne[2], q.ne[2]) ||
        !divides(k.ne[3], q.ne[3]) || !divides(v.ne[3], q.ne[3]))
        return builder.unsupported(node, "K and V whose shapes do not fit q");
    if (mask != nullptr && (mask->ne[0] < k.ne[1] || mask->ne[1] < q.ne[1] || mask->ne[2] < 1 || mask->ne[3] < 1))
        return builder.unsupported(node, "a mask smaller than the scores");
    if (sinks != nullptr && (sinks->type != TYPE_F32 || sinks->ne[0] < q.ne[2]))
        return builder.unsupported(node, "sinks that are not one f32 a head");
    return true;
}

bool prepare(PlanBuilder& builder, const Tensor& node) {
    if (!check(builder, node)) return false;
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2];
    const int64_t n_kv = k.ne[1], dk = k.ne[0], dv = v.ne[0];
    const int64_t group = common_divisor(q.ne[2] / k.ne[2], q.ne[2] / v.ne[2]), rows = group * q.ne[1];
    const bool half_sums = v.type == TYPE_F16 && q.ne[1] < HALF_SUMS_BELOW;
    const bool few = rows <= FEW_ROWS || half_sums;
    // Half sums depend on where they start, so they are split only where stock does it too: into one part a thread.
    const bool may_split = !half_sums || (q.ne[1] == 1 && q.ne[3] == 1 && n_kv >= 512);
    const int64_t wanted = ITEMS_PER_WORKER * builder.n_workers(), n_groups = q.ne[3] * (q.ne[2] / group);
    int64_t tile = few ? FEW_ROWS : MAX_ROWS;
    const auto units = [&] { return n_groups * ((rows + tile - 1) / tile); };
    while (!few && tile > ROW_TILE &&
           (units() < wanted || tile / 2 >= rows || ManyRows::bytes(dk, dv, tile / ROW_TILE) > PARTS_BYTES))
        tile /= 2;
    while (!may_split && builder.n_workers() > 1 && tile > 1 && units() < wanted) tile /= 2;
    const int64_t n_units = units();
    const int64_t n_rows = q.ne[1] * q.ne[2] * q.ne[3];
    // Multiply-adds are four times as fast as what work counts. In f64: the product of hostile sizes may not fit.
    const double operations = (double)n_rows * (double)n_kv * (double)(dk + dv) / 4.0;
    const int64_t work = operations < 1e18 ? (int64_t)operations : int64_t{1000000000000000000};
    int64_t split_length = n_kv > 0 ? n_kv : 1;
    if (may_split && builder.n_workers() > 1 && n_units < wanted && work >= MIN_SPLIT_WORK) {
        const int64_t parts = (wanted + n_units - 1) / n_units, length = round_up((n_kv + parts - 1) / parts, KV_TILE);
        split_length = length < MIN_SPLIT ? MIN_SPLIT : length;
    }
    const int64_t n_splits = n_kv > split_length ? (n_kv + split_length - 1) / split_length : 1;
    builder.need_local(few ? FewRows::bytes(dk, dv) : ManyRows::bytes(dk, dv, tile / ROW_TILE));

    const int64_t partial_bytes = n_splits > 1 ? n_rows * n_splits * (dv + 2) * int64_t{4} : 0;
    const int64_t offset = n_splits > 1 ? builder.scratch(partial_bytes) : 0;
    const auto set = [&](Step& step) {
        for (int i = 0; i < 5; ++i) step.src[i] = node.src[i];
        step.arg.i64[ARG_GROUP] = group;
        step.arg.i64[ARG_TILE] = tile;
        step.arg.i64[ARG_SPLITS] = n_splits;
        step.arg.i64[ARG_SPLIT_LENGTH] = split_length;
        step.arg.i64[ARG_HALF_SUMS] = half_sums;
        step.offset[0] = offset;
    };
    const Step::Fn fn = few ? run<attend_few_rows> : run<attend_many_rows>;
    Step& step =
        n_splits > 1 ? builder.add_bare(fn, &node, n_units * n_splits, work) : builder.add(fn, node, n_units, work);
    set(step);
    if (!step.serial) step.grain = 1;
    if (n_splits == 1) return true;
    for (int i = 0; i < 5; ++i)
        if (node.src[i] != nullptr) builder.reads(*node.src[i]);
    builder.writes_scratch(offset, partial_bytes);

    set(builder.add_bare(join, &node, n_rows, n_rows * n_splits * dv));
    builder.reads_scratch(offset, partial_bytes);
    if (node.src[4] != nullptr) builder.reads(*node.src[4]);
    builder.writes(node);
    return true;
}

// ---- Listed rows ----

// Items are the tiles of one query's heads, query by query: each query is a problem of its own.
template <Attend FN>
bool run_listed(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &whole = *step.dst, &rows = *whole.src[5];
    const int64_t tile = step.arg.i64[ARG_TILE], tiles = (whole.src[0]->ne[2] + tile - 1) / tile;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t query = item / tiles;
        Tensor dst = whole, q = *step.src[0], mask;
        dst.ne[2] = q.ne[1] = 1;
        dst.data += query * dst.nb[2];
        q.data += query * q.nb[1];
        Step one = step;
        one.dst = &dst;
        one.src[0] = &q;
        if (step.src[3] != nullptr) {
            mask = *step.src[3];
            mask.data += query * mask.nb[1];
            one.src[3] = &mask;
        }
        Problem p(one);
        p.list = at<int32_t>(rows.data, query * rows.nb[1]);
        p.n_list = p.split_length = rows.ne[0];
        for (int64_t i = 0; i < p.n_list; ++i)
            if (p.list[i] >= p.k.ne[1]) return fail_index(worker, step, &rows, p.list[i], p.k.ne[1]);
        FN(p, item % tiles, worker, nullptr);
    }
    return true;
}

// Relies, beyond prepare, on: a list of i32 in packed rows for each query. As in stock a list counts for one head of K
// and V and one sequence, and where it is shorter than K: where it is not, the mask alone decides.
bool prepare_listed(PlanBuilder& builder, const Tensor& node) {
    const Tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2], &rows = *node.src[5];
    if (q.ne[3] != 1 || k.ne[2] != 1 || v.ne[2] != 1 || rows.ne[0] >= k.ne[1]) return prepare(builder, node);
    if (!check(builder, node)) return false;
    if (rows.type != TYPE_I32) return builder.unsupported(node, "a list of type %s", type_traits(rows.type)->name);
    const int64_t heads = q.ne[2], dk = k.ne[0], dv = v.ne[0], wanted = ITEMS_PER_WORKER * builder.n_workers();
    int64_t tile = heads <= FEW_ROWS ? FEW_ROWS : MAX_ROWS;
    const auto too_few = [&] { return q.ne[1] * ((heads + tile - 1) / tile) < wanted; };
    while (tile > ROW_TILE &&
           (tile / 2 >= heads || too_few() || ManyRows::bytes(dk, dv, tile / ROW_TILE) > PARTS_BYTES))
        tile /= 2;
    if (too_few()) tile = FEW_ROWS;
    const bool few = tile == FEW_ROWS;
    builder.need_local(few ? FewRows::bytes(dk, dv) : ManyRows::bytes(dk, dv, tile / ROW_TILE));
    Step& step = builder.add(few ? run_listed<attend_few_rows> : run_listed<attend_many_rows>, node,
                             q.ne[1] * ((heads + tile - 1) / tile), q.ne[1] * heads * rows.ne[0] / 4 * (dk + dv) + 1);
    step.arg.i64[ARG_GROUP] = heads;
    step.arg.i64[ARG_TILE] = tile;
    step.arg.i64[ARG_SPLITS] = 1;
    step.arg.i64[ARG_HALF_SUMS] = 0;
    if (!step.serial) step.grain = 1;
    return true;
}

}  // namespace

void register_attention(OpTable& table) {
    table.prepare[OP_FLASH_ATTN_EXT] = prepare;
    table.prepare[OP_FLASH_ATTN_ROWS] = prepare_listed;
}

GGR_KERNELS_END
