// The thread of a queue: it runs plans that have parts for the CPU, a part after the other.
#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/queue.h"

namespace ggr {
namespace cuda {

namespace {

// How often a wait for the CPU looks whether the run is still wanted.
constexpr int64_t SLICE_NS = 20'000'000;
constexpr std::chrono::microseconds NAP{50};  // and as long a spin before the first

}  // namespace

void CudaQueue::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        orders_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
        if (stop_) return;
        const Order order = std::move(waiting_.front());
        waiting_.pop_front();
        if (error_.code != Code::ok) continue;
        working_ = true;
        lock.unlock();
        Error err = {};
        const bool ok = run(order, &err);
        if (!ok) {  // nobody may find later what this run's kernels found
            Error ignored = {};
            if (context_->enter(&ignored)) gpu_.driver.cuStreamSynchronize(stream_);
            order.plan->faultless(&ignored);
        }
        lock.lock();
        if (!ok || !depart(*order.plan, order.number, &err)) fail(err);
        working_ = false;
        changed_.notify_all();
    }
}

bool CudaQueue::run(const Order& order, Error* err) {
    CudaPlan& plan = *order.plan;
    if (!prepare(plan, order.uploads, err)) return false;
    size_t next = 0, first_version = 0;
    for (size_t i = 0; i < plan.data.parts.size(); ++i) {
        const Part& part = plan.data.parts[i];
        if (cancelled_.load(std::memory_order_relaxed))
            return err->fail(Code::cancelled, "GRAPH_COMPUTE: the run was cancelled");
        if (part.on_cpu) {
            gpu_.cpu_nodes += part.end - part.begin;
            CpuPart& cpu_part = plan.fallback.parts[next++];
            if (!run_on_cpu(plan, cpu_part, order.versions.data() + first_version, err)) return false;
            first_version += cpu_part.kept.size();
        } else if (!launch_part(plan, i, err)) {
            return false;
        }
    }
    return true;
}

// Wait for an event of the stream.
bool CudaQueue::await(CUevent event, Error* err) {
    const Clock::time_point start = Clock::now();
    for (;;) {
        const CUresult status = gpu_.driver.cuEventQuery(event);
        if (status != CUDA_ERROR_NOT_READY) return context_->check(status, "a graph", err);
        if (cancelled_.load(std::memory_order_relaxed))
            return err->fail(Code::cancelled, "GRAPH_COMPUTE: the run was cancelled");
        if (Clock::now() - start > NAP) std::this_thread::sleep_for(NAP);
    }
}

namespace {

// Copies cut and gathered to fill pinned chunks: small ones share one, large ones take several.
class Pieces {
  public:
    struct Piece {
        uint64_t device, offset, bytes, at;  // offset in the host copy, place in the chunk
    };
    explicit Pieces(const std::vector<HostCopy>& copies) : copies_(copies) {}
    // The next chunkful; empty at the end.
    std::vector<Piece> next() {
        std::vector<Piece> out;
        uint64_t at = 0;
        while (copy_ < copies_.size() && at < CHUNK_BYTES) {
            const HostCopy& c = copies_[copy_];
            const uint64_t bytes = std::min(c.bytes - done_, CHUNK_BYTES - at);
            out.push_back({c.device + done_, c.offset + done_, bytes, at});
            at += (bytes + PIECE_ALIGNMENT - 1) / PIECE_ALIGNMENT * PIECE_ALIGNMENT;
            done_ += bytes;
            if (done_ < c.bytes) continue;
            ++copy_;
            done_ = 0;
        }
        return out;
    }

  private:
    static constexpr uint64_t PIECE_ALIGNMENT = 64;
    const std::vector<HostCopy>& copies_;
    size_t copy_ = 0;
    uint64_t done_ = 0;
};

}  // namespace

// Copy to the host; in order behind what is on the stream. Several chunks are under way while one is emptied.
bool CudaQueue::fetch(const std::vector<HostCopy>& copies, uint8_t* host, Error* err) {
    struct Flight {
        Chunk* chunk;
        std::vector<Pieces::Piece> pieces;
    };
    constexpr size_t FLIGHTS = 4;
    const Driver& d = gpu_.driver;
    Staging& staging = context_->staging();
    Pieces pieces(copies);
    std::deque<Flight> flights;
    bool ok = true, more = true;
    while (ok && (more || !flights.empty())) {
        while (ok && more && flights.size() < FLIGHTS) {
            std::vector<Pieces::Piece> next = pieces.next();
            more = !next.empty();
            if (!more) break;
            Chunk* chunk = staging.take(err);
            if (chunk == nullptr) {
                ok = false;
                break;
            }
            flights.push_back({chunk, std::move(next)});
            for (const Pieces::Piece& p : flights.back().pieces)
                ok = ok && context_->check(d.cuMemcpyDtoHAsync(chunk->host + p.at, p.device, p.bytes, stream_),
                                           "cuMemcpyDtoHAsync", err);
            ok = ok && context_->check(d.cuEventRecord(chunk->event, stream_), "cuEventRecord", err);
        }
        if (!ok || flights.empty()) break;
        const Flight& f = flights.front();
        ok = await(f.chunk->event, err);
        if (!ok) break;
        for (const Pieces::Piece& p : f.pieces) std::memcpy(host + p.offset, f.chunk->host + p.at, p.bytes);
        staging.give(f.chunk);
        flights.pop_front();
    }
    Error ignored = {};
    for (const Flight& f : flights) staging.retire(f.chunk, stream_, &ignored);
    return ok;
}

// Copy to the device, before what comes on the stream.
bool CudaQueue::store(const std::vector<HostCopy>& copies, const uint8_t* host, Error* err) {
    const Driver& d = gpu_.driver;
    Staging& staging = context_->staging();
    Pieces pieces(copies);
    bool ok = true;
    for (std::vector<Pieces::Piece> next = pieces.next(); ok && !next.empty(); next = pieces.next()) {
        Chunk* chunk = staging.take(err);
        if (chunk == nullptr) return false;
        for (const Pieces::Piece& p : next) {
            std::memcpy(chunk->host + p.at, host + p.offset, p.bytes);
            ok = ok && context_->check(d.cuMemcpyHtoDAsync(p.device, chunk->host + p.at, p.bytes, stream_),
                                       "cuMemcpyHtoDAsync", err);
        }
        ok = staging.retire(chunk, stream_, err) && ok;
    }
    return ok;
}

bool CudaQueue::run_on_cpu(CudaPlan& plan, CpuPart& part, const uint64_t* versions, Error* err) {
    Device* cpu = gpu_.cpu;
    uint8_t* host = plan.fallback.memory.data;
    for (size_t i = 0; i < part.kept.size(); ++i) {
        KeptRange& range = *part.kept[i].range;
        if (range.version == versions[i]) continue;
        range.version = 0;
        if (!fetch({{range.device, 0, range.bytes}}, range.host, err)) return false;
        range.version = versions[i];
    }
    // A value that an earlier kernel found illegal must not be computed with.
    if (!fetch(part.in, host, err) || !plan.faultless(err)) return false;
    if (cpu_queue_ == nullptr) cpu_queue_ = cpu->ops->open_queue(cpu, err);
    if (cpu_queue_ == nullptr) return false;
    const uint64_t number = cpu->ops->submit(cpu, cpu_queue_, part.plan, err);
    if (number == 0) return false;
    for (;;) {
        const WaitResult result = cpu->ops->wait(cpu, cpu_queue_, number, SLICE_NS, err);
        if (result == WaitResult::failed) return false;
        if (result == WaitResult::done) break;
        if (cancelled_.load(std::memory_order_relaxed)) cpu->ops->cancel(cpu, cpu_queue_);
    }
    return store(part.out, host, err);
}

}  // namespace cuda
}  // namespace ggr
