// Graphs of a session: compiled once, run in order on the device's queue, kept for GRAPH_RECOMPUTE.
#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstring>

#include "server/session.h"
#include "wire/pack.h"

namespace ggr {

namespace {

// Runs a session may have waiting on one device; a client that sends more is held back.
constexpr uint64_t MAX_WAITING = 64;
// How often a wait looks whether the client is still there.
constexpr int64_t WAIT_SLICE_NS = 50'000'000;

// Of all sessions. Graphs lie on the heap, where the memory that is free for buffers does not show them.
std::atomic<uint64_t> graph_bytes{0};
// A parsed graph and its plan beside the request that they come from.
constexpr uint64_t GRAPH_GROWTH = 3;
// A session may have so much whatever others hold: a crowd must not keep an ordinary client from computing.
constexpr uint64_t GRAPH_ALLOWANCE = uint64_t{16} << 20;

Buffer* find_buffer(void* context, uint64_t handle) {
    const auto& buffers = *static_cast<const std::unordered_map<uint64_t, std::unique_ptr<Buffer>>*>(context);
    const auto at = buffers.find(handle);
    return at == buffers.end() ? nullptr : at->second.get();
}

}  // namespace

uint32_t Session::index_of(const Device* device) const {
    const auto at = std::find(config_.devices.begin(), config_.devices.end(), device);
    return static_cast<uint32_t>(at - config_.devices.begin());
}

Session::Line* Session::line(uint32_t device, Error* err) {
    Line& l = lines_[device];
    if (l.queue == nullptr) l.queue = config_.devices[device]->ops->open_queue(config_.devices[device], err);
    return l.queue == nullptr ? nullptr : &l;
}

// Wait for a run; when the client leaves meanwhile, the run is cancelled.
bool Session::finish(uint32_t device, uint64_t number, Error* err) {
    Device* d = config_.devices[device];
    Queue* queue = lines_[device].queue;
    if (queue == nullptr || number == 0) return true;
    for (;;) {
        const WaitResult result = d->ops->wait(d, queue, number, WAIT_SLICE_NS, err);
        if (result == WaitResult::done) return true;
        if (result == WaitResult::failed) return false;
        if (stream_.gone()) d->ops->cancel(d, queue);
    }
}

// Runs go on while further commands are served; one that failed ends the session at the next command, whatever that is.
bool Session::runs_succeed(Error* err) {
    for (uint32_t i = 0; i < lines_.size(); ++i) {
        Device* d = config_.devices[i];
        const Line& l = lines_[i];
        if (l.queue != nullptr && d->ops->wait(d, l.queue, l.submitted, 0, err) == WaitResult::failed) return false;
    }
    return true;
}

bool Session::settle(const Buffer& buffer, Error* err) {
    return land(err) && finish(index_of(buffer.device), buffer.last_use, err);
}

bool Session::settle(const Region& r, Error* err) {
    if (loads_.fills(r.buffer->data + r.offset, r.length)) return settle(*r.buffer, err);
    return finish(index_of(r.buffer->device), r.buffer->last_use, err);
}

// The plan must not be running: its buffers are settled or its queue is closed.
void Session::drop_plan(uint32_t device, Stored* stored) {
    if (stored->plan == nullptr) return;
    config_.devices[device]->ops->free_plan(config_.devices[device], stored->plan);
    compiled_bytes_ -= stored->bytes;
    stored->plan = nullptr;
    stored->bytes = 0;
}

void Session::drop(uint32_t device, Stored* stored) {
    drop_plan(device, stored);
    packed_bytes_ -= stored->packed.size();
    *stored = Stored();
}

void Session::drop_all(uint32_t device) {
    for (auto& entry : lines_[device].by_uid) drop(device, &entry.second);
    lines_[device].by_uid.clear();
    drop(device, &lines_[device].last);
}

bool Session::submit(uint32_t device, Stored* stored, Error* err) {
    Device* d = config_.devices[device];
    Line& l = lines_[device];
    if (!land(err)) return false;
    if (l.submitted >= MAX_WAITING && !finish(device, l.submitted - MAX_WAITING + 1, err)) return false;
    const uint64_t number = d->ops->submit(d, l.queue, stored->plan, err);
    if (number == 0) return false;
    l.submitted = number;
    stored->last_run = number;
    stored->used = stats_.graphs + stats_.recomputes;
    for (Buffer* buffer : stored->buffers) buffer->last_use = number;
    return true;
}

Graph* Session::parse(const DialectTable& table, const std::vector<uint8_t>& payload, Error* err) const {
    // The lookup only reads the map; it is const-free because a device's lookups in general may not be.
    const BufferLookup lookup = {find_buffer, const_cast<void*>(static_cast<const void*>(&buffers_))};
    return parse_graph(table, payload.data(), payload.size(), lookup, config_.devices.data(),
                       static_cast<uint32_t>(config_.devices.size()), err);
}

bool Session::compile(uint32_t device, Graph* graph, Stored* stored, Error* err) {
    Device* d = config_.devices[device];
    stored->plan = d->ops->compile(d, graph, err);
    if (stored->plan == nullptr) return false;
    stored->bytes = d->ops->plan_bytes(stored->plan);
    compiled_bytes_ += stored->bytes;
    return true;
}

// Give back the plans least recently run, all but `keep`, until the rest fits.
bool Session::shrink(const Stored* keep, Error* err) {
    while (compiled_bytes_ > config_.max_compiled_graph_bytes) {
        uint32_t device = 0;
        Stored* oldest = nullptr;
        for (uint32_t i = 0; i < lines_.size(); ++i)
            for (auto& entry : lines_[i].by_uid) {
                Stored* s = &entry.second;
                if (s->plan == nullptr || s == keep || (oldest != nullptr && s->used >= oldest->used)) continue;
                oldest = s;
                device = i;
            }
        if (oldest == nullptr) return true;
        if (!finish(device, oldest->last_run, err)) return false;
        drop_plan(device, oldest);
    }
    return true;
}

bool Session::count_graphs(uint64_t more, Error* err) {
    const uint64_t now = packed_bytes_ + compiled_bytes_ + payload_.capacity() + more;
    const uint64_t all = graph_bytes.fetch_add(now - counted_bytes_) + (now - counted_bytes_);
    const bool grown = now > counted_bytes_;
    counted_bytes_ = now;
    if (!grown || now <= GRAPH_ALLOWANCE || all <= config_.max_graph_bytes) return true;
    return err->fail(Code::memory, "%s: graphs of all sessions would take %" PRIu64 " bytes, the limit is %" PRIu64,
                     command_name(command_), all, config_.max_graph_bytes);
}

bool Session::graph_compute(Error* err) {
    const uint64_t limit = static_cast<uint64_t>(MAX_GRAPH_NODES) * 8 +
                           static_cast<uint64_t>(MAX_GRAPH_TENSORS) * static_cast<uint64_t>(dialect_->tensor.bytes) +
                           64;
    if (length_ > limit)
        return err->fail(Code::protocol, "GRAPH_COMPUTE: a payload of %" PRIu64 " bytes, the limit is %" PRIu64,
                         length_, limit);
    if (!read_payload(length_, err) || !count_graphs(GRAPH_GROWTH * length_, err)) return false;
    narrow_by_graph_length();
    Graph* graph = narrow_by_graph(payload_, err);
    if (graph == nullptr) return false;
    const uint32_t device = graph->device;
    const uint64_t uid = graph->uid;
    trace("GRAPH_COMPUTE: device %u, uid %" PRIu64 ", %u nodes to run, %u tensors", device, uid, graph->n_nodes,
          graph->n_tensors);
    Stored stored;
    for (uint32_t i = 0; i < graph->n_tensors; ++i) {
        // The list may name buffers of other devices; no node touches those, and runs are numbered by device.
        Buffer* buffer = graph->tensors[i].buffer;
        if (buffer != nullptr && buffer->device == config_.devices[device] &&
            std::find(stored.buffers.begin(), stored.buffers.end(), buffer) == stored.buffers.end())
            stored.buffers.push_back(buffer);
    }
    if (!compile(device, graph, &stored, err)) return false;
    const bool keyed = dialect_->graph_cache_max > 0 && uid != 0;
    Line* l = line(device, err);
    Stored* kept = nullptr;
    if (l != nullptr) {
        // Runs of what is about to be dropped must be over.
        if (!keyed) {
            if (finish(device, l->last.last_run, err)) {
                drop(device, &l->last);
                kept = &l->last;
            }
        } else if (l->by_uid.size() >= static_cast<size_t>(dialect_->graph_cache_max)) {
            if (finish(device, l->submitted, err)) {
                for (auto& entry : l->by_uid) drop(device, &entry.second);
                l->by_uid.clear();
                kept = &l->by_uid[uid];
            }
        } else {
            Stored* slot = &l->by_uid[uid];
            if (finish(device, slot->last_run, err)) {
                drop(device, slot);
                kept = slot;
            }
        }
    }
    if (kept == nullptr) {
        drop(device, &stored);
        return false;
    }
    *kept = std::move(stored);
    ++stats_.graphs;
    if (!submit(device, kept, err)) return false;
    // Packing takes as long as all that came before: the graph runs meanwhile.
    if (keyed || dialect_->recompute_offsets >= 0) {
        kept->packed = pack_payload(payload_, static_cast<size_t>(dialect_->tensor.bytes));
        packed_bytes_ += kept->packed.size();
    }
    if (packed_bytes_ > config_.max_stored_graph_bytes)
        return err->fail(Code::session,
                         "GRAPH_COMPUTE: the session's stored graphs take %" PRIu64 " bytes, the limit is %" PRIu64,
                         packed_bytes_, config_.max_stored_graph_bytes);
    if (!shrink(kept, err) || !count_graphs(0, err)) return false;
    if (!dialect_->graph_status) return true;
    // The answer is about the run: it waits for it. A run that fails ends the connection like any other.
    const uint8_t success = 0;
    if (!finish(device, l->submitted, err)) return false;
    // 3.0.0 is accepted by all clients of 3.x, but those from 3.5.0 on would take the answer for that of the next
    // command.
    if (chosen_for_ && stream_.pending())
        return err->fail(Code::protocol, "GRAPH_COMPUTE: the client does not wait for the answer that dialect %s has",
                         dialect_->name);
    return reply(&success, 1, err);
}

// ik_llama.cpp 5.5.5 sends, with each recompute, where the graph's CPY nodes write to now: their offsets in what they
// view. The graph is read anew with them, so that every check is made again.
bool Session::move_copies(uint32_t device, Stored* stored, Error* err) {
    const TensorLayout& l = dialect_->tensor;
    const uint8_t* request = payload_.data() + dialect_->recompute_offsets;
    const uint64_t n_places = load_u32(request);
    if (payload_.size() != static_cast<uint64_t>(dialect_->recompute_offsets) + 4 + 8 * n_places)
        return err->fail(Code::protocol, "GRAPH_RECOMPUTE: %zu bytes do not hold %" PRIu64 " offsets", payload_.size(),
                         n_places);
    std::vector<uint8_t> graph = unpack_payload(stored->packed, static_cast<size_t>(l.bytes));
    const uint8_t* ids = graph.data() + dialect_->graph_n_nodes + 4;
    const uint64_t n_nodes = load_u32(ids - 4);
    uint8_t* records = graph.data() + (ids - graph.data()) + 8 * n_nodes + 4;
    std::vector<std::pair<uint64_t, uint8_t*>> by_id;
    for (uint64_t i = 0; i < load_u32(ids + 8 * n_nodes); ++i) {
        uint8_t* record = records + i * static_cast<uint64_t>(l.bytes);
        by_id.emplace_back(load_u64(record + l.id), record);
    }
    std::sort(by_id.begin(), by_id.end());
    const auto find = [&](uint64_t id) -> uint8_t* {
        const auto at = std::lower_bound(by_id.begin(), by_id.end(), std::make_pair(id, (uint8_t*)nullptr));
        return at == by_id.end() || at->first != id ? nullptr : at->second;
    };
    const auto put = [](uint8_t* to, uint64_t value) { std::memcpy(to, &value, sizeof value); };
    uint64_t place = 0;
    bool moved = false;
    for (uint64_t i = 0; i < n_nodes; ++i) {
        uint8_t* node = find(load_u64(ids + 8 * i));  // it was parsed before: every id is there
        const uint32_t op = load_u32(node + l.op);
        if (dialect_->op_of[op] != OP_CPY) continue;
        if (place++ >= n_places) continue;
        const uint64_t offset = load_u64(request + 4 + 8 * (place - 1));
        if (offset == load_u64(node + l.view_offs)) continue;
        uint8_t* base = find(load_u64(node + l.view_src));
        uint8_t* target = find(load_u64(node + l.src + 8));
        if (base == nullptr || target == nullptr)
            return err->fail(Code::graph, "GRAPH_RECOMPUTE: CPY node %" PRIu64 " views nothing that could move", i);
        const uint64_t data = load_u64(base + l.data) + offset;
        put(node + l.view_offs, offset);
        put(node + l.data, data);
        put(target + l.data, data);
        if (load_u64(target + l.view_src) != 0) put(target + l.view_offs, offset);
        moved = true;
    }
    if (place != n_places)
        return err->fail(Code::protocol, "GRAPH_RECOMPUTE: %" PRIu64 " offsets for %" PRIu64 " CPY nodes", n_places,
                         place);
    if (!moved) return true;
    if (!finish(device, stored->last_run, err)) return false;
    drop_plan(device, stored);
    packed_bytes_ -= stored->packed.size();
    stored->packed = pack_payload(graph, static_cast<size_t>(l.bytes));
    packed_bytes_ += stored->packed.size();
    return true;
}

// The one command beside GRAPH_COMPUTE whose payload is read whole and may have any length.
bool Session::recompute_length(Error* err) const {
    if (dialect_->recompute_offsets < 0) return true;
    const uint64_t least = static_cast<uint64_t>(dialect_->recompute_offsets) + 4;
    if (length_ < least || length_ > least + static_cast<uint64_t>(MAX_GRAPH_NODES) * 8)
        return err->fail(Code::protocol, "GRAPH_RECOMPUTE: a payload of %" PRIu64 " bytes", length_);
    return true;
}

bool Session::graph_recompute(Error* err) {
    const uint8_t* p = payload_.data();
    const uint32_t device = dialect_->recompute_device >= 0 ? load_u32(p + dialect_->recompute_device) : 0;
    const uint64_t uid = dialect_->recompute_uid >= 0 ? load_u64(p + dialect_->recompute_uid) : 0;
    if (device >= config_.devices.size())
        return err->fail(Code::session, "GRAPH_RECOMPUTE: device %u of %zu", device, config_.devices.size());
    trace("GRAPH_RECOMPUTE: device %u, uid %" PRIu64, device, uid);
    Line& l = lines_[device];
    Stored* stored = nullptr;
    if (dialect_->graph_cache_max == 0) {
        stored = &l.last;
    } else {
        const auto at = l.by_uid.find(uid);
        if (at != l.by_uid.end()) stored = &at->second;
    }
    if (stored == nullptr || (stored->plan == nullptr && stored->packed.empty()))
        return err->fail(Code::session, "GRAPH_RECOMPUTE: device %u holds no graph with uid %" PRIu64, device, uid);
    if (dialect_->recompute_offsets >= 0 && !move_copies(device, stored, err)) return false;
    if (stored->plan == nullptr) {
        Graph* graph =
            parse(*dialect_, unpack_payload(stored->packed, static_cast<size_t>(dialect_->tensor.bytes)), err);
        if (graph == nullptr || !compile(device, graph, stored, err)) return false;
    }
    ++stats_.recomputes;
    return submit(device, stored, err) && shrink(stored, err) && count_graphs(0, err);
}

}  // namespace ggr
