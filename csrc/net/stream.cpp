#include "net/stream.h"

#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ggr {

namespace {

// One system call moves at most this much: a peer that trickles still shows progress, and a stop is noticed.
constexpr size_t MAX_TRANSFER = size_t{16} << 20;

int descriptor(void* context) { return static_cast<int>(reinterpret_cast<intptr_t>(context)); }

int64_t code_of_errno() { return errno == EAGAIN || errno == EWOULDBLOCK ? -2 : -1; }

int64_t tcp_receive(void* context, uint8_t* to, size_t size) {
    for (;;) {
        const ssize_t n = recv(descriptor(context), to, size, 0);
        if (n >= 0) return n;
        if (errno != EINTR) return code_of_errno();
    }
}

int64_t tcp_send(void* context, const iovec* parts, int n_parts) {
    msghdr message = {};
    message.msg_iov = const_cast<iovec*>(parts);
    message.msg_iovlen = static_cast<size_t>(n_parts);
    for (;;) {
        const ssize_t n = sendmsg(descriptor(context), &message, MSG_NOSIGNAL);
        if (n >= 0) return n;
        if (errno != EINTR) return code_of_errno();
    }
}

bool tcp_gone(void* context) {
    pollfd p = {descriptor(context), POLLRDHUP, 0};
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

bool tcp_ready(void* context) {
    uint8_t byte;
    return recv(descriptor(context), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
}

}  // namespace

Transport tcp_transport(int fd) {
    return {tcp_receive, tcp_send, tcp_gone, tcp_ready, reinterpret_cast<void*>(static_cast<intptr_t>(fd))};
}

int64_t monotonic_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

Stream::Stream(Transport transport) : transport_(transport), buffer_(new uint8_t[CAPACITY]) {}

void Stream::deadline(int64_t at_ns) { deadline_ns_ = at_ns; }

int64_t Stream::receive(uint8_t* to, uint64_t size, bool idle, Error* err, const char* what) {
    for (;;) {
        if (deadline_ns_ != 0 && monotonic_ns() > deadline_ns_) {
            err->fail(Code::timeout, "%s: not complete within its time", what);
            return -1;
        }
        const int64_t n =
            transport_.receive(transport_.context, to, static_cast<size_t>(std::min<uint64_t>(size, MAX_TRANSFER)));
        if (n > 0) {
            received_ += static_cast<uint64_t>(n);
            return n;
        }
        if (n == -2 && idle) continue;
        if (n == 0)
            err->fail(idle ? Code::closed : Code::protocol, "%s: the peer closed the connection", what);
        else if (n == -2)
            err->fail(Code::timeout, "%s: the peer sent nothing for too long", what);
        else
            err->fail(Code::io, "%s: receiving failed: %s", what, std::strerror(errno));
        return -1;
    }
}

bool Stream::await(Error* err) {
    if (begin_ < end_) return true;
    const int64_t n = receive(buffer_.get(), CAPACITY, true, err, "between messages");
    if (n <= 0) return false;
    begin_ = 0;
    end_ = static_cast<size_t>(n);
    return true;
}

bool Stream::read(void* to, uint64_t size, const char* what, Error* err) {
    uint8_t* out = static_cast<uint8_t*>(to);
    while (size > 0) {
        if (begin_ < end_) {
            const size_t n = static_cast<size_t>(std::min<uint64_t>(size, end_ - begin_));
            std::memcpy(out, buffer_.get() + begin_, n);
            begin_ += n;
            out += n;
            size -= n;
            continue;
        }
        // What is larger than the buffer goes straight to its place.
        const bool direct = size >= CAPACITY;
        const int64_t n = receive(direct ? out : buffer_.get(), direct ? size : CAPACITY, false, err, what);
        if (n <= 0) return false;
        if (direct) {
            out += n;
            size -= static_cast<uint64_t>(n);
        } else {
            begin_ = 0;
            end_ = static_cast<size_t>(n);
        }
    }
    return true;
}

bool Stream::write(iovec* parts, int n_parts, Error* err) {
    while (n_parts > 0) {
        if (parts->iov_len == 0) {
            ++parts;
            --n_parts;
            continue;
        }
        // A peer that takes bytes at all makes progress; large parts go in pieces so that the stall time watches each.
        iovec first = *parts;
        const bool split = first.iov_len > MAX_TRANSFER;
        if (split) first.iov_len = MAX_TRANSFER;
        int64_t n = transport_.send(transport_.context, split ? &first : parts, split ? 1 : n_parts);
        if (n <= 0)
            return err->fail(n == -2 ? Code::timeout : Code::io, "reply: %s",
                             n == -2 ? "the peer took nothing for too long" : "the peer closed the connection");
        sent_ += static_cast<uint64_t>(n);
        while (n > 0) {
            const size_t step = std::min(static_cast<size_t>(n), parts->iov_len);
            parts->iov_base = static_cast<uint8_t*>(parts->iov_base) + step;
            parts->iov_len -= step;
            n -= static_cast<int64_t>(step);
            if (parts->iov_len == 0 && n > 0) {
                ++parts;
                --n_parts;
            }
        }
    }
    return true;
}

bool Stream::write(const void* data, uint64_t size, Error* err) {
    iovec part = {const_cast<void*>(data), static_cast<size_t>(size)};
    return write(&part, 1, err);
}

bool Stream::pending() { return begin_ < end_ || transport_.ready(transport_.context); }

bool Stream::gone() { return transport_.gone(transport_.context); }

}  // namespace ggr
