#include "cpu/plan.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "graph/effects.h"

namespace ggr {

namespace {

// Below this many element operations (about 2 microseconds) a step is not worth a barrier's wake-up on other cores.
constexpr int64_t SERIAL_WORK = 8192;
// Chunks handed out per worker: small enough that cores of unequal speed end together, large enough to keep the counter
// cold.
constexpr int64_t CHUNKS_PER_WORKER = 8;
// What a worker takes at once: about 70 ms at the pace that work is counted in, a second for kernels that are slower
// than they count. A client that left, or a deadline, is noticed between two portions.
constexpr int64_t PORTION_WORK = int64_t{1} << 28;
// Nothing ends an item, so graphs with longer ones (about a minute) are refused. A tile of 256 columns of a product
// over 32768 channels is 2^27, 48 rows of attention over a million cells 2^34.
constexpr int64_t MAX_ITEM_WORK = int64_t{1} << 38;
// Scratch is a ring: a node's scratch may take the place of an earlier node's; the hazard check adds the barrier.
constexpr int64_t SCRATCH_RING = int64_t{8} << 20;

// Accesses that a step is compared with at most. Real graphs stay far below; a hostile one of many independent nodes
// gets more barriers than it needs instead of a quadratic compile time.
constexpr size_t MAX_SEGMENT = 256;
// Converted activations that are remembered, for the same reason; a layer has about five.
constexpr size_t MAX_ACTIVATIONS = 64;

bool meet(uintptr_t a0, uintptr_t a1, uintptr_t b0, uintptr_t b1) { return a0 < b1 && b0 < a1; }

}  // namespace

PlanBuilder::PlanBuilder(Graph& graph, const OpTable& table, int n_workers, Error* error)
    : graph_(graph),
      table_(table),
      n_workers_(n_workers),
      error_(error),
      viewed_(graph.n_tensors, 0),
      taken_(graph.n_nodes, false) {
    for (uint32_t i = 0; i < graph.n_tensors; ++i)
        if (const Tensor* base = graph.tensors[i].view_src) viewed_[static_cast<size_t>(base - graph.tensors)] = 1;
}

const Graph& PlanBuilder::graph() const { return graph_; }
int PlanBuilder::n_workers() const { return n_workers_; }

bool PlanBuilder::build(PlanData* out) {
    out_.graph = &graph_;
    out_.steps.reserve(graph_.n_nodes * 2);
    for (uint32_t i = 0; i < graph_.n_nodes;) {
        const Tensor& node = *graph_.nodes[i];
        present_ = i;
        if (is_empty(node) || taken_[i]) {
            ++i;
            continue;
        }
        if (const FuseFn fuse = table_.fuse[node.op]) {
            if (const uint32_t taken = fuse(*this, i)) {
                i += taken;
                continue;
            }
        }
        const PrepareFn prepare = table_.prepare[node.op];
        if (prepare == nullptr) return unsupported(node, "no kernel for this op");
        if (!prepare(*this, node)) return false;
        ++i;
    }
    if (endless_ != nullptr)
        return unsupported(*endless_, "a part of its work that cannot be shared out or cancelled is too long");
    list_segments();
    *out = std::move(out_);
    return true;
}

void PlanBuilder::list_segments() {
    const uint32_t n = static_cast<uint32_t>(out_.steps.size());
    for (uint32_t i = 0; i < n; ++i) {
        Step& step = out_.steps[i];
        step.grain = std::min(step.grain, step.most);  // families set it as they like
        if (i == 0 || step.barrier) out_.segments.push_back({i, i, 0, false, false});
        Segment& segment = out_.segments.back();
        segment.end = i + 1;
        if (step.serial) {
            segment.units += segment.serial ? 0 : 1;
            segment.serial = true;
        } else {
            segment.units += step.n_items;
            segment.shared = out_.shared = true;
        }
    }
}

Step& PlanBuilder::add_bare(Step::Fn fn, const Tensor* dst, int64_t n_items, int64_t work) {
    commit();
    if (work < 0) work = INT64_MAX;  // it overflowed
    Step step = {};
    step.fn = fn;
    step.dst = dst;
    step.n_items = n_items;
    step.serial = n_workers_ == 1 || n_items <= 1 || work < SERIAL_WORK;
    const int64_t chunks = n_workers_ * CHUNKS_PER_WORKER;
    step.grain = step.serial && n_workers_ > 1 ? std::max<int64_t>(1, n_items) : std::max<int64_t>(1, n_items / chunks);
    step.most = std::max<int64_t>(1, n_items / (work / PORTION_WORK + 1));
    if (dst != nullptr) largest_item(*dst, work / std::max<int64_t>(1, n_items));
    out_.steps.push_back(step);
    if (segment_parallel_.size() + segment_serial_.size() > MAX_SEGMENT) start_segment();
    return out_.steps.back();
}

Step& PlanBuilder::add(Step::Fn fn, const Tensor& node, int64_t n_items, int64_t work) {
    Step& step = add_bare(fn, &node, n_items, work);
    for (int i = 0; i < 5; ++i) step.src[i] = node.src[i];
    for (int i = 0; i < node.n_src; ++i)
        if (node.src[i] != nullptr) reads(*node.src[i]);
    writes(node);
    return step;
}

void PlanBuilder::largest_item(const Tensor& node, int64_t work) {
    if (work > MAX_ITEM_WORK && endless_ == nullptr) endless_ = &node;
}

// Move the accesses of the last step to those that later steps are compared with.
void PlanBuilder::commit() {
    if (out_.steps.empty()) return;
    std::vector<Range>& list = out_.steps.back().serial ? segment_serial_ : segment_parallel_;
    list.insert(list.end(), pending_.begin(), pending_.end());
    pending_.clear();
}

void PlanBuilder::start_segment() {
    out_.steps.back().barrier = true;
    segment_parallel_.clear();
    segment_serial_.clear();
}

// A step must wait for all earlier ones when its range meets one that was written since the last barrier (or read, if
// it writes), by a worker that may be another one. Serial steps all run on worker 0, in order.
void PlanBuilder::access(Range range) {
    if (range.begin >= range.end) return;
    const auto conflicts = [&](const std::vector<Range>& earlier) {
        return std::any_of(earlier.begin(), earlier.end(), [&](const Range& e) {
            return (e.write || range.write) && e.scratch == range.scratch &&
                   meet(e.begin, e.end, range.begin, range.end);
        });
    };
    const bool serial = out_.steps.back().serial;
    if (conflicts(segment_parallel_) || (!serial && conflicts(segment_serial_))) start_segment();
    pending_.push_back(range);
}

void PlanBuilder::reads(const Tensor& t) {
    if (t.data == nullptr) return;
    const uintptr_t at = reinterpret_cast<uintptr_t>(t.data);
    access({at, at + static_cast<uintptr_t>(extent_bytes(t)), false, false});
}

void PlanBuilder::writes(const Tensor& t) {
    if (t.data == nullptr) return;
    const uintptr_t at = reinterpret_cast<uintptr_t>(t.data), end = at + static_cast<uintptr_t>(extent_bytes(t));
    access({at, end, true, false});
    const auto stale = [&](const Activation& a) {
        const uintptr_t b = reinterpret_cast<uintptr_t>(a.src->data);
        return meet(at, end, b, b + static_cast<uintptr_t>(extent_bytes(*a.src)));
    };
    activations_.erase(std::remove_if(activations_.begin(), activations_.end(), stale), activations_.end());
}

void PlanBuilder::reads_scratch(int64_t offset, int64_t bytes) {
    access({static_cast<uintptr_t>(offset), static_cast<uintptr_t>(offset + bytes), false, true});
}

void PlanBuilder::writes_scratch(int64_t offset, int64_t bytes) {
    access({static_cast<uintptr_t>(offset), static_cast<uintptr_t>(offset + bytes), true, true});
}

int64_t PlanBuilder::scratch(int64_t bytes) {
    bytes = (bytes + 63) & ~int64_t{63};
    if (scratch_cursor_ + bytes > std::max(SCRATCH_RING, bytes)) scratch_cursor_ = 0;
    const int64_t offset = scratch_cursor_;
    scratch_cursor_ += bytes;
    out_.shared_bytes = std::max(out_.shared_bytes, static_cast<size_t>(scratch_cursor_));
    const auto lost = [&](const Activation& a) { return a.offset < offset + bytes && offset < a.offset + a.bytes; };
    activations_.erase(std::remove_if(activations_.begin(), activations_.end(), lost), activations_.end());
    return offset;
}

void PlanBuilder::need_local(int64_t bytes) {
    out_.local_bytes = std::max(out_.local_bytes, static_cast<size_t>(bytes));
}

int64_t PlanBuilder::find_activation(const Tensor& src, ActFormat format) const {
    for (const Activation& a : activations_) {
        const Tensor& t = *a.src;
        if (a.format == format && t.data == src.data && t.type == src.type && same_shape(t, src) &&
            t.nb[0] == src.nb[0] && t.nb[1] == src.nb[1] && t.nb[2] == src.nb[2] && t.nb[3] == src.nb[3])
            return a.offset;
    }
    return -1;
}

void PlanBuilder::keep_activation(const Tensor& src, ActFormat format, int64_t offset, int64_t bytes) {
    if (activations_.size() >= MAX_ACTIVATIONS) activations_.erase(activations_.begin());
    activations_.push_back({&src, format, offset, bytes});
}

bool PlanBuilder::can_elide(const Tensor& node, int uses) const {
    return node.use_count == uses && (node.flags & FLAG_OUTPUT) == 0 &&
           viewed_[static_cast<size_t>(&node - graph_.tensors)] == 0;
}

bool PlanBuilder::may_advance(uint32_t j) const {
    const Tensor& node = *graph_.nodes[j];
    for (uint32_t m = present_ + 1; m < j; ++m) {
        if (taken_[m]) continue;
        const Tensor& passed = *graph_.nodes[m];
        bool free = true;
        for_each_written(passed, [&](const Tensor& written) {
            free = free && !overlap(written, node);
            for (int s = 0; s < node.n_src; ++s)
                free = free && (node.src[s] == nullptr || !overlap(written, *node.src[s]));
        });
        if (!free) return false;
        for (int s = 0; s < passed.n_src; ++s)
            if (passed.src[s] != nullptr && overlap(*passed.src[s], node)) return false;
    }
    return true;
}

bool PlanBuilder::unsupported(const Tensor& node, const char* format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return error_->fail(Code::unsupported, "GRAPH_COMPUTE: op %s, tensor '%.63s': %s", op_traits(node.op)->name,
                        node.name, text);
}

}  // namespace ggr
