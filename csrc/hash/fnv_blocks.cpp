// FNV-1a of one buffer by vectors: compiled once for each instruction-set level.
//
// With h' = (h ^ b) p, let l be the low byte of h and x = l ^ b. Then h' = (h + x - l) p, so over n bytes
// h -> h p^n + sum (x_i - l_i) p^(n-i): a dot product, once all low bytes are known. Those follow l' = 0xb3 (l ^ b) mod
// 256 alone. A vector's lanes run through segments of 16 bytes, 16 steps for all; where a segment starts is found bit
// by bit: bit k of its end is bit k of its start, flipped or not as its bytes and the lower bits of its start say. So a
// pass over all segments with bit k guessed as 0 gives a flip a segment, and a prefix xor over the segments gives bit k
// of every start. Bits 0, 1 and 4 are sums without a carry and need no pass of their own. The two nibbles are run one
// after the other, since a multiplication of a nibble is one look-up.
//
// About 51 vector operations for a vector of bytes. Measured on a Zen 4 at 3.6 GHz, one thread, data in the
// second-level cache: 4.8 GB/s (AVX-512), 3.9 (AVX2), 2.0 (SSE4), where the byte loop has 0.91 (4 cycles a byte).
#include "hash/fnv.h"
#include "hash/vectors.h"

namespace ggr {
namespace GGR_LEVEL {

#if defined(GGR_HASH_VECTORS)

namespace {

constexpr int STEPS = 16;            // bytes of a segment
constexpr int UNIT = STEPS * LANES;  // bytes that fill a vector's lanes

constexpr uint64_t power(int n) {
    uint64_t v = 1;
    for (int i = 0; i < n; ++i) v *= FNV_PRIME;
    return v;
}

// Powers of the prime as four signed 16-bit digits, laid out as the differences leave `unpack`: by step, half of a
// group and digit.
struct Weights {
    alignas(64) int16_t digit[STEPS][2][4][LANES / 2];
};

constexpr Weights make_weights() {
    Weights w = {};
    uint64_t powers[UNIT + 1] = {1};
    for (int i = 1; i <= UNIT; ++i) powers[i] = powers[i - 1] * FNV_PRIME;
    for (int step = 0; step < STEPS; ++step)
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < LANES / 2; ++i) {
                const int segment = (half * 8 + i % 8) * (LANES / 16) + i / 8;
                uint64_t v = powers[UNIT - segment * STEPS - step];
                for (int k = 0; k < 4; ++k) {
                    const int16_t digit = static_cast<int16_t>(v & 0xffff);
                    w.digit[step][half][k][i] = digit;
                    v = (v - static_cast<uint64_t>(static_cast<int64_t>(digit))) >> 16;
                }
            }
    return w;
}

constexpr Weights WEIGHTS = make_weights();

// Of a nibble n: the low nibble of 0xb3 n, its high nibble, and n in the place of the high nibble. 3 n is also what
// 0xb3 does to a high nibble.
constexpr uint8_t TIMES_3[16] = {0, 3, 6, 9, 12, 15, 2, 5, 8, 11, 14, 1, 4, 7, 10, 13};
constexpr uint8_t CARRIED[16] = {0, 11, 6, 1, 12, 7, 3, 14, 9, 4, 15, 11, 6, 1, 12, 7};
constexpr uint8_t RAISED[16] = {0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240};

constexpr bool check_carried() {
    for (int n = 0; n < 16; ++n)
        if (CARRIED[n] != ((n * 0xb3) >> 4 & 15) || TIMES_3[n] != (n * 3 & 15)) return false;
    return true;
}
static_assert(check_carried(), "tables of 0xb3 n");

#define GGR_EACH_STEP _Pragma("GCC unroll 16") for (int t = 0; t < STEPS; ++t)
#define GGR_EACH_UNIT _Pragma("GCC unroll 4") for (int u = 0; u < N; ++u)

// A block is N units. `low` and `high` hold the nibbles of all bytes, later those of x.
template <int N>
struct Block {
    alignas(64) uint8_t bytes[STEPS][N][LANES], low[STEPS][N][LANES], high[STEPS][N][LANES], carried[STEPS][N][LANES];
};

// Given what passes left in bit `mask` of the segments' ends, that bit of their starts; `state` is the nibble before
// the block, and becomes that after it.
template <int N>
inline void resolve(const Bytes (&ends)[N], int mask, Bytes* state, Bytes (&starts)[N]) {
    const Bytes bit = same(mask);
    GGR_EACH_UNIT {
        Bytes all;
        const Bytes flips = before_lanes(ends[u], &all);
        starts[u] = both(flip(flips, *state), bit);
        *state = flip(*state, both(all, bit));
    }
}

template <int N>
uint64_t run(const uint8_t* p, size_t n_blocks, uint64_t h) {
    Block<N> block;
    const Bytes times_3 = table(TIMES_3), carried = table(CARRIED), raised = table(RAISED);
    const Bytes minus = GGR_V(set1_epi16)(static_cast<short>(0xff01));  // 1 and -1
    Bytes state_low = same(static_cast<int>(h & 15)), state_high = same(static_cast<int>(h >> 4 & 15));
    constexpr uint64_t advance = power(UNIT);
    for (; n_blocks > 0; --n_blocks, p += N * UNIT) {
        Bytes ends[N], starts[N], bit[N], at[N];
        GGR_EACH_UNIT {
            Bytes rows[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) rows[i] = load(p + u * UNIT + i * LANES);
            transpose(rows);
            // 16 - t multiplications follow step t, and each adds bit 0 to bit 1.
            Bytes even = zero(), odd = zero();
            GGR_EACH_STEP {
                store(block.bytes[t][u], rows[t]);
                store(block.low[t][u], both(rows[t], same(15)));
                store(block.high[t][u], high_nibbles(rows[t]));
                (t % 2 == 0 ? even : odd) = flip(t % 2 == 0 ? even : odd, rows[t]);
            }
            const Bytes once = both(odd, same(1));
            ends[u] = flip(even, odd, add(once, once));
        }
        resolve<N>(ends, 3, &state_low, starts);

        GGR_EACH_UNIT at[u] = starts[u];
        GGR_EACH_STEP GGR_EACH_UNIT at[u] = look(times_3, flip(at[u], load(block.low[t][u])));
        resolve<N>(at, 4, &state_low, bit);

        GGR_EACH_UNIT at[u] = starts[u] = flip(starts[u], bit[u]);
        GGR_EACH_STEP GGR_EACH_UNIT {
            const Bytes x = flip(at[u], load(block.low[t][u]));
            store(block.low[t][u], x);
            at[u] = look(times_3, x);
        }
        // Bit 3 of a start flips bit 3 of x at every step of the segment, and nothing else.
        resolve<N>(at, 8, &state_low, bit);

        GGR_EACH_UNIT ends[u] = zero();
        GGR_EACH_STEP GGR_EACH_UNIT {
            const Bytes x = flip(load(block.low[t][u]), bit[u]), carry = look(carried, x);
            store(block.low[t][u], x);
            store(block.carried[t][u], carry);
            ends[u] = flip(ends[u], carry, load(block.high[t][u]));
            // The next block, where there is one; beyond the end it does no harm.
            _mm_prefetch(reinterpret_cast<const char*>(p) + N * UNIT + (t * N + u) * LANES, _MM_HINT_T0);
        }
        resolve<N>(ends, 1, &state_high, starts);

        for (int mask = 2; mask <= 4; mask *= 2) {
            GGR_EACH_UNIT at[u] = starts[u];
            GGR_EACH_STEP GGR_EACH_UNIT at[u] =
                add(look(times_3, flip(at[u], load(block.high[t][u]))), load(block.carried[t][u]));
            resolve<N>(at, mask, &state_high, bit);
            GGR_EACH_UNIT starts[u] = flip(starts[u], bit[u]);
        }

        GGR_EACH_UNIT at[u] = starts[u];
        GGR_EACH_STEP GGR_EACH_UNIT {
            const Bytes x = flip(at[u], load(block.high[t][u]));
            store(block.high[t][u], x);
            at[u] = add(look(times_3, x), load(block.carried[t][u]));
        }
        resolve<N>(at, 8, &state_high, bit);
        GGR_EACH_UNIT bit[u] = look(raised, bit[u]);

        // |x - l| < 256 and 32 pairs of products a sum: they stay below 2^30.
        Bytes sums[N][4];
        GGR_EACH_UNIT
        for (int k = 0; k < 4; ++k) sums[u][k] = zero();
#pragma GCC unroll 2
        for (int t = 0; t < STEPS; ++t) {
            Bytes differences[N][2];
            GGR_EACH_UNIT {
                const Bytes x = flip(load(block.low[t][u]), look(raised, load(block.high[t][u])), bit[u]);
                const Bytes l = flip(x, load(block.bytes[t][u]));
                differences[u][0] = GGR_V(maddubs_epi16)(GGR_V(unpacklo_epi8)(x, l), minus);
                differences[u][1] = GGR_V(maddubs_epi16)(GGR_V(unpackhi_epi8)(x, l), minus);
            }
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    const Bytes weights = load(WEIGHTS.digit[t][half][k]);
                    GGR_EACH_UNIT sums[u][k] = dot(sums[u][k], differences[u][half], weights);
                }
        }
        GGR_EACH_UNIT h = h * advance + join(sums[u]);
    }
    return h;
}

}  // namespace

// Hash the whole blocks at the start of the data; return their bytes.
size_t fnv_blocks(const uint8_t* data, size_t size, uint64_t* hash) {
    const size_t n_blocks = size / (UNITS * UNIT);
    size_t done = n_blocks * UNITS * UNIT;
    if (n_blocks > 0) *hash = run<UNITS>(data, n_blocks, *hash);
    if (const size_t n_units = (size - done) / UNIT; n_units > 0) {
        *hash = run<1>(data + done, n_units, *hash);
        done += n_units * UNIT;
    }
    return done;
}

#else

// The level has no vectors for it.
size_t fnv_blocks(const uint8_t*, size_t, uint64_t*) { return 0; }

#endif

}  // namespace GGR_LEVEL
}  // namespace ggr
