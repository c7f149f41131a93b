// Sorting and choosing by (value, index) pairs held as one u64: the value's bits mapped so that unsigned order is
// numeric order, then the index. The order is total, so equal values stay in index order, +0 equals -0, and NaN comes
// last in either direction; no comparison can contradict another, whatever the bits.
#pragma once

#include "cpu/vmath.h"

namespace ggr {
namespace GGR_LEVEL {
namespace {

using Pair = uint64_t;

static inline uint32_t key_of(float value, bool descending) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;  // no number maps to it in either direction
    if (bits == 0x80000000u) bits = 0;
    const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return descending ? ~key : key;
}
static inline Pair pair_of(float value, int64_t index, bool descending) {
    return static_cast<Pair>(key_of(value, descending)) << 32 | static_cast<uint32_t>(index);
}

static inline void make_pairs(Pair* out, const uint8_t* x, int64_t stride, int64_t n, bool descending) {
    for (int64_t i = 0; i < n; ++i) out[i] = pair_of(*reinterpret_cast<const float*>(x + i * stride), i, descending);
}

constexpr int64_t RUN = 16;          // sorted by insertion
constexpr int64_t RADIX_MIN = 2048;  // from here on three counting passes beat merging

static inline void insertion_sort(Pair* p, int64_t n) {
    for (int64_t i = 1; i < n; ++i) {
        const Pair x = p[i];
        int64_t j = i;
        for (; j > 0 && p[j - 1] > x; --j) p[j] = p[j - 1];
        p[j] = x;
    }
}

// Returns whichever of the two buffers holds the result.
static inline Pair* merge_sort(Pair* a, Pair* b, int64_t n) {
    for (int64_t i = 0; i < n; i += RUN) insertion_sort(a + i, n - i < RUN ? n - i : RUN);
    for (int64_t width = RUN; width < n; width *= 2) {
        for (int64_t at = 0; at < n; at += 2 * width) {
            const int64_t middle = at + width < n ? at + width : n, end = middle + width < n ? middle + width : n;
            int64_t i = at, j = middle, o = at;
            while (i < middle && j < end) {
                const bool second = a[j] < a[i];
                b[o++] = second ? a[j] : a[i];
                i += !second;
                j += second;
            }
            while (i < middle) b[o++] = a[i++];
            while (j < end) b[o++] = a[j++];
        }
        Pair* const t = a;
        a = b;
        b = t;
    }
    return a;
}

// Three stable passes over 11, 11 and 10 bits of the key; the pairs start in index order.
static inline Pair* radix_sort(Pair* a, Pair* b, int64_t n) {
    constexpr int BITS = 11, SIZE = 1 << BITS;
    uint32_t count[3][SIZE] = {};
    for (int64_t i = 0; i < n; ++i) {
        ++count[0][a[i] >> 32 & (SIZE - 1)];
        ++count[1][a[i] >> (32 + BITS) & (SIZE - 1)];
        ++count[2][a[i] >> (32 + 2 * BITS)];
    }
    for (int pass = 0; pass < 3; ++pass) {
        const int shift = 32 + pass * BITS;
        uint32_t sum = 0;
        for (int d = 0; d < SIZE; ++d) {
            const uint32_t c = count[pass][d];
            count[pass][d] = sum;
            sum += c;
        }
        for (int64_t i = 0; i < n; ++i) b[count[pass][a[i] >> shift & (SIZE - 1)]++] = a[i];
        Pair* const t = a;
        a = b;
        b = t;
    }
    return a;
}

static inline Pair* sort_pairs(Pair* a, Pair* b, int64_t n) {
    return n < RADIX_MIN ? merge_sort(a, b, n) : radix_sort(a, b, n);
}

// `end`: indices are counted down from it, or -1.
static inline void put_indices(uint8_t* dst, int64_t stride, const Pair* pairs, int64_t n, int64_t end) {
    for (int64_t i = 0; i < n; ++i) {
        const int32_t at = static_cast<int32_t>(pairs[i] & 0xffffffffu);
        const int32_t index = end < 0 ? at : static_cast<int32_t>(end) - at;
        std::memcpy(dst + i * stride, &index, sizeof index);
    }
}

// ---- The k first pairs of a row: a heap of the k best so far, its worst on top ----

static inline void sift_down(Pair* heap, int64_t k, int64_t i) {
    const Pair x = heap[i];
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= k) break;
        if (child + 1 < k && heap[child + 1] > heap[child]) ++child;
        if (heap[child] <= x) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = x;
}

static inline float value_of(const float* x, Pair p) { return x[p & 0xffffffffu]; }

// Most of a long row is turned away by one vector comparison with the worst of the k: about one load a vector. `heap`
// has room for k pairs; they end in order.
static inline void select_top(Pair* heap, const float* x, int64_t n, int64_t k) {
    make_pairs(heap, reinterpret_cast<const uint8_t*>(x), sizeof(float), k, true);
    for (int64_t i = k / 2; i-- > 0;) sift_down(heap, k, i);
    int64_t i = k;
    const auto offer = [&](int64_t at) {
        const Pair p = pair_of(x[at], at, true);
        if (p < heap[0]) {
            heap[0] = p;
            sift_down(heap, k, 0);
        }
    };
    while (i + 4 * VL <= n) {
        // Not "greater than": were the worst a NaN, all must be looked at.
        const vf worst = vset(value_of(x, heap[0]));
        const vi out = (vload(x + i) <= worst) & (vload(x + i + VL) <= worst) & (vload(x + i + 2 * VL) <= worst) &
                       (vload(x + i + 3 * VL) <= worst);
        if (vany(~out))
            for (int64_t j = i; j < i + 4 * VL; ++j) offer(j);
        i += 4 * VL;
    }
    for (; i < n; ++i) offer(i);
    for (int64_t left = k - 1; left > 0; --left) {  // heap sort: the worst to the end
        const Pair worst = heap[0];
        heap[0] = heap[left];
        heap[left] = worst;
        sift_down(heap, left, 0);
    }
}

}  // namespace
}  // namespace GGR_LEVEL
}  // namespace ggr
