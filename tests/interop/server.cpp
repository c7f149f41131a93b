// The server of any llama.cpp (or, with PEER_IK, ik_llama.cpp), compiled against that version's own headers and
// libraries, with one CPU device: `server -H HOST --port 0 -t THREADS`. It prints its endpoint once it listens.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "ggml-backend.h"
#include "ggml-rpc.h"
#ifndef PEER_IK
#include "ggml-cpu.h"
#endif

namespace {

constexpr size_t kMemory = size_t{4} << 30;

// What versions before 3.6 are told of their device's memory; later ones find it out.
struct Memory {
    size_t free = kMemory;
    size_t total = kMemory;
};

ggml_backend_t cpu(int threads) {
    const ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, threads);
    return backend;
}

// The function's own type says which version this is.
void serve(void (*start)(ggml_backend_t, const char*, const char*, size_t, size_t), const char* endpoint, int threads) {
    const Memory memory;
    start(cpu(threads), endpoint, nullptr, memory.free, memory.total);
}

void serve(void (*start)(const char*, const char*, size_t, ggml_backend_t*, size_t*, size_t*), const char* endpoint,
           int threads) {
    ggml_backend_t backend = cpu(threads);
    Memory memory;
    start(endpoint, nullptr, 1, &backend, &memory.free, &memory.total);
}

#ifndef PEER_IK
void serve(void (*start)(const char*, const char*, size_t, size_t, ggml_backend_dev_t*), const char* endpoint,
           int threads) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    start(endpoint, nullptr, static_cast<size_t>(threads), 1, &device);
}
#endif

sockaddr_in address_of(const std::string& host, uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    inet_pton(AF_INET, host.c_str(), &address.sin_addr);
    return address;
}

uint16_t free_port(const std::string& host) {
    const int probe = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = address_of(host, 0);
    socklen_t size = sizeof address;
    const bool ok = bind(probe, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                    getsockname(probe, reinterpret_cast<sockaddr*>(&address), &size) == 0;
    close(probe);
    if (!ok) {
        std::fprintf(stderr, "server: no port is free at %s\n", host.c_str());
        std::exit(1);
    }
    return ntohs(address.sin_port);
}

void announce(const std::string& host, uint16_t port) {
    const sockaddr_in address = address_of(host, port);
    for (bool listens = false; !listens; std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
        const int probe = socket(AF_INET, SOCK_STREAM, 0);
        listens = connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
        close(probe);
    }
    std::printf("  endpoint : %s:%d\n", host.c_str(), port);
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    std::string host = "127.0.0.1";
    uint16_t port = 0;
    int threads = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string option = argv[i];
        if (option == "-H") host = argv[i + 1];
        if (option == "--port") port = static_cast<uint16_t>(std::atoi(argv[i + 1]));
        if (option == "-t") threads = std::atoi(argv[i + 1]);
    }
    if (port == 0) port = free_port(host);
    std::thread(announce, host, port).detach();
    serve(ggml_backend_rpc_start_server, (host + ":" + std::to_string(port)).c_str(), threads);
    return 1;  // the call comes back only if it could not listen
}
