// Small kernels with one fault each, chosen by FAULT; 0 is right. They reverse the order of numbers in blocks of 128.
#include "cuda/kernels/base.cuh"

namespace ggr {
namespace cuda {

struct Args {
    const float* from;
    float* to;
    int32_t n;
};

constexpr int NONE = 0, READS_PAST_END = 1, WRITES_PAST_END = 2, NO_BARRIER = 3, WRONG_SHUFFLE = 4, SHARED_PAST_END = 5,
              DIVERGENT_BARRIER = 6, DIVERGENT_SHUFFLE = 7, MISALIGNED = 8, NO_WAIT = 9, NO_SECOND_BARRIER = 10,
              SHARED_BY_LOAD16 = 11, NULL_POINTER = 12, WARP_BARRIER_ONLY = 13, DIFFERENT_SHUFFLES = 14,
              FREE_INDEX = 15;

template <int FAULT>
GGR_KERNEL GGR_BOUNDS(128, 1) reverse(const Args a) {
    GGR_SHARED float tile[128];
    const int t = thread_index(), at = block_x() * 128 + t;
    const int last = FAULT == READS_PAST_END || FAULT == WRITES_PAST_END ? a.n : a.n - 1;
    float v = 0;
    if (at <= (FAULT == READS_PAST_END ? last : a.n - 1)) v = a.from[at];
    if (FAULT == NULL_POINTER) v = static_cast<const float*>(nullptr)[t];
    if (FAULT == MISALIGNED) v = *reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(a.from) + t * 4 + 2);
    tile[FAULT == SHARED_PAST_END ? t + 1 : t] = v;
    if (FAULT == WARP_BARRIER_ONLY) {
        sync_warp();
    } else if (FAULT == DIVERGENT_BARRIER) {
        if (t < 127) sync_block();
        sync_warp();
    } else if (FAULT != NO_BARRIER) {
        sync_block();
    }
    v = tile[127 - t];
    if (FAULT == SHARED_BY_LOAD16) v = bits_to_float(load16(tile + t / 4 * 4).word[0]);
    if (FAULT != NO_SECOND_BARRIER) sync_block();
    tile[t] = v;
    sync_block();
    v = tile[t];
    if (FAULT == WRONG_SHUFFLE) v = shuffle_xor(v, 1);
    if (FAULT == DIVERGENT_SHUFFLE && t % 32 < 16) v = shuffle(v, t & 31);
    if (FAULT == DIFFERENT_SHUFFLES) {
        if (t % 2 == 0) {
            v = shuffle(v, t & 31);
        } else {
            v = shuffle_xor(v, 0);
        }
    }
    if (at <= (FAULT == WRITES_PAST_END ? last : a.n - 1)) a.to[at] = v;
    if (FAULT == FREE_INDEX) {
        float held[4] = {v, v, v, v};
        a.to[at] = held[a.n / 32];
    }
}

// The same with asynchronous copies: the tile arrives after copies_wait and a barrier.
template <int FAULT>
GGR_KERNEL GGR_BOUNDS(128, 1) reverse_async(const Args a) {
    GGR_SHARED float tile[128];
    const int t = thread_index(), at = block_x() * 128;
    if (t < 32) copy16_async(tile + 4 * t, a.from + at + 4 * t);
    copies_commit();
    if (FAULT != NO_WAIT) copies_wait<0>();
    if (FAULT != NO_BARRIER) sync_block();
    a.to[at + t] = tile[127 - t];
}

// Wide accesses at addresses that are aligned for the numbers in them only. Of a GPU's context nothing is left then.
constexpr int WIDE_LOAD = 1, WIDE_STORE = 2, LOAD16 = 3, STREAM16 = 4, ASYNC_FROM = 5, ASYNC_TO = 6, MATRICES = 7,
              LOAD8 = 8;
struct alignas(8) Pair {
    float v[2];
};
template <int FAULT>
GGR_KERNEL GGR_BOUNDS(32, 1) misaligned(const Args a) {
    GGR_SHARED float tile[256];
    const float* from = a.from + 4 * thread_index();
    const int shift = a.n;  // 1, which the compiler does not know
    Bytes16 v = {};
    if (FAULT == WIDE_LOAD) v = *reinterpret_cast<const Bytes16*>(from + shift);
    if (FAULT == WIDE_STORE) *reinterpret_cast<Bytes16*>(a.to + 4 * thread_index() + shift) = v;
    if (FAULT == LOAD16) v = load16(from + shift);
    if (FAULT == STREAM16) v = stream16(from + 2 * shift);
    if (FAULT == ASYNC_FROM) copy16_async(tile + 4 * thread_index(), from + shift);
    if (FAULT == ASYNC_TO) copy16_async(tile + 4 * thread_index() + 2 * shift, from);
    if (FAULT == MATRICES) load_matrices(v.word, tile + 4 * thread_index() + shift);
    if (FAULT == LOAD8) v.word[0] = float_to_bits(reinterpret_cast<const Pair*>(from + shift)->v[0]);
    copies_commit();
    copies_wait<0>();
    a.to[thread_index()] = bits_to_float(v.word[0]) + tile[thread_index()];
}

// A race on global memory, which only the order shows: the last block to come wins.
GGR_KERNEL GGR_BOUNDS(32, 1) last_wins(const Args a) {
    if (thread_index() == 0) a.to[0] = static_cast<float>(block_x());
}

// Right: half of the threads leave before the barrier that the others meet; warps order themselves.
GGR_KERNEL GGR_BOUNDS(128, 1) early_leave(const Args a) {
    GGR_SHARED float tile[128];
    const int t = thread_index();
    if (t >= 64) {
        if (t % 32 >= 7) sync_warp();  // the rest of the warp is done, before or after these wait
        return;
    }
    tile[t] = a.from[t];
    sync_warp();
    float v = tile[t ^ 1];
    sync_block();
    tile[t] = v;
    sync_block();
    a.to[t] = tile[63 - t];
}

// What a block finds in shared memory that nobody wrote.
GGR_KERNEL GGR_BOUNDS(32, 1) left_behind(const Args a) {
    GGR_SHARED float fixed[32];
    float* given = reinterpret_cast<float*>(dynamic_shared());
    const int t = thread_index(), at = (block_x() * 32 + t) * 2;
    a.to[at] = fixed[t];
    a.to[at + 1] = given[t];
    sync_block();
    fixed[t] = given[t] = 1.0f;
}

}  // namespace cuda
}  // namespace ggr
