// LATENT_ATTN of ik_llama.cpp: softmax(q k^T * scale + mask) v over a prefix that all tokens see and a cache whose rows
// hold keys and, as a part of them, values; either the whole cache under a mask or the rows that are listed for each
// token. All heads share keys and values. Arithmetic is in f32.
//
// An item is up to FEW_ROWS heads of a token: each live row is turned into f32 once for them, for keys and values.
// Floor: 2 * (dk + dv) flops a head and live row, at FEW_ROWS heads beside dk conversions.
#include "cpu/attention/few_rows.h"
#include "cpu/ik_families.h"

GGR_KERNELS_BEGIN

namespace {

constexpr int64_t MAX_ROW = 8192;  // scratch grows with the row's length, and none in use has more than 576
constexpr int64_t CHANNELS = 16;   // of the prefix's values an item takes when it turns them

enum : int { PARAM_DV = 2, PARAM_VALUES_AT = 3 };

// What a step knows; arg.i64[0] is the number of a token's items.
struct Latent {
    const Tensor &dst, &q, &cache;
    const Tensor *prefix_k, *mask, *ids;
    const float* prefix_v;  // [prefix][dv]
    int64_t dk, dv, values_at, prefix;

    Latent(const Step& step, const Worker& worker)
        : dst(*step.dst),
          q(*dst.src[0]),
          cache(*dst.src[1]),
          prefix_k(dst.src[2]),
          mask(dst.src[4]),
          ids(dst.src[5]),
          prefix_v(at<float>(worker.shared, step.offset[0])),
          dk(q.ne[0]),
          dv(dst.ne[0]),
          values_at(dst.params[PARAM_VALUES_AT]),
          prefix(prefix_k != nullptr ? prefix_k->ne[1] : 0) {}
};

// The values of a prefix come transposed. Items are CHANNELS channels.
bool turn_prefix(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor& v = *step.src[0];
    const int64_t dv = v.ne[1];
    float* const out = at<float>(worker.shared, step.offset[0]);
    for (int64_t d = begin * CHANNELS; d < end * CHANNELS && d < dv; ++d) {
        const uint8_t* row = v.data + d * v.nb[1];
        for (int64_t i = 0; i < v.ne[0]; ++i)
            out[i * dv + d] = v.type == TYPE_F32 ? *at<float>(row, i * 4) : f16_to_f32(*at<uint16_t>(row, i * 2));
    }
    return true;
}

// The heads of an item, and what they have summed up.
struct Heads {
    FewRows local;
    int64_t n, dk, dv;
    float scale;
    float maximum[FEW_ROWS];
    vf sum[FEW_ROWS];  // by lanes
    const uint8_t *keys[KV_TILE + KB], *values[KV_TILE + KB];
    float mask[KV_TILE];
    Visit visit;  // only its length counts here

    // Add the rows of the visit.
    void take() {
        if (visit.n == 0) return;
        float scores[FEW_ROWS * KV_TILE];
        for (int64_t j = visit.n; j < visit.n + KB - 1; ++j) keys[j] = keys[visit.n - 1];
        const ScoreRows* score = score_for(TYPE_F32);
        const MixRows* mixer = mix_for(TYPE_F32, false);
        for (int64_t r = 0; r < n; r += RB) {
            const int64_t some = n - r < RB ? n - r : RB;
            score[some - 1](local.q + r * local.ldq, local.ldq, keys, visit.n, dk, scores + r * KV_TILE, Ahead{});
        }
        for (int64_t r = 0; r < n; ++r) {
            float *row = scores + r * KV_TILE, top = MINUS_INF;
            for (int64_t j = 0; j < visit.n; ++j) {
                row[j] = row[j] * scale + mask[j];
                top = row[j] > top ? row[j] : top;
            }
            for (int64_t j = visit.n; j < round_up(visit.n, VL); ++j) row[j] = MINUS_INF;
            weigh_row(visit, top, row, maximum + r, sum + r, local.out + r * local.ldo, local.ldo);
        }
        for (int64_t r = 0; r < n; r += RB) {
            const int64_t some = n - r < RB ? n - r : RB;
            mixer[some - 1](local.out + r * local.ldo, local.ldo, scores + r * KV_TILE, Rises{}, values, visit.n, dv,
                            Ahead{});
        }
        visit.n = 0;
    }
    // A row of keys, turned into f32 if it is not; nullptr in `value` for one that holds its values.
    void add(const Tensor& t, DequantRow decode, int64_t row, const float* value, int64_t values_at, float masked) {
        const uint8_t* key = t.data + row * t.nb[1];
        if (t.type != TYPE_F32) {
            float* const converted = local.converted + visit.n * dk;
            decode(key, converted, dk);
            key = reinterpret_cast<const uint8_t*>(converted);
        }
        keys[visit.n] = key;
        values[visit.n] = value != nullptr ? reinterpret_cast<const uint8_t*>(value) : key + values_at * 4;
        mask[visit.n] = masked;
        if (++visit.n == KV_TILE) take();
    }
};

bool run(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Latent p(step, worker);
    const int64_t parts = step.arg.i64[0];
    const DequantRow decode = dequant_row_for(p.cache.type),
                     decode_prefix = p.prefix > 0 ? dequant_row_for(p.prefix_k->type) : nullptr;
    Heads heads = {FewRows(worker.local, p.dk, p.dv), 0, p.dk, p.dv, param_f32(p.dst, 0), {}, {}, {}, {}, {}, {}};
    const FewRows& local = heads.local;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t t = item / parts, first = item % parts * FEW_ROWS;
        heads.n = p.q.ne[2] - first < FEW_ROWS ? p.q.ne[2] - first : FEW_ROWS;
        for (int64_t r = 0; r < heads.n; ++r) {
            const float* from = at<float>(p.q.data, t * p.q.nb[1] + (first + r) * p.q.nb[2]);
            float* q = local.q + r * local.ldq;
            for (int64_t i = 0; i < local.ldq; ++i) q[i] = i < p.dk ? from[i] : 0.0f;
            heads.maximum[r] = MINUS_INF;
            heads.sum[r] = vf{};
        }
        std::memset(local.out, 0, static_cast<size_t>(heads.n * local.ldo) * sizeof(float));
        for (int64_t i = 0; i < p.prefix; ++i) heads.add(*p.prefix_k, decode_prefix, i, p.prefix_v + i * p.dv, 0, 0.0f);
        const float* mask = p.mask != nullptr ? at<float>(p.mask->data, t * p.mask->nb[1]) : nullptr;
        const int64_t n = p.ids != nullptr ? p.ids->ne[0] : p.cache.ne[1];
        for (int64_t i = 0; i < n; ++i) {
            int64_t row = i;
            if (p.ids != nullptr) {
                row = *at<int32_t>(p.ids->data, t * p.ids->nb[1] + i * 4);
                if (row < 0 || row >= p.cache.ne[1]) return fail_index(worker, step, p.ids, row, p.cache.ne[1]);
            }
            const float masked = mask != nullptr ? mask[row] : 0.0f;
            if (masked != MINUS_INF) heads.add(p.cache, decode, row, nullptr, p.values_at, masked);
        }
        heads.take();
        for (int64_t r = 0; r < heads.n; ++r) {
            const float *from = local.out + r * local.ldo, sum = vsum(heads.sum[r]);
            const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;  // zeros where nothing is seen
            float* to = at<float>(p.dst.data, t * p.dst.nb[1] + (first + r) * p.dst.nb[2]);
            for (int64_t i = 0; i < p.dv; ++i) to[i] = from[i] * factor;
        }
    }
    return true;
}

// Relies on: q [dk, tokens, heads], cache [dk, n] with the values at [params[3], params[3] + dv) of a row, the result
// [dv, tokens, heads]; a prefix [dk, p] and its values [p, dv]; an F32 mask [n, tokens or more]; a list of rows for
// each token; all in packed rows.
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor &q = *node.src[0], &cache = *node.src[1], *prefix_k = node.src[2], *prefix_v = node.src[3],
                 *mask = node.src[4], *ids = node.src[5];
    const auto known = [](const Tensor* t) { return t == nullptr || t->type == TYPE_F32 || t->type == TYPE_F16; };
    if (q.type != TYPE_F32 || node.type != TYPE_F32 || dequant_row_for(cache.type) == nullptr || !known(prefix_k) ||
        !known(prefix_v) || (mask != nullptr && mask->type != TYPE_F32) || (ids != nullptr && ids->type != TYPE_I32))
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(q.type)->name, type_traits(cache.type)->name,
                                   type_traits(node.type)->name);
    if (q.ne[0] > MAX_ROW) return builder.unsupported(node, "rows of more than %lld elements", (long long)MAX_ROW);
    const int64_t dk = q.ne[0], dv = node.ne[0], prefix = prefix_v != nullptr ? prefix_v->ne[0] : 0;
    const int64_t parts = (q.ne[2] + FEW_ROWS - 1) / FEW_ROWS, bytes = prefix * dv * 4;
    const int64_t n = prefix + (ids != nullptr ? ids->ne[0] : cache.ne[1]);
    const int64_t offset = bytes > 0 ? builder.scratch(bytes) : 0;
    if (bytes > 0) {
        Step& turn = builder.add_bare(turn_prefix, &node, (dv + CHANNELS - 1) / CHANNELS, prefix * dv * 2);
        turn.src[0] = prefix_v;
        turn.offset[0] = offset;
        builder.reads(*prefix_v);
        builder.writes_scratch(offset, bytes);
    }
    builder.need_local(FewRows::bytes(dk, dv));
    Step& step = builder.add(run, node, parts * q.ne[1], q.ne[1] * q.ne[2] * n / 4 * (dk + dv) + n_elements(node));
    step.arg.i64[0] = parts;
    step.offset[0] = offset;
    if (bytes > 0) builder.reads_scratch(offset, bytes);
    return true;
}

}  // namespace

void register_ik_latent(OpTable& table) { table.prepare[OP_LATENT_ATTN] = prepare; }

GGR_KERNELS_END
