#include "cuda/plan.h"

#include <algorithm>
#include <cstring>

#include "cuda/kernel_table.h"
#include "graph/effects.h"

namespace ggr {
namespace cuda {

namespace {

// Scratch is a ring: what a node reserves takes the place of what earlier ones had, the launches of a stream being in
// order. So much stays of activations that are kept.
constexpr uint64_t SCRATCH_RING = uint64_t{32} << 20;
constexpr uint64_t SCRATCH_ALIGNMENT = 256;
// Where scratch seems to lie while a plan is built: no address of any device.
constexpr uint64_t SCRATCH_BASE = 0xb5c1'7a3e'0000'0000;
constexpr uint64_t SCRATCH_LIMIT = uint64_t{1} << 40;
constexpr size_t ARGS_ALIGNMENT = 16;

struct Range {
    uintptr_t begin, end;
};
Range range_of(const Tensor& t) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(t.data);
    return {at, at + static_cast<uintptr_t>(extent_bytes(t))};
}
bool meet(Range a, Range b) { return a.begin < b.end && b.begin < a.end; }

// What every GPU's driver takes.
bool possible(const Launch& l, const Hardware& hardware) {
    constexpr uint32_t MOST_X = INT32_MAX, MOST_YZ = 65535, MOST_THREADS = 1024;
    const Grid& g = l.grid;
    return g.x > 0 && g.x <= MOST_X && g.y > 0 && g.y <= MOST_YZ && g.z > 0 && g.z <= MOST_YZ && l.threads > 0 &&
           l.threads <= MOST_THREADS && l.shared_bytes <= static_cast<uint32_t>(hardware.shared_bytes);
}

}  // namespace

PlanBuilder::PlanBuilder(const Graph& graph, const OpTable& ops, const Hardware& hardware, KernelTable& kernels,
                         Fault* fault, ProductLibrary& library)
    : graph_(graph),
      ops_(ops),
      hardware_(hardware),
      kernels_(kernels),
      fault_(fault),
      library_(library),
      taken_(graph.n_nodes, 0),
      viewed_(graph.n_tensors, 0) {
    for (uint32_t i = 0; i < graph.n_tensors; ++i)
        if (const Tensor* base = graph.tensors[i].view_src) viewed_[static_cast<size_t>(base - graph.tensors)] = 1;
    out_.scratch_base = SCRATCH_BASE;
}

void PlanBuilder::build(PlanData* out) {
    for (uint32_t i = 0; i < graph_.n_nodes;) i += is_empty(*graph_.nodes[i]) || taken_[i] != 0 ? 1 : step(i);
    *out = std::move(out_);
}

// Fuse a chain that begins at node i, or turn the node into launches, or leave it to the CPU; returns how many nodes
// were taken.
uint32_t PlanBuilder::step(uint32_t i) {
    const Tensor& node = *graph_.nodes[i];
    node_ = i;
    ++step_;
    step_scratch_.clear();
    const Mark mark = {out_.launches.size(), out_.args.size(), out_.relocations.size(), taken_order_.size()};
    const uint32_t begin = static_cast<uint32_t>(out_.launches.size());
    uint32_t taken = 0;
    impossible_ = false;
    if (const FuseFn fuse = ops_.fuse[node.op]) {
        taken = fuse(*this, i);
        if (taken == 0 || impossible_) {
            taken = 0;
            roll_back(mark);
        }
    }
    if (taken == 0) {
        const PrepareFn prepare = ops_.prepare[node.op];
        if (prepare != nullptr && prepare(*this, node) && !impossible_) {
            taken = 1;
        } else {
            roll_back(mark);
        }
    }
    const bool on_cpu = taken == 0;
    if (on_cpu) {
        taken = 1;
        out_.cpu_nodes.push_back(i);
    }
    // What was converted from memory that the chain wrote is old now; what the chain itself kept is not.
    for (uint32_t k = i; k < i + taken; ++k) overwritten(*graph_.nodes[k], step_);
    for (size_t k = mark.taken; k < taken_order_.size(); ++k) overwritten(*graph_.nodes[taken_order_[k]], step_);
    const uint32_t end = static_cast<uint32_t>(on_cpu ? out_.cpu_nodes.size() : out_.launches.size());
    const uint32_t from = on_cpu ? end - 1 : begin;
    if (from == end) return taken;
    if (out_.parts.empty() || out_.parts.back().on_cpu != on_cpu)
        out_.parts.push_back({on_cpu, from, end});
    else
        out_.parts.back().end = end;
    return taken;
}

void PlanBuilder::roll_back(const Mark& mark) {
    out_.launches.resize(mark.launches);
    out_.args.resize(mark.args);
    out_.relocations.resize(mark.relocations);
    for (; taken_order_.size() > mark.taken; taken_order_.pop_back()) taken_[taken_order_.back()] = 0;
    const auto kept_now = [&](const Activation& a) { return a.kept == step_; };
    activations_.erase(std::remove_if(activations_.begin(), activations_.end(), kept_now), activations_.end());
    step_scratch_.clear();
    impossible_ = false;
}

void PlanBuilder::add(const Tensor& node, Grid grid, int threads, int shared_bytes, const Words& words,
                      const char* file, const char* expression) {
    Launch launch = {};
    launch.kernel = kernels_.number(file, expression);
    launch.grid = grid;
    launch.threads = static_cast<uint32_t>(threads);
    launch.shared_bytes = static_cast<uint32_t>(shared_bytes);
    impossible_ = impossible_ || !possible(launch, hardware_);
    add(node, launch, words);
}

void PlanBuilder::launch_library(const Tensor& node, uint32_t number, const LibraryProduct& product) {
    Launch launch = {};
    launch.kernel = BY_LIBRARY;
    launch.grid.x = number;
    out_.workspace_bytes = WORKSPACE_BYTES;
    add(node, launch, words_of(product));
}

void PlanBuilder::add(const Tensor& node, Launch launch, const Words& words) {
    launch.node = node_;
    while (launch.node + 1 < graph_.n_nodes && graph_.nodes[launch.node] != &node) ++launch.node;
    if (graph_.nodes[launch.node] != &node) launch.node = node_;
    const size_t at = (out_.args.size() + ARGS_ALIGNMENT - 1) / ARGS_ALIGNMENT * ARGS_ALIGNMENT;
    launch.args = static_cast<uint32_t>(at);
    launch.args_bytes = static_cast<uint32_t>(words.bytes);
    out_.args.resize(at + words.bytes);
    std::memcpy(out_.args.data() + at, words.args, words.bytes);
    for (int i = 0; i < words.n_scratch; ++i) {
        const size_t word = at + words.scratch_at[i];
        uint64_t value;
        std::memcpy(&value, out_.args.data() + word, sizeof value);
        if (value - SCRATCH_BASE < SCRATCH_LIMIT) out_.relocations.push_back(static_cast<uint32_t>(word));
    }
    out_.launches.push_back(launch);
    overwritten(node, UINT32_MAX);
}

// Forget activations that were converted, in a step before `kept_before`, from memory that `node` writes.
void PlanBuilder::overwritten(const Tensor& node, uint32_t kept_before) {
    for_each_written(node, [&](const Tensor& t) {
        const Range written = range_of(t);
        const auto stale = [&](const Activation& a) { return a.kept < kept_before && meet(written, range_of(*a.src)); };
        activations_.erase(std::remove_if(activations_.begin(), activations_.end(), stale), activations_.end());
    });
}

// 0 if nothing that the present step uses lies in [begin, end) of scratch, else where the first such thing ends.
uint64_t PlanBuilder::taken_end(uint64_t begin, uint64_t end) const {
    for (const auto& r : step_scratch_)
        if (r.first < end && begin < r.second) return r.second;
    for (const Activation& a : activations_)
        if ((a.found == step_ || a.kept == step_) && a.offset < end && begin < a.offset + a.bytes)
            return a.offset + a.bytes;
    return 0;
}

uint8_t* PlanBuilder::scratch(uint64_t bytes) {
    bytes = std::max(SCRATCH_ALIGNMENT, (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT);
    const uint64_t limit = std::max(SCRATCH_RING, out_.scratch_bytes);
    uint64_t at = scratch_cursor_;
    bool wrapped = false;
    for (;;) {
        if (at + bytes > limit && !wrapped) {
            wrapped = true;
            at = 0;
        }
        const uint64_t beyond = taken_end(at, at + bytes);
        if (beyond == 0) break;
        at = (beyond + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
    }
    const uint64_t end = at + bytes;
    const auto lost = [&](const Activation& a) { return a.offset < end && at < a.offset + a.bytes; };
    activations_.erase(std::remove_if(activations_.begin(), activations_.end(), lost), activations_.end());
    step_scratch_.emplace_back(at, end);
    scratch_cursor_ = end;
    out_.scratch_bytes = std::max(out_.scratch_bytes, end);
    return reinterpret_cast<uint8_t*>(SCRATCH_BASE + at);
}

FaultSite PlanBuilder::fault_site(const Tensor& node, int source) const {
    int32_t number = static_cast<int32_t>(node_);
    for (uint32_t i = node_; i < graph_.n_nodes; ++i)
        if (graph_.nodes[i] == &node) {
            number = static_cast<int32_t>(i);
            break;
        }
    return {fault_, number, source};
}

uint8_t* PlanBuilder::find_activation(const Tensor& src, int format) {
    for (Activation& a : activations_) {
        const Tensor& t = *a.src;
        if (a.format != format || t.data != src.data || t.type != src.type || !same_shape(t, src) ||
            !std::equal(t.nb, t.nb + MAX_DIMS, src.nb))
            continue;
        a.found = step_;
        return reinterpret_cast<uint8_t*>(SCRATCH_BASE + a.offset);
    }
    return nullptr;
}

void PlanBuilder::keep_activation(const Tensor& src, int format, uint8_t* at, uint64_t bytes) {
    activations_.push_back({&src, format, reinterpret_cast<uint64_t>(at) - SCRATCH_BASE, bytes, step_, step_});
}

bool PlanBuilder::may_advance(uint32_t j) const {
    const Tensor& node = *graph_.nodes[j];
    for (uint32_t i = node_; i < j; ++i) {
        const Tensor& before = *graph_.nodes[i];
        bool conflict = false;
        for_each_written(before, [&](const Tensor& written) {
            for (int s = 0; s < node.n_src; ++s)
                conflict = conflict || (node.src[s] != nullptr && overlap(written, *node.src[s]));
            for_each_written(node, [&](const Tensor& t) { conflict = conflict || overlap(written, t); });
        });
        for_each_written(node, [&](const Tensor& written) {
            for (int s = 0; s < before.n_src; ++s)
                conflict = conflict || (before.src[s] != nullptr && overlap(written, *before.src[s]));
        });
        if (conflict) return false;
    }
    return true;
}

void PlanBuilder::take(uint32_t j) {
    taken_[j] = 1;
    taken_order_.push_back(j);
}

bool PlanBuilder::can_elide(const Tensor& node, int uses) const {
    return node.use_count == uses && (node.flags & FLAG_OUTPUT) == 0 &&
           viewed_[static_cast<size_t>(&node - graph_.tensors)] == 0;
}

}  // namespace cuda
}  // namespace ggr
