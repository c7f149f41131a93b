// Which table a client speaks, where the number that was announced leaves several: what it sends proves more and more.
// A table is dropped only when the client did something that no client of that table does.
#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>

#include "server/session.h"
#include "spec/tables.h"

namespace ggr {

namespace {

struct FreeGraph {
    void operator()(Graph* g) const { free_graph(g); }
};
using GraphPtr = std::unique_ptr<Graph, FreeGraph>;

// Position in the list of tensors, for comparing graphs; -1: none.
int64_t position(const Graph& g, const Tensor* t) { return t == nullptr ? -1 : t - g.tensors; }

bool same_tensor(const Graph& a, const Tensor& x, const Graph& b, const Tensor& y) {
    // Bit 16 was read alike in both; whether it decides shows in the nodes to run.
    if (x.op != y.op || x.type != y.type || x.flags != y.flags || x.data != y.data || x.compute != y.compute ||
        x.view_offs != y.view_offs || !same_shape(x, y))
        return false;
    if (std::memcmp(x.nb, y.nb, sizeof x.nb) != 0 || std::memcmp(x.params, y.params, sizeof x.params) != 0)
        return false;
    for (int i = 0; i < MAX_SRC; ++i)
        if (position(a, x.src[i]) != position(b, y.src[i])) return false;
    return position(a, x.view_src) == position(b, y.view_src);
}

// The two ask for the same computation. `at`: a tensor that they differ in, if there is one.
bool same_graph(const Graph& a, const Graph& b, const Tensor** at) {
    *at = nullptr;
    if (a.n_tensors != b.n_tensors || a.n_nodes != b.n_nodes || a.device != b.device || a.uid != b.uid) return false;
    for (uint32_t i = 0; i < a.n_tensors; ++i)
        if (!same_tensor(a, a.tensors[i], b, b.tensors[i])) {
            *at = &a.tensors[i];
            return false;
        }
    for (uint32_t i = 0; i < a.n_nodes; ++i)
        if (position(a, a.nodes[i]) != position(b, b.nodes[i])) return false;
    return true;
}

// The numbers of nodes and tensors stand where this table has them, and account for the whole payload.
bool length_fits(const DialectTable& d, const std::vector<uint8_t>& payload) {
    const uint64_t length = payload.size(), head = static_cast<uint64_t>(d.graph_n_nodes) + 4;
    if (length < head + 4) return false;
    const uint64_t n = load_u32(payload.data() + d.graph_n_nodes);
    if (length < head + 8 * n + 4) return false;
    const uint64_t m = load_u32(payload.data() + head + 8 * n);
    return length == head + 8 * n + 4 + static_cast<uint64_t>(d.tensor.bytes) * m;
}

struct Marks {
    bool flagged;   // a tensor carries the flag COMPUTE
    bool computes;  // a node is more than a view
};

// What the records say about the flag COMPUTE, before any rule is asked.
Marks read_marks(const DialectTable& d, const std::vector<uint8_t>& payload) {
    Marks marks = {};
    if (!length_fits(d, payload)) return marks;
    const uint8_t* ids = payload.data() + d.graph_n_nodes + 4;
    const uint64_t n = load_u32(ids - 4), m = load_u32(ids + 8 * n);
    std::vector<uint64_t> nodes(n);
    for (uint64_t i = 0; i < n; ++i) nodes[i] = load_u64(ids + 8 * i);
    std::sort(nodes.begin(), nodes.end());
    const uint8_t* record = ids + 8 * n + 4;
    for (uint64_t i = 0; i < m; ++i, record += d.tensor.bytes) {
        marks.flagged = marks.flagged || (load_u32(record + d.tensor.flags) & FLAG_COMPUTE) != 0;
        const uint32_t op = load_u32(record + d.tensor.op);
        const OpTraits* traits = op < 256 ? op_traits(d.op_of[op]) : nullptr;
        if (traits == nullptr || !traits->noop)
            marks.computes = marks.computes || std::binary_search(nodes.begin(), nodes.end(), load_u64(record));
    }
    return marks;
}

}  // namespace

void Session::narrow(const std::vector<bool>& fits, const char* evidence, ...) {
    const auto n = static_cast<size_t>(std::count(fits.begin(), fits.end(), true));
    if (n == 0 || n == tables_.size()) return;
    std::vector<const DialectTable*> left;
    for (size_t i = 0; i < tables_.size(); ++i)
        if (fits[i]) left.push_back(tables_[i]);
    tables_ = std::move(left);
    dialect_ = tables_[0];
    if (config_.note == nullptr) return;
    char line[1024];
    va_list args;
    va_start(args, evidence);
    int at = std::vsnprintf(line, sizeof line, evidence, args);
    va_end(args);
    for (size_t i = 0; i < tables_.size() && at >= 0 && at < static_cast<int>(sizeof line); ++i)
        at += std::snprintf(line + at, sizeof line - static_cast<size_t>(at), "%s%s", i == 0 ? ": " : ", ",
                            tables_[i]->name);
    config_.note(config_.context, line);
}

// Commands that a table lacks, and lengths that it does not have.
void Session::narrow_by_length() {
    if (tables_.size() == 1) return;
    std::vector<bool> fits;
    for (const DialectTable* t : tables_) {
        const bool has = t->command_of[command_] == command_;
        const int64_t fixed = has ? t->request_bytes[command_] : 0;
        fits.push_back(has && (fixed == VARIABLE_LENGTH || length_ == static_cast<uint64_t>(fixed)));
    }
    narrow(fits, "%s of %" PRIu64 " bytes", command_name(command_), length_);
}

// A type that only some tables have.
void Session::narrow_by_type(const uint8_t* record) {
    if (tables_.size() == 1) return;
    const uint32_t type = load_u32(record + dialect_->tensor.type);
    std::vector<bool> fits;
    for (const DialectTable* t : tables_) fits.push_back(type < 512 && t->type_of[type] >= 0);
    narrow(fits, "%s of type %u", command_name(command_), type);
}

// SET_TENSOR has any length, so the record's size shows only in what stands in it: read with the wrong size, the
// tensor does not lie in its buffer.
bool Session::narrow_by_placement(Error* err) {
    if (tables_.size() == 1) return true;
    std::vector<bool> fits;
    for (const DialectTable* t : tables_) {
        Error quiet = {};
        Target target_of;
        const auto head = static_cast<uint64_t>(t->set_tensor_header);
        const DialectTable* kept = dialect_;
        dialect_ = t;
        fits.push_back(length_ >= head && target(payload_.data(), &target_of, &quiet) &&
                       range(target_of, load_u64(payload_.data() + t->set_tensor_offset), length_ - head, &quiet));
        dialect_ = kept;
    }
    narrow(fits, "SET_TENSOR of %" PRIu64 " bytes and what its record says", length_);
    for (const DialectTable* t : tables_)
        if (t->set_tensor_header != dialect_->set_tensor_header && std::count(fits.begin(), fits.end(), true) > 0)
            return err->fail(Code::protocol,
                             "SET_TENSOR: the record can be read as %s and as %s has it; name one with --proto",
                             dialect_->name, t->name);
    return true;
}

void Session::narrow_by_graph_length() {
    if (tables_.size() == 1) return;
    std::vector<bool> fits;
    for (const DialectTable* t : tables_) fits.push_back(length_fits(*t, payload_));
    narrow(fits, "GRAPH_COMPUTE of %" PRIu64 " bytes", length_);
}

// Read the graph by each table. Those that refuse it are out; those that are left must mean the same by it. At most two
// readings are held at a time: a graph can be large.
Graph* Session::narrow_by_graph(const std::vector<uint8_t>& payload, Error* err) {
    if (tables_.size() == 1) return parse(*dialect_, payload, err);
    // From 2026-01-19 clients of llama.cpp flag what is to be computed, and nobody else sets that bit. This comes
    // first: a table that knows the flag passes over what bears none, whatever it is, and would allow any graph of old.
    // A graph that is all views says nothing.
    std::vector<bool> fits;
    bool flagged = false;
    for (const DialectTable* t : tables_) {
        const Marks marks = read_marks(*t, payload);
        flagged = flagged || marks.flagged;
        fits.push_back(t->compute_flag ? marks.flagged || !marks.computes : !marks.flagged);
    }
    narrow(fits, flagged ? "nodes flagged COMPUTE" : "no node flagged COMPUTE");
    fits.clear();
    Error first = {};
    for (const DialectTable* t : tables_) {
        Error quiet = {};
        fits.push_back(GraphPtr(parse(*t, payload, &quiet)) != nullptr);
        if (fits.size() == 1) first = quiet;
    }
    if (std::count(fits.begin(), fits.end(), true) == 0) {
        *err = first;
        return nullptr;
    }
    narrow(fits, "a graph that no other table allows");
    GraphPtr graph(parse(*dialect_, payload, err));
    for (size_t i = 1; graph != nullptr && i < tables_.size(); ++i) {
        Error quiet = {};
        const GraphPtr other(parse(*tables_[i], payload, &quiet));
        const Tensor* at = nullptr;
        if (other != nullptr && same_graph(*graph, *other, &at)) continue;
        err->fail(Code::protocol,
                  "GRAPH_COMPUTE: tensor '%s' means one thing in %s and another in %s; name one with --proto",
                  at == nullptr ? "" : at->name, dialect_->name, tables_[i]->name);
        return nullptr;
    }
    return graph.release();
}

}  // namespace ggr
