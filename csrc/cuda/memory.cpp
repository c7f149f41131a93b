#include "cuda/memory.h"

#include <algorithm>

#include "cuda/gpu.h"

namespace ggr {
namespace cuda {

namespace {

// Downloads under way for one reader.
constexpr size_t AHEAD = 4;
// Not offered to clients: scratch and modules come from it.
constexpr uint64_t NOT_OFFERED = uint64_t{256} << 20;
// Overlapping copies go through a piece of memory of this size.
constexpr uint64_t BOUNCE_BYTES = uint64_t{16} << 20;

CUdeviceptr address(const Buffer& b, uint64_t offset) { return reinterpret_cast<CUdeviceptr>(b.data) + offset; }

bool enter(const Buffer& b, Error* err) { return state_of(b).context->enter(err); }

// Start downloads until as many are under way as pay, or all that the reader wants.
bool read_ahead(const Buffer& b, Error* err) {
    BufferState& s = state_of(b);
    Staging& staging = s.context->staging();
    while (s.ahead.size() < AHEAD && s.asked < s.end) {
        Chunk* chunk = staging.take(err);
        if (chunk == nullptr) return false;
        const uint64_t bytes = std::min(CHUNK_BYTES, s.end - s.asked);
        if (!staging.download(chunk, address(b, s.asked), bytes, s.last_write, err)) {
            staging.give(chunk);
            return false;
        }
        s.ahead.push_back(chunk);
        s.asked += bytes;
    }
    return true;
}

// The ranges overlap: copied in pieces through memory of their own, from the end that is not overwritten.
bool copy_overlapping(Context& context, CUdeviceptr to, CUdeviceptr from, uint64_t length, uint64_t* number,
                      Error* err) {
    const Driver& d = context.driver();
    const uint64_t piece = std::min(length, BOUNCE_BYTES);
    CUdeviceptr bounce = 0;
    if (!context.allocate(piece, "COPY_TENSOR", &bounce, err)) return false;
    bool ok = true;
    for (uint64_t done = 0; ok && done < length; done += piece) {
        const uint64_t n = std::min(piece, length - done);
        const uint64_t at = to < from ? done : length - done - n;
        *number = context.staging().copy(bounce, from + at, n, err);
        if (*number != 0) *number = context.staging().copy(to + at, bounce, n, err);
        ok = *number != 0;
    }
    ok = context.check(d.cuStreamSynchronize(context.staging().uploads()), "a copy", err) && ok;
    d.cuMemFree(bounce);
    return ok;
}

}  // namespace

void forget_ahead(BufferState& s) {
    Error ignored = {};
    for (Chunk* chunk : s.ahead) {
        s.context->staging().await(chunk->event, &ignored);
        s.context->staging().give(chunk);
    }
    s.ahead.clear();
    s.next = s.asked = s.end = 0;
}

bool alloc(Device* d, uint64_t size, Buffer* out, Error* err) {
    if (size > UINT64_MAX - SLACK_BYTES) return err->fail(Code::memory, "ALLOC_BUFFER: more bytes than there are");
    std::unique_ptr<BufferState> state(new BufferState);
    CUdeviceptr data = 0;
    // That a context is lost may show only now: this session is not to blame, and gets the next one.
    for (int attempt = 0;; ++attempt) {
        state->context = gpu_of(d).context(err);
        if (state->context == nullptr) return false;
        if (state->context->enter(err) && state->context->allocate(size + SLACK_BYTES, "ALLOC_BUFFER", &data, err))
            break;
        if (attempt > 0 || !state->context->dead()) return false;
        err->clear();
    }
    // The driver gives memory of an earlier session of this process back as it was left: nobody else may see that.
    state->last_write = state->context->staging().fill(data, 0, size + SLACK_BYTES, err);
    if (state->last_write == 0) {
        state->context->driver().cuMemFree(data);
        return false;
    }
    out->data = reinterpret_cast<uint8_t*>(data);
    out->size = size;
    out->device = d;
    out->state = state.release();
    return true;
}

void release(Device*, Buffer* b) {
    BufferState& s = state_of(*b);
    const std::shared_ptr<Context> context = s.context;
    Error ignored = {};
    if (context->enter(&ignored)) {
        forget_ahead(s);
        if (s.mapped != nullptr) context->staging().give(s.mapped);
        context->give_memory(address(*b, 0), b->size + SLACK_BYTES);
    }
    delete &s;
    b->state = nullptr;
    b->data = nullptr;
}

uint8_t* map(Device*, Buffer* b, uint64_t offset, uint64_t length, bool write, uint64_t* mapped, Error* err) {
    if (!enter(*b, err)) return nullptr;
    BufferState& s = state_of(*b);
    Staging& staging = s.context->staging();
    *mapped = std::min(length, CHUNK_BYTES);
    if (write) {
        ++s.version;
        forget_ahead(s);
        s.mapped = staging.take(err);
        return s.mapped == nullptr ? nullptr : s.mapped->host;
    }
    if (s.ahead.empty() || s.next != offset || s.end != offset + length) {
        forget_ahead(s);
        s.next = s.asked = offset;
        s.end = offset + length;
    }
    if (!read_ahead(*b, err)) return nullptr;
    Chunk* chunk = s.ahead.front();
    if (!staging.await(chunk->event, err)) return nullptr;
    s.ahead.pop_front();
    s.next += *mapped;
    s.mapped = chunk;
    return chunk->host;
}

bool unmap(Device*, Buffer* b, uint8_t*, uint64_t offset, uint64_t mapped, bool write, Error* err) {
    BufferState& s = state_of(*b);
    Chunk* chunk = s.mapped;
    s.mapped = nullptr;
    if (!enter(*b, err)) {
        s.context->staging().give(chunk);
        return false;
    }
    if (!write) {
        s.context->staging().give(chunk);
        return true;
    }
    const uint64_t number = s.context->staging().upload(chunk, address(*b, offset), mapped, err);
    if (number == 0) return false;
    s.last_write = number;
    return true;
}

void expect(Device*, Buffer*, uint64_t, uint64_t) {}

bool fill(Device*, Buffer* b, uint64_t offset, uint64_t length, uint8_t value, Error* err) {
    if (length == 0) return true;
    if (!enter(*b, err)) return false;
    BufferState& s = state_of(*b);
    ++s.version;
    forget_ahead(s);
    const uint64_t number = s.context->staging().fill(address(*b, offset), value, length, err);
    if (number != 0) s.last_write = number;
    return number != 0;
}

bool copy(Device*, const Buffer* src, uint64_t src_offset, Buffer* dst, uint64_t dst_offset, uint64_t length,
          Error* err) {
    if (length == 0) return true;
    if (!enter(*src, err) || !enter(*dst, err)) return false;
    BufferState &from = state_of(*src), &to = state_of(*dst);
    Context& context = *to.context;
    ++to.version;
    forget_ahead(to);
    const CUdeviceptr a = address(*src, src_offset), b = address(*dst, dst_offset);
    uint64_t number = 0;
    if (from.context != to.context) {
        // The source's own uploads are on another stream. The copy is waited for, so that nothing of the source's
        // session can come before it.
        Staging& staging = from.context->staging();
        if (!from.context->enter(err) ||
            !from.context->check(context.driver().cuStreamSynchronize(staging.uploads()), "an upload", err) ||
            !context.enter(err))
            return false;
        context.reach(*from.context);
        number = context.staging().copy_from(b, *from.context, a, length, err);
        if (number == 0 ||
            !context.check(context.driver().cuStreamSynchronize(context.staging().uploads()), "a copy", err))
            return false;
    } else if (a < b + length && b < a + length) {
        if (a == b) return true;
        if (!copy_overlapping(context, b, a, length, &number, err)) return false;
    } else {
        number = context.staging().copy(b, a, length, err);
    }
    if (number == 0) return false;
    to.last_write = number;
    // A later write to the source is on the same stream; a run that writes there must come after the copy as well.
    if (from.context == to.context) from.last_write = number;
    return true;
}

void memory(Device* d, uint64_t* free_bytes, uint64_t* total_bytes) {
    *free_bytes = *total_bytes = 0;
    Error ignored = {};
    const std::shared_ptr<Context> context = gpu_of(d).context(&ignored);
    size_t free_now = 0, total = 0;
    if (context == nullptr || !context->enter(&ignored) ||
        !context->check(context->driver().cuMemGetInfo(&free_now, &total), "cuMemGetInfo", &ignored))
        return;
    const uint64_t soon = free_now + context->given_bytes();
    *free_bytes = soon - std::min(soon, NOT_OFFERED);
    *total_bytes = total;
}

}  // namespace cuda
}  // namespace ggr
