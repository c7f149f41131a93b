#include "cuda/staging.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>

#include "cuda/context.h"

namespace ggr {
namespace cuda {

namespace {

// Chunks that are kept: 32 MiB a context. More exist only while more sessions hold one.
constexpr size_t MAX_CHUNKS = 16;
constexpr unsigned NON_BLOCKING = 1;           // of streams: not ordered with the legacy stream
constexpr unsigned SLEEPING_WITHOUT_TIME = 3;  // of events: waits sleep, no time is taken
constexpr std::chrono::microseconds SPIN{40};  // about what going to sleep and waking up takes

}  // namespace

bool Staging::open(Error* err) {
    const Driver& d = context_.driver();
    return context_.check(d.cuStreamCreate(&upload_, NON_BLOCKING), "cuStreamCreate", err) &&
           context_.check(d.cuStreamCreate(&download_, NON_BLOCKING), "cuStreamCreate", err);
}

void Staging::close() {
    const Driver& d = context_.driver();
    if (upload_ != nullptr) d.cuStreamSynchronize(upload_);
    if (download_ != nullptr) d.cuStreamSynchronize(download_);
    for (const Flight& f : flying_) {
        if (f.chunk != nullptr)
            free_.push_back(f.chunk);
        else
            d.cuEventDestroy(f.event);
    }
    flying_.clear();
    free_.insert(free_.end(), retiring_.begin(), retiring_.end());
    retiring_.clear();
    for (Chunk* c : free_) {
        d.cuEventDestroy(c->event);
        if (c->pinned)
            d.cuMemFreeHost(c->host);
        else
            munmap(c->host, CHUNK_BYTES);
        delete c;
    }
    for (CUevent e : events_) d.cuEventDestroy(e);
    if (upload_ != nullptr) d.cuStreamDestroy(upload_);
    if (download_ != nullptr) d.cuStreamDestroy(download_);
}

bool Staging::event(CUevent* out, Error* err) {
    if (!events_.empty()) {
        *out = events_.back();
        events_.pop_back();
        return true;
    }
    return context_.check(context_.driver().cuEventCreate(out, SLEEPING_WITHOUT_TIME), "cuEventCreate", err);
}

// Pinned memory may be short; ordinary memory is slower, not wrong.
Chunk* Staging::make(Error* err) {
    const Driver& d = context_.driver();
    Chunk* c = new Chunk{};
    if (!event(&c->event, err)) {
        delete c;
        return nullptr;
    }
    void* memory = nullptr;
    c->pinned = d.cuMemHostAlloc(&memory, CHUNK_BYTES, 0) == CUDA_SUCCESS;
    if (!c->pinned) memory = mmap(nullptr, CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == nullptr || memory == MAP_FAILED) {
        err->fail(Code::memory, "no memory for transfers to the device");
        events_.push_back(c->event);
        delete c;
        return nullptr;
    }
    c->host = static_cast<uint8_t*>(memory);
    ++chunks_;
    return c;
}

// Take in what has arrived.
void Staging::land() {
    while (!flying_.empty() && context_.driver().cuEventQuery(flying_.front().event) == CUDA_SUCCESS) {
        const Flight& f = flying_.front();
        if (f.chunk != nullptr)
            free_.push_back(f.chunk);
        else
            events_.push_back(f.event);
        flying_.pop_front();
    }
    const auto over = [&](const Chunk* c) { return context_.driver().cuEventQuery(c->event) == CUDA_SUCCESS; };
    const auto first = std::stable_partition(retiring_.begin(), retiring_.end(), [&](Chunk* c) { return !over(c); });
    free_.insert(free_.end(), first, retiring_.end());
    retiring_.erase(first, retiring_.end());
}

Chunk* Staging::take(Error* err) {
    std::unique_lock<std::mutex> lock(mutex_);
    land();
    if (free_.empty() && chunks_ >= MAX_CHUNKS) {
        // All are under way or held by sessions: wait for the first to arrive.
        CUevent first = retiring_.empty() ? nullptr : retiring_.front()->event;
        for (const Flight& f : flying_)
            if (f.chunk != nullptr) {
                first = f.event;
                break;
            }
        if (first != nullptr) {
            lock.unlock();
            if (!await(first, err)) return nullptr;
            lock.lock();
            land();
        }
    }
    if (free_.empty()) return make(err);
    Chunk* c = free_.back();
    free_.pop_back();
    return c;
}

void Staging::give(Chunk* chunk) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (chunks_ <= MAX_CHUNKS) {
        free_.push_back(chunk);
        return;
    }
    --chunks_;
    events_.push_back(chunk->event);
    if (chunk->pinned)
        context_.driver().cuMemFreeHost(chunk->host);
    else
        munmap(chunk->host, CHUNK_BYTES);
    delete chunk;
}

uint64_t Staging::depart(Chunk* chunk, CUevent event, Error* err) {
    const Driver& d = context_.driver();
    if (!context_.check(d.cuEventRecord(event, upload_), "cuEventRecord", err)) return 0;
    flying_.push_back({++number_, chunk, event});
    return number_;
}

uint64_t Staging::depart_alone(Error* err) {
    CUevent e;
    if (!event(&e, err)) return 0;
    const uint64_t number = depart(nullptr, e, err);
    if (number == 0) events_.push_back(e);
    return number;
}

uint64_t Staging::upload(Chunk* chunk, CUdeviceptr to, uint64_t bytes, Error* err) {
    uint64_t number = 0;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        land();
        const CUresult status = context_.driver().cuMemcpyHtoDAsync(to, chunk->host, bytes, upload_);
        if (context_.check(status, "cuMemcpyHtoDAsync", err)) number = depart(chunk, chunk->event, err);
    }
    if (number == 0) give(chunk);
    return number;
}

uint64_t Staging::fill(CUdeviceptr to, uint8_t value, uint64_t bytes, Error* err) {
    const std::lock_guard<std::mutex> lock(mutex_);
    land();
    const CUresult status = context_.driver().cuMemsetD8Async(to, value, bytes, upload_);
    return context_.check(status, "cuMemsetD8Async", err) ? depart_alone(err) : 0;
}

uint64_t Staging::copy(CUdeviceptr to, CUdeviceptr from, uint64_t bytes, Error* err) {
    const std::lock_guard<std::mutex> lock(mutex_);
    land();
    const CUresult status = context_.driver().cuMemcpyDtoDAsync(to, from, bytes, upload_);
    return context_.check(status, "cuMemcpyDtoDAsync", err) ? depart_alone(err) : 0;
}

uint64_t Staging::copy_from(CUdeviceptr to, Context& source, CUdeviceptr from, uint64_t bytes, Error* err) {
    const std::lock_guard<std::mutex> lock(mutex_);
    land();
    const CUresult status =
        context_.driver().cuMemcpyPeerAsync(to, context_.handle(), from, source.handle(), bytes, upload_);
    return context_.check(status, "cuMemcpyPeerAsync", err) ? depart_alone(err) : 0;
}

bool Staging::order_locked(uint64_t number, CUstream stream, Error* err) {
    land();
    for (const Flight& f : flying_)
        if (f.number >= number)
            return context_.check(context_.driver().cuStreamWaitEvent(stream, f.event, 0), "cuStreamWaitEvent", err);
    return true;
}

bool Staging::order(uint64_t number, CUstream stream, Error* err) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return order_locked(number, stream, err);
}

bool Staging::download(Chunk* chunk, CUdeviceptr from, uint64_t bytes, uint64_t number, Error* err) {
    const Driver& d = context_.driver();
    const std::lock_guard<std::mutex> lock(mutex_);
    return order_locked(number, download_, err) &&
           context_.check(d.cuMemcpyDtoHAsync(chunk->host, from, bytes, download_), "cuMemcpyDtoHAsync", err) &&
           context_.check(d.cuEventRecord(chunk->event, download_), "cuEventRecord", err);
}

bool Staging::retire(Chunk* chunk, CUstream stream, Error* err) {
    const std::lock_guard<std::mutex> lock(mutex_);
    retiring_.push_back(chunk);
    return context_.check(context_.driver().cuEventRecord(chunk->event, stream), "cuEventRecord", err);
}

bool Staging::await(CUevent event, Error* err) {
    const Driver& d = context_.driver();
    const auto until = std::chrono::steady_clock::now() + SPIN;
    for (;;) {
        const CUresult status = d.cuEventQuery(event);
        if (status != CUDA_ERROR_NOT_READY) return context_.check(status, "a transfer", err);
        if (std::chrono::steady_clock::now() >= until) break;
    }
    return context_.check(d.cuEventSynchronize(event), "a transfer", err);
}

}  // namespace cuda
}  // namespace ggr
