// How ik_llama.cpp's sparse attention chooses rows of a cache. INDEXER_TOPK: the rows that an indexer scores highest.
// MASK_TOPK: a mask that leaves them alone. MASK_TO_IDX: the rows that a mask leaves.
#include "cpu/ik_families.h"
#include "cpu/indexer_scores.h"
#include "cpu/sort_pairs.h"

GGR_KERNELS_BEGIN

namespace {

float* floats(uint8_t* p) { return reinterpret_cast<float*>(p); }
const float* floats(const uint8_t* p) { return reinterpret_cast<const float*>(p); }
const uint16_t* halves(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

// ---- INDEXER_TOPK: best first of sum over heads of max(q . k, 0) w, plus the mask ----

constexpr int64_t TOKENS = 16;                      // that share one panel of keys, at most
constexpr int64_t LOCAL_SCORES = int64_t{1} << 20;  // scores of a worker: 4 MiB, unless one token has more

// Scores of keys [k0, k0 + n) for tokens [t0, t0 + n_tokens); those of token t0 + t go to scores + t * stride.
void score_tokens(const Step& step, uint8_t* local, int64_t k0, int64_t n, int64_t t0, int64_t n_tokens, float* scores,
                  int64_t stride) {
    const Tensor &k = *step.src[0], &q = *step.src[1], &weights = *step.src[2], &mask = *step.src[3];
    const auto query_of = [&](int64_t t) {
        return IndexerQuery{q.data + (t0 + t) * q.nb[2],
                            q.ne[0],
                            q.ne[1],
                            q.nb[1],
                            weights.data + (t0 + t) * weights.nb[1],
                            weights.nb[0]};
    };
    const auto take = [&](int64_t t, const float* score) {
        const uint8_t* m = mask.data + (t0 + t) * mask.nb[1];
        float* to = scores + t * stride;
        if (mask.type == TYPE_F16)
            for (int64_t i = 0; i < n; ++i) to[i] = score[i] + f16_to_f32(halves(m)[k0 + i]);
        else
            for (int64_t i = 0; i < n; ++i) to[i] = score[i] + floats(m)[k0 + i];
    };
    score_block(local, k.data + k0 * k.nb[1], k.nb[1], n, k.type, n_tokens, q.ne[0], query_of, take);
}

// Pairs that choose() needs: as many as are kept, or two rows to sort where that is much of one.
bool by_heap(int64_t n, int64_t k) { return k <= n / 16; }
int64_t choice_bytes(int64_t n, int64_t k) { return (by_heap(n, k) ? k : 2 * n) * int64_t{sizeof(Pair)}; }

void choose(const Tensor& dst, int64_t token, const float* scores, int64_t n, uint8_t* room) {
    const int64_t k = dst.ne[0];
    Pair* const pairs = reinterpret_cast<Pair*>(room);
    const Pair* sorted = pairs;
    if (by_heap(n, k)) {
        select_top(pairs, scores, n, k);
    } else {
        make_pairs(pairs, reinterpret_cast<const uint8_t*>(scores), sizeof(float), n, true);
        sorted = sort_pairs(pairs, pairs + n, n);
    }
    put_indices(dst.data + token * dst.nb[1], dst.nb[0], sorted, k, -1);
}

int64_t rounded(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }

// Items are blocks of arg.i64[0] tokens, whose scores lie in the worker's own memory behind its panel.
bool run_topk(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor& dst = *step.dst;
    const int64_t n = step.src[0]->ne[1], tokens = step.arg.i64[0];
    uint8_t* const scores = worker.local + rounded(indexer_bytes(step.src[1]->ne[0]));
    uint8_t* const room = scores + rounded(tokens * n * 4);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t t0 = item * tokens, some = least(tokens, dst.ne[1] - t0);
        for (int64_t k0 = 0; k0 < n; k0 += KEYS)
            score_tokens(step, worker.local, k0, least(KEYS, n - k0), t0, some, floats(scores) + k0, n);
        for (int64_t t = 0; t < some; ++t) choose(dst, t0 + t, floats(scores) + t * n, n, room);
    }
    return true;
}

// Items are blocks of keys for all tokens; scores go to scratch, a row a token.
bool run_scores(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const int64_t n = step.src[0]->ne[1];
    float* const scores = floats(worker.shared + step.offset[0]);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t k0 = item * KEYS;
        score_tokens(step, worker.local, k0, least(KEYS, n - k0), 0, step.dst->ne[1], scores + k0, n);
    }
    return true;
}

// Items are tokens.
bool run_choice(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const int64_t n = step.arg.i64[0];
    for (int64_t t = begin; t < end; ++t)
        choose(*step.dst, t, floats(worker.shared + step.offset[0]) + t * n, n, worker.local);
    return true;
}

// Relies on: k [size, n], q [size, heads, tokens], weights [heads, tokens], a mask [n, tokens] in packed rows, the
// result [k, tokens] with k <= n < 2^31.
bool prepare_topk(PlanBuilder& builder, const Tensor& node) {
    const Tensor &k = *node.src[0], &q = *node.src[1], &weights = *node.src[2], &mask = *node.src[3];
    if (q.type != TYPE_F32 || weights.type != TYPE_F32 || node.type != TYPE_I32 ||
        (mask.type != TYPE_F32 && mask.type != TYPE_F16) || dequant_row_for(k.type) == nullptr)
        return builder.unsupported(node, "types %s, %s, %s -> %s", type_traits(k.type)->name, type_traits(q.type)->name,
                                   type_traits(mask.type)->name, type_traits(node.type)->name);
    const int64_t n = k.ne[1], tokens = node.ne[1], choice = choice_bytes(n, node.ne[0]);
    const int64_t panel = rounded(indexer_bytes(q.ne[0])), work = n * tokens * (q.ne[0] * q.ne[1] / 4 + 8);
    // With fewer tokens than would occupy all workers the keys are shared out and the choice follows.
    if (tokens < 4 * builder.n_workers()) {
        const int64_t bytes = tokens * n * 4, offset = builder.scratch(bytes);
        builder.need_local(panel > choice ? panel : choice);
        Step& scores = builder.add_bare(run_scores, &node, (n + KEYS - 1) / KEYS, work);
        for (int i = 0; i < 4; ++i) {
            scores.src[i] = node.src[i];
            builder.reads(*node.src[i]);
        }
        scores.offset[0] = offset;
        builder.writes_scratch(offset, bytes);
        Step& picks = builder.add_bare(run_choice, &node, tokens, n * tokens * 2);
        picks.arg.i64[0] = n;
        picks.offset[0] = offset;
        builder.reads_scratch(offset, bytes);
        builder.writes(node);
        return true;
    }
    int64_t block = least(TOKENS, tokens / (4 * builder.n_workers()));
    if (block > LOCAL_SCORES / n) block = LOCAL_SCORES / n;
    if (block < 1) block = 1;
    builder.need_local(panel + rounded(block * n * 4) + choice);
    builder.add(run_topk, node, (tokens + block - 1) / block, work).arg.i64[0] = block;
    return true;
}

// ---- MASK_TOPK: -inf at all places of a row but those listed; rows without a list as they are ----

// Floor: bytes of mask and result over memory bandwidth. Items are rows; listed values are put aside first, since the
// result may lie on the mask.
template <class F>
bool run_mask_topk(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    using Element = typename F::Element;
    const Tensor &dst = *step.dst, &mask = *step.src[0], &ids = *step.src[1];
    const int64_t n = mask.ne[0];
    float* const kept = floats(worker.local);
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        Element* to = reinterpret_cast<Element*>(row.of(dst));
        const Element* from = reinterpret_cast<const Element*>(row.of(mask));
        if (row.i1 >= ids.ne[1]) {
            std::memmove(to, from, static_cast<size_t>(n) * sizeof(Element));
            continue;
        }
        const uint8_t* list = row.of(ids);
        for (int64_t j = 0; j < ids.ne[0]; ++j) {
            const int64_t id = *reinterpret_cast<const int32_t*>(list + j * ids.nb[0]);
            if (id < 0 || id >= n) return fail_index(worker, step, &ids, id, n);
            kept[j] = F::get(from + id) + 0.0f;
        }
        int64_t i = 0;
        for (; i + VL <= n; i += VL) F::store(to + i, F::load(from + i) - __builtin_inff());
        for (; i < n; ++i) F::put(to + i, F::get(from + i) - __builtin_inff());
        for (int64_t j = 0; j < ids.ne[0]; ++j)
            F::put(to + *reinterpret_cast<const int32_t*>(list + j * ids.nb[0]), kept[j]);
    }
    return true;
}

// Relies on: mask and result of one shape and type in packed rows; ids [., t, b, c] for [n, T >= t, b, c].
bool prepare_mask_topk(PlanBuilder& builder, const Tensor& node) {
    const Tensor &mask = *node.src[0], &ids = *node.src[1];
    if (node.type != mask.type || (mask.type != TYPE_F32 && mask.type != TYPE_F16) || ids.type != TYPE_I32)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(mask.type)->name,
                                   type_traits(ids.type)->name, type_traits(node.type)->name);
    builder.need_local(ids.ne[0] * 4);
    builder.add(mask.type == TYPE_F32 ? run_mask_topk<F32> : run_mask_topk<F16>, node, n_rows(node),
                n_elements(node) + 4 * n_elements(ids));
    return true;
}

// ---- MASK_TO_IDX: the places of a row whose mask is zero, in order; -1 behind the last ----

// Floor: bytes of the mask over memory bandwidth. Negative zeros count in f32, but not in f16, as in stock.
inline vi zeros_at(const float* p) { return vload(p) == vf{}; }
inline vi zeros_at(const uint16_t* p) {
    typedef uint16_t vh __attribute__((vector_size(VL * 2)));
    vh h;
    std::memcpy(&h, p, sizeof h);
    return (vi)(__builtin_convertvector(h, vu) == 0);
}

// A bit for each lane that is set.
inline uint32_t lane_bits(vi mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__x86_64__)
    return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
    uint32_t bits = 0;
    for (int i = 0; i < VL; ++i) bits |= mask[i] != 0 ? 1u << i : 0u;
    return bits;
#endif
}

template <class T>
bool run_mask_to_idx(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &mask = *step.src[0];
    const int64_t room = dst.ne[0], n = mask.ne[0];
    RowCursor row(dst, begin);
    for (int64_t item = begin; item < end; ++item, row.next()) {
        const T* from = reinterpret_cast<const T*>(row.of(mask));
        int32_t* to = reinterpret_cast<int32_t*>(row.of(dst));
        // Padding rows may hold anything, more zeros than there is room for too: what does not fit is left out.
        int64_t found = 0, i = 0;
        for (; i + VL <= n && found < room; i += VL)
            for (uint32_t bits = lane_bits(zeros_at(from + i)); bits != 0 && found < room; bits &= bits - 1)
                to[found++] = static_cast<int32_t>(i) + __builtin_ctz(bits);
        for (; i < n && found < room; ++i)
            if (from[i] == 0) to[found++] = static_cast<int32_t>(i);
        for (; found < room; ++found) to[found] = -1;
    }
    return true;
}

// Relies on: a mask [n, ...] with n < 2^31, the result [., ...], both in packed rows.
bool prepare_mask_to_idx(PlanBuilder& builder, const Tensor& node) {
    const Tensor& mask = *node.src[0];
    if ((mask.type != TYPE_F32 && mask.type != TYPE_F16) || node.type != TYPE_I32)
        return builder.unsupported(node, "types %s -> %s", type_traits(mask.type)->name, type_traits(node.type)->name);
    builder.add(mask.type == TYPE_F32 ? run_mask_to_idx<float> : run_mask_to_idx<uint16_t>, node, n_rows(node),
                n_elements(mask));
    return true;
}

}  // namespace

void register_ik_choice(OpTable& table) {
    table.prepare[OP_INDEXER_TOPK] = prepare_topk;
    table.prepare[OP_MASK_TOPK] = prepare_mask_topk;
    table.prepare[OP_MASK_TO_IDX] = prepare_mask_to_idx;
}

GGR_KERNELS_END
