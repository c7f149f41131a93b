// ROPE and ROPE_BACK: rotate pairs of channels of each head by angles proportional to the token's position. f32 or f16.
//
// An angle is a fraction of a turn: position times rate in integers modulo 2^64, so that it is as exact at position
// 10^6 as at 1 without f64. A thread has one pair of a token and some of its heads, or one channel beside the rotated
// ones that is copied. Floor: bytes of a and dst over memory bandwidth.
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/rope.h"

namespace ggr {
namespace cuda {

constexpr float RADIANS_OF_2_62 = 1.57079632679489661923f / 4611686018427387904.0f;  // pi/2 / 2^62

// Turns a position as a fraction of 2^64, a frequency factor applied. False if that is no number.
GGR_DEVICE bool divided_rate(uint64_t bits, float factor, uint64_t* rate) {
    union {
        uint64_t bits;
        double number;
    } turns;
    turns.bits = bits;
    double r = turns.number / static_cast<double>(factor);
    if (!(r > -9e18 && r < 9e18)) return false;
    r -= static_cast<double>(static_cast<int64_t>(r));  // within a turn
    // 2^62 and a shift: a double of up to 2^64 does not fit a signed number.
    *rate = static_cast<uint64_t>(static_cast<int64_t>(r * 4611686018427387904.0)) << 2;
    return true;
}

GGR_KERNEL GGR_BOUNDS(256, 1) rope(const RopeArgs a) {
    const uint32_t unit =
        static_cast<uint32_t>(block_x()) * static_cast<uint32_t>(n_threads()) + static_cast<uint32_t>(thread_index());
    if (unit >= a.total) return;
    const uint32_t rest = quotient(unit, a.columns), rest2 = quotient(rest, a.chunks), i3 = quotient(rest2, a.tokens);
    const int column = static_cast<int>(unit - rest * a.columns.divisor);
    const int64_t first_head = static_cast<int64_t>(rest - rest2 * a.chunks.divisor) * a.heads_a_chunk;
    const int64_t token = rest2 - i3 * a.tokens.divisor;
    const int64_t end = first_head + a.heads_a_chunk < a.dst.ne[1] ? first_head + a.heads_a_chunk : a.dst.ne[1];
    const uint8_t* in = row_at(a.a, first_head, token, i3);
    uint8_t* out = row_at(a.dst, first_head, token, i3);

    if (column >= a.pairs) {
        const int64_t beside = column - a.pairs;
        const int64_t i = (beside < a.offset ? beside : beside + 2 * a.pairs) * (a.f16 ? 2 : 4);
        for (int64_t head = first_head; head < end; ++head, in += a.a.nb[1], out += a.dst.nb[1]) {
            if (a.f16)
                *reinterpret_cast<uint16_t*>(out + i) = *reinterpret_cast<const uint16_t*>(in + i);
            else
                *reinterpret_cast<uint32_t*>(out + i) = *reinterpret_cast<const uint32_t*>(in + i);
        }
        return;
    }

    const int64_t position =
        *reinterpret_cast<const int32_t*>(reinterpret_cast<const uint8_t*>(a.positions) +
                                          (token + a.stream[column] * a.stream_elements) * a.positions_nb);
    uint64_t rate = a.rate[column];
    bool number = true;
    if (a.factors != nullptr)
        number = divided_rate(rate, *reinterpret_cast<const float*>(a.factors + column * a.factors_nb), &rate);
    const uint64_t phase = static_cast<uint64_t>(position) * rate;
    // The nearest quarter of a turn, and what is left: at most an eighth to either side.
    const uint32_t quarter = static_cast<uint32_t>((phase + (uint64_t{1} << 61)) >> 62);
    const float angle =
        static_cast<float>(static_cast<int64_t>(phase - (static_cast<uint64_t>(quarter) << 62))) * RADIANS_OF_2_62;
    const float s = sine(angle), c = cosine(angle);
    float cosine_of = quarter & 1 ? s : c, sine_of = quarter & 1 ? c : s;
    if (quarter == 1 || quarter == 2) cosine_of = -cosine_of;
    if (quarter & 2) sine_of = -sine_of;
    cosine_of *= a.cosine_factor;
    sine_of *= a.sine_factor;
    if (!number) cosine_of = sine_of = infinity() - infinity();

    const int size = a.f16 ? 2 : 4;
    const int64_t i = (a.offset + (a.distance == 1 ? 2 * column : column)) * size, j = i + a.distance * size;
    for (int64_t head = first_head; head < end; ++head, in += a.a.nb[1], out += a.dst.nb[1]) {
        const int32_t type = a.f16 ? ELEMENT_F16 : ELEMENT_F32;
        const float x = load_element(in + i, type), y = load_element(in + j, type);
        store_element(out + i, type, x * cosine_of - y * sine_of);
        store_element(out + j, type, x * sine_of + y * cosine_of);
    }
}

}  // namespace cuda
}  // namespace ggr
