// FLASH_ATTN_EXT for many rows on the tensor cores: queries, K, weights and V in half, sums and softmax in f32. F16 or
// quantised K and V.
//
// A warp has 16 rows: its part of the result, its scores and (for heads up to 128) its queries lie in registers, the
// weights go from the fragments of one product to those of the next. K and V go through shared memory by asynchronous
// copies: V comes while the scores are computed, the next K while V is summed up. Blocks of positions that no row sees
// are not read. Floor: 4 * d * rows * positions operations of the tensor cores, or bytes of K and V.
#include "cuda/kernels/attention.cuh"

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

// What the rows of a block see of a block of positions.
struct Sight {
    uint32_t live[2];
    bool plain;
};

// The rows of a block: queries and, where every head has a mask of its own, heads.
struct Span {
    int first_query, last_query, first_head, n_heads, batch;
};

// Positions from `key` on, `n` of them (32 or 64, at a multiple of that).
GGR_DEVICE Sight sight_of(const AttentionArgs& a, const Span& span, int key, int n) {
    Sight s;
    const int left = a.n_kv - key;
    s.live[0] = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    s.live[1] = n < 64 || left >= 64 ? 0xffffffffu : left <= 32 ? 0 : (1u << (left - 32)) - 1;
    s.plain = left >= n;
    if (a.mask.data == nullptr) return s;
    const int blocks = (a.n_queries + MASK_QUERIES - 1) / MASK_QUERIES, columns = (a.n_kv + MASK_KEYS - 1) / MASK_KEYS;
    const int ne2 = static_cast<int>(a.mask.ne[2]), matrices = ne2 == 1 ? 1 : span.n_heads;
    uint32_t live[2] = {0, 0};
    for (int h = 0; h < matrices; ++h) {
        const int64_t matrix = (span.first_head + h) % ne2 + span.batch % static_cast<int>(a.mask.ne[3]) * ne2;
        for (int b = span.first_query / MASK_QUERIES; b <= span.last_query / MASK_QUERIES; ++b) {
            const MaskTile& tile = a.tiles[(matrix * blocks + b) * columns + key / MASK_KEYS];
            live[0] |= tile.live[0];
            live[1] |= tile.live[1];
            s.plain = s.plain && tile.plain != 0;
        }
    }
    s.live[0] &= n < 64 && key % MASK_KEYS != 0 ? live[1] : live[0];
    s.live[1] &= n < 64 ? 0xffffffffu : live[1];
    return s;
}

// KEYS rows of K or V as halves, zeros past d channels and past the last position. Words of 16 bytes by the threads in
// turn, so that neighbours read neighbours.
template <int D, int KEYS>
GGR_DEVICE void load_rows(uint16_t* to, const uint8_t* from, int64_t nb, int32_t type, bool aligned, int d, int key,
                          int n_kv) {
    constexpr int CHUNKS = D / 8;
    for (int i = thread_index(); i < KEYS * CHUNKS; i += n_threads()) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool valid = key + row < n_kv && chunk * 8 < d;
        const uint8_t* source = from + (valid ? key + row : 0) * nb;
        uint16_t* target = to + row * (D + 8) + chunk * 8;
        if (type == ELEMENT_F16 && aligned) {
            copy16_async(target, source + (valid ? 16 * chunk : 0), valid);
            continue;
        }
        float x[8];
        GGR_UNROLL
        for (int j = 0; j < 8; ++j) x[j] = 0.0f;
        if (valid) load_chunk(x, type, aligned, source, chunk, d);
        Bytes16 w;
        GGR_UNROLL
        for (int j = 0; j < 4; ++j) w.word[j] = pack_halves(x[2 * j], x[2 * j + 1]);
        *reinterpret_cast<Bytes16*>(target) = w;
    }
}

// D: channels of the longer of K's and V's rows, rounded up; the shared rows are 16 bytes longer, so that the eight
// rows of a matrix lie in different banks.
template <int D, int WARPS>
GGR_KERNEL GGR_BOUNDS(WARPS * 32, 1) attention_tiles(const AttentionArgs a) {
    constexpr int KEYS = D <= 128 ? 64 : 32, STRIDE = D + 8, ROWS = 16 * WARPS;
    constexpr bool Q_SHARED = D > 128;
    const int rows = a.group * a.n_queries, n_tiles = (rows + ROWS - 1) / ROWS;
    const int first_row = block_x() % n_tiles * ROWS, first_head = block_x() / n_tiles * a.group, batch = block_z();
    const int split = block_y(), begin = split * a.split_length;
    const int end = begin + a.split_length < a.n_kv ? begin + a.split_length : a.n_kv;
    const uint8_t* const k = k_head(a, first_head, batch);
    const uint8_t* const v = v_head(a, first_head, batch);
    uint16_t* const keys = reinterpret_cast<uint16_t*>(dynamic_shared());
    uint16_t* const values = keys + KEYS * STRIDE;
    uint16_t* const queries = values + KEYS * STRIDE;
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
    const auto scaled = [&](int i, int channel) {
        return channel < a.dk ? pack_halves(q_of[i][channel] * scale, q_of[i][channel + 1] * scale) : 0u;
    };
    uint32_t q[Q_SHARED ? 1 : D / 16][4];
    if constexpr (Q_SHARED) {
        for (int c = 0; c < D; c += 8) {
            const int row = warp_index() * 16 + quad;
            *reinterpret_cast<uint32_t*>(queries + row * STRIDE + c + pair) = scaled(0, c + pair);
            *reinterpret_cast<uint32_t*>(queries + (row + 8) * STRIDE + c + pair) = scaled(1, c + pair);
        }
        sync_warp();
    } else {
        GGR_UNROLL
        for (int c = 0; c < D / 16; ++c) {
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) q[c][i] = scaled(i % 2, c * 16 + i / 2 * 8 + pair);
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
    if (key < end) load_rows<D, KEYS>(keys, k, a.k.nb[1], a.k_type, a.k_aligned != 0, a.dk, key, a.n_kv);
    copies_commit();
    while (key < end) {
        load_rows<D, KEYS>(values, v, a.v.nb[1], a.v_type, a.v_aligned != 0, a.dv, key, a.n_kv);
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
            uint32_t fragment[4];
            if constexpr (Q_SHARED) {
                load_matrices(fragment,
                              queries + (warp_index() * 16 + lane() % 16) * STRIDE + c * 16 + lane() / 16 * 8);
            } else {
                GGR_UNROLL
                for (int i = 0; i < 4; ++i) fragment[i] = q[c][i];
            }
            GGR_UNROLL
            for (int n = 0; n < KEYS / 16; ++n) {
                uint32_t b[4];
                load_matrices(b, keys + (n * 16 + lane() / 16 * 8 + lane() % 8) * STRIDE + c * 16 + lane() / 8 % 2 * 8);
                const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
                mma_f16(s[2 * n], fragment, first);
                mma_f16(s[2 * n + 1], fragment, second);
            }
        }
        sync_block();  // nobody reads K any more
        if (next < end) load_rows<D, KEYS>(keys, k, a.k.nb[1], a.k_type, a.k_aligned != 0, a.dk, next, a.n_kv);
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
                if ((sight.live[row / 32] >> (row % 32) & 1) == 0)
                    *reinterpret_cast<Bytes16*>(values + row * STRIDE + i % (D / 8) * 8) = Bytes16{};
            }
            sync_block();
        }
        GGR_UNROLL
        for (int c = 0; c < KEYS / 16; ++c) {
            const uint32_t fragment[4] = {pack_halves(s[2 * c][0], s[2 * c][1]), pack_halves(s[2 * c][2], s[2 * c][3]),
                                          pack_halves(s[2 * c + 1][0], s[2 * c + 1][1]),
                                          pack_halves(s[2 * c + 1][2], s[2 * c + 1][3])};
            GGR_UNROLL
            for (int n = 0; n < D / 16; ++n) {
                if (n * 16 >= a.dv) continue;
                uint32_t b[4];
                load_matrices_transposed(
                    b, values + (c * 16 + lane() / 8 % 2 * 8 + lane() % 8) * STRIDE + n * 16 + lane() / 16 * 8);
                const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
                mma_f16(sum[2 * n], fragment, first);
                mma_f16(sum[2 * n + 1], fragment, second);
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
