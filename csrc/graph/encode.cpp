#include "graph/encode.h"

#include <cstring>
#include <unordered_map>

namespace ggr {

namespace {

constexpr int32_t ROPE_OFFSET_WORD = 15;

void store_u32(uint8_t* p, uint32_t v) { std::memcpy(p, &v, sizeof v); }
void store_u64(uint8_t* p, uint64_t v) { std::memcpy(p, &v, sizeof v); }

// The root of a view holds the place; views follow it.
uint64_t address_of(const Tensor& t) {
    const Tensor& root = t.view_src != nullptr ? *t.view_src : t;
    if (root.buffer == nullptr) return 0;
    return reinterpret_cast<uint64_t>(root.data) + (t.view_src != nullptr ? t.view_offs : 0);
}
const Buffer* buffer_of(const Tensor& t) { return t.view_src != nullptr ? t.view_src->buffer : t.buffer; }

bool is_view_op(int32_t op) { return op == OP_VIEW || op == OP_RESHAPE || op == OP_PERMUTE || op == OP_TRANSPOSE; }

class Writer {
  public:
    Writer(const EncodeTable& table, Error* err) : table_(table), layout_(table.dialect->tensor), err_(err) {}

    bool layout(const Tensor& t, uint8_t* to) const;
    bool op(const Tensor& t, bool runs, uint8_t* to) const;

  private:
    bool number(int32_t wire, const Tensor& t, const char* kind, const char* name) const;
    bool params(const Tensor& t, uint8_t* to) const;

    const EncodeTable& table_;
    const TensorLayout& layout_;
    Error* err_;
};

bool Writer::number(int32_t wire, const Tensor& t, const char* kind, const char* name) const {
    if (wire >= 0) return true;
    if (wire == AMBIGUOUS)
        return err_->fail(
            Code::unsupported,
            "tensor '%s': the version that the server announced stands for several tables, which number %s "
            "%s differently: name one of them (%s is the newest)",
            t.name, kind, name, table_.dialect->name);
    return err_->fail(Code::unsupported, "tensor '%s': %s %s does not exist in dialect %s", t.name, kind, name,
                      table_.dialect->name);
}

bool Writer::layout(const Tensor& t, uint8_t* to) const {
    std::memset(to, 0, static_cast<size_t>(layout_.bytes));
    const int32_t type = table_.type_to[t.type];
    if (!number(type, t, "type", type_traits(t.type)->name)) return false;
    store_u64(to + layout_.id, t.id);
    store_u32(to + layout_.type, static_cast<uint32_t>(type));
    for (int i = 0; i < MAX_DIMS; ++i) {
        if (layout_.dim_bytes == 8) {
            store_u64(to + layout_.ne + 8 * i, static_cast<uint64_t>(t.ne[i]));
            store_u64(to + layout_.nb + 8 * i, static_cast<uint64_t>(t.nb[i]));
            continue;
        }
        // A stride that is never stepped along may arrive cut; any other would name a wrong place.
        if (t.ne[i] > UINT32_MAX || (t.ne[i] > 1 && t.nb[i] > UINT32_MAX))
            return err_->fail(Code::unsupported, "tensor '%s': dimension %d does not fit the 32 bits of dialect %s",
                              t.name, i, table_.dialect->name);
        store_u32(to + layout_.ne + 4 * i, static_cast<uint32_t>(t.ne[i]));
        store_u32(to + layout_.nb + 4 * i, static_cast<uint32_t>(t.nb[i]));
    }
    if (const Buffer* buffer = buffer_of(t)) {
        store_u64(to + layout_.buffer, buffer->handle);
        store_u64(to + layout_.data, address_of(t));
    }
    std::memcpy(to + layout_.name, t.name, static_cast<size_t>(layout_.n_name < MAX_NAME ? layout_.n_name : MAX_NAME));
    to[layout_.name + layout_.n_name - 1] = 0;
    return true;
}

bool Writer::params(const Tensor& t, uint8_t* to) const {
    const DialectTable& d = *table_.dialect;
    int32_t words[OP_PARAMS_WORDS];
    std::memcpy(words, t.params, sizeof words);
    for (int32_t i = 0; i < d.n_enum_params; ++i) {
        const EnumParam& p = d.enum_params[i];
        if (p.op != t.op) continue;
        const uint32_t word = static_cast<uint32_t>(words[p.word]), value = word & p.mask;
        int32_t wire = value <= MAX_ENUM_VALUE ? table_.enum_to[p.table][value] : NOT_SPOKEN;
        // A precision or a hint that the peer does not know is a wish that it cannot hear.
        if (wire < 0 && (p.table == ENUM_PREC || p.table == ENUM_OP_HINT)) wire = 0;
        if (wire < 0)
            return err_->fail(Code::unsupported,
                              "tensor '%s': %s: value %u of parameter %d does not exist in dialect %s", t.name,
                              op_traits(t.op)->name, value, p.word, d.name);
        words[p.word] = static_cast<int32_t>((word & ~p.mask) | static_cast<uint32_t>(wire));
    }
    if ((t.op == OP_FLASH_ATTN_EXT || t.op == OP_FLASH_ATTN_ROWS) && !d.kv_bound) words[4] = 0;
    if (t.op == OP_GATHER) words[0] = 1;
    // How many values are to be in order: none where it is 0.
    if (d.ik_meaning && t.op == OP_ARGSORT) words[1] = static_cast<int32_t>(t.ne[0]);
    // Zeros are appended there until the result's shape is reached.
    if (d.ik_meaning && t.op == OP_PAD && (words[0] | words[2] | words[4] | words[6] | words[8]) != 0)
        return err_->fail(Code::unsupported, "tensor '%s': PAD: dialect %s appends zeros and cannot pad otherwise",
                          t.name, d.name);
    if (d.ik_meaning && (t.op == OP_ROPE || t.op == OP_ROPE_BACK) && words[ROPE_OFFSET_WORD] != 0) {
        if (words[ROPE_OFFSET_WORD] != t.ne[0] - words[1])
            return err_->fail(Code::unsupported,
                              "tensor '%s': ROPE: dialect %s turns the first or the last channels only", t.name,
                              d.name);
        words[ROPE_OFFSET_WORD] = 1;
    }
    std::memcpy(to + layout_.params, words, sizeof words);
    return true;
}

bool Writer::op(const Tensor& t, bool runs, uint8_t* to) const {
    const char* name = op_traits(t.op)->name;
    const int32_t wire = table_.op_to[t.op];
    if (!number(wire, t, "op", name)) return false;
    store_u32(to + layout_.op, static_cast<uint32_t>(wire));
    if (!params(t, to)) return false;
    uint32_t flags = static_cast<uint32_t>(t.flags) & 0xffff & ~static_cast<uint32_t>(FLAG_COMPUTE);
    if (runs && table_.dialect->compute_flag) flags |= FLAG_COMPUTE;
    store_u32(to + layout_.flags, flags);
    for (int i = 0; i < t.n_src; ++i) {
        if (t.src[i] == nullptr) continue;
        if (i >= layout_.n_src)
            return err_->fail(Code::unsupported, "tensor '%s': dialect %s has no source %d", t.name,
                              table_.dialect->name, i);
        store_u64(to + layout_.src + 8 * i, t.src[i]->id);
    }
    if (t.view_src != nullptr) {
        store_u64(to + layout_.view_src, t.view_src->id);
        store_u64(to + layout_.view_offs, t.view_offs);
    }
    return true;
}

// Lists what the nodes need, each after all that it refers to.
class Lister {
  public:
    Lister(const Tensor* const* nodes, uint32_t n, Error* err) : err_(err) {
        marks_.reserve(size_t{4} * n);
        for (uint32_t i = 0; i < n; ++i) marks_[nodes[i]].is_node = true;
    }
    bool add_node(const Tensor* t) {
        if (marks_[t].listed) return err_->fail(Code::graph, "tensor '%s' is two nodes of one graph", t->name);
        return add(t, true);
    }
    const std::vector<const Tensor*>& list() const { return list_; }
    bool is_leaf(const Tensor* t) const {
        const auto found = marks_.find(t);
        return !found->second.is_node && !is_view_op(t->op);
    }
    int32_t uses(const Tensor* t) const { return marks_.find(t)->second.uses; }

  private:
    struct Mark {
        bool is_node = false, listed = false;
        int32_t uses = 0;
    };

    // Recursion goes along views only, which name their root: every other source of a node was listed before.
    bool add(const Tensor* t, bool as_node) {
        const Mark before = marks_[t];
        if (before.listed) return true;
        if (before.is_node && !as_node)
            return err_->fail(Code::graph, "tensor '%s' is a node that stands behind one that reads it", t->name);
        if (as_node || is_view_op(t->op)) {
            for (int i = 0; i < t->n_src; ++i) {
                if (t->src[i] == nullptr || t->src[i] == t) continue;
                if (!add(t->src[i], false)) return false;
                ++marks_[t->src[i]].uses;
            }
            if (t->view_src != nullptr && !add(t->view_src, false)) return false;
        }
        marks_[t].listed = true;
        list_.push_back(t);
        return true;
    }

    std::unordered_map<const Tensor*, Mark> marks_;
    std::vector<const Tensor*> list_;
    Error* err_;
};

}  // namespace

bool encode_tensor(const EncodeTable& table, const Tensor& t, uint8_t* to, Error* err) {
    return Writer(table, err).layout(t, to);
}

bool encode_node(const EncodeTable& table, const Tensor& t, uint8_t* to, Error* err) {
    const Writer writer(table, err);
    return writer.layout(t, to) && writer.op(t, true, to);
}

bool encode_graph(const EncodeTable& table, const Tensor* const* nodes, uint32_t n_nodes, uint32_t device, uint64_t uid,
                  std::vector<uint8_t>* out, Error* err) {
    const DialectTable& d = *table.dialect;
    if (n_nodes == 0 || n_nodes > MAX_GRAPH_NODES)
        return err->fail(Code::graph, "a graph of %u nodes: 1 to %d can be sent", n_nodes,
                         static_cast<int>(MAX_GRAPH_NODES));
    Lister lister(nodes, n_nodes, err);
    for (uint32_t i = 0; i < n_nodes; ++i)
        if (!lister.add_node(nodes[i])) return false;
    const size_t n_tensors = lister.list().size(), record = static_cast<size_t>(d.tensor.bytes);
    const size_t at_ids = static_cast<size_t>(d.graph_n_nodes) + 4, at_count = at_ids + size_t{8} * n_nodes;
    out->assign(at_count + 4 + record * n_tensors, 0);
    uint8_t* p = out->data();
    if (d.graph_device >= 0) store_u32(p + d.graph_device, device);
    if (d.graph_uid >= 0) store_u64(p + d.graph_uid, uid);
    store_u32(p + d.graph_n_nodes, n_nodes);
    for (uint32_t i = 0; i < n_nodes; ++i) store_u64(p + at_ids + size_t{8} * i, nodes[i]->id);
    store_u32(p + at_count, static_cast<uint32_t>(n_tensors));
    const Writer writer(table, err);
    p += at_count + 4;
    for (const Tensor* t : lister.list()) {
        if (!writer.layout(*t, p) || (!lister.is_leaf(t) && !writer.op(*t, true, p))) return false;
        if (d.tensor.use_count >= 0) store_u32(p + d.tensor.use_count, static_cast<uint32_t>(lister.uses(t)));
        p += record;
    }
    return true;
}

}  // namespace ggr
