// Compiling a graph for the CPU: nodes become steps, hazards between steps become barriers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/status.h"
#include "cpu/step.h"
#include "graph/graph.h"

namespace ggr {

class PlanBuilder;

// Turn one node into steps. False after PlanBuilder::unsupported.
using PrepareFn = bool (*)(PlanBuilder& builder, const Tensor& node);
// Try to turn graph.nodes[i], graph.nodes[i + 1], ... into fused steps; returns how many nodes it took, 0 for none.
using FuseFn = uint32_t (*)(PlanBuilder& builder, uint32_t i);

// The functions of one instruction-set level, filled by its families.
struct OpTable {
    const char* level;
    PrepareFn prepare[OP_COUNT_];
    FuseFn fuse[OP_COUNT_];  // tried first, by the op of the chain's first node
};

// How activations are held in scratch for a matrix product.
// ACT_Q8_2 takes the place of ACT_Q8_0 and ACT_Q8_1 where ik_llama.cpp's results are wanted.
enum ActFormat : int32_t {
    ACT_F32 = 0,
    ACT_F16 = 1,
    ACT_BF16 = 2,
    ACT_Q8_0 = 3,
    ACT_Q8_1 = 4,
    ACT_Q8_K = 5,
    ACT_Q8_2_AS_F32 = 6,
    ACT_Q8_K_AS_F32 = 7,
    ACT_Q8_2 = 8,
};

// Steps [begin, end) between two barriers: they may run in any order, except that serial ones keep theirs.
struct Segment {
    uint32_t begin, end;
    int64_t units;  // items of the parallel steps, and one for all serial steps together
    bool serial;    // has serial steps
    bool shared;    // has parallel steps
};

struct PlanData {
    Graph* graph = nullptr;
    std::vector<Step> steps;
    std::vector<Segment> segments;
    bool shared = false;  // has parallel steps
    size_t shared_bytes = 0;
    size_t local_bytes = 0;
};

class PlanBuilder {
  public:
    PlanBuilder(Graph& graph, const OpTable& table, int n_workers, Error* error);
    bool build(PlanData* out);  // moves the result out; the graph stays the caller's

    const Graph& graph() const;
    int n_workers() const;

    // Add a step over n_items items for `node`, with dst = node and its first five sources; it reads all sources and
    // writes dst. `work`: element operations of the whole step, at about four a nanosecond on one core; decides whether
    // sharing it pays.
    Step& add(Step::Fn fn, const Tensor& node, int64_t n_items, int64_t work);
    // Add a step that declares by itself (with the four calls below) what it reads and writes.
    Step& add_bare(Step::Fn fn, const Tensor* dst, int64_t n_items, int64_t work);
    void reads(const Tensor& t);
    void writes(const Tensor& t);
    void reads_scratch(int64_t offset, int64_t bytes);
    void writes_scratch(int64_t offset, int64_t bytes);
    // The largest item of `node` takes `work` operations: for steps whose items are not alike. One that would keep a
    // worker too long makes build() fail, since nothing can end it.
    void largest_item(const Tensor& node, int64_t work);

    // nodes[j] may run now instead of in its turn: no node between the present one and it depends on it or it on them.
    bool may_advance(uint32_t j) const;
    uint32_t present() const { return present_; }          // the number of the node that is being prepared
    bool is_taken(uint32_t j) const { return taken_[j]; }  // has its steps already
    void take(uint32_t j) { taken_[j] = true; }            // it is prepared now, before its turn

    // Reserve shared scratch for the steps of the present node; 64-byte aligned offset. Ask once a node for all it
    // needs.
    int64_t scratch(int64_t bytes);
    void need_local(int64_t bytes);  // per worker

    // Offset of `src` already converted to `format` and still valid, or -1.
    int64_t find_activation(const Tensor& src, ActFormat format) const;
    // Remember that `src` in `format` lies in scratch at `offset` from the last added step on.
    void keep_activation(const Tensor& src, ActFormat format, int64_t offset, int64_t bytes);

    // The result of `node` may stay unwritten: only `uses` sources inside the fused chain read it, the client's graph
    // has no further use, it is no output, and nothing views it.
    bool can_elide(const Tensor& node, int uses) const;

    bool unsupported(const Tensor& node, const char* format, ...) __attribute__((format(printf, 3, 4)));

  private:
    struct Range {
        uintptr_t begin, end;
        bool write, scratch;
    };
    struct Activation {
        const Tensor* src;
        ActFormat format;
        int64_t offset, bytes;
    };
    void access(Range range);
    void start_segment();
    void commit();
    void list_segments();

    Graph& graph_;
    const OpTable& table_;
    int n_workers_;
    Error* error_;
    PlanData out_;
    std::vector<Range> segment_parallel_, segment_serial_;  // accesses of the steps since the last barrier
    std::vector<Range> pending_;                            // accesses of the step being declared
    std::vector<Activation> activations_;
    int64_t scratch_cursor_ = 0;
    std::vector<uint8_t> viewed_;  // tensor i is a view_src of another
    std::vector<bool> taken_;      // node i was prepared before its turn
    uint32_t present_ = 0;
    const Tensor* endless_ = nullptr;  // the first with an item that takes too long
};

}  // namespace ggr
