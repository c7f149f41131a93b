// The loop of a session: framing, order, buffers. Tensors and graphs have files of their own.
#include "server/session.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

namespace ggr {

namespace {

// Buffers of a session never share addresses, not even one after the other; a gap keeps off-by-one addresses foreign.
constexpr uint64_t FIRST_BASE = uint64_t{1} << 40;
constexpr uint64_t BASE_GAP = uint64_t{1} << 20;
constexpr uint64_t BASE_LIMIT = uint64_t{1} << 62;
// A payload buffer larger than this is given back after the message.
constexpr size_t KEEP_PAYLOAD = size_t{1} << 20;
// ik_llama.cpp's CPU buffers come out so much larger than asked for, and its clients take the size that they are told.
// They also ask for 0 bytes, for a device that gets no work, and need a buffer then.
constexpr uint64_t IK_EXTRA_BYTES = 32;
// Buffers of all sessions. Each can cost the process two mappings of memory, and Linux gives a process 65530: when they
// are used up, nobody can have memory or a thread.
constexpr uint64_t MAX_BUFFERS = 16384;
std::atomic<uint64_t> n_buffers{0};

}  // namespace

Session::Session(Transport transport, SessionConfig config)
    : stream_(transport), config_(std::move(config)), lines_(config_.devices.size()), next_base_(FIRST_BASE) {
    stream_.deadline(config_.hello_deadline_ns);
}

Session::~Session() {
    loads_.drop();
    for (uint32_t i = 0; i < lines_.size(); ++i) {
        Device* device = config_.devices[i];
        if (lines_[i].queue != nullptr) device->ops->close_queue(device, lines_[i].queue);  // cancels and waits
        drop_all(i);
    }
    for (auto& entry : buffers_) entry.second->device->ops->release(entry.second->device, entry.second.get());
    n_buffers -= buffers_.size();
    std::vector<uint8_t>().swap(payload_);
    Error ignored = {};
    count_graphs(0, &ignored);
}

SessionStats Session::stats() const {
    SessionStats s = stats_;
    s.received = stream_.received();
    s.sent = stream_.sent();
    return s;
}

void Session::trace(const char* format, ...) {
    if (config_.trace == nullptr) return;
    char line[384];
    va_list args;
    va_start(args, format);
    std::vsnprintf(line, sizeof line, format, args);
    va_end(args);
    config_.trace(config_.context, line);
}

void Session::choose(std::vector<const DialectTable*> tables, bool report) {
    tables_ = std::move(tables);
    dialect_ = tables_[0];
    chosen_for_ = report_first_ = report;
    greeted_ = true;
}

// Before HELLO no table is chosen; its number and sizes are the same in all.
bool Session::hello_header(uint8_t byte, Error* err) {
    if (byte != CMD_HELLO) return err->fail(Code::protocol, "command byte %u: HELLO must come first", byte);
    command_ = CMD_HELLO;
    if (length_ > static_cast<uint64_t>(CONN_CAPS_BYTES))
        return err->fail(Code::protocol, "HELLO: a payload of %llu bytes, it must be 0 or %d",
                         static_cast<unsigned long long>(length_), CONN_CAPS_BYTES);
    return true;
}

bool Session::header(Error* err) {
    if (!land_until_asked(err) || !stream_.await(err) || !runs_succeed(err)) return false;
    uint8_t head[REQUEST_HEADER_BYTES];
    if (!stream_.read(head, sizeof head, "request header", err)) return false;
    length_ = load_u64(head + 1);
    ++stats_.commands;
    if (!greeted_) return hello_header(head[0], err);
    command_ = -1;
    for (const DialectTable* table : tables_) command_ = std::max(command_, table->command_of[head[0]]);
    if (command_ >= 0) narrow_by_length();
    if (command_ < 0)
        return err->fail(Code::protocol, "command byte %u is not known in dialect %s", head[0], dialect_->name);
    const char* name = command_name(command_);
    if (command_ == CMD_HELLO) return err->fail(Code::protocol, "%s: a second HELLO", name);
    const int64_t fixed = dialect_->request_bytes[command_];
    if (fixed != VARIABLE_LENGTH && length_ != static_cast<uint64_t>(fixed))
        return err->fail(Code::protocol, "%s: a payload of %llu bytes, it must be %lld in dialect %s", name,
                         static_cast<unsigned long long>(length_), static_cast<long long>(fixed), dialect_->name);
    return true;
}

// Memory grows with what has arrived, not with what was announced.
bool Session::read_payload(uint64_t size, Error* err) {
    payload_.clear();
    if (payload_.capacity() > KEEP_PAYLOAD) payload_.shrink_to_fit();
    while (payload_.size() < size) {
        const uint64_t at = payload_.size();
        const uint64_t step = std::min<uint64_t>(size - at, std::max<uint64_t>(at, READ_CHUNK_BYTES));
        if (at > 0 && !count_graphs(step, err)) return false;
        payload_.resize(at + step);
        if (!stream_.read(payload_.data() + at, step, command_name(command_), err)) return false;
    }
    return true;
}

Event Session::serve(Error* err) {
    try {
        return serve_until_event(err);
    } catch (const std::bad_alloc&) {  // of what a message made us hold: this client's loss, not the process's
        err->fail(Code::memory, "%s: the system has no memory left for it", command_name(command_));
        return Event::failed;
    }
}

Event Session::serve_until_event(Error* err) {
    for (;;) {
        if (!waiting_) {
            if (!header(err)) return Event::failed;
            if (greeted_ && report_first_) {
                report_first_ = false;
                waiting_ = true;
                return Event::first_command;
            }
        }
        waiting_ = false;
        const Event event = dispatch(err);
        if (event != Event::none) return event;
    }
}

Event Session::dispatch(Error* err) {
    switch (command_) {
        case CMD_HELLO:
            if (!read_payload(length_, err)) return Event::failed;
            stream_.deadline(0);
            trace("HELLO: %llu bytes", static_cast<unsigned long long>(length_));
            return Event::hello;
        case CMD_ALLOC_BUFFER:
            if (!read_payload(length_, err) || !device_argument(err)) return Event::failed;
            argument_ = load_u64(payload_.data() + (dialect_->device_field ? 4 : 0));
            trace("ALLOC_BUFFER: device %u, %llu bytes", device_index_, static_cast<unsigned long long>(argument_));
            return Event::alloc_buffer;
        case CMD_FREE_BUFFER:
            if (!read_payload(length_, err)) return Event::failed;
            argument_ = load_u64(payload_.data());
            trace("FREE_BUFFER: %016llx", static_cast<unsigned long long>(argument_));
            return Event::free_buffer;
        case CMD_GET_DEVICE_MEMORY:
            if (!read_payload(length_, err) || !device_argument(err)) return Event::failed;
            trace("GET_DEVICE_MEMORY: device %u", device_index_);
            return Event::device_memory;
        case CMD_SET_TENSOR_HASH:
            return read_payload(length_, err) && start_hash(err) ? Event::tensor_hash : Event::failed;
        case CMD_COMM_INIT:
        case CMD_COMM_ALLREDUCE:
        case CMD_COMM_FREE:
            if (!read_payload(length_, err) || !device_argument(err)) return Event::failed;
            trace("%s: device %u", command_name(command_), device_index_);
            return Event::comm;
        default:
            keep_region_ = false;
            if (!serve_hot(err)) return Event::failed;
            return keep_region_ ? Event::store_tensor : Event::none;
    }
}

bool Session::serve_hot(Error* err) {
    switch (command_) {  // those that read their payload themselves
        case CMD_SET_TENSOR:
            return set_tensor(err);
        case CMD_SET_TENSOR_2D:
            return set_tensor_2d(err);
        case CMD_GRAPH_COMPUTE:
            return graph_compute(err);
        default:
            break;
    }
    if (command_ == CMD_GRAPH_RECOMPUTE && !recompute_length(err)) return false;
    if (!read_payload(length_, err)) return false;
    const uint8_t* p = payload_.data();
    switch (command_) {
        case CMD_DEVICE_COUNT: {
            const uint32_t n = static_cast<uint32_t>(config_.devices.size());
            trace("DEVICE_COUNT: %u", n);
            return reply(&n, sizeof n, err);
        }
        case CMD_GET_ALIGNMENT:
        case CMD_GET_MAX_SIZE: {
            if (!device_argument(err)) return false;
            const Device* device = config_.devices[device_index_];
            const uint64_t value = command_ == CMD_GET_ALIGNMENT ? device->alignment : device->max_size;
            trace("%s: device %u: %llu", command_name(command_), device_index_, static_cast<unsigned long long>(value));
            return reply(&value, sizeof value, err);
        }
        case CMD_BUFFER_GET_BASE: {
            Buffer* buffer;
            if (!known(load_u64(p), &buffer, err)) return false;
            trace("BUFFER_GET_BASE: %016llx: %llx", static_cast<unsigned long long>(buffer->handle),
                  static_cast<unsigned long long>(buffer->base));
            return reply(&buffer->base, sizeof buffer->base, err);
        }
        case CMD_BUFFER_CLEAR:
            return clear_buffer(err);
        case CMD_GET_TENSOR:
            return get_tensor(err);
        case CMD_GET_TENSOR_2D:
            return get_tensor_2d(err);
        case CMD_MEMSET_TENSOR:
            return memset_tensor(err);
        case CMD_COPY_TENSOR:
            return copy_tensor(err);
        case CMD_INIT_TENSOR:
            return init_tensor(err);
        case CMD_GET_ALLOC_SIZE:
            return alloc_size(err);
        case CMD_GRAPH_RECOMPUTE:
            return graph_recompute(err);
        default:
            return err->fail(Code::protocol, "%s: not served", command_name(command_));
    }
}

// Device queries and ALLOC_BUFFER begin with the device's number, where the dialect has devices.
bool Session::device_argument(Error* err) {
    device_index_ = dialect_->device_field ? load_u32(payload_.data()) : 0;
    if (device_index_ >= config_.devices.size())
        return err->fail(Code::session, "%s: device %u of %zu", command_name(command_), device_index_,
                         config_.devices.size());
    return true;
}

Buffer* Session::find(uint64_t handle) const {
    const auto at = buffers_.find(handle);
    return at == buffers_.end() ? nullptr : at->second.get();
}

bool Session::known(uint64_t handle, Buffer** buffer, Error* err) const {
    *buffer = find(handle);
    if (*buffer == nullptr)
        return err->fail(Code::session, "%s: buffer %016llx is not of this session", command_name(command_),
                         static_cast<unsigned long long>(handle));
    return true;
}

bool Session::reply(const void* data, uint64_t size, Error* err) {
    iovec parts[2] = {{&size, sizeof size}, {const_cast<void*>(data), static_cast<size_t>(size)}};
    return stream_.write(parts, size > 0 ? 2 : 1, err);
}

bool Session::done(Error* err) { return dialect_->reply[command_] == REPLY_NONE || reply(nullptr, 0, err); }

bool Session::allocate(uint32_t device_index, uint64_t size, uint64_t handle, uint64_t* granted, Error* err) {
    const bool ik = std::any_of(tables_.begin(), tables_.end(), [](const DialectTable* t) { return t->ik_meaning; });
    if (ik && size <= BASE_LIMIT) size += IK_EXTRA_BYTES;
    if (size == 0) return err->fail(Code::memory, "ALLOC_BUFFER: 0 bytes");
    if (buffers_.size() >= config_.max_buffers)
        return err->fail(Code::memory, "ALLOC_BUFFER: the session holds %zu buffers already", buffers_.size());
    if (n_buffers.load() >= MAX_BUFFERS)
        return err->fail(Code::memory, "ALLOC_BUFFER: all sessions hold %llu buffers already",
                         static_cast<unsigned long long>(MAX_BUFFERS));
    if (size > BASE_LIMIT || next_base_ > BASE_LIMIT - size)
        return err->fail(Code::memory, "ALLOC_BUFFER: the session's addresses are used up");
    Device* device = config_.devices[device_index];
    std::unique_ptr<Buffer> buffer(new Buffer());
    if (!device->ops->alloc(device, size, buffer.get(), err)) return false;
    buffer->handle = handle;
    buffer->base = next_base_ + reinterpret_cast<uintptr_t>(buffer->data) % static_cast<uint64_t>(BASE_CONGRUENCE);
    const uint64_t taken = size + BASE_GAP + static_cast<uint64_t>(BUFFER_SLACK + BASE_CONGRUENCE);
    next_base_ += (taken + BASE_GAP - 1) / BASE_GAP * BASE_GAP;
    held_bytes_ += size;
    *granted = buffer->size;
    buffers_.emplace(handle, std::move(buffer));
    ++n_buffers;
    return true;
}

bool Session::release(uint64_t handle, Error* err) {
    Buffer* buffer;
    if (!known(handle, &buffer, err)) return false;
    const uint32_t device = index_of(buffer->device);
    if (!settle(*buffer, err)) return false;
    // Plans that name the buffer go; their uids stay, so that both sides go on counting alike.
    Line& line = lines_[device];
    const auto forget = [&](Stored* stored) {
        if (std::find(stored->buffers.begin(), stored->buffers.end(), buffer) != stored->buffers.end())
            drop(device, stored);
    };
    for (auto& entry : line.by_uid) forget(&entry.second);
    forget(&line.last);
    held_bytes_ -= buffer->size;
    buffer->device->ops->release(buffer->device, buffer);
    buffers_.erase(handle);
    --n_buffers;
    return true;
}

bool Session::clear_buffer(Error* err) {
    Buffer* buffer;
    if (!known(load_u64(payload_.data()), &buffer, err)) return false;
    const uint8_t value = payload_[8];
    trace("BUFFER_CLEAR: %016llx to %u", static_cast<unsigned long long>(buffer->handle), value);
    return settle(*buffer, err) && buffer->device->ops->fill(buffer->device, buffer, 0, buffer->size, value, err) &&
           done(err);
}

}  // namespace ggr
