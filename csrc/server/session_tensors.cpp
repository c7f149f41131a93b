// Commands that move tensor data: every range is checked against the tensor and its buffer first, then streamed in
// place.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>

#include "hash/fnv.h"
#include "server/session.h"

namespace ggr {

namespace {

// Files are read and written in pieces: a large tensor never needs a second copy in memory.
constexpr uint64_t FILE_CHUNK = uint64_t{1} << 20;
// Weights come one after the other: what follows a tensor of some size in its buffer is expected next.
constexpr uint64_t LARGE = uint64_t{1} << 20;
constexpr uint64_t AHEAD = uint64_t{32} << 20;

// From this size on a file that is known to be right is read behind the answer.
constexpr uint64_t LOAD_BEHIND = uint64_t{1} << 20;

bool times(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_mul_overflow(a, b, out); }
bool plus(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_add_overflow(a, b, out); }

bool fail_load(Error* err) {
    return err->fail(Code::device, "SET_TENSOR_HASH: the cache's file for a tensor changed while it was read");
}

}  // namespace

// A tensor record that must lie in a buffer of this session.
bool Session::target(const uint8_t* record, Target* out, Error* err) const {
    const char* name = command_name(command_);
    read_tensor(dialect_->tensor, record, &out->wire);
    out->tensor = Tensor{};
    if (!check_layout(*dialect_, out->wire, name, &out->tensor, err)) return false;
    out->buffer = find(out->wire.buffer);
    if (out->buffer == nullptr)
        return err->fail(Code::session, "%s: tensor '%s': buffer %016" PRIx64 " is not of this session", name,
                         out->wire.name, out->wire.buffer);
    if (!check_placement(out->wire, out->buffer, name, &out->tensor, err)) return false;
    out->start = out->wire.data - out->buffer->base;
    out->extent = static_cast<uint64_t>(extent_bytes(out->tensor));
    return true;
}

bool Session::range(const Target& t, uint64_t offset, uint64_t length, Error* err) const {
    if (offset > t.extent || length > t.extent - offset)
        return err->fail(Code::session,
                         "%s: tensor '%s': %" PRIu64 " bytes at offset %" PRIu64 " leave its %" PRIu64 " bytes",
                         command_name(command_), t.wire.name, length, offset, t.extent);
    return true;
}

bool Session::receive_into(const Region& r, const uint8_t* early, uint64_t n_early, Error* err) {
    Device* device = r.buffer->device;
    for (uint64_t at = 0; at < r.length;) {
        uint64_t mapped = 0;
        uint8_t* host = device->ops->map(device, r.buffer, r.offset + at, r.length - at, true, &mapped, err);
        if (host == nullptr) return false;
        const uint64_t here = std::min(mapped, n_early);
        if (here > 0) std::memcpy(host, early, here);
        early += here;
        n_early -= here;
        if (!stream_.read(host + here, mapped - here, command_name(command_), err) ||
            !device->ops->unmap(device, r.buffer, host, r.offset + at, mapped, true, err))
            return false;
        at += mapped;
    }
    return true;
}

bool Session::set_tensor(Error* err) {
    int32_t longest = 0;
    for (const DialectTable* table : tables_) longest = std::max(longest, table->set_tensor_header);
    if (!read_payload(std::min(length_, static_cast<uint64_t>(longest)), err) || !narrow_by_placement(err))
        return false;
    const uint64_t head = static_cast<uint64_t>(dialect_->set_tensor_header);
    if (length_ < head)
        return err->fail(Code::protocol, "SET_TENSOR: a payload of %" PRIu64 " bytes, its header has %" PRIu64, length_,
                         head);
    const uint8_t* p = payload_.data();
    const uint64_t offset = load_u64(p + dialect_->set_tensor_offset), size = length_ - head;
    const bool flag = dialect_->set_tensor_flag >= 0 && p[dialect_->set_tensor_flag] != 0;
    Target t;
    if (!target(p, &t, err) || !range(t, offset, size, err)) return false;
    trace("SET_TENSOR: '%s' offset %" PRIu64 ", %" PRIu64 " bytes%s", t.wire.name, offset, size,
          flag ? ", to cache" : "");
    region_ = {t.buffer, t.start + offset, size};
    if (!settle(region_, err)) return false;
    // Between tensors that are in the cache there is time to take pages as they are written; a thread that takes them
    // would compete with the client for a processor.
    if (size >= LARGE && !hit_) t.buffer->device->ops->expect(t.buffer->device, t.buffer, region_.offset, size + AHEAD);
    if (!receive_into(region_, p + head, payload_.size() - head, err)) return false;
    const bool wanted = dialect_->cache_by_flag ? flag : size > static_cast<uint64_t>(HASH_THRESHOLD_BYTES);
    keep_region_ = config_.cache && wanted && size > 0;
    return true;
}

// Fields of the 2-D commands: rows of `size` bytes, `stride` apart in the tensor, packed on the wire.
bool Session::header_2d(const uint8_t* p, Target* t, uint64_t* size, uint64_t* copies, uint64_t* stride,
                        uint64_t* offset, Error* err) const {
    const uint64_t at = static_cast<uint64_t>(dialect_->tensor.bytes);
    *offset = load_u64(p + at);
    *size = load_u64(p + at + 8);
    *copies = load_u64(p + at + 16);
    *stride = load_u64(p + at + 24);
    if (!target(p, t, err)) return false;
    const char* name = command_name(command_);
    if (*size == 0 || *copies == 0)
        return err->fail(Code::session, "%s: tensor '%s': size and n_copies must not be 0", name, t->wire.name);
    uint64_t span, total;
    if (!times(*copies - 1, *stride, &span) || !plus(span, *size, &span) || !times(*size, *copies, &total))
        return err->fail(Code::session, "%s: tensor '%s': the span overflows", name, t->wire.name);
    // Rows may overlap in the tensor only when they are read; so what travels is bounded by the tensor as well.
    if (total > t->extent)
        return err->fail(Code::session, "%s: tensor '%s': %" PRIu64 " bytes are more than its %" PRIu64, name,
                         t->wire.name, total, t->extent);
    return range(*t, *offset, span, err);
}

bool Session::set_tensor_2d(Error* err) {
    const uint64_t head = static_cast<uint64_t>(dialect_->tensor.bytes) + 32;
    if (length_ < head)
        return err->fail(Code::protocol, "SET_TENSOR_2D: the payload of %" PRIu64 " bytes is too short", length_);
    if (!read_payload(head, err)) return false;
    Target t;
    uint64_t size, copies, stride, offset;
    if (!header_2d(payload_.data(), &t, &size, &copies, &stride, &offset, err)) return false;
    if (length_ - head != size * copies)
        return err->fail(Code::protocol,
                         "SET_TENSOR_2D: tensor '%s': %" PRIu64 " bytes follow, %" PRIu64 " x %" PRIu64
                         " were announced",
                         t.wire.name, length_ - head, copies, size);
    trace("SET_TENSOR_2D: '%s' offset %" PRIu64 ", %" PRIu64 " x %" PRIu64 " bytes, stride %" PRIu64, t.wire.name,
          offset, copies, size, stride);
    if (!settle(*t.buffer, err)) return false;
    for (uint64_t i = 0; i < copies; ++i)
        if (!receive_into({t.buffer, t.start + offset + i * stride, size}, nullptr, 0, err)) return false;
    return true;
}

bool Session::get_tensor(Error* err) {
    const uint8_t* p = payload_.data();
    const uint64_t offset = load_u64(p + dialect_->tensor.bytes), size = load_u64(p + dialect_->tensor.bytes + 8);
    narrow_by_type(p);
    Target t;
    if (!target(p, &t, err) || !range(t, offset, size, err)) return false;
    trace("GET_TENSOR: '%s' offset %" PRIu64 ", %" PRIu64 " bytes", t.wire.name, offset, size);
    if (!settle(*t.buffer, err)) return false;
    Device* device = t.buffer->device;
    uint64_t total = size;
    if (size == 0) return reply(nullptr, 0, err);
    for (uint64_t at = 0; at < size;) {
        uint64_t mapped = 0;
        uint8_t* host = device->ops->map(device, t.buffer, t.start + offset + at, size - at, false, &mapped, err);
        if (host == nullptr) return false;
        iovec parts[2] = {{&total, sizeof total}, {host, static_cast<size_t>(mapped)}};
        const bool first = at == 0;
        if (!stream_.write(first ? parts : parts + 1, first ? 2 : 1, err) ||
            !device->ops->unmap(device, t.buffer, host, t.start + offset + at, mapped, false, err))
            return false;
        at += mapped;
    }
    return true;
}

bool Session::get_tensor_2d(Error* err) {
    Target t;
    uint64_t size, copies, stride, offset;
    if (!header_2d(payload_.data(), &t, &size, &copies, &stride, &offset, err)) return false;
    trace("GET_TENSOR_2D: '%s' offset %" PRIu64 ", %" PRIu64 " x %" PRIu64 " bytes, stride %" PRIu64, t.wire.name,
          offset, copies, size, stride);
    if (!settle(*t.buffer, err)) return false;
    Device* device = t.buffer->device;
    const uint64_t total = size * copies;
    if (!stream_.write(&total, sizeof total, err)) return false;
    // Short rows are gathered, so that a call to the socket carries many.
    std::vector<uint8_t> gathered;
    gathered.reserve(static_cast<size_t>(std::min<uint64_t>(total, FILE_CHUNK)));
    for (uint64_t row = 0; row < copies; ++row) {
        for (uint64_t at = 0; at < size;) {
            const uint64_t begin = t.start + offset + row * stride + at;
            uint64_t mapped = 0;
            uint8_t* host = device->ops->map(device, t.buffer, begin, std::min(size - at, FILE_CHUNK - gathered.size()),
                                             false, &mapped, err);
            if (host == nullptr) return false;
            gathered.insert(gathered.end(), host, host + mapped);
            if (!device->ops->unmap(device, t.buffer, host, begin, mapped, false, err)) return false;
            at += mapped;
            if (gathered.size() == FILE_CHUNK) {
                if (!stream_.write(gathered.data(), gathered.size(), err)) return false;
                gathered.clear();
            }
        }
    }
    return stream_.write(gathered.data(), gathered.size(), err);
}

bool Session::memset_tensor(Error* err) {
    const uint8_t* p = payload_.data();
    const uint8_t* fields = p + dialect_->tensor.bytes;
    const uint64_t offset = load_u64(fields), size = load_u64(fields + 8);
    narrow_by_type(p);
    Target t;
    if (!target(p, &t, err) || !range(t, offset, size, err)) return false;
    trace("MEMSET_TENSOR: '%s' offset %" PRIu64 ", %" PRIu64 " bytes to %u", t.wire.name, offset, size, fields[16]);
    return settle(*t.buffer, err) &&
           t.buffer->device->ops->fill(t.buffer->device, t.buffer, t.start + offset, size, fields[16], err) &&
           done(err);
}

bool Session::copy_tensor(Error* err) {
    narrow_by_type(payload_.data());
    Target src, dst;
    if (!target(payload_.data(), &src, err) || !target(payload_.data() + dialect_->tensor.bytes, &dst, err))
        return false;
    const Tensor &a = src.tensor, &b = dst.tensor;
    bool alike = a.type == b.type && same_shape(a, b);
    for (int i = 0; i < MAX_DIMS; ++i) alike = alike && a.nb[i] == b.nb[i];
    // Devices of another kind are bridged by the client: 0 is always a correct answer.
    const uint8_t copied = alike && src.buffer->device->ops == dst.buffer->device->ops ? 1 : 0;
    trace("COPY_TENSOR: '%s' to '%s': %u", src.wire.name, dst.wire.name, copied);
    if (copied != 0) {
        if (!settle(*src.buffer, err) || !settle(*dst.buffer, err)) return false;
        Device* device = dst.buffer->device;
        if (!device->ops->copy(device, src.buffer, src.start, dst.buffer, dst.start, src.extent, err)) return false;
    }
    return reply(&copied, 1, err);
}

// No type needs preparation here; the request is only checked. A handle that is not known is legal.
bool Session::init_tensor(Error* err) {
    narrow_by_type(payload_.data());
    Target t;
    t.tensor = Tensor{};
    read_tensor(dialect_->tensor, payload_.data(), &t.wire);
    if (!check_layout(*dialect_, t.wire, command_name(command_), &t.tensor, err)) return false;
    if (Buffer* buffer = find(t.wire.buffer))
        if (!check_placement(t.wire, buffer, command_name(command_), &t.tensor, err)) return false;
    trace("INIT_TENSOR: '%s'", t.wire.name);
    return done(err);
}

// Scratch lives on the server, so a tensor needs its plain size, whatever its op and sources.
bool Session::alloc_size(Error* err) {
    if (!device_argument(err)) return false;
    const uint8_t* record = payload_.data() + (dialect_->device_field ? 4 : 0);
    narrow_by_type(record);
    WireTensor wire;
    Tensor t = {};
    read_tensor(dialect_->tensor, record, &wire);
    if (!check_layout(*dialect_, wire, command_name(command_), &t, err)) return false;
    const uint64_t size = static_cast<uint64_t>(extent_bytes(t));
    const int n_src = dialect_->alloc_size_has_srcs ? dialect_->tensor.n_src : 0;
    for (int i = 0; i < n_src; ++i) {
        WireTensor source;
        Tensor checked = {};
        read_tensor(dialect_->tensor, record + static_cast<int64_t>(i + 1) * dialect_->tensor.bytes, &source);
        if (source.id != 0 && !check_layout(*dialect_, source, command_name(command_), &checked, err)) return false;
    }
    trace("GET_ALLOC_SIZE: '%s': %" PRIu64, wire.name, size);
    return reply(&size, sizeof size, err);
}

bool Session::start_hash(Error* err) {
    const uint8_t* p = payload_.data();
    const uint64_t offset = load_u64(p + dialect_->tensor.bytes);
    argument_ = load_u64(p + dialect_->tensor.bytes + 8);
    narrow_by_type(p);
    Target t;
    if (!target(p, &t, err) || !range(t, offset, 0, err)) return false;
    region_ = {t.buffer, t.start + offset, t.extent - offset};
    hit_ = false;
    trace("SET_TENSOR_HASH: '%s' offset %" PRIu64 ", hash %016" PRIx64, t.wire.name, offset, argument_);
    return true;
}

bool Session::load(int fd, uint64_t size, bool verify, bool* matches, Error* err) {
    *matches = false;
    if (size == 0 || size > region_.length) return true;
    if (!settle(region_, err)) return false;
    Device* device = region_.buffer->device;
    if (!verify && device->ops->direct && size >= LOAD_BEHIND &&
        loads_.add(fd, region_.buffer->data + region_.offset, size)) {
        *matches = hit_ = true;
        return true;
    }
    device->ops->expect(device, region_.buffer, region_.offset, size + AHEAD);
    uint64_t hash = FNV_OFFSET;
    for (uint64_t at = 0; at < size;) {
        uint64_t mapped = 0;
        // What is hashed is still in the cache then; what is not goes in one piece.
        uint8_t* host = device->ops->map(device, region_.buffer, region_.offset + at,
                                         verify ? std::min(size - at, FILE_CHUNK) : size - at, true, &mapped, err);
        if (host == nullptr) return false;
        const bool whole = read_file(fd, host, at, mapped);
        if (whole && verify) hash = fnv1a_64(host, mapped, hash);
        if (!device->ops->unmap(device, region_.buffer, host, region_.offset + at, mapped, true, err)) return false;
        if (!whole) return true;
        at += mapped;
    }
    *matches = !verify || hash == argument_;
    return true;
}

bool Session::land(Error* err) { return loads_.finish() || fail_load(err); }

bool Session::land_until_asked(Error* err) {
    while (loads_.pending() && !stream_.pending() && !stream_.gone())
        if (!loads_.step()) return fail_load(err);
    return true;
}

bool Session::hash_region(uint64_t* hash, Error* err) {
    Device* device = region_.buffer->device;
    *hash = FNV_OFFSET;
    for (uint64_t at = 0; at < region_.length;) {
        uint64_t mapped = 0;
        uint8_t* host =
            device->ops->map(device, region_.buffer, region_.offset + at, region_.length - at, false, &mapped, err);
        if (host == nullptr) return false;
        *hash = fnv1a_64(host, mapped, *hash);
        if (!device->ops->unmap(device, region_.buffer, host, region_.offset + at, mapped, false, err)) return false;
        at += mapped;
    }
    return true;
}

bool Session::store(int fd, int* failure, Error* err) {
    *failure = 0;
    Device* device = region_.buffer->device;
    for (uint64_t at = 0; at < region_.length;) {
        uint64_t mapped = 0;
        uint8_t* host = device->ops->map(device, region_.buffer, region_.offset + at,
                                         std::min(region_.length - at, FILE_CHUNK), false, &mapped, err);
        if (host == nullptr) return false;
        for (uint64_t put = 0; put < mapped && *failure == 0;) {
            const ssize_t n = write(fd, host + put, mapped - put);
            if (n > 0) put += static_cast<uint64_t>(n);
            if (n == 0) *failure = EIO;
            if (n < 0 && errno != EINTR) *failure = errno;
        }
        if (!device->ops->unmap(device, region_.buffer, host, region_.offset + at, mapped, false, err)) return false;
        if (*failure != 0) return true;
        at += mapped;
    }
    return true;
}

}  // namespace ggr
