// Ops of ik_llama.cpp around the streams of hyper-connections and compressed caches. SINKHORN: matrices made doubly
// stochastic. HC_PRE: the weights of streams, with such a matrix each. DS4_COMP: rows of a state averaged by softmax.
#include "cpu/elementwise.h"
#include "cpu/ik_families.h"
#include "cpu/layout.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

float* floats(uint8_t* p) { return reinterpret_cast<float*>(p); }
const float* floats(const uint8_t* p) { return reinterpret_cast<const float*>(p); }

bool all_f32(const Tensor& node, int n_sources) {
    for (int i = 0; i < n_sources; ++i)
        if (node.src[i]->type != TYPE_F32) return false;
    return node.type == TYPE_F32;
}

// ---- Matrices of VL tokens at a time, a lane a token ----

// Floor: two divisions an element and round; a vector of them takes 16 cycles on Zen 4 at VL = 16. Lanes past the last
// token hold zeros, which divide by more than zero.
constexpr int64_t MOST_STREAMS = 8;

struct Matrices {
    vf m[MOST_STREAMS * MOST_STREAMS];  // row by row
    int64_t n;

    // Divide each row, or each column, by its sum, which starts at `start`.
    void divide(bool columns, float start) {
        const int64_t along = columns ? n : 1, across = columns ? 1 : n;
        for (int64_t i = 0; i < n; ++i) {
            vf sum = vset(start);
            for (int64_t j = 0; j < n; ++j) sum += m[i * across + j * along];
            for (int64_t j = 0; j < n; ++j) m[i * across + j * along] = m[i * across + j * along] / sum;
        }
    }
    void make_stochastic(int32_t rounds, float eps) {
        for (int64_t i = 0; i < n; ++i) {
            vf *row = m + i * n, top = row[0], sum = {};
            for (int64_t j = 1; j < n; ++j) top = vmax(row[j], top);
            for (int64_t j = 0; j < n; ++j) sum += row[j] = vexp(row[j] - top);
            for (int64_t j = 0; j < n; ++j) row[j] = row[j] / sum + eps;
        }
        divide(true, eps);
        for (int32_t round = 1; round < rounds; ++round) {
            divide(false, eps);
            divide(true, eps);
        }
    }
};

// Element `at` of up to VL rows.
vf column(const uint8_t* row, int64_t stride, int64_t at, int64_t lanes) {
    float x[VL] = {};
    for (int64_t t = 0; t < lanes; ++t) x[t] = floats(row + t * stride)[at];
    return vload(x);
}
void put_column(float* to, int64_t stride, vf v, int64_t lanes) {
    float x[VL];
    vstore(x, v);
    for (int64_t t = 0; t < lanes; ++t) to[t * stride] = x[t];
}

// Items are VL tokens.
bool run_sinkhorn(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const float eps = param_f32(dst, 2);
    const bool transposed = dst.params[3] != 0;
    Matrices w;
    w.n = dst.params[0];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t t0 = item * VL, lanes = least(VL, x.ne[1] - t0);
        for (int64_t i = 0; i < w.n * w.n; ++i) w.m[i] = column(x.data + t0 * x.nb[1], x.nb[1], i, lanes);
        w.make_stochastic(dst.params[1], eps);
        for (int64_t i = 0; i < w.n; ++i)
            for (int64_t j = 0; j < w.n; ++j)
                put_column(floats(dst.data) + t0 * w.n * w.n + (transposed ? j * w.n + i : i * w.n + j), w.n * w.n,
                           w.m[i * w.n + j], lanes);
    }
    return true;
}

// Fewer than VL tokens take as long as VL; a division counts for 20.
int64_t rounds_work(const Tensor& node, int64_t tokens) {
    const int64_t n = node.params[0], items = (tokens + VL - 1) / VL;
    return items * (n * n * (int64_t{40} * node.params[1] + 40) + 40 * n);
}

bool streams_fit(const Tensor& node) { return node.params[0] > 0 && node.params[0] <= MOST_STREAMS; }

// Relies on: x [n * n, tokens], the result [n, n, tokens] without gaps, at least one round.
bool prepare_sinkhorn(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node, 1)) return builder.unsupported(node, "types other than F32");
    if (!streams_fit(node)) return builder.unsupported(node, "%d streams", node.params[0]);
    const int64_t tokens = node.src[0]->ne[1];
    builder.add(run_sinkhorn, node, (tokens + VL - 1) / VL, rounds_work(node, tokens));
    return true;
}

// Items are VL tokens. The result is three blocks: n weights a token, n weights a token, n * n of the matrix a token.
bool run_hc_pre(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const float *scale = floats(step.src[1]->data), *bias = floats(step.src[2]->data), eps = param_f32(dst, 2);
    const int64_t tokens = x.ne[1];
    Matrices w;
    w.n = dst.params[0];
    const int64_t n = w.n;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t t0 = item * VL, lanes = least(VL, tokens - t0);
        const uint8_t* rows = x.data + t0 * x.nb[1];
        float *pre = floats(dst.data) + t0 * n, *post = pre + tokens * n,
              *matrix = floats(dst.data) + 2 * tokens * n + t0 * n * n;
        for (int64_t i = 0; i < n; ++i) {
            put_column(pre + i, n, vsigmoid(column(rows, x.nb[1], i, lanes) * scale[0] + bias[i]) + eps, lanes);
            put_column(post + i, n, vsigmoid(column(rows, x.nb[1], n + i, lanes) * scale[1] + bias[n + i]) * 2.0f,
                       lanes);
        }
        for (int64_t i = 0; i < n * n; ++i)
            w.m[i] = column(rows, x.nb[1], 2 * n + i, lanes) * scale[2] + bias[2 * n + i];
        w.make_stochastic(dst.params[1], eps);
        for (int64_t i = 0; i < n * n; ++i) put_column(matrix + i, n * n, w.m[i], lanes);
    }
    return true;
}

// Relies on: x [n * n + 2 n, tokens], 3 scales and n * n + 2 n biases without gaps, the result a vector as long as x.
bool prepare_hc_pre(PlanBuilder& builder, const Tensor& node) {
    if (!all_f32(node, 3)) return builder.unsupported(node, "types other than F32");
    if (!streams_fit(node)) return builder.unsupported(node, "%d streams", node.params[0]);
    const int64_t tokens = node.src[0]->ne[1];
    builder.add(run_hc_pre, node, (tokens + VL - 1) / VL, rounds_work(node, tokens));
    return true;
}

// ---- DS4_COMP: channel by channel, the mean of listed rows of the state by the softmax of their scores ----

// Floor: bytes of the listed rows over memory bandwidth, or one vexp an element. Items are parts of CHANNELS channels
// of a block: a row's part is 1 KiB, since listed rows lie apart and what is fetched of each should be long.
constexpr int64_t CHANNELS = 256;

// The rows of one block: `first` of them with channels [0, width), and for kind 0 as many with channels behind.
struct Block {
    const Tensor &state, &score, &ids;
    int64_t ratio, first, second, width;
    bool overlapping;

    int64_t rows() const { return overlapping ? 2 * ratio : ratio; }
    int64_t row(int64_t j) const {
        int32_t id;
        std::memcpy(&id, ids.data + (j < ratio ? first + j : second + j - ratio) * ids.nb[0], sizeof id);
        return id;
    }
    int64_t offset(int64_t j) const { return j < ratio ? 0 : width; }
};

// The scores twice (the largest, then the sum), since rows come back from the caches: n <= CHANNELS channels from `at`.
void average(const Block& b, int64_t at, int64_t n, float* to) {
    float top[CHANNELS], sum[CHANNELS] = {}, mean[CHANNELS] = {};
    for (int64_t i = 0; i < n; i += VL) vstore(top + i, vset(-__builtin_inff()));
    for (int64_t j = 0; j < b.rows(); ++j) {
        const float* score = floats(b.score.data + b.row(j) * b.score.nb[1]) + b.offset(j) + at;
        for (int64_t i = 0; i < n; i += VL) vstore(top + i, vmax(vload(score + i), vload(top + i)));
    }
    for (int64_t j = 0; j < b.rows(); ++j) {
        const int64_t row = b.row(j), offset = b.offset(j) + at;
        const float *score = floats(b.score.data + row * b.score.nb[1]) + offset,
                    *state = floats(b.state.data + row * b.state.nb[1]) + offset;
        for (int64_t i = 0; i < n; i += VL) {
            const vf weight = vexp(vload(score + i) - vload(top + i));
            vstore(sum + i, vload(sum + i) + weight);
            vstore(mean + i, vload(mean + i) + weight * vload(state + i));
        }
    }
    // Where no row counts, stock gives 0 for overlapping blocks and NaN for others.
    for (int64_t i = 0; i < n; i += VL) {
        const vf total = vload(sum + i), y = vload(mean + i) / total;
        vstore(to + i, b.overlapping ? vselect(total > vf{}, y, vf{}) : y);
    }
}

bool run_ds4_comp(const Step& step, int64_t begin, int64_t end, Worker& worker) {
    const Tensor &dst = *step.dst, &state = *step.src[0], &ids = *step.src[2];
    const int64_t parts = step.arg.i64[0], n_blocks = dst.ne[1];
    const bool overlapping = dst.params[0] == 0;
    const int64_t ratio = ids.ne[0] / (overlapping ? 2 * n_blocks : n_blocks);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / parts, at = item % parts * CHANNELS;
        const Block b = {state,     *step.src[1], ids, ratio, block * ratio, ids.ne[0] / 2 + block * ratio,
                         dst.ne[0], overlapping};
        for (int64_t j = 0; j < b.rows(); ++j)
            if (b.row(j) < 0 || b.row(j) >= state.ne[1]) return fail_index(worker, step, &ids, b.row(j), state.ne[1]);
        average(b, at, least(CHANNELS, dst.ne[0] - at), floats(dst.data + block * dst.nb[1]) + at);
    }
    return true;
}

// Relies on: state and score [w, rows] in packed rows, w a multiple of 32 (of 64 for kind 0, which gives rows half as
// long); a list of row numbers that divides evenly into the result's rows (for kind 0 into twice as many).
bool prepare_ds4_comp(PlanBuilder& builder, const Tensor& node) {
    const Tensor &state = *node.src[0], &ids = *node.src[2];
    if (!all_f32(node, 2) || ids.type != TYPE_I32)
        return builder.unsupported(node, "types %s, %s -> %s", type_traits(state.type)->name,
                                   type_traits(ids.type)->name, type_traits(node.type)->name);
    static_assert(32 % VL == 0, "rows have no tail");
    const int64_t parts = (node.ne[0] + CHANNELS - 1) / CHANNELS;
    builder.add(run_ds4_comp, node, parts * node.ne[1], ids.ne[0] * node.ne[0] * 4).arg.i64[0] = parts;
    return true;
}

}  // namespace

void register_ik_streams(OpTable& table) {
    table.prepare[OP_SINKHORN] = prepare_sinkhorn;
    table.prepare[OP_HC_PRE] = prepare_hc_pre;
    table.prepare[OP_DS4_COMP] = prepare_ds4_comp;
}

GGR_KERNELS_END
