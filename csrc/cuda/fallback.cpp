#include "cuda/fallback.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "cuda/gpu.h"
#include "cuda/memory.h"
#include "graph/effects.h"
#include "graph/graph.h"

namespace ggr {
namespace cuda {

namespace {

// Host copies keep their addresses modulo this, so that what is aligned stays so.
constexpr uint64_t CONGRUENCE = 128;

struct Range {
    uint64_t begin, end;
};
using Ranges = std::vector<Range>;

Range range_of(const Tensor& t) {
    const uint64_t at = reinterpret_cast<uint64_t>(t.data);
    return {at, at + static_cast<uint64_t>(extent_bytes(t))};
}

// Sort and join what overlaps or touches.
void join(Ranges& ranges) {
    std::sort(ranges.begin(), ranges.end(), [](Range a, Range b) { return a.begin < b.begin; });
    size_t n = 0;
    for (const Range& r : ranges) {
        if (r.begin >= r.end) continue;
        if (n > 0 && r.begin <= ranges[n - 1].end)
            ranges[n - 1].end = std::max(ranges[n - 1].end, r.end);
        else
            ranges[n++] = r;
    }
    ranges.resize(n);
}

// A tensor of the CPU's graph reads beyond the source: MULTI_ADD takes whole rows of what the source views.
const Tensor* root_that_is_read(const Tensor& node, const Tensor& src) {
    return node.op == OP_MULTI_ADD ? src.view_src : nullptr;
}

// What one part touches, and where that lies in the host copy.
struct Layout {
    Ranges touched, written;
    std::vector<uint64_t> offsets;  // of `touched`
    std::vector<Kept> kept;
    uint64_t bytes = 0;

    uint64_t offset(uint64_t address) const {
        const auto after = std::upper_bound(touched.begin(), touched.end(), address,
                                            [](uint64_t a, const Range& r) { return a < r.begin; });
        if (after == touched.begin()) return 0;  // an empty tensor, which nobody touches
        const size_t i = static_cast<size_t>(after - touched.begin()) - 1;
        return address < touched[i].end ? offsets[i] + (address - touched[i].begin) : 0;
    }
    uint8_t* place(uint64_t address, uint8_t* host) const {
        for (const Kept& k : kept)
            if (address >= k.range->device && address - k.range->device < k.range->bytes)
                return k.range->host + (address - k.range->device);
        return host + offset(address);
    }
};

// Names of copies that are gone: a client could make more and more of them.
void forget_gone(BufferState& s) {
    if (s.kept.size() < s.sweep_at) return;
    for (auto k = s.kept.begin(); k != s.kept.end();) k = k->second.expired() ? s.kept.erase(k) : std::next(k);
    s.sweep_at = std::max(s.sweep_at, 2 * s.kept.size());
}

// The kept copy of a range, found or made; false if there is no room for it.
bool keep(const Range& r, Buffer* buffer, Gpu& gpu, std::vector<Kept>* out) {
    BufferState& s = state_of(*buffer);
    const auto known = s.kept.find({r.begin, r.end});
    std::shared_ptr<KeptRange> range = known != s.kept.end() ? known->second.lock() : nullptr;
    if (range == nullptr) {
        range = KeptRange::make(r.begin, r.end - r.begin, gpu.kept_bytes, gpu.keep_at_most);
        if (range == nullptr) return false;
        forget_gone(s);
        s.kept[{r.begin, r.end}] = range;
    }
    out->push_back({std::move(range), buffer});
    return true;
}

// All that is written is read too: what an op leaves as it is (gaps of a view, rows of no expert, slots of states that
// are not there) is copied back as it was.
Layout lay_out(const Graph& graph, const uint32_t* nodes, uint32_t n, Gpu& gpu, const std::vector<Buffer*>& changing) {
    Layout out;
    std::unordered_map<Buffer*, Ranges> constant;
    const auto touches = [&](const Tensor& t) {
        if (t.data == nullptr) return;
        const bool stays = t.buffer != nullptr && t.buffer->state != nullptr && t.buffer->device->ops == gpu.ops_of &&
                           std::find(changing.begin(), changing.end(), t.buffer) == changing.end();
        (stays ? constant[t.buffer] : out.touched).push_back(range_of(t));
    };
    for (uint32_t k = 0; k < n; ++k) {
        const Tensor& node = *graph.nodes[nodes[k]];
        for (int i = 0; i < node.n_src; ++i) {
            if (node.src[i] == nullptr) continue;
            touches(*node.src[i]);
            if (const Tensor* root = root_that_is_read(node, *node.src[i])) touches(*root);
        }
        touches(node);
        for_each_written(node, [&](const Tensor& t) { out.written.push_back(range_of(t)); });
    }
    for (auto& c : constant) {
        join(c.second);
        for (const Range& r : c.second)
            if (!keep(r, c.first, gpu, &out.kept)) out.touched.push_back(r);
    }
    join(out.touched);
    join(out.written);
    for (const Range& r : out.touched) {
        out.bytes += (r.begin - out.bytes) % CONGRUENCE;
        out.offsets.push_back(out.bytes);
        out.bytes += r.end - r.begin;
    }
    return out;
}

// The part as a graph of its own, over the host copy. In one allocation, as free_graph takes it.
class PartGraph {
  public:
    PartGraph(const Graph& graph, const uint32_t* nodes, uint32_t n, const Layout& layout, uint8_t* host)
        : layout_(layout), host_(host) {
        for (uint32_t k = 0; k < n; ++k) {
            const Tensor& node = *graph.nodes[nodes[k]];
            for (int i = 0; i < node.n_src; ++i) {
                if (node.src[i] == nullptr || node.src[i] == &node) continue;
                if (const Tensor* root = root_that_is_read(node, *node.src[i])) include(*root, false);
                include(*node.src[i], false);
            }
            include(node, true);
        }
        n_nodes_ = n;
    }

    Graph* make(const Graph& graph, const uint32_t* nodes) const {
        const size_t at_tensors = (sizeof(Graph) + 63) & ~size_t{63};
        const size_t at_nodes = at_tensors + sizeof(Tensor) * order_.size();
        const size_t bytes = at_nodes + sizeof(Tensor*) * n_nodes_;
        uint8_t* memory = static_cast<uint8_t*>(std::calloc(1, bytes));
        if (memory == nullptr) return nullptr;
        Graph* out = reinterpret_cast<Graph*>(memory);
        out->tensors = reinterpret_cast<Tensor*>(memory + at_tensors);
        out->nodes = reinterpret_cast<const Tensor**>(memory + at_nodes);
        out->n_tensors = static_cast<uint32_t>(order_.size());
        out->n_nodes = n_nodes_;
        out->bytes = bytes;
        for (size_t i = 0; i < order_.size(); ++i) copy(order_[i], out->tensors, &out->tensors[i]);
        for (uint32_t k = 0; k < n_nodes_; ++k) out->nodes[k] = &out->tensors[index_.at(graph.nodes[nodes[k]])];
        return out;
    }

  private:
    struct Entry {
        const Tensor* tensor;
        bool node;
    };
    void include(const Tensor& t, bool node) {
        if (index_.emplace(&t, order_.size()).second) order_.push_back({&t, node});
    }
    void copy(const Entry& entry, Tensor* tensors, Tensor* out) const {
        const Tensor& t = *entry.tensor;
        *out = t;
        out->buffer = nullptr;
        out->data = t.data == nullptr ? nullptr : layout_.place(reinterpret_cast<uint64_t>(t.data), host_);
        const auto here = [&](const Tensor* other) -> const Tensor* {
            const auto at = other == nullptr ? index_.end() : index_.find(other);
            return at == index_.end() ? nullptr : &tensors[at->second];
        };
        out->view_src = here(t.view_src);
        out->use_count = -1;  // every result is stored: other parts may read it
        out->flags |= FLAG_OUTPUT;
        if (entry.node) {
            for (int i = 0; i < MAX_SRC; ++i) out->src[i] = here(t.src[i]);
            return;
        }
        out->op = OP_NONE;
        out->n_src = 0;
        out->compute = false;
        for (int i = 0; i < MAX_SRC; ++i) out->src[i] = nullptr;
    }

    const Layout& layout_;
    uint8_t* const host_;
    std::vector<Entry> order_;  // each after what it refers to
    std::unordered_map<const Tensor*, size_t> index_;
    uint32_t n_nodes_ = 0;
};

}  // namespace

std::shared_ptr<KeptRange> KeptRange::make(uint64_t device, uint64_t bytes, std::atomic<uint64_t>& total,
                                           uint64_t most) {
    if (total.fetch_add(bytes) + bytes <= most) {
        if (void* memory = std::malloc(bytes + CONGRUENCE + SLACK_BYTES)) {
            uint8_t* begin = static_cast<uint8_t*>(memory);
            uint8_t* host = begin + (device - reinterpret_cast<uint64_t>(begin)) % CONGRUENCE;
            return std::shared_ptr<KeptRange>(new KeptRange{device, bytes, host, 0, memory, total});
        }
    }
    total -= bytes;
    return nullptr;
}
KeptRange::~KeptRange() {
    std::free(memory);
    total -= bytes;
}

bool Fallback::build(const Graph& graph, const PlanData& data, Gpu& gpu, const std::vector<Buffer*>& changing,
                     Error* err) {
    Device* cpu = gpu.cpu;
    std::vector<Layout> layouts;
    uint64_t most = 0;
    for (const Part& part : data.parts) {
        if (!part.on_cpu) continue;
        layouts.push_back(lay_out(graph, &data.cpu_nodes[part.begin], part.end - part.begin, gpu, changing));
        most = std::max(most, layouts.back().bytes + CONGRUENCE);
    }
    if (layouts.empty()) return true;
    if (!cpu->ops->alloc(cpu, most, &memory, err)) return false;
    size_t next = 0;
    for (const Part& part : data.parts) {
        if (!part.on_cpu) continue;
        const Layout& layout = layouts[next++];
        const uint32_t* nodes = &data.cpu_nodes[part.begin];
        Graph* own = PartGraph(graph, nodes, part.end - part.begin, layout, memory.data).make(graph, nodes);
        if (own == nullptr) return err->fail(Code::memory, "GRAPH_COMPUTE: no memory for a graph of the CPU");
        parts.emplace_back();
        CpuPart& out = parts.back();
        out.plan = cpu->ops->compile(cpu, own, err);
        if (out.plan == nullptr) return false;
        out.kept = layout.kept;
        for (const Range& r : layout.touched) out.in.push_back({r.begin, layout.offset(r.begin), r.end - r.begin});
        for (const Range& r : layout.written) out.out.push_back({r.begin, layout.offset(r.begin), r.end - r.begin});
    }
    return true;
}

void Fallback::release(Device* cpu) {
    for (CpuPart& p : parts)
        if (p.plan != nullptr) cpu->ops->free_plan(cpu, p.plan);
    parts.clear();
    if (memory.data != nullptr) cpu->ops->release(cpu, &memory);
    memory.data = nullptr;
}

}  // namespace cuda
}  // namespace ggr
