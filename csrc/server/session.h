// One connection's state machine. The hot commands are served here, without the GIL; the rest is handed to the owner as
// an event.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/device.h"
#include "core/status.h"
#include "graph/graph.h"
#include "net/stream.h"
#include "server/file_loads.h"
#include "wire/dialect.h"
#include "wire/records.h"

namespace ggr {

struct SessionConfig {
    std::vector<Device*> devices;
    uint64_t max_buffers;
    uint64_t max_stored_graph_bytes;
    uint64_t max_graph_bytes;           // requests, graphs and plans of all sessions of the process together
    uint64_t max_compiled_graph_bytes;  // beyond it the plans least recently run go back to their compact form
    int64_t hello_deadline_ns;
    bool cache;                              // tell the owner of tensors to keep
    void (*trace)(void*, const char* line);  // nullptr, or called with a line for each command
    void (*note)(void*, const char* line);   // nullptr, or called with a line for each thing that was inferred
    void* context;                           // of both
};

// What serve() comes back for.
enum class Event : int32_t {
    failed = 0,         // *err says why (Code::closed: the peer left in good order); the session is over
    hello = 1,          // call choose(); answer with reply()
    alloc_buffer = 2,   // answer with reply(), after allocate()
    free_buffer = 3,    // call release(); answer with done()
    device_memory = 4,  // answer with reply()
    tensor_hash = 5,    // answer with reply(), after load() on a hit
    store_tensor = 6,   // `region` was just received and is to be kept in the cache; no answer
    comm = 7,           // answer with done() or reply() as the command demands
    first_command = 8,  // a client that was given a choice stays; no answer
    none = 9,           // (never returned)
};

struct SessionStats {
    uint64_t commands;
    uint64_t graphs;
    uint64_t recomputes;
    uint64_t received;
    uint64_t sent;
};

class Session {
  public:
    Session(Transport transport, SessionConfig config);
    ~Session();  // cancels what runs and frees all buffers
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    Event serve(Error* err);
    // Of HELLO: the tables that the client may speak, at least one. What it sends narrows them down. `report`: come
    // back with first_command once.
    void choose(std::vector<const DialectTable*> tables, bool report);

    // ---- of the event that serve() returned ----
    int32_t command() const { return command_; }
    const std::vector<uint8_t>& payload() const { return payload_; }
    uint32_t device_index() const { return device_index_; }
    uint64_t argument() const { return argument_; }  // size, handle or hash
    uint64_t region_bytes() const { return region_.length; }

    bool reply(const void* data, uint64_t size, Error* err);
    // Send the answer of a command that carries no data, if the dialect has one.
    bool done(Error* err);

    // Reserve a buffer named by `handle` (not 0, not in use). False with Code::memory when it cannot be had.
    bool allocate(uint32_t device, uint64_t size, uint64_t handle, uint64_t* granted, Error* err);
    bool release(uint64_t handle, Error* err);
    // tensor_hash: fill the region from an open file of `size` bytes; *matches tells whether all was there and, with
    // `verify`, whether its hash was the one asked for. Without `verify` the file may be read later, while the client
    // goes on: whatever uses memory of the session waits for it.
    bool load(int fd, uint64_t size, bool verify, bool* matches, Error* err);
    // store_tensor: hash the region, and write it to an open file; *failure is 0 or the errno that kept it from that.
    bool hash_region(uint64_t* hash, Error* err);
    bool store(int fd, int* failure, Error* err);

    uint64_t held_bytes() const { return held_bytes_; }
    SessionStats stats() const;

  private:
    struct Region {
        Buffer* buffer;
        uint64_t offset, length;
    };
    struct Stored {
        Plan* plan = nullptr;  // nullptr: compiled again from `packed` when it is run; neither: a buffer was freed
        std::vector<uint8_t> packed;   // the request in compact form
        std::vector<Buffer*> buffers;  // that the graph names
        uint64_t last_run = 0;
        uint64_t used = 0;   // when it was run, in graphs of the session
        uint64_t bytes = 0;  // of the plan
    };
    struct Line {  // of work on one device
        Queue* queue = nullptr;
        uint64_t submitted = 0;
        std::unordered_map<uint64_t, Stored> by_uid;
        Stored last;  // the last graph (dialects without uid), or the one of uid 0
    };
    struct Target {  // a tensor of a request, resolved
        WireTensor wire;
        Tensor tensor;
        Buffer* buffer;
        uint64_t start;   // offset of the tensor in its buffer
        uint64_t extent;  // its bytes
    };

    Event serve_until_event(Error* err);
    bool header(Error* err);
    bool hello_header(uint8_t byte, Error* err);
    bool read_payload(uint64_t size, Error* err);
    Event dispatch(Error* err);
    bool serve_hot(Error* err);

    // ---- Which table (session_tables.cpp) ----
    // Keep the tables whose bit is set in `fits`. When none is, all stay: the command is refused by the first one's
    // rules.
    void narrow(const std::vector<bool>& fits, const char* evidence, ...) __attribute__((format(printf, 3, 4)));
    void narrow_by_length();
    void narrow_by_type(const uint8_t* record);
    bool narrow_by_placement(Error* err);
    void narrow_by_graph_length();
    Graph* narrow_by_graph(const std::vector<uint8_t>& payload, Error* err);

    bool device_argument(Error* err);
    Buffer* find(uint64_t handle) const;
    bool known(uint64_t handle, Buffer** buffer, Error* err) const;
    bool target(const uint8_t* record, Target* out, Error* err) const;
    bool range(const Target& t, uint64_t offset, uint64_t length, Error* err) const;

    bool set_tensor(Error* err);
    bool set_tensor_2d(Error* err);
    bool get_tensor(Error* err);
    bool get_tensor_2d(Error* err);
    bool memset_tensor(Error* err);
    bool copy_tensor(Error* err);
    bool clear_buffer(Error* err);
    bool init_tensor(Error* err);
    bool alloc_size(Error* err);
    bool graph_compute(Error* err);
    bool graph_recompute(Error* err);
    bool start_hash(Error* err);

    // Bytes that came with the header already stand at `early`.
    bool receive_into(const Region& r, const uint8_t* early, uint64_t n_early, Error* err);
    bool header_2d(const uint8_t* payload, Target* t, uint64_t* size, uint64_t* copies, uint64_t* stride,
                   uint64_t* offset, Error* err) const;

    uint32_t index_of(const Device* device) const;
    Line* line(uint32_t device, Error* err);
    bool submit(uint32_t device, Stored* stored, Error* err);
    bool finish(uint32_t device, uint64_t number, Error* err);
    bool runs_succeed(Error* err);                  // so far, without waiting
    bool settle(const Buffer& buffer, Error* err);  // wait for the buffer's last use
    bool settle(const Region& region, Error* err);  // likewise, but not for a file that is read to another place
    bool land(Error* err);                          // read what is left of files of the cache
    bool land_until_asked(Error* err);              // likewise, until the client sends something or leaves
    Graph* parse(const DialectTable& table, const std::vector<uint8_t>& payload, Error* err) const;
    bool recompute_length(Error* err) const;
    bool move_copies(uint32_t device, Stored* stored, Error* err);
    bool compile(uint32_t device, Graph* graph, Stored* stored, Error* err);
    bool shrink(const Stored* keep, Error* err);
    // Count what the session's graphs take now, and `more` that is about to be needed; false if it is too much.
    bool count_graphs(uint64_t more, Error* err);
    void drop_plan(uint32_t device, Stored* stored);
    void drop(uint32_t device, Stored* stored);
    void drop_all(uint32_t device);
    void trace(const char* format, ...) __attribute__((format(printf, 2, 3)));

    Stream stream_;
    const SessionConfig config_;
    std::vector<const DialectTable*> tables_;  // that the client may speak
    const DialectTable* dialect_ = nullptr;    // the first of them
    bool chosen_for_ = false;                  // the client was given a choice among several numbers
    bool report_first_ = false;
    bool greeted_ = false;
    bool waiting_ = false;  // a header was read and is to be served
    int32_t command_ = -1;
    uint64_t length_ = 0;
    std::vector<uint8_t> payload_;
    uint32_t device_index_ = 0;
    uint64_t argument_ = 0;
    Region region_ = {};
    bool keep_region_ = false;
    FileLoads loads_;
    bool hit_ = false;  // the last tensor that was asked for by hash is read behind its answer
    std::unordered_map<uint64_t, std::unique_ptr<Buffer>> buffers_;
    std::vector<Line> lines_;
    uint64_t next_base_;
    uint64_t held_bytes_ = 0;
    uint64_t compiled_bytes_ = 0;
    uint64_t packed_bytes_ = 0;
    uint64_t counted_bytes_ = 0;  // of graphs, in the sum over all sessions
    SessionStats stats_ = {};
};

}  // namespace ggr
