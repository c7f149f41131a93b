#include "wire/pack.h"

namespace ggr {

namespace {

void put_count(std::vector<uint8_t>* out, size_t n) {
    for (; n >= 0x80; n >>= 7) out->push_back(static_cast<uint8_t>(n | 0x80));
    out->push_back(static_cast<uint8_t>(n));
}

size_t get_count(const std::vector<uint8_t>& in, size_t* at) {
    size_t n = 0;
    for (int shift = 0;; shift += 7) {
        const uint8_t byte = in[(*at)++];
        n |= static_cast<size_t>(byte & 0x7f) << shift;
        if (byte < 0x80) return n;
    }
}

}  // namespace

// Layout: byte count, then pairs of (number of zeros, number of literals, literals) until all bytes are there.
std::vector<uint8_t> pack_payload(const std::vector<uint8_t>& payload, size_t stride) {
    const size_t size = payload.size();
    const auto mixed = [&](size_t i) -> uint8_t { return i < stride ? payload[i] : payload[i] ^ payload[i - stride]; };
    std::vector<uint8_t> out;
    put_count(&out, size);
    for (size_t i = 0; i < size;) {
        const size_t zeros_from = i;
        while (i < size && mixed(i) == 0) ++i;
        const size_t from = i;
        // A single zero between literals is cheaper kept than announced.
        while (i < size && (mixed(i) != 0 || (i + 1 < size && mixed(i + 1) != 0))) ++i;
        put_count(&out, from - zeros_from);
        put_count(&out, i - from);
        for (size_t k = from; k < i; ++k) out.push_back(mixed(k));
    }
    out.shrink_to_fit();
    return out;
}

std::vector<uint8_t> unpack_payload(const std::vector<uint8_t>& packed, size_t stride) {
    size_t at = 0;
    std::vector<uint8_t> out(get_count(packed, &at), 0);
    for (size_t i = 0; i < out.size();) {
        i += get_count(packed, &at);
        for (size_t n = get_count(packed, &at); n > 0; --n) out[i++] = packed[at++];
    }
    for (size_t i = stride; i < out.size(); ++i) out[i] ^= out[i - stride];
    return out;
}

}  // namespace ggr
