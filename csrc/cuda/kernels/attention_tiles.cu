// FLASH_ATTN_EXT for many rows on the tensor cores: queries, K, weights and V in 16 bits (F32 in twice 16), sums and
// softmax in f32.
//
// A warp has 16 rows: its part of the result, its scores and (for heads up to 128) its queries lie in registers, the
// weights go from the fragments of one product to those of the next. K and V go through shared memory by asynchronous
// copies: V comes while the scores are computed, the next K while V is summed up. Blocks of positions that no row sees
// are not read. Floor: 4 * d * rows * positions operations of the tensor cores, or bytes of K and V.
#include "cuda/kernels/attention_tiles.cuh"

namespace ggr {
namespace cuda {

// What each block of queries sees of each block of positions. Blocks: positions, queries, matrices of the mask.
GGR_KERNEL GGR_BOUNDS(128, 1) mask_tiles(const MaskTilesArgs a) {
    GGR_SHARED uint32_t live_of[4], other_of[4];
    const int key = block_x() * MASK_KEYS + thread_index() % MASK_KEYS;
    const int first = block_y() * MASK_QUERIES + thread_index() / MASK_KEYS * (MASK_QUERIES / 2);
    const uint8_t* matrix = a.mask.data + block_z() % static_cast<int>(a.mask.ne[2]) * a.mask.nb[2] +
                            block_z() / static_cast<int>(a.mask.ne[2]) * a.mask.nb[3];
    bool live = false, other = false;
    for (int i = 0; i < MASK_QUERIES / 2; ++i) {
        if (first + i >= a.n_queries) continue;
        const uint16_t bits =
            key < a.n_kv ? reinterpret_cast<const uint16_t*>(matrix + (first + i) * a.mask.nb[1])[key] : 0xfc00;
        live = live || bits != 0xfc00;
        other = other || (bits & 0x7fff) != 0;
    }
    const uint32_t lives = ballot(live), others = ballot(other);
    if (lane() == 0) {
        live_of[warp_index()] = lives;
        other_of[warp_index()] = others;
    }
    sync_block();
    if (thread_index() != 0) return;
    const int64_t blocks = (a.n_queries + MASK_QUERIES - 1) / MASK_QUERIES;
    MaskTile* out = a.out + (block_z() * blocks + block_y()) * ((a.n_kv + MASK_KEYS - 1) / MASK_KEYS) + block_x();
    out->live[0] = live_of[0] | live_of[2];
    out->live[1] = live_of[1] | live_of[3];
    out->plain = (other_of[0] | other_of[1] | other_of[2] | other_of[3]) == 0;
    out->unused = 0;
}

// D: channels of the longer of K's and V's rows, rounded up; the shared rows are 16 bytes longer, so that the eight
// rows of a matrix lie in different banks.
//
// Registers: a thread holds D / 2 sums, D / 4 of the queries and KEYS / 2 scores: 128 for D = 128, and ptxas takes 255
// for it. That leaves 8 warps a multiprocessor; 12 would need 168 registers, and spill 350 bytes (100 with the queries
// in shared memory). They would not pay: the four reads of K that go with eight products take 16 cycles of the shared
// memory, as long as the products themselves, so what bounds the kernel are those reads, and queries would add a
// quarter to the half of them that are K's. For D = 64 the 168 registers suffice.
template <int D, int WARPS, int MODE>
GGR_KERNEL GGR_BOUNDS(WARPS * 32, D <= 64 ? 3 : 1) attention_tiles(const AttentionArgs a) {
    constexpr int PLANES = Mode<MODE>::PLANES;
    constexpr int KEYS = D <= 128 && PLANES == 1 ? 64 : 32, STRIDE = D + 8, ROWS = 16 * WARPS;
    constexpr int KEY_PLANE = KEYS * STRIDE, QUERY_PLANE = ROWS * STRIDE;
    constexpr bool Q_SHARED = D > 128 || PLANES > 1;
    const int rows = a.group * a.n_queries, n_tiles = (rows + ROWS - 1) / ROWS;
    const int first_row = block_x() % n_tiles * ROWS, first_head = block_x() / n_tiles * a.group, batch = block_z();
    const int split = block_y(), begin = split * a.split_length;
    const int end = begin + a.split_length < a.n_kv ? begin + a.split_length : a.n_kv;
    const uint8_t* const k = k_head(a, first_head, batch);
    const uint8_t* const v = v_head(a, first_head, batch);
    uint16_t* const keys = reinterpret_cast<uint16_t*>(dynamic_shared());
    uint16_t* const values = keys + PLANES * KEY_PLANE;
    uint16_t* const queries = values + PLANES * KEY_PLANE;
    const int last_row = (first_row + ROWS < rows ? first_row + ROWS : rows) - 1;
    const Span span = {first_row / a.group, last_row / a.group, first_head, a.group, batch};
    const float scale = a.softcap != 0.0f ? a.scale / a.softcap : a.scale;

    // The two rows of this thread, by the layout of the fragments.
    const int quad = lane() / 4, pair = lane() % 4 * 2;
    int query_of[2], head_of[2];
    float slope[2];
    const uint16_t* mask_of[2] = {nullptr, nullptr};
    const float* q_of[2];
    GGR_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int wanted = first_row + warp_index() * 16 + quad + 8 * i, row = wanted < rows ? wanted : rows - 1;
        query_of[i] = row / a.group;
        head_of[i] = first_head + row % a.group;
        slope[i] = alibi_slope(a.max_bias, a.n_heads, head_of[i]);
        if (a.mask.data != nullptr) mask_of[i] = mask_row(a, query_of[i], head_of[i], batch);
        q_of[i] = reinterpret_cast<const float*>(a.q.data + query_of[i] * a.q.nb[1] + head_of[i] * a.q.nb[2] +
                                                 batch * a.q.nb[3]);
    }
    const auto scaled = [&](uint32_t(&word)[PLANES], int i, int channel) {
        const bool there = channel < a.dk;
        pack<MODE>(word, there ? q_of[i][channel] * scale : 0.0f, there ? q_of[i][channel + 1] * scale : 0.0f);
    };
    uint32_t q[Q_SHARED ? 1 : D / 16][4];
    if constexpr (Q_SHARED) {
        for (int c = 0; c < D; c += 8) {
            GGR_UNROLL
            for (int i = 0; i < 2; ++i) {
                uint32_t word[PLANES];
                scaled(word, i, c + pair);
                GGR_UNROLL
                for (int p = 0; p < PLANES; ++p)
                    *reinterpret_cast<uint32_t*>(queries + p * QUERY_PLANE +
                                                 (warp_index() * 16 + quad + 8 * i) * STRIDE + c + pair) = word[p];
            }
        }
        sync_warp();
    } else {
        GGR_UNROLL
        for (int c = 0; c < D / 16; ++c) {
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) {
                uint32_t word[PLANES];
                scaled(word, i % 2, c * 16 + i / 2 * 8 + pair);
                q[c][i] = word[0];
            }
        }
    }

    float sum[D / 8][4], top[2] = {-infinity(), -infinity()}, total[2] = {0.0f, 0.0f};
    GGR_UNROLL
    for (int n = 0; n < D / 8; ++n) {
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) sum[n][i] = 0.0f;
    }

    Sight sight = {{0, 0}, false}, next_sight = sight;
    // The first block of positions from `key` on that some row sees.
    const auto seen = [&](int key, Sight* s) {
        for (; key < end; key += KEYS) {
            *s = sight_of(a, span, key, KEYS);
            if ((s->live[0] | (KEYS > 32 ? s->live[1] : 0)) != 0) break;
        }
        return key;
    };
    int key = seen(begin, &sight);
    if (key < end)
        load_rows<D, KEYS, MODE>(keys, KEY_PLANE, k, a.k.nb[1], a.k_type, a.k_aligned != 0, a.dk, key, a.n_kv);
    copies_commit();
    while (key < end) {
        load_rows<D, KEYS, MODE>(values, KEY_PLANE, v, a.v.nb[1], a.v_type, a.v_aligned != 0, a.dv, key, a.n_kv);
        copies_commit();
        const int next = seen(key + KEYS, &next_sight);
        copies_wait<1>();
        sync_block();  // K is there

        float s[KEYS / 8][4];
        GGR_UNROLL
        for (int n = 0; n < KEYS / 8; ++n) {
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) s[n][i] = 0.0f;
        }
        GGR_UNROLL
        for (int c = 0; c < D / 16; ++c) {
            if (c * 16 >= a.dk) continue;
            uint32_t fragment[PLANES][4];
            GGR_UNROLL
            for (int p = 0; p < PLANES; ++p) {
                if constexpr (Q_SHARED) {
                    load_matrices(fragment[p], queries + p * QUERY_PLANE + (warp_index() * 16 + lane() % 16) * STRIDE +
                                                   c * 16 + lane() / 16 * 8);
                } else {
                    GGR_UNROLL
                    for (int i = 0; i < 4; ++i) fragment[p][i] = q[c][i];
                }
            }
            GGR_UNROLL
            for (int n = 0; n < KEYS / 16; ++n) {
                uint32_t first[PLANES][2], second[PLANES][2];
                GGR_UNROLL
                for (int p = 0; p < PLANES; ++p) {
                    uint32_t b[4];
                    load_matrices(b, keys + p * KEY_PLANE + (n * 16 + lane() / 16 * 8 + lane() % 8) * STRIDE + c * 16 +
                                         lane() / 8 % 2 * 8);
                    GGR_UNROLL
                    for (int i = 0; i < 2; ++i) {
                        first[p][i] = b[i];
                        second[p][i] = b[2 + i];
                    }
                }
                multiply<MODE>(s[2 * n], fragment, first);
                multiply<MODE>(s[2 * n + 1], fragment, second);
            }
        }
        sync_block();  // nobody reads K any more
        if (next < end)
            load_rows<D, KEYS, MODE>(keys, KEY_PLANE, k, a.k.nb[1], a.k_type, a.k_aligned != 0, a.dk, next, a.n_kv);
        copies_commit();

        if (a.softcap != 0.0f) {
            GGR_UNROLL
            for (int n = 0; n < KEYS / 8; ++n) {
                GGR_UNROLL
                for (int i = 0; i < 4; ++i) s[n][i] = a.softcap * hyperbolic_tangent(s[n][i]);
            }
        }
        const bool masked = a.mask.data != nullptr;
        if (!sight.plain) {
            GGR_UNROLL
            for (int n = 0; n < KEYS / 8; ++n) {
                const int at = n * 8 + pair;
                const uint32_t live = sight.live[n / 4] >> (at % 32);
                GGR_UNROLL
                for (int i = 0; i < 2; ++i) {
                    uint32_t bits = 0;
                    if (masked) {
                        const uint16_t* from = mask_of[i] + key + at;
                        if (a.mask_aligned)
                            bits = *reinterpret_cast<const uint32_t*>(from);
                        else
                            bits = load4_from2(from);
                    }
                    GGR_UNROLL
                    for (int j = 0; j < 2; ++j) {
                        const float m = half_to_float(static_cast<uint16_t>(bits >> (16 * j)));
                        float& x = s[n][2 * i + j];
                        x = (live >> j & 1) == 0 || m == -infinity() ? -infinity() : x + slope[i] * m;
                    }
                }
            }
        }
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            float higher = top[i];
            GGR_UNROLL
            for (int n = 0; n < KEYS / 8; ++n) higher = largest(higher, largest(s[n][2 * i], s[n][2 * i + 1]));
            higher = largest(higher, shuffle_xor(higher, 1));
            higher = largest(higher, shuffle_xor(higher, 2));
            const float base = higher == -infinity() ? 0.0f : higher, shrink = exponential_fast(top[i] - base);
            top[i] = higher;
            total[i] *= shrink;
            GGR_UNROLL
            for (int n = 0; n < D / 8; ++n) {
                sum[n][2 * i] *= shrink;
                sum[n][2 * i + 1] *= shrink;
            }
            GGR_UNROLL
            for (int n = 0; n < KEYS / 8; ++n) {
                GGR_UNROLL
                for (int j = 0; j < 2; ++j) {
                    float& x = s[n][2 * i + j];
                    x = exponential_fast(x - base);
                    total[i] += x;
                }
            }
        }

        copies_wait<1>();
        sync_block();  // V is there
        const bool all_live = sight.live[0] == 0xffffffffu && (KEYS == 32 || sight.live[1] == 0xffffffffu);
        if (!all_live) {  // what nobody sees may be NaN
            for (int i = thread_index(); i < KEYS * (D / 8); i += n_threads()) {
                const int row = i / (D / 8);
                if ((sight.live[row / 32] >> (row % 32) & 1) != 0) continue;
                GGR_UNROLL
                for (int p = 0; p < PLANES; ++p)
                    *reinterpret_cast<Bytes16*>(values + p * KEY_PLANE + row * STRIDE + i % (D / 8) * 8) = Bytes16{};
            }
            sync_block();
        }
        GGR_UNROLL
        for (int c = 0; c < KEYS / 16; ++c) {
            uint32_t fragment[PLANES][4];
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) {
                uint32_t word[PLANES];
                pack<MODE>(word, s[2 * c + i / 2][i % 2 * 2], s[2 * c + i / 2][i % 2 * 2 + 1]);
                GGR_UNROLL
                for (int p = 0; p < PLANES; ++p) fragment[p][i] = word[p];
            }
            GGR_UNROLL
            for (int n = 0; n < D / 16; ++n) {
                if (n * 16 >= a.dv) continue;
                uint32_t first[PLANES][2], second[PLANES][2];
                GGR_UNROLL
                for (int p = 0; p < PLANES; ++p) {
                    uint32_t b[4];
                    load_matrices_transposed(b, values + p * KEY_PLANE +
                                                    (c * 16 + lane() / 8 % 2 * 8 + lane() % 8) * STRIDE + n * 16 +
                                                    lane() / 16 * 8);
                    GGR_UNROLL
                    for (int i = 0; i < 2; ++i) {
                        first[p][i] = b[i];
                        second[p][i] = b[2 + i];
                    }
                }
                multiply<MODE>(sum[2 * n], fragment, first);
                multiply<MODE>(sum[2 * n + 1], fragment, second);
            }
        }
        sync_block();  // nobody reads V any more
        key = next;
        sight = next_sight;
    }

    GGR_UNROLL
    for (int i = 0; i < 2; ++i) {
        total[i] += shuffle_xor(total[i], 1);
        total[i] += shuffle_xor(total[i], 2);
    }
    GGR_UNROLL
    for (int i = 0; i < 2; ++i) {
        if (first_row + warp_index() * 16 + quad + 8 * i >= rows) continue;
        const bool whole = a.partials == nullptr;
        const float factor = whole ? final_factor(a, head_of[i], top[i], total[i]) : 1.0f;
        float* to = whole ? result_row(a, query_of[i], head_of[i], batch)
                          : partial_row(a, query_of[i], head_of[i], batch, split) + 2;
        GGR_UNROLL
        for (int n = 0; n < D / 8; ++n) {
            const int channel = n * 8 + pair;
            if (channel >= a.dv) continue;
            to[channel] = sum[n][2 * i] * factor;
            to[channel + 1] = sum[n][2 * i + 1] * factor;
        }
        if (!whole && pair == 0) {
            to[-2] = top[i];
            to[-1] = total[i];
        }
    }
}

}  // namespace cuda
}  // namespace ggr
