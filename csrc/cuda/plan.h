// Compiling a graph for a CUDA device: nodes become launches of kernels, in the order of the graph on one stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "cuda/args.h"
#include "graph/graph.h"

namespace ggr {
namespace cuda {

class KernelTable;
class PlanBuilder;

// Turn one node into launches. False if there is no kernel for it (nothing was added then): it runs on the CPU.
using PrepareFn = bool (*)(PlanBuilder& builder, const Tensor& node);
// Try to turn graph.nodes[i], graph.nodes[i + 1], ... into fused launches; returns how many nodes it took, 0 for none.
using FuseFn = uint32_t (*)(PlanBuilder& builder, uint32_t i);

// A kernel: a file of csrc/cuda/kernels without its suffix, and an expression that names a function of namespace
// ggr::cuda in it, as in "rms_norm<256>".
struct KernelName {
    const char* file;
    const char* expression;
};
// Takes the names of all kernels that a family may ask for.
using KernelSink = void (*)(void* context, KernelName);

// What families fill in.
struct OpTable {
    PrepareFn prepare[OP_COUNT_];
    FuseFn fuse[OP_COUNT_];  // tried first, by the op of the chain's first node
};
struct Family {
    void (*enter)(OpTable&);
    void (*list_kernels)(void* context, KernelSink);
};
// All of them (families.cpp has the list).
const Family* families(size_t* count);

struct Grid {
    uint32_t x, y, z;
};

// What the families may know of the device.
struct Hardware {
    int capability;  // 75 for sm_75
    int multiprocessors;
    int shared_bytes;  // that a block may ask for
    uint64_t l2_bytes;
};

// What a library may compute in place of kernels: dst[m, n] = w[k, m]^T x[k, n] of each of several matrices, halves or
// bf16 with sums and results in f32. Strides are in bytes: from row to row (k of w and of x, m of dst), and from matrix
// to matrix. No padding: shapes are compared by their bytes.
struct ProductShape {
    int64_t m, n, k;
    int64_t w_stride, x_stride, dst_stride;
    int64_t w_matrix, x_matrix, dst_matrix;
    int32_t matrices, brain;
};
// The arguments of such a launch.
struct LibraryProduct {
    const uint8_t *w, *x;
    uint8_t* dst;
};
GGR_SCRATCH_AT(LibraryProduct, GGR_AT(LibraryProduct, w), GGR_AT(LibraryProduct, x), GGR_AT(LibraryProduct, dst));
// Finds out how the library computes a product.
class ProductLibrary {
  public:
    virtual ~ProductLibrary() = default;
    // False if it does not, or is not there; else with a number for Launch::grid.x.
    virtual bool prepare(const ProductShape& shape, uint32_t* number) = 0;
};
constexpr uint32_t BY_LIBRARY = UINT32_MAX;

struct Launch {
    uint32_t kernel;  // index in the device's KernelTable, or BY_LIBRARY
    Grid grid;
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t args;  // offset in PlanData::args
    uint32_t args_bytes;
    uint32_t node;  // number of its node in the graph
};

// A stretch of the plan that runs on one side: launches [begin, end), or PlanData::cpu_nodes [begin, end).
struct Part {
    bool on_cpu;
    uint32_t begin, end;
};

struct PlanData {
    std::vector<Launch> launches;
    std::vector<uint8_t> args;
    std::vector<uint32_t> relocations;  // offsets in args of addresses of scratch, counted from scratch_base
    std::vector<Part> parts;
    std::vector<uint32_t> cpu_nodes;
    uint64_t scratch_base = 0;
    uint64_t scratch_bytes = 0;
    uint64_t workspace_bytes = 0;  // of the library, behind the scratch
};

class PlanBuilder {
  public:
    // `fault`: address on the device of the plan's fault word.
    PlanBuilder(const Graph& graph, const OpTable& ops, const Hardware& hardware, KernelTable& kernels, Fault* fault,
                ProductLibrary& library);
    void build(PlanData* out);  // once; moves the result out

    const Graph& graph() const { return graph_; }
    const Hardware& hardware() const { return hardware_; }

    // Add a launch. `expression` as printf formats it. Args: a plain struct as the kernel takes it.
    template <class Args, class... Values>
    void launch(const Tensor& node, Grid grid, int threads, int shared_bytes, const Args& args, const char* file,
                const char* expression, Values... values) {
        static_assert(std::is_trivially_copyable<Args>::value && sizeof(Args) <= MAX_ARGS, "plain and small");
        char name[256];
        if constexpr (sizeof...(Values) == 0) {
            add(node, grid, threads, shared_bytes, words_of(args), file, expression);
        } else {
            std::snprintf(name, sizeof name, expression, values...);
            add(node, grid, threads, shared_bytes, words_of(args), file, name);
        }
    }

    // Let a library compute a product. First ask with its shape, which gives a number, then launch.
    bool by_library(const ProductShape& shape, uint32_t* number) { return library_.prepare(shape, number); }
    void launch_library(const Tensor& node, uint32_t number, const LibraryProduct& product);

    // Reserve scratch for the launches of the present node (or fused chain); 256-byte aligned. The address stands for
    // one that is known when the plan runs: pass it on in members of args that GGR_SCRATCH_AT names, also with
    // something added.
    uint8_t* scratch(uint64_t bytes);
    // The source's number among node.src, for messages about the indices in it.
    FaultSite fault_site(const Tensor& node, int source) const;

    // Address of `src` already converted to `format` (the family's own numbering) and still valid, or nullptr. It stays
    // valid for the launches of the present node.
    uint8_t* find_activation(const Tensor& src, int format);
    // Remember that `src` in `format` lies at `at` (of scratch) from now on, until src is overwritten or the scratch is
    // needed for a later node.
    void keep_activation(const Tensor& src, int format, uint8_t* at, uint64_t bytes);

    // ---- Nodes that come later in the graph but may run with the present one ----
    uint32_t present() const { return node_; }
    bool is_taken(uint32_t i) const { return taken_[i] != 0; }
    // Neither the present node nor one between it and node j writes what j reads or writes, or reads what j writes.
    bool may_advance(uint32_t j) const;
    // Launches of the present node compute node j as well; it is left out when its turn comes.
    void take(uint32_t j);

    // The result of `node` may stay unwritten: only `uses` sources inside the fused chain read it, the client's graph
    // has no further use, it is no output, and nothing views it.
    bool can_elide(const Tensor& node, int uses) const;

  private:
    struct Activation {
        const Tensor* src;
        int format;
        uint64_t offset, bytes;
        uint32_t kept, found;  // steps in which it was kept and last asked for
    };
    struct Mark {
        size_t launches, args, relocations, taken;
    };
    struct Words {  // arguments, and where addresses of scratch may be in them
        const void* args;
        size_t bytes;
        const uint32_t* scratch_at;
        int n_scratch;
    };
    template <class Args>
    static Words words_of(const Args& args) {
        return {&args, sizeof args, ScratchWords<Args>::AT, ScratchWords<Args>::COUNT};
    }

    void add(const Tensor& node, Grid grid, int threads, int shared_bytes, const Words& words, const char* file,
             const char* expression);
    void add(const Tensor& node, Launch launch, const Words& words);
    uint32_t step(uint32_t i);
    void overwritten(const Tensor& node, uint32_t kept_before);
    void roll_back(const Mark& mark);
    uint64_t taken_end(uint64_t begin, uint64_t end) const;

    const Graph& graph_;
    const OpTable& ops_;
    const Hardware& hardware_;
    KernelTable& kernels_;
    Fault* const fault_;
    ProductLibrary& library_;
    PlanData out_;
    std::vector<Activation> activations_;
    std::vector<std::pair<uint64_t, uint64_t>> step_scratch_;  // begin and end of what the present step reserved
    std::vector<uint8_t> taken_;                               // node i was computed with an earlier one
    std::vector<uint32_t> taken_order_;
    std::vector<uint8_t> viewed_;  // tensor i is a view_src of another
    uint64_t scratch_cursor_ = 0;
    uint32_t node_ = 0;  // number of the present node
    uint32_t step_ = 0;
    bool impossible_ = false;  // the present step has a launch that no driver takes: the node runs on the CPU
};

// Of the library, for each product: what cuBLAS takes by itself on the largest GPUs.
constexpr uint64_t WORKSPACE_BYTES = uint64_t{32} << 20;

static inline View view_of(const Tensor& t) {
    View v;
    v.data = t.data;
    for (int i = 0; i < 4; ++i) {
        v.ne[i] = t.ne[i];
        v.nb[i] = t.nb[i];
    }
    return v;
}

// For 1 <= divisor < 2^31.
static inline Divisor divisor_of(uint32_t divisor) {
    uint32_t shift = 0;
    while (shift < 32 && (uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t multiplier = ((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1;
    return {divisor, static_cast<uint32_t>(multiplier), shift};
}

}  // namespace cuda
}  // namespace ggr
