// MUL_MULTI_ADD, MULTI_ADD, SUM_DIM: rows added. HADAMARD, FUSED_RMS_RMS_ADD, GROUPED_TOPK. Floor of all: bytes of
// sources and result over memory bandwidth.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/ik.h"

namespace ggr {
namespace cuda {

GGR_KERNEL GGR_BOUNDS(256, 1) weighted_sum(const WeightedSumArgs a) {
    const Place at = place_of(a.cut, a.dst.t.ne[0]);
    if (!at.valid) return;
    const int64_t token = at.i1;
    float sum[4] = {};
    for (int64_t u = 0; u < a.x.t.ne[1]; ++u) {
        float factor = *reinterpret_cast<const float*>(a.weights.data + u * a.weights.nb[1] + token * a.weights.nb[2]);
        if (a.scale.data != nullptr) {
            const int32_t id = *reinterpret_cast<const int32_t*>(a.ids.data + u * a.ids.nb[0] + token * a.ids.nb[1]);
            if (id < 0 || id >= a.scale.ne[0]) {
                fail_index(a.site, id, a.scale.ne[0]);
                return;
            }
            factor *= *reinterpret_cast<const float*>(a.scale.data + id * a.scale.nb[0]);
        }
        float x[4];
        load_quad(x, a.x, row_at(a.x.t, u, token, 0) + at.i0 * 4, at.n);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) sum[i] += x[i] * factor;
    }
    store_quad(a.dst, row_at(a.dst.t, at) + at.i0 * 4, sum, at.n);
}

GGR_KERNEL GGR_BOUNDS(256, 1) strided_sum(const StridedSumArgs a) {
    const Place at = place_of(a.cut, a.dst.t.ne[0]);
    if (!at.valid) return;
    const uint8_t* from = row_at(a.x.t, at) + at.i0 * 4;
    float sum[4];
    load_quad(sum, a.x, from, at.n);
    for (int64_t j = 1; j < a.n; ++j) {
        float x[4];
        load_quad(x, a.x, from + j * a.stride, at.n);
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) sum[i] += x[i];
    }
    store_quad(a.dst, row_at(a.dst.t, at) + at.i0 * 4, sum, at.n);
}

// A block a run: the Walsh-Hadamard matrix in Sylvester's order, log2(n) steps of sums and differences.
GGR_KERNEL GGR_BOUNDS(256, 1) hadamard(const HadamardArgs a) {
    float* const x = reinterpret_cast<float*>(dynamic_shared());
    const uint32_t row = quotient(static_cast<uint32_t>(block_x()), a.runs), i23 = quotient(row, a.ne1),
                   i3 = quotient(i23, a.ne2);
    const int64_t i1 = row - i23 * a.ne1.divisor, i2 = i23 - i3 * a.ne2.divisor;
    const int64_t first =
        static_cast<int64_t>(static_cast<uint32_t>(block_x()) - row * a.runs.divisor) * static_cast<int64_t>(a.n);
    const uint8_t* from = row_at(a.x.t, i1, i2, i3) + first * a.x.t.nb[0];
    for (int i = thread_index(); i < a.n; i += n_threads()) x[i] = load_element(from + i * a.x.t.nb[0], a.x.type);
    for (int half = 1; half < a.n; half *= 2) {
        sync_block();
        for (int pair = thread_index(); pair < a.n / 2; pair += n_threads()) {
            const int low = pair / half * (2 * half) + pair % half;
            const float u = x[low], v = x[low + half];
            x[low] = u + v;
            x[low + half] = u - v;
        }
    }
    sync_block();
    float* const to = reinterpret_cast<float*>(row_at(a.dst.t, i1, i2, i3)) + first;
    for (int i = thread_index(); i < a.n; i += n_threads()) to[i] = x[i] * a.scale;
}

// 1 / sqrt(mean of x^2 + eps) of a row, by the whole block; squares in f64, which they cannot leave.
GGR_DEVICE float inverse_rms(const Operand& x, const uint8_t* row, float eps, double* shared) {
    const int64_t n = x.t.ne[0];
    double sum = 0.0;
    for (int64_t i = static_cast<int64_t>(thread_index()) * 4; i < n; i += static_cast<int64_t>(n_threads()) * 4) {
        float v[4];
        const int left = n - i < 4 ? static_cast<int>(n - i) : 4;
        load_quad(v, x, row + i * x.t.nb[0], left);
        GGR_UNROLL
        for (int j = 0; j < 4; ++j)
            if (j < left) sum += static_cast<double>(v[j]) * static_cast<double>(v[j]);
    }
    GGR_UNROLL
    for (int m = 16; m > 0; m >>= 1) sum += shuffle_xor(sum, m);
    sync_block();
    if (lane() == 0) shared[warp_index()] = sum;
    sync_block();
    double all = 0.0;
    for (int w = 0; w < n_threads() / WARP; ++w) all += shared[w];
    return static_cast<float>(1.0 / square_root(all / static_cast<double>(n) + static_cast<double>(eps)));
}

// A block a row: rms(a) * weight_a + rms(b) * weight_b.
GGR_KERNEL GGR_BOUNDS(256, 1) two_norms(const TwoNormsArgs a) {
    GGR_SHARED double shared[WARP];
    const uint32_t row = static_cast<uint32_t>(block_x()), i23 = quotient(row, a.ne1), i3 = quotient(i23, a.ne2);
    const int64_t i1 = row - i23 * a.ne1.divisor, i2 = i23 - i3 * a.ne2.divisor, n = a.dst.t.ne[0];
    const uint8_t *pa = row_at(a.a.t, i1, i2, i3), *pb = row_at(a.b.t, i1, i2, i3);
    const float sa = inverse_rms(a.a, pa, a.eps, shared), sb = inverse_rms(a.b, pb, a.eps, shared);
    uint8_t* const to = row_at(a.dst.t, i1, i2, i3);
    for (int64_t i = static_cast<int64_t>(thread_index()) * 4; i < n; i += static_cast<int64_t>(n_threads()) * 4) {
        float x[4], y[4], wx[4], wy[4];
        const int left = n - i < 4 ? static_cast<int>(n - i) : 4;
        load_quad(x, a.a, pa + i * a.a.t.nb[0], left);
        load_quad(y, a.b, pb + i * a.b.t.nb[0], left);
        load_quad(wx, a.weight_a, a.weight_a.t.data + i * 4, left);
        load_quad(wy, a.weight_b, a.weight_b.t.data + i * 4, left);
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) x[j] = x[j] * sa * wx[j] + y[j] * sb * wy[j];
        store_quad(a.dst, to + i * 4, x, left);
    }
}

// The position of the largest of n values that is not taken, the last of equal ones; NaN is least. By a whole warp,
// which marks it as taken.
GGR_DEVICE int take_largest(const float* x, uint8_t* taken, int n) {
    float best = 0.0f;
    int place = -1;
    const auto join = [&](float v, int i) {
        if (i < 0) return;
        const bool nan = v != v, best_nan = best != best;
        if (place < 0 || (nan ? best_nan && i > place : best_nan || v > best || (v == best && i > place))) {
            best = v;
            place = i;
        }
    };
    for (int i = lane(); i < n; i += WARP)
        if (taken[i] == 0) join(x[i], i);
    GGR_UNROLL
    for (int m = 16; m > 0; m >>= 1) {
        const float v = shuffle_xor(best, m);
        const int i = shuffle_xor(place, m);
        join(v, i);
    }
    sync_warp();
    if (lane() == 0) taken[place] = 1;
    sync_warp();
    return place;
}

// A warp a row: k passes over it. Routers have some hundred experts and a row a token.
GGR_KERNEL GGR_BOUNDS(32, 1) grouped_topk(const GroupedArgs a) {
    GGR_SHARED float x[GROUPED_ENTRIES];
    GGR_SHARED uint8_t taken[GROUPED_ENTRIES];
    GGR_SHARED float sums[GROUPED_GROUPS];
    GGR_SHARED uint8_t poor[GROUPED_GROUPS];
    const uint32_t row = static_cast<uint32_t>(block_x()), i23 = quotient(row, a.ne1), i3 = quotient(i23, a.ne2);
    const int64_t i1 = row - i23 * a.ne1.divisor, i2 = i23 - i3 * a.ne2.divisor;
    const float* from = reinterpret_cast<const float*>(row_at(a.x, i1, i2, i3));
    int32_t* const to = reinterpret_cast<int32_t*>(row_at(a.dst, i1, i2, i3));
    const int n = static_cast<int>(a.x.ne[0]), k = static_cast<int>(a.dst.ne[0]), size = n / a.groups;
    if (k > a.top * size) {  // more than the kept groups have: no choice at all
        for (int i = lane(); i < k; i += WARP) to[i] = i;
        return;
    }
    for (int i = lane(); i < n; i += WARP) {
        x[i] = from[i];
        taken[i] = 0;
    }
    sync_warp();
    for (int g = 0; g < a.groups; ++g) {
        float sum = 0.0f;
        for (int j = 0; j < a.best; ++j) sum += x[g * size + take_largest(x + g * size, taken + g * size, size)];
        if (lane() == 0) {
            sums[g] = sum;
            poor[g] = 0;
        }
    }
    for (int i = lane(); i < n; i += WARP) taken[i] = 1;
    sync_warp();
    for (int j = 0; j < a.top; ++j) {
        const int g = take_largest(sums, poor, a.groups);
        for (int i = lane(); i < size; i += WARP) taken[g * size + i] = 0;
    }
    sync_warp();
    for (int j = 0; j < k; ++j) {
        const int i = take_largest(x, taken, n);
        if (lane() == 0) to[j] = i;
    }
}

}  // namespace cuda
}  // namespace ggr
