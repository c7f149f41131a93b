// A byte stream to a peer: whole reads into the caller's memory, scattered writes, deadlines that watch progress.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/status.h"

namespace ggr {

// How bytes travel. All calls block; `shutdown` from another thread ends them.
struct Transport {
    // Receive 1 .. size bytes. 0: the peer closed; -1: it failed; -2: nothing came within the transport's stall time.
    int64_t (*receive)(void* context, uint8_t* to, size_t size);
    // Send 1 .. all bytes of the parts; same codes.
    int64_t (*send)(void* context, const iovec* parts, int n_parts);
    // True once the peer hung up (or the transport was shut down), without reading anything.
    bool (*gone)(void* context);
    // True when bytes wait to be received.
    bool (*ready)(void* context);
    void* context;
};

// A connected TCP socket; the context is the file descriptor. Stall times are SO_RCVTIMEO and SO_SNDTIMEO of the
// socket.
Transport tcp_transport(int fd);

// Buffered reading: a request of a few hundred bytes costs one system call.
class Stream {
  public:
    explicit Stream(Transport transport);

    // Read exactly size bytes; a stall is an error. `what` names the message in errors.
    bool read(void* to, uint64_t size, const char* what, Error* err);
    // Wait, without limit, for the first byte of a message. False with Code::closed at the end of the stream.
    bool await(Error* err);
    // Until it is lifted by 0, all reading must be over at this time of CLOCK_MONOTONIC.
    void deadline(int64_t at_ns);

    bool write(const void* data, uint64_t size, Error* err);
    bool write(iovec* parts, int n_parts, Error* err);
    bool gone();
    // True when the peer has sent more than was read.
    bool pending();

    uint64_t received() const { return received_; }
    uint64_t sent() const { return sent_; }

  private:
    int64_t receive(uint8_t* to, uint64_t size, bool idle, Error* err, const char* what);

    static constexpr size_t CAPACITY = 64 * 1024;
    Transport transport_;
    std::unique_ptr<uint8_t[]> buffer_;
    size_t begin_ = 0, end_ = 0;
    int64_t deadline_ns_ = 0;
    uint64_t received_ = 0, sent_ = 0;
};

int64_t monotonic_ns();

}  // namespace ggr
