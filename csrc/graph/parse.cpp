// GRAPH_COMPUTE payload -> Graph: references resolved, memory bounds and the rules of every op checked.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "graph/graph.h"
#include "graph/ik.h"
#include "spec/refusals.h"
#include "wire/records.h"

namespace ggr {

namespace {

constexpr const char* COMMAND = "GRAPH_COMPUTE";
constexpr int32_t WIRE_FLAGS = 0xffff;

// Open addressing from the client's ids to positions in the list. Half full at most.
class IdMap {
  public:
    explicit IdMap(uint64_t n) {
        uint64_t size = 16;
        while (size < 2 * n) size *= 2;
        mask_ = size - 1;
        slots_.assign(size, Slot{0, 0});
    }
    // Position of id, or -1.
    int64_t find(uint64_t id) const {
        for (uint64_t i = hash(id);; i = (i + 1) & mask_) {
            if (slots_[i].id == 0) return -1;
            if (slots_[i].id == id) return slots_[i].position;
        }
    }
    // False when the id is there already.
    bool insert(uint64_t id, int64_t position) {
        uint64_t i = hash(id);
        while (slots_[i].id != 0) {
            if (slots_[i].id == id) return false;
            i = (i + 1) & mask_;
        }
        slots_[i] = {id, position};
        return true;
    }

  private:
    struct Slot {
        uint64_t id;
        int64_t position;
    };
    // The ids are the client's choice: a multiplicative hash with a secret from the allocator's address keeps a peer
    // from choosing ids that all collide.
    uint64_t hash(uint64_t id) const {
        const uint64_t secret = reinterpret_cast<uintptr_t>(slots_.data());
        uint64_t h = (id ^ secret) * 0x9e3779b97f4a7c15ull;
        h ^= h >> 29;
        h *= 0xbf58476d1ce4e5b9ull;
        return (h ^ h >> 32) & mask_;
    }
    std::vector<Slot> slots_;
    uint64_t mask_;
};

struct FreeGraph {
    void operator()(Graph* g) const { free_graph(g); }
};
using GraphPtr = std::unique_ptr<Graph, FreeGraph>;

GraphPtr allocate(uint32_t n_tensors, uint32_t n_nodes, Error* err) {
    const size_t at_tensors = (sizeof(Graph) + 63) & ~size_t{63};
    const size_t at_nodes = at_tensors + sizeof(Tensor) * n_tensors;
    const size_t bytes = at_nodes + sizeof(Tensor*) * n_nodes;
    uint8_t* memory = static_cast<uint8_t*>(std::calloc(1, bytes));
    if (memory == nullptr) {
        err->fail(Code::memory, "%s: no memory for a graph of %u tensors", COMMAND, n_tensors);
        return nullptr;
    }
    Graph* g = reinterpret_cast<Graph*>(memory);
    g->tensors = reinterpret_cast<Tensor*>(memory + at_tensors);
    g->nodes = reinterpret_cast<const Tensor**>(memory + at_nodes);
    g->n_tensors = n_tensors;
    g->bytes = bytes;
    return GraphPtr(g);
}

class Parser {
  public:
    Parser(const DialectTable& dialect, const BufferLookup& lookup, Device* device, IdMap* map, Error* err)
        : dialect_(dialect), lookup_(lookup), device_(device), map_(map), err_(err) {
        for (int32_t i = 0; i < dialect.n_enum_params; ++i) enum_params_[dialect.enum_params[i].op] |= uint32_t{1} << i;
    }

    bool tensors(Graph* g, const uint8_t* records);
    bool nodes(Graph* g, const uint8_t* ids, uint32_t n);

  private:
    bool references(Graph* g, const WireTensor& w, uint32_t position);
    bool view(const WireTensor& w, const Tensor& t);
    bool op_numbers(const WireTensor& w, Tensor* t);
    bool runnable(const Tensor& t);

    const DialectTable& dialect_;
    const BufferLookup& lookup_;
    Device* device_;
    IdMap* map_;
    Error* err_;
    static_assert(MAX_ENUM_PARAMS <= 32, "a bit each");
    uint32_t enum_params_[OP_COUNT_] = {};  // of each op: which of the dialect's enum_params are its
};

bool Parser::op_numbers(const WireTensor& w, Tensor* t) {
    const int32_t op = w.op < 256 ? dialect_.op_of[w.op] : -1;
    const OpTraits* traits = op_traits(op);
    if (traits == nullptr)
        return err_->fail(Code::graph, "%s: tensor '%s': op %u is not known in dialect %s", COMMAND, w.name, w.op,
                          dialect_.name);
    if (const char* reason = refusal(op))
        return err_->fail(Code::graph, "%s: tensor '%s': op %s is never accepted: it %s", COMMAND, w.name, traits->name,
                          reason);
    t->op = op;
    std::memcpy(t->params, w.params, sizeof t->params);
    // Values of enumerations are numbered by the dialect too.
    for (uint32_t left = enum_params_[op]; left != 0; left &= left - 1) {
        const EnumParam& p = dialect_.enum_params[__builtin_ctz(left)];
        const uint32_t word = static_cast<uint32_t>(w.params[p.word]), wire = word & p.mask;
        int32_t value = wire <= MAX_ENUM_VALUE ? dialect_.enum_of[p.table][wire] : -1;
        // Precisions and hints never decide what is right: one that is not known counts as none.
        if (value < 0 && (p.table == ENUM_PREC || p.table == ENUM_OP_HINT)) value = 0;
        if (value < 0)
            return err_->fail(Code::graph, "%s: tensor '%s': %s: value %u of parameter %d is not known in dialect %s",
                              COMMAND, w.name, traits->name, wire, p.word, dialect_.name);
        t->params[p.word] = static_cast<int32_t>((word & ~p.mask) | static_cast<uint32_t>(value));
    }
    if (op == OP_FLASH_ATTN_EXT && !dialect_.kv_bound) t->params[4] = 0;
    return true;
}

bool Parser::references(Graph* g, const WireTensor& w, uint32_t position) {
    Tensor* t = &g->tensors[position];
    for (int i = 0; i < MAX_SRC; ++i) {
        if (w.src[i] == 0) continue;
        if (w.src[i] == w.id) {
            // A type cast is built as CPY whose destination is the node itself.
            if (t->op == OP_CPY && i == 1) {
                t->src[i] = t;
                t->n_src = i + 1;
                continue;
            }
            return err_->fail(Code::graph, "%s: tensor '%s': source %d is the tensor itself", COMMAND, w.name, i);
        }
        const int64_t at = map_->find(w.src[i]);
        if (at < 0)
            return err_->fail(Code::graph, "%s: tensor '%s': source %d is not among the tensors before it", COMMAND,
                              w.name, i);
        t->src[i] = &g->tensors[at];
        t->n_src = i + 1;
    }
    // The rows go where the node lies; that this place is a source as well was added to clients later.
    if (t->op == OP_SET_ROWS && dialect_.set_rows_by_view && w.src[2] == 0 && w.view_src != 0) {
        t->src[2] = t;
        if (t->n_src < 3) t->n_src = 3;
    }
    if (w.view_src != 0) {
        const int64_t at = map_->find(w.view_src);
        if (at < 0)
            return err_->fail(Code::graph, "%s: tensor '%s': its view_src is not among the tensors before it", COMMAND,
                              w.name);
        t->view_src = &g->tensors[at];
        t->view_offs = w.view_offs;
    }
    return true;
}

// A view lies inside the tensor it views, where both have memory here.
bool Parser::view(const WireTensor& w, const Tensor& t) {
    const Tensor* base = t.view_src;
    if (base == nullptr || t.data == nullptr || base->data == nullptr) return true;
    if (t.buffer != base->buffer)
        return err_->fail(Code::graph, "%s: tensor '%s': a view lies in another buffer than '%s'", COMMAND, w.name,
                          base->name);
    const uint64_t size = static_cast<uint64_t>(extent_bytes(t)), room = static_cast<uint64_t>(extent_bytes(*base));
    // ik_llama.cpp's clients move the destination of a copy into a cache from token to token and leave the offset as it
    // was in a graph that they use again: there the address counts.
    const uint64_t offset = dialect_.ik_meaning ? static_cast<uint64_t>(t.data - base->data) : w.view_offs;
    if (t.data < base->data || offset > room || size > room - offset ||
        static_cast<uint64_t>(t.data - base->data) != offset)
        return err_->fail(Code::graph, "%s: tensor '%s': a view of %llu bytes at offset %llu leaves '%s' (%llu bytes)",
                          COMMAND, w.name, static_cast<unsigned long long>(size),
                          static_cast<unsigned long long>(w.view_offs), base->name,
                          static_cast<unsigned long long>(room));
    return true;
}

bool Parser::tensors(Graph* g, const uint8_t* records) {
    WireTensor w;
    for (uint32_t i = 0; i < g->n_tensors; ++i, records += dialect_.tensor.bytes) {
        Tensor* t = &g->tensors[i];
        read_tensor(dialect_.tensor, records, &w);
        if (w.id == 0) return err_->fail(Code::graph, "%s: tensor %u ('%s') has id 0", COMMAND, i, w.name);
        t->id = w.id;
        t->flags = w.flags & WIRE_FLAGS;
        t->use_count = w.use_count;
        if (!check_layout(dialect_, w, COMMAND, t, err_) || !op_numbers(w, t)) return false;
        // A handle of another connection counts as no buffer, and a tensor without a buffer has no data.
        if (Buffer* buffer = w.buffer != 0 ? lookup_.find(lookup_.context, w.buffer) : nullptr)
            if (!check_placement(w, buffer, COMMAND, t, err_)) return false;
        if (!references(g, w, i) || !view(w, *t)) return false;
        if (dialect_.ik_meaning && !apply_ik_meaning(t, err_)) return false;
        if (!map_->insert(w.id, i))
            return err_->fail(Code::graph, "%s: tensor '%s': its id stands twice in the list", COMMAND, w.name);
    }
    return true;
}

// All that a kernel touches lies in memory of the device that runs the graph.
bool Parser::runnable(const Tensor& t) {
    const OpTraits* traits = op_traits(t.op);
    for (int i = 0; i < t.n_src; ++i) {
        const Tensor* s = t.src[i];
        if (s == nullptr) continue;
        if ((traits->allowed_mask >> i & 1) == 0)
            return err_->fail(Code::graph, "%s: tensor '%s': op %s takes no source %d", COMMAND, t.name, traits->name,
                              i);
    }
    for (int i = -1; i < MAX_SRC; ++i) {
        const Tensor* s = i < 0 ? &t : t.src[i];
        if (s == nullptr) {
            if (i >= 0 && (traits->required_mask >> i & 1) != 0)
                return err_->fail(Code::graph, "%s: tensor '%s': op %s lacks source %d", COMMAND, t.name, traits->name,
                                  i);
            continue;
        }
        if (s->buffer == nullptr && !is_empty(*s))
            return err_->fail(Code::graph, "%s: tensor '%s': op %s touches '%s', which is in no buffer of this session",
                              COMMAND, t.name, traits->name, s->name);
        if (s->buffer != nullptr && s->buffer->device != device_)
            return err_->fail(Code::graph, "%s: tensor '%s': op %s touches '%s', which lies on device %s, not %s",
                              COMMAND, t.name, traits->name, s->name, s->buffer->device->name, device_->name);
    }
    return check_node(t, err_);
}

bool Parser::nodes(Graph* g, const uint8_t* ids, uint32_t n) {
    // In the list's order every tensor comes after what it refers to; the nodes must name the same order.
    int64_t last = -1;
    for (uint32_t i = 0; i < n; ++i) {
        const int64_t at = map_->find(load_u64(ids + size_t{8} * i));
        if (at < 0) return err_->fail(Code::graph, "%s: node %u is not in the tensor list", COMMAND, i);
        Tensor* t = &g->tensors[at];
        if (at <= last)
            return err_->fail(Code::graph, "%s: tensor '%s': node %u stands before one that must run earlier", COMMAND,
                              t->name, i);
        last = at;
        if (op_traits(t->op)->noop) continue;
        if (dialect_.compute_flag && (t->flags & FLAG_COMPUTE) == 0) continue;
        if (!runnable(*t)) return false;
        // Nothing to write: the result is what it was.
        if (t->op == OP_SET_ROWS && (is_empty(*t->src[0]) || is_empty(*t->src[1]))) continue;
        t->compute = true;
        g->nodes[g->n_nodes++] = t;
    }
    return true;
}

}  // namespace

void free_graph(Graph* g) { std::free(g); }

Graph* parse_graph(const DialectTable& d, const uint8_t* payload, uint64_t length, const BufferLookup& lookup,
                   Device* const* devices, uint32_t n_devices, Error* err) {
    const uint64_t head = static_cast<uint64_t>(d.graph_n_nodes) + 4;
    const auto bad = [&](const char* why) {
        err->fail(Code::protocol, "%s: %s (%llu bytes)", COMMAND, why, static_cast<unsigned long long>(length));
        return nullptr;
    };
    if (length < head + 4) return bad("the payload is too short");
    const uint32_t device = d.graph_device >= 0 ? load_u32(payload + d.graph_device) : 0;
    if (device >= n_devices) {
        err->fail(Code::session, "%s: device %u of %u", COMMAND, device, n_devices);
        return nullptr;
    }
    const uint64_t n = load_u32(payload + d.graph_n_nodes);
    if (n == 0 || n > MAX_GRAPH_NODES || length < head + 8 * n + 4)
        return bad("the number of nodes does not fit the payload");
    const uint64_t m = load_u32(payload + head + 8 * n);
    const uint64_t record = static_cast<uint64_t>(d.tensor.bytes);
    if (m > MAX_GRAPH_TENSORS || m < n || length != head + 8 * n + 4 + record * m)
        return bad("the number of tensors does not fit the payload");
    GraphPtr g = allocate(static_cast<uint32_t>(m), static_cast<uint32_t>(n), err);
    if (!g) return nullptr;
    g->device = device;
    g->uid = d.graph_uid >= 0 ? load_u64(payload + d.graph_uid) : 0;
    IdMap map(m);
    Parser parser(d, lookup, devices[device], &map, err);
    if (!parser.tensors(g.get(), payload + head + 8 * n + 4) ||
        !parser.nodes(g.get(), payload + head, static_cast<uint32_t>(n)))
        return nullptr;
    return g.release();
}

}  // namespace ggr
