// What the kernels of FLASH_ATTN_EXT know about one node and one work item.
//
// Query heads that share a K and a V head are packed: the rows of a group are all its (query, head) pairs, the heads of
// one query side by side. A work item is a tile of such rows against a range of KV positions. Of these positions only
// the live ones, whose mask is not -inf for all rows, are visited, KV_TILE at a time. They may also be a list, which is
// then that of the problem's only query.
#pragma once

#include "cpu/attention/rows.h"
#include "cpu/level.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

constexpr int64_t KV_TILE = 64;   // positions visited together
constexpr int64_t ROW_TILE = 48;  // rows of a part: three vectors at VL = 16, so that 8 x 3 sums fit 32 registers
constexpr int64_t MAX_PARTS = 4;  // parts of an item of many rows: they share one conversion of K and V
constexpr int64_t MAX_ROWS = MAX_PARTS * ROW_TILE;
constexpr int64_t FEW_ROWS = 8;  // groups of at most so many rows take the kernel for few rows
constexpr float MINUS_INF = -__builtin_inff();

// Words of Step::arg.i64 (set by prepare) and of the op's parameters.
enum : int { ARG_GROUP = 0, ARG_TILE = 1, ARG_SPLITS = 2, ARG_SPLIT_LENGTH = 3, ARG_HALF_SUMS = 4 };
enum : int { PARAM_SCALE = 0, PARAM_MAX_BIAS = 1, PARAM_SOFTCAP = 2, PARAM_PREC = 3 };

static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

struct Problem {
    const Tensor &dst, &q, &k, &v;
    const Tensor *mask, *sinks;
    int64_t group, tile, n_splits, split_length;
    int64_t rows, n_tiles, n_groups;
    float scale, max_bias, softcap;
    bool half_sums;
    const int32_t* list = nullptr;  // rows of K and V instead of all, in any order; negative ones are none
    int64_t n_list = 0;

    explicit Problem(const Step& step)
        : dst(*step.dst),
          q(*step.src[0]),
          k(*step.src[1]),
          v(*step.src[2]),
          mask(step.src[3]),
          sinks(step.src[4]),
          group(step.arg.i64[ARG_GROUP]),
          tile(step.arg.i64[ARG_TILE]),
          n_splits(step.arg.i64[ARG_SPLITS]),
          split_length(step.arg.i64[ARG_SPLIT_LENGTH]),
          rows(q.ne[1] * group),
          n_tiles((rows + tile - 1) / tile),
          n_groups(q.ne[2] / group),
          scale(param_f32(dst, PARAM_SCALE)),
          max_bias(param_f32(dst, PARAM_MAX_BIAS)),
          softcap(param_f32(dst, PARAM_SOFTCAP)),
          half_sums(step.arg.i64[ARG_HALF_SUMS] != 0) {
        if (softcap != 0.0f) scale /= softcap;
    }
    int64_t n_items() const { return q.ne[3] * n_groups * n_tiles * n_splits; }
    int64_t n_positions() const { return list != nullptr ? n_list : k.ne[1]; }
    float* out_row(int64_t query, int64_t head, int64_t batch) const {
        return at<float>(dst.data, head * dst.nb[1] + query * dst.nb[2] + batch * dst.nb[3]);
    }
    // Rows of partial results in scratch: [batch][head][query][split][maximum, sum, dv values]
    int64_t partial_stride() const { return v.ne[0] + 2; }
    float* partial(uint8_t* base, int64_t query, int64_t head, int64_t batch, int64_t split) const {
        const int64_t row = (batch * q.ne[2] + head) * q.ne[1] + query;
        return reinterpret_cast<float*>(base) + (row * n_splits + split) * partial_stride();
    }
};

// One work item.
struct Item {
    int64_t batch, first_head, first_row, n_rows, split;
    int64_t kv, kv_end;    // positions not yet visited
    const uint8_t *k, *v;  // heads
    int n_masks = 0;       // distinct mask rows
    const uint16_t* masks[MAX_ROWS];
    const uint16_t* row_mask[MAX_ROWS];
    float slope[MAX_ROWS];

    Item(const Problem& p, int64_t index) {
        split = index % p.n_splits;
        index /= p.n_splits;
        first_row = index % p.n_tiles * p.tile;
        index /= p.n_tiles;
        first_head = index % p.n_groups * p.group;
        batch = index / p.n_groups;
        n_rows = p.rows - first_row < p.tile ? p.rows - first_row : p.tile;
        kv = split * p.split_length;
        kv_end = kv + p.split_length < p.n_positions() ? kv + p.split_length : p.n_positions();
        const int64_t heads_k = p.q.ne[2] / p.k.ne[2], heads_v = p.q.ne[2] / p.v.ne[2];
        const int64_t batches_k = p.q.ne[3] / p.k.ne[3], batches_v = p.q.ne[3] / p.v.ne[3];
        k = p.k.data + first_head / heads_k * p.k.nb[2] + batch / batches_k * p.k.nb[3];
        v = p.v.data + first_head / heads_v * p.v.nb[2] + batch / batches_v * p.v.nb[3];
        if (p.mask == nullptr) return;
        const Tensor& m = *p.mask;
        for (int64_t r = 0; r < n_rows; ++r) {
            const int64_t h = head(p, r);
            row_mask[r] =
                at<uint16_t>(m.data, query(p, r) * m.nb[1] + h % m.ne[2] * m.nb[2] + batch % m.ne[3] * m.nb[3]);
            slope[r] = alibi_slope(p.max_bias, p.q.ne[2], h);
            if (n_masks == 0 || masks[n_masks - 1] != row_mask[r]) masks[n_masks++] = row_mask[r];
        }
    }
    int64_t query(const Problem& p, int64_t r) const { return (first_row + r) / p.group; }
    int64_t head(const Problem& p, int64_t r) const { return first_head + (first_row + r) % p.group; }
    const float* query_row(const Problem& p, int64_t r) const {
        return at<float>(p.q.data, query(p, r) * p.q.nb[1] + head(p, r) * p.q.nb[2] + batch * p.q.nb[3]);
    }
};

// The KV positions visited together.
struct Visit {
    int64_t n = 0;
    bool adjacent = true;  // position[i] = position[0] + i
    bool masked = false;   // some mask value is not zero
    int64_t position[KV_TILE];
};

constexpr uint16_t F16_MINUS_INF = 0xfc00, F16_MAGNITUDE = 0x7fff;

// KV_TILE elements of a mask row as the compiler's vectors; those past n count as -inf.
typedef uint16_t MaskVector __attribute__((vector_size(64)));
constexpr int MASK_VECTORS = KV_TILE / 32;
static inline void load_mask(const uint16_t* row, int64_t n, MaskVector* out) {
    if (n < KV_TILE) {
        uint16_t copy[KV_TILE];
        for (int64_t i = 0; i < KV_TILE; ++i) copy[i] = i < n ? row[i] : F16_MINUS_INF;
        std::memcpy(out, copy, sizeof copy);
    } else {
        std::memcpy(out, row, KV_TILE * sizeof *row);
    }
}
static inline bool any_bit(MaskVector v) {
    uint64_t words[8], any = 0;
    std::memcpy(words, &v, sizeof words);
    for (uint64_t word : words) any |= word;
    return any != 0;
}

// The next live positions of a list, which has been checked.
static inline bool next_listed(const Problem& p, Item& item, Visit& visit) {
    visit.adjacent = true;
    for (; visit.n < KV_TILE && item.kv < item.kv_end; ++item.kv) {
        const int64_t position = p.list[item.kv];
        if (position < 0) continue;
        bool live = p.mask == nullptr;
        for (int m = 0; m < item.n_masks; ++m) {
            const uint16_t value = item.masks[m][position];
            live |= value != F16_MINUS_INF;
            visit.masked |= (value & F16_MAGNITUDE) != 0;
        }
        if (!live) continue;
        if (visit.n > 0 && position != visit.position[visit.n - 1] + 1) visit.adjacent = false;
        visit.position[visit.n++] = position;
    }
    return visit.n > 0;
}

// Take the next live positions, KV_TILE at most; none when the item is done.
static inline bool next_visit(const Problem& p, Item& item, Visit& visit) {
    visit.n = 0;
    visit.masked = false;
    if (p.list != nullptr) return next_listed(p, item, visit);
    if (p.mask == nullptr) {
        for (; visit.n < KV_TILE && item.kv < item.kv_end; ++visit.n) visit.position[visit.n] = item.kv++;
        return visit.n > 0;
    }
    while (visit.n < KV_TILE && item.kv < item.kv_end) {
        const int64_t n = item.kv_end - item.kv < KV_TILE ? item.kv_end - item.kv : KV_TILE;
        MaskVector live[MASK_VECTORS] = {}, some[MASK_VECTORS] = {}, row[MASK_VECTORS];
        for (int m = 0; m < item.n_masks; ++m) {
            load_mask(item.masks[m] + item.kv, n, row);
            for (int v = 0; v < MASK_VECTORS; ++v) {
                live[v] |= row[v] ^ F16_MINUS_INF;
                some[v] |= row[v] & F16_MAGNITUDE;
            }
        }
        MaskVector lives = {}, dead = {}, values = {};
        for (int v = 0; v < MASK_VECTORS; ++v) {
            lives |= live[v];
            dead |= (MaskVector)(live[v] == 0);
            values |= some[v];
        }
        if (!any_bit(lives)) {
            item.kv += n;
            continue;
        }
        if (visit.n == 0 && !any_bit(dead)) {
            for (; visit.n < KV_TILE; ++visit.n) visit.position[visit.n] = item.kv++;
            visit.masked = any_bit(values);
            break;
        }
        uint16_t is_live[KV_TILE], is_some[KV_TILE];
        std::memcpy(is_live, live, sizeof is_live);
        std::memcpy(is_some, some, sizeof is_some);
        int64_t i = 0;
        for (; i < n && visit.n < KV_TILE; ++i) {
            if (is_live[i] == 0) continue;
            visit.masked |= is_some[i] != 0;
            visit.position[visit.n++] = item.kv + i;
        }
        item.kv += i;
    }
    visit.adjacent = visit.n == 0 || visit.position[visit.n - 1] - visit.position[0] == visit.n - 1;
    return visit.n > 0;
}

// slope * mask of one row at the positions of a visit.
static inline void mask_values(const Visit& visit, const uint16_t* mask, float slope, float* out) {
    int64_t i = 0;
    if (visit.adjacent) {
        mask += visit.position[0];
        for (; i + VL <= visit.n; i += VL) vstore(out + i, vload_f16(mask + i) * slope);
        for (; i < visit.n; ++i) out[i] = f16_to_f32(mask[i]) * slope;
    } else {
        for (; i < visit.n; ++i) out[i] = f16_to_f32(mask[visit.position[i]]) * slope;
    }
}

// cap * tanh(x): the error of 10^-7 * cap is one of the logit, so no care is needed near zero.
static inline vf soft_cap(vf x, float cap) {
    const vf e = vexp(vabs(x) * -2.0f);
    const vf t = (1.0f - e) / (1.0f + e);
    return (vf)((vi)t | ((vi)x & (int32_t)0x80000000)) * cap;
}

// A running maximum may still be -inf: then there is nothing to subtract.
static inline vf safe_max(vf m) { return vselect(m == MINUS_INF, vf{}, m); }

// Final scaling of a row with maximum m and sum l: the sink joins the sum; a row without live positions is zero.
static inline float final_factor(const Problem& p, int64_t head, float m, float l) {
    if (l == 0.0f) return 0.0f;
    if (p.sinks == nullptr) return 1.0f / l;
    const float sink = *at<float>(p.sinks->data, head * p.sinks->nb[0]);
    const float top = sink > m ? sink : m;
    const float shrink = __builtin_expf(m - top);
    return shrink / (l * shrink + __builtin_expf(sink - top));
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
