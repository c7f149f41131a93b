// LIGHTNING_INDEXER: scores of keys by which sparse attention chooses. DSV4_HC_COMB, DSV4_HC_PRE, DSV4_HC_POST and
// HC_POST: streams of a residual mixed by weights of each token.
#include "cpu/indexer_scores.h"
#include "cpu/level.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

bool all_f32(const Tensor& node) {
    for (int i = 0; i < node.n_src; ++i)
        if (node.src[i] != nullptr && node.src[i]->type != TYPE_F32) return false;
    return node.type == TYPE_F32;
}

inline float* floats(uint8_t* p) { return reinterpret_cast<float*>(p); }
inline const float* floats(const uint8_t* p) { return reinterpret_cast<const float*>(p); }

// ---- LIGHTNING_INDEXER: score = sum over heads of max(q . k, 0) w, plus the mask ----

constexpr int64_t TOKENS = 16;  // that share one panel of keys

// arg.i64[0 .. 1]: blocks of keys, blocks of tokens.
bool run_indexer(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &q = *step.src[0], &k = *step.src[1], &weights = *step.src[2], &mask = *step.src[3], &dst = *step.dst;
    const int64_t key_blocks = step.arg.i64[0], token_blocks = step.arg.i64[1];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t k0 = item % key_blocks * KEYS, t0 = item / key_blocks % token_blocks * TOKENS;
        const int64_t seq = item / (key_blocks * token_blocks), keys = least(KEYS, k.ne[2] - k0);
        const auto query_of = [&](int64_t t) {
            return IndexerQuery{q.data + (t0 + t) * q.nb[2] + seq * q.nb[3],
                                q.ne[0],
                                q.ne[1],
                                q.nb[1],
                                weights.data + (t0 + t) * weights.nb[1] + seq * weights.nb[3],
                                weights.nb[0]};
        };
        const auto take = [&](int64_t t, const float* score) {
            const uint8_t* m = mask.data + (t0 + t) * mask.nb[1] + seq % mask.ne[3] * mask.nb[3] + k0 * 2;
            float* to = floats(dst.data + (t0 + t) * dst.nb[1] + seq * dst.nb[3]) + k0;
            for (int64_t i = 0; i < keys; ++i) to[i] = score[i] + f16_to_f32(reinterpret_cast<const uint16_t*>(m)[i]);
        };
        score_block(worker.local, k.data + k0 * k.nb[2] + seq * k.nb[3], k.nb[2], keys, k.type,
                    least(TOKENS, q.ne[2] - t0), q.ne[0], query_of, take);
    }
    return true;
}

// Relies on: q [n, heads, tokens, seqs], k [n, 1, keys, seqs], weights [heads, tokens, 1, seqs], an F16 mask
// [keys, tokens, 1, .] that repeats over seqs, all in packed rows.
bool prepare_indexer(PlanBuilder& builder, const Tensor& node) {
    const Tensor &q = *node.src[0], &k = *node.src[1];
    if (q.type != TYPE_F32 || node.src[2]->type != TYPE_F32 || node.src[3]->type != TYPE_F16 || node.type != TYPE_F32 ||
        dequant_row_for(k.type) == nullptr)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(q.type)->name, type_traits(k.type)->name,
                                   type_traits(node.type)->name);
    const int64_t key_blocks = (k.ne[2] + KEYS - 1) / KEYS, token_blocks = (q.ne[2] + TOKENS - 1) / TOKENS;
    builder.need_local(indexer_bytes(q.ne[0]));
    Step& step = builder.add(run_indexer, node, key_blocks * token_blocks * q.ne[3],
                             n_elements(node) * q.ne[0] * q.ne[1] / 4 + n_elements(k));
    step.arg.i64[0] = key_blocks;
    step.arg.i64[1] = token_blocks;
    return true;
}

// ---- DSV4_HC_COMB: a 4 x 4 matrix of each token made doubly stochastic ----

constexpr int64_t STREAMS = 4;
constexpr int64_t FIRST_MIX = 2 * STREAMS;  // the mixture lies behind two rows of other weights

// Each of the sums over `across` is made 1, but for eps.
void normalise(float (*m)[STREAMS], bool columns, float eps) {
    for (int64_t i = 0; i < STREAMS; ++i) {
        float sum = eps;
        for (int64_t j = 0; j < STREAMS; ++j) sum += columns ? m[j][i] : m[i][j];
        const float factor = 1.0f / sum;
        for (int64_t j = 0; j < STREAMS; ++j) (columns ? m[j][i] : m[i][j]) *= factor;
    }
}

bool run_hc_comb(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &mixes = *step.src[0], &scales = *step.src[1], &base = *step.src[2], &dst = *step.dst;
    const float eps = param_f32(dst, 0), scale = floats(scales.data)[2];
    const float* b = floats(base.data) + FIRST_MIX;
    for (int64_t t = begin; t < end; ++t) {
        const float* x = floats(mixes.data + t * mixes.nb[1]) + FIRST_MIX;
        float m[STREAMS][STREAMS];
        for (int64_t i = 0; i < STREAMS; ++i) {
            float max = -__builtin_inff(), sum = 0.0f;
            for (int64_t j = 0; j < STREAMS; ++j) {
                m[i][j] = x[i * STREAMS + j] * scale + b[i * STREAMS + j];
                max = m[i][j] > max ? m[i][j] : max;
            }
            for (int64_t j = 0; j < STREAMS; ++j) sum += m[i][j] = __builtin_expf(m[i][j] - max);
            for (int64_t j = 0; j < STREAMS; ++j) m[i][j] = m[i][j] * (1.0f / sum) + eps;
        }
        normalise(m, true, eps);
        for (int32_t round = 1; round < dst.params[1]; ++round) {
            normalise(m, false, eps);
            normalise(m, true, eps);
        }
        for (int64_t i = 0; i < STREAMS; ++i) std::memcpy(dst.data + i * dst.nb[1] + t * dst.nb[2], m[i], sizeof m[i]);
    }
    return true;
}

// Relies on: rows of 24 mixes, three scales, 24 offsets, at least one round.
bool prepare_hc_comb(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node)) return builder.unsupported(node, "types other than F32");
    builder.add(run_hc_comb, node, node.ne[2], n_elements(node) * (int64_t{8} * node.params[1] + 40));
    return true;
}

// ---- DSV4_HC_PRE, DSV4_HC_POST: streams into one, and one into streams ----

// Floor: bytes of the streams over memory bandwidth. Items are parts of a token's row: scale times the sum of streams,
// weighed by a number each or gated element by element.
bool run_hc_pre(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &weights = *step.src[1], &dst = *step.dst;
    const float scale = param_f32(dst, 0);
    const bool gated = dst.params[1] != 0;
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const int64_t t = item.i1;
        float* to = floats(dst.data + t * dst.nb[1]) + item.at;
        for (int64_t i = 0; i < item.n; i += VL) {
            const int64_t n = least(VL, item.n - i);
            vf sum = {};
            for (int64_t h = 0; h < x.ne[1]; ++h) {
                const float* from = floats(x.data + h * x.nb[1] + t * x.nb[2]) + item.at + i;
                const vf v = n == VL ? vload(from) : vload_part(from, n);
                if (gated) {
                    const float* gate = floats(weights.data + h * weights.nb[1] + t * weights.nb[2]) + item.at + i;
                    sum += v * vsigmoid(n == VL ? vload(gate) : vload_part(gate, n));
                } else {
                    sum += v * *floats(weights.data + h * weights.nb[0] + t * weights.nb[1]);
                }
            }
            if (n == VL)
                vstore(to + i, sum * scale);
            else
                vstore_part(to + i, sum * scale, n);
        }
    }
    return true;
}

// Relies on: x [n, streams, tokens], weights [streams, tokens] or x's shape, the result [n, tokens].
bool prepare_hc_pre(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node)) return builder.unsupported(node, "types other than F32");
    const Split split = split_rows(node, false);
    const int64_t work = work_of(n_elements(*node.src[0]), node.params[1] != 0 ? 20 : 2);
    keep_split(builder.add(run_hc_pre, node, split.items, work), split);
    return true;
}

// Items are parts of a stream's row of the result: the token's new row by its weight for the stream, and the old
// streams mixed, or the stream's own where there is no mixture.
bool run_hc_post(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &x = *step.src[0], &residual = *step.src[1], &post = *step.src[2], &dst = *step.dst;
    const Tensor* comb = step.src[3];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const int64_t stream = item.i1, t = item.i2;
        const float weight = *floats(post.data + stream * post.nb[0] + t * post.nb[1]);
        const float* px = floats(x.data + t * x.nb[1]) + item.at;
        float* to = floats(dst.data + stream * dst.nb[1] + t * dst.nb[2]) + item.at;
        const uint8_t* old = residual.data + t * residual.nb[2] + item.at * 4;
        for (int64_t i = 0; i < item.n; i += VL) {
            const int64_t n = least(VL, item.n - i);
            const auto load = [n](const float* p) { return n == VL ? vload(p) : vload_part(p, n); };
            vf sum = load(px + i) * weight;
            if (comb == nullptr)
                sum += load(floats(old + stream * residual.nb[1]) + i);
            else
                for (int64_t h = 0; h < residual.ne[1]; ++h)
                    sum += load(floats(old + h * residual.nb[1]) + i) *
                           *floats(comb->data + stream * comb->nb[0] + h * comb->nb[1] + t * comb->nb[2]);
            if (n == VL)
                vstore(to + i, sum);
            else
                vstore_part(to + i, sum, n);
        }
    }
    return true;
}

// Relies on: x [n, tokens], residual and result [n, streams, tokens], post [streams, tokens], comb [streams, streams,
// tokens] or none.
bool prepare_hc_post(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node)) return builder.unsupported(node, "types other than F32");
    const Split split = split_rows(node, false);
    keep_split(builder.add(run_hc_post, node, split.items, n_elements(node) * (node.ne[1] + 1)), split);
    return true;
}

// HC_POST of ik_llama.cpp is the same with sources in another order: x, post, residual, comb.
bool prepare_ik_hc_post(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node)) return builder.unsupported(node, "types other than F32");
    const Split split = split_rows(node, false);
    Step& step = builder.add(run_hc_post, node, split.items, n_elements(node) * (node.ne[1] + 1));
    keep_split(step, split);
    step.src[1] = node.src[2];
    step.src[2] = node.src[1];
    return true;
}

}  // namespace

void register_indexer(OpTable& table) {
    table.prepare[OP_LIGHTNING_INDEXER] = prepare_indexer;
    table.prepare[OP_DSV4_HC_COMB] = prepare_hc_comb;
    table.prepare[OP_DSV4_HC_PRE] = prepare_hc_pre;
    table.prepare[OP_DSV4_HC_POST] = prepare_hc_post;
    table.prepare[OP_HC_POST] = prepare_ik_hc_post;
}

GGR_KERNELS_END
