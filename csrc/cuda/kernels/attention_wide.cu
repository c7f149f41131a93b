// FLASH_ATTN_EXT on the tensor cores for heads of more than 256 channels: those of latent attention (MLA), K of 576 and
// V of 512, where V mostly is a part of K and all heads of a query share both.
//
// A block of 8 warps has 32 rows, and takes 32 positions at a time through shared memory. For the scores a warp has 16
// rows, 16 positions and half of the channels; the softmax goes over shared memory; of the result a warp has 16 rows
// and a quarter of the channels in registers. Blocks of positions that no row sees are not read. Floor: 2 * (dk + dv) *
// rows * positions operations of the tensor cores, or bytes of K.
#include "cuda/kernels/attention_tiles.cuh"

namespace ggr {
namespace cuda {

template <int DK, int DV, int MODE>
GGR_KERNEL GGR_BOUNDS(256, 2) attention_wide(const AttentionArgs a) {
    static_assert(MODE != TILE_SPLIT && DK % 32 == 0 && DV % 64 == 0, "a plane, halves and quarters");
    constexpr int KEYS = 32, ROWS = 32, K_STRIDE = DK + 8, V_STRIDE = DV + 8, P_STRIDE = KEYS + 8, S_STRIDE = KEYS + 4;
    const int rows = a.group * a.n_queries, n_tiles = (rows + ROWS - 1) / ROWS;
    const int first_row = block_x() % n_tiles * ROWS, first_head = block_x() / n_tiles * a.group, batch = block_z();
    const int split = block_y(), begin = split * a.split_length;
    const int end = begin + a.split_length < a.n_kv ? begin + a.split_length : a.n_kv;
    const uint8_t* const k = k_head(a, first_head, batch);
    const uint8_t* const v = v_head(a, first_head, batch);
    // Weights and scores first, then queries, keys, and values where they are not a part of the keys.
    float* const scores = reinterpret_cast<float*>(dynamic_shared());  // [half of the channels][row][position]
    float* const factors = scores + 2 * ROWS * S_STRIDE;               // [row]: shrink, at the end maximum and sum
    uint16_t* const weights = reinterpret_cast<uint16_t*>(factors + 2 * ROWS);
    uint16_t* const queries = weights + ROWS * P_STRIDE;
    uint16_t* const keys = queries + ROWS * K_STRIDE;
    uint16_t* const values = a.v_in_k ? keys : keys + KEYS * K_STRIDE;
    const int v_stride = a.v_in_k ? K_STRIDE : V_STRIDE;
    const int last_row = (first_row + ROWS < rows ? first_row + ROWS : rows) - 1;
    const Span span = {first_row / a.group, last_row / a.group, first_head, a.group, batch};
    const float scale = a.softcap != 0.0f ? a.scale / a.softcap : a.scale;

    for (int i = thread_index(); i < ROWS * (DK / 2); i += n_threads()) {
        const int at = i / (DK / 2), channel = i % (DK / 2) * 2,
                  row = first_row + at < rows ? first_row + at : rows - 1;
        const int query = row / a.group, head = first_head + row % a.group;
        const float* q =
            reinterpret_cast<const float*>(a.q.data + query * a.q.nb[1] + head * a.q.nb[2] + batch * a.q.nb[3]) +
            channel;
        uint32_t word[1] = {0};
        if (channel < a.dk) pack<MODE>(word, q[0] * scale, q[1] * scale);
        *reinterpret_cast<uint32_t*>(queries + at * K_STRIDE + channel) = word[0];
    }

    // The softmax: eight neighbouring threads have a row, each four positions.
    const int own = thread_index() / 8, own_key = thread_index() % 8 * 4;
    const int own_row = first_row + own < rows ? first_row + own : rows - 1;
    const int own_head = first_head + own_row % a.group;
    const float slope = alibi_slope(a.max_bias, a.n_heads, own_head);
    const uint16_t* const mask = a.mask.data != nullptr ? mask_row(a, own_row / a.group, own_head, batch) : nullptr;
    float top = -infinity(), total = 0.0f;

    // The products: rows tile * 16 + quad and 8 below.
    const int tile = warp_index() % 2, quad = lane() / 4, pair = lane() % 4 * 2;
    const int key_group = warp_index() / 2 % 2, channel_half = warp_index() / 4, slice = warp_index() / 2 * (DV / 4);
    float sum[DV / 32][4];
    GGR_UNROLL
    for (int n = 0; n < DV / 32; ++n) {
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) sum[n][i] = 0.0f;
    }

    for (int key = begin; key < end; key += KEYS) {
        const Sight sight = sight_of(a, span, key, KEYS);
        if (sight.live[0] == 0) continue;
        sync_block();  // nobody reads K and V of before any more, and the queries are there
        load_rows<DK, KEYS, MODE>(keys, 0, k, a.k.nb[1], a.k_type, a.k_aligned != 0, a.dk, key, a.n_kv);
        copies_commit();
        if (!a.v_in_k)
            load_rows<DV, KEYS, MODE>(values, 0, v, a.v.nb[1], a.v_type, a.v_aligned != 0, a.dv, key, a.n_kv);
        copies_commit();
        copies_wait<1>();
        sync_block();  // K is there

        float s[2][4] = {};
        GGR_UNROLL
        for (int i = 0; i < DK / 32; ++i) {
            const int c = (channel_half * (DK / 32) + i) * 16;
            if (c >= a.dk) continue;
            uint32_t fragment[1][4], b[4];
            load_matrices(fragment[0], queries + (tile * 16 + lane() % 16) * K_STRIDE + c + lane() / 16 * 8);
            load_matrices(b,
                          keys + (key_group * 16 + lane() / 16 * 8 + lane() % 8) * K_STRIDE + c + lane() / 8 % 2 * 8);
            const uint32_t first[1][2] = {{b[0], b[1]}}, second[1][2] = {{b[2], b[3]}};
            multiply<MODE>(s[0], fragment, first);
            multiply<MODE>(s[1], fragment, second);
        }
        GGR_UNROLL
        for (int n = 0; n < 2; ++n) {
            GGR_UNROLL
            for (int i = 0; i < 4; ++i)
                scores[(channel_half * ROWS + tile * 16 + quad + i / 2 * 8) * S_STRIDE + key_group * 16 + n * 8 + pair +
                       i % 2] = s[n][i];
        }
        sync_block();  // the scores are there

        float x[4], higher = top;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            const int at = own_key + i;
            x[i] = scores[own * S_STRIDE + at] + scores[(ROWS + own) * S_STRIDE + at];
            if (a.softcap != 0.0f) x[i] = a.softcap * hyperbolic_tangent(x[i]);
            const bool live = (sight.live[0] >> at & 1) != 0;
            const float m = live && mask != nullptr ? half_to_float(mask[key + at]) : 0.0f;
            x[i] = !live || m == -infinity() ? -infinity() : x[i] + slope * m;
            higher = largest(higher, x[i]);
        }
        GGR_UNROLL
        for (int m = 1; m < 8; m *= 2) higher = largest(higher, shuffle_xor(higher, m));
        const float base = higher == -infinity() ? 0.0f : higher, shrink = exponential_fast(top - base);
        top = higher;
        total *= shrink;
        GGR_UNROLL
        for (int i = 0; i < 4; ++i) {
            x[i] = exponential_fast(x[i] - base);
            total += x[i];
        }
        GGR_UNROLL
        for (int i = 0; i < 2; ++i) {
            uint32_t word[1];
            pack<MODE>(word, x[2 * i], x[2 * i + 1]);
            *reinterpret_cast<uint32_t*>(weights + own * P_STRIDE + own_key + 2 * i) = word[0];
        }
        if (thread_index() % 8 == 0) factors[own] = shrink;
        copies_wait<0>();
        if (sight.live[0] != 0xffffffffu) {  // what nobody sees may be NaN
            sync_block();                    // V is there
            for (int i = thread_index(); i < KEYS * (DV / 8); i += n_threads()) {
                const int row = i / (DV / 8);
                if ((sight.live[0] >> row & 1) == 0)
                    *reinterpret_cast<Bytes16*>(values + row * v_stride + i % (DV / 8) * 8) = Bytes16{};
            }
        }
        sync_block();  // weights and V are there

        const float shrinks[2] = {factors[tile * 16 + quad], factors[tile * 16 + quad + 8]};
        GGR_UNROLL
        for (int n = 0; n < DV / 32; ++n) {
            GGR_UNROLL
            for (int i = 0; i < 4; ++i) sum[n][i] *= shrinks[i / 2];
        }
        GGR_UNROLL
        for (int c = 0; c < KEYS / 16; ++c) {
            uint32_t fragment[1][4];
            load_matrices(fragment[0], weights + (tile * 16 + lane() % 16) * P_STRIDE + c * 16 + lane() / 16 * 8);
            GGR_UNROLL
            for (int n = 0; n < DV / 64; ++n) {
                const int channel = slice + n * 16;
                if (channel >= a.dv) continue;
                uint32_t b[4];
                load_matrices_transposed(
                    b, values + (c * 16 + lane() / 8 % 2 * 8 + lane() % 8) * v_stride + channel + lane() / 16 * 8);
                const uint32_t first[1][2] = {{b[0], b[1]}}, second[1][2] = {{b[2], b[3]}};
                multiply<MODE>(sum[2 * n], fragment, first);
                multiply<MODE>(sum[2 * n + 1], fragment, second);
            }
        }
    }

    GGR_UNROLL
    for (int m = 1; m < 8; m *= 2) total += shuffle_xor(total, m);
    sync_block();  // nobody reads the factors any more
    if (thread_index() % 8 == 0) {
        factors[own] = top;
        factors[ROWS + own] = total;
    }
    sync_block();
    const bool whole = a.partials == nullptr;
    GGR_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int at = tile * 16 + quad + 8 * i, row = first_row + at;
        if (row >= rows) continue;
        const int query = row / a.group, head = first_head + row % a.group;
        const float factor = whole ? final_factor(a, head, factors[at], factors[ROWS + at]) : 1.0f;
        float* to = whole ? result_row(a, query, head, batch) : partial_row(a, query, head, batch, split) + 2;
        GGR_UNROLL
        for (int n = 0; n < DV / 32; ++n) {
            const int channel = slice + n * 8 + pair;
            if (channel >= a.dv) continue;
            to[channel] = sum[n][2 * i] * factor;
            to[channel + 1] = sum[n][2 * i + 1] * factor;
        }
        if (!whole && slice == 0 && pair == 0) {
            to[-2] = factors[at];
            to[-1] = factors[ROWS + at];
        }
    }
}

}  // namespace cuda
}  // namespace ggr
