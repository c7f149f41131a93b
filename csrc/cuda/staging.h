// Transfers between host and device through pinned chunks, several of which are under way at a time: the socket fills
// one while the others are copied.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "core/status.h"
#include "cuda/driver.h"

namespace ggr {
namespace cuda {

class Context;

// A 2 MiB piece takes about 40 us of a fast link, ten times what starting a copy costs.
constexpr uint64_t CHUNK_BYTES = uint64_t{2} << 20;

struct Chunk {
    uint8_t* host;
    CUevent event;  // of its last copy
    bool pinned;
};

class Staging {
  public:
    explicit Staging(Context& context) : context_(context) {}
    bool open(Error* err);
    void close();  // the context is current

    CUstream uploads() const { return upload_; }

    // An unused chunk; waits for the oldest upload if all are in use.
    Chunk* take(Error* err);
    void give(Chunk* chunk);

    // Start to copy the chunk's first bytes to the device; takes the chunk over. Returns the number of the upload, 0 on
    // failure.
    uint64_t upload(Chunk* chunk, CUdeviceptr to, uint64_t bytes, Error* err);
    // Start another write to device memory on the stream of uploads.
    uint64_t fill(CUdeviceptr to, uint8_t value, uint64_t bytes, Error* err);
    uint64_t copy(CUdeviceptr to, CUdeviceptr from, uint64_t bytes, Error* err);
    uint64_t copy_from(CUdeviceptr to, Context& source, CUdeviceptr from, uint64_t bytes, Error* err);
    // What is put on `stream` from now on comes after upload `number`.
    bool order(uint64_t number, CUstream stream, Error* err);

    // Start to copy to the chunk, after upload `number`.
    bool download(Chunk* chunk, CUdeviceptr from, uint64_t bytes, uint64_t number, Error* err);
    bool await(CUevent event, Error* err);
    // The chunk is free when what is on `stream` by now is over.
    bool retire(Chunk* chunk, CUstream stream, Error* err);

  private:
    struct Flight {
        uint64_t number;
        Chunk* chunk;  // nullptr: no chunk is involved
        CUevent event;
    };
    Chunk* make(Error* err);
    void land();
    bool event(CUevent* out, Error* err);
    uint64_t depart(Chunk* chunk, CUevent event, Error* err);
    uint64_t depart_alone(Error* err);
    bool order_locked(uint64_t number, CUstream stream, Error* err);

    Context& context_;
    CUstream upload_ = nullptr, download_ = nullptr;
    std::mutex mutex_;
    std::vector<Chunk*> free_;
    std::vector<CUevent> events_;  // not in use
    std::deque<Flight> flying_;    // uploads in order
    std::vector<Chunk*> retiring_;
    uint64_t number_ = 0;  // of the last upload
    size_t chunks_ = 0;
};

}  // namespace cuda
}  // namespace ggr
