// Each name of base.cuh once, over arrays: one thread an element, one warp a matrix product.
#include "cuda/kernels/base.cuh"

namespace ggr {
namespace cuda {

struct Args {
    const uint32_t* a;
    const uint32_t* b;
    const uint32_t* c;
    uint32_t* out;
    int32_t n;
};

constexpr int FUNCTIONS = 22;

GGR_DEVICE float function(int f, float x, float y) {
    switch (f) {
        case 0:
            return square_root(x);
        case 1:
            return inverse_root(x);
        case 2:
            return exponential(x);
        case 3:
            return exponential_fast(x);
        case 4:
            return logarithm(x);
        case 5:
            return sine(x);
        case 6:
            return cosine(x);
        case 7:
            return hyperbolic_tangent(x);
        case 8:
            return error_function(x);
        case 9:
            return power(x, y);
        case 10:
            return largest(x, y);
        case 11:
            return smallest(x, y);
        case 12:
            return absolute(x);
        case 13:
            return round_even(x);
        case 14:
            return round_away(x);
        case 15:
            return round_down(x);
        case 16:
            return round_up(x);
        case 17:
            return truncate(x);
        case 18:
            return log_1p(x);
        case 19:
            return exp_m1(x);
        case 20:
            return fused_add(x, y, -1.0f);
        default:
            return infinity();
    }
}

GGR_KERNEL GGR_BOUNDS(256, 1) functions(const Args a) {
    const int i = block_x() * n_threads() + thread_index();
    if (i >= a.n) return;
    const float v = function(block_y(), bits_to_float(a.a[i]), bits_to_float(a.b[i]));
    a.out[block_y() * a.n + i] = float_to_bits(v);
}

GGR_KERNEL GGR_BOUNDS(256, 1) conversions(const Args a) {
    const int i = block_x() * n_threads() + thread_index();
    if (i >= a.n) return;
    const float x = bits_to_float(a.a[i]);
    uint32_t* out = a.out + i * 6;
    out[0] = float_to_half(x);
    out[1] = float_to_bits(half_to_float(static_cast<uint16_t>(i)));
    out[2] = float_to_bf16(x);
    out[3] = float_to_bits(bf16_to_float(static_cast<uint16_t>(i)));
    out[4] = pack_halves(x, -x);
    out[5] = 0;
}

GGR_KERNEL GGR_BOUNDS(256, 1) integers(const Args a) {
    const int i = block_x() * n_threads() + thread_index();
    if (i >= a.n) return;
    const uint32_t table[4] = {a.c[0], a.c[1], a.c[2], a.c[3]};
    uint32_t* out = a.out + i * 7;
    out[0] = static_cast<uint32_t>(dot4(a.a[i], a.b[i], static_cast<int32_t>(a.c[i])));
    out[1] = subtract4(a.a[i], a.b[i]);
    out[2] = lookup4(table, a.a[i] & 0x0f0f0f0fu);
    out[3] = load4_from2(reinterpret_cast<const uint8_t*>(a.a + i) + 2);
    out[4] = load4_from1(reinterpret_cast<const uint8_t*>(a.a + i) + 3);
    out[5] = quotient(a.a[i] & 0x7fffffffu, Divisor{a.c[4], a.c[5], a.c[6]});
    out[6] = permute4(a.a[i], a.b[i], a.c[i] & 0x7777u);
}

GGR_KERNEL GGR_BOUNDS(128, 1) exchanges(const Args a) {
    const int i = block_x() * n_threads() + thread_index();
    const int32_t v = static_cast<int32_t>(a.a[i]);
    GGR_SHARED float part[8];
    uint32_t* out = a.out + i * 10;
    out[0] = static_cast<uint32_t>(shuffle(v, (lane() + 5) * 3));
    out[1] = static_cast<uint32_t>(shuffle_xor(v, 9));
    out[2] = static_cast<uint32_t>(shuffle_up(v, 3));
    out[3] = ballot((v & 1) != 0);
    out[4] = static_cast<uint32_t>(warp_sum(v));
    const float f = static_cast<float>(v % 1000);
    out[5] = float_to_bits(warp_sum(f));
    out[6] = float_to_bits(warp_max(f));
    out[7] = float_to_bits(block_sum(f, part));
    out[8] = float_to_bits(block_max(f, part));
    out[9] = static_cast<uint32_t>(warp_index() * 1000 + lane());
}

struct AtomicArgs {
    float* sum;
    int32_t* count;
    int32_t* first;
};
GGR_KERNEL GGR_BOUNDS(64, 1) atomics(const AtomicArgs a) {
    GGR_SHARED int32_t mine;
    if (thread_index() == 0) mine = 0;
    sync_block();
    atomic_add(&mine, 1);
    sync_block();
    if (thread_index() == 0) atomic_add(a.count, mine);
    atomic_add(a.sum, 0.5f);
    atomic_compare_swap(a.first, -1, block_x());
    fence_device();
}

GGR_KERNEL GGR_BOUNDS(32, 1) product_s8(const Args a) {
    const int i = lane();
    const uint32_t wa[4] = {a.a[4 * i], a.a[4 * i + 1], a.a[4 * i + 2], a.a[4 * i + 3]};
    const uint32_t wb[2] = {a.b[2 * i], a.b[2 * i + 1]};
    int32_t d[4];
    for (int k = 0; k < 4; ++k) d[k] = static_cast<int32_t>(a.c[4 * i + k]);
    mma_s8(d, wa, wb);
    for (int k = 0; k < 4; ++k) a.out[4 * i + k] = static_cast<uint32_t>(d[k]);
}
template <bool BF16>
GGR_KERNEL GGR_BOUNDS(32, 1) product_halves(const Args a) {
    const int i = lane();
    const uint32_t wa[4] = {a.a[4 * i], a.a[4 * i + 1], a.a[4 * i + 2], a.a[4 * i + 3]};
    const uint32_t wb[2] = {a.b[2 * i], a.b[2 * i + 1]};
    float d[4];
    for (int k = 0; k < 4; ++k) d[k] = bits_to_float(a.c[4 * i + k]);
    if (BF16) {
        mma_bf16(d, wa, wb);
    } else {
        mma_f16(d, wa, wb);
    }
    for (int k = 0; k < 4; ++k) a.out[4 * i + k] = float_to_bits(d[k]);
}

// a: 32 rows of 8 halves; row r of matrix m is row m * 8 + r.
template <bool TRANSPOSED>
GGR_KERNEL GGR_BOUNDS(32, 1) matrices(const Args a) {
    Bytes16* rows = reinterpret_cast<Bytes16*>(dynamic_shared());
    rows[lane()] = stream16(a.a + 4 * lane());
    sync_block();
    uint32_t d[4];
    if (TRANSPOSED) {
        load_matrices_transposed(d, rows + lane());
    } else {
        load_matrices(d, rows + lane());
    }
    for (int k = 0; k < 4; ++k) a.out[4 * lane() + k] = d[k];
}

// Two stages of asynchronous copies; what is not valid becomes zeros.
GGR_KERNEL GGR_BOUNDS(32, 1) staged(const Args a) {
    GGR_SHARED Bytes16 stage[2][32];
    const int steps = a.n / 32;
    copy16_async(&stage[0][lane()], a.a + 4 * lane());
    copies_commit();
    for (int s = 0; s < steps; ++s) {
        const bool valid = s + 1 < steps;
        copy16_async(&stage[(s + 1) % 2][lane()], a.a + 4 * (32 * (s + 1) + lane()), valid);
        copies_commit();
        copies_wait<1>();
        sync_block();
        const int other = (lane() + 1) % 32;
        for (int k = 0; k < 4; ++k) a.out[4 * (32 * s + lane()) + k] = stage[s % 2][other].word[k];
        sync_block();
    }
    copies_wait<0>();
    sync_block();
    for (int k = 0; k < 4; ++k) a.out[4 * (32 * steps + lane()) + k] = stage[steps % 2][lane()].word[k];
}

}  // namespace cuda
}  // namespace ggr
