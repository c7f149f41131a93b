// What stands for cuBLASLt: the same functions, products in plain loops, put on the emulated driver's streams.
#include "cuda/blas.h"

#include <vector>

#include "driver_state.h"
#define GGR_CUDA_HOST
#include "cuda/kernels/base.cuh"

namespace emulated {

namespace {

constexpr BlasStatus NOT_INITIALISED = 1, WRONG_VALUE = 7;

struct Handle {
    CUcontext context;
};
struct Operation {
    int32_t transpose_a = 0;
    bool plain;  // f32 sums and scales
};
struct Layout {
    int type;
    int64_t rows, columns, stride;
    int32_t batch = 1;
    int64_t offset = 0;

    int64_t size() const { return type == BLAS_F32 ? 4 : 2; }
    int64_t bytes() const { return ((batch - 1) * offset + (columns - 1) * stride + rows) * size(); }
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256};
};
constexpr uint64_t ALGORITHM = 0x656d75626c6173;  // in place of what the library would choose
constexpr uint64_t WORKSPACE = 4096;              // that it wants

BlasStatus wrong_value(const std::string& text) {
    wrong(0, text);
    return WRONG_VALUE;
}

float value(const Layout& l, const uint8_t* data, int64_t row, int64_t column, int32_t batch) {
    const int64_t at = batch * l.offset + column * l.stride + row;
    if (l.type == BLAS_F32) return reinterpret_cast<const float*>(data)[at];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[at];
    return l.type == BLAS_F16 ? half_to_float(bits) : bf16_to_float(bits);
}

template <class T>
BlasStatus set(T* to, const void* from, size_t bytes, const char* what) {
    if (bytes != sizeof(T)) return wrong_value(std::string(what) + ": an attribute of another size");
    std::memcpy(to, from, bytes);
    return 0;
}

bool lies_on_device(const char* what, const void* p, int64_t bytes, CUcontext context) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
        wrong(0, std::string("cublasLtMatmul: ") + what + " is not aligned");
        return false;
    }
    if (ggr_owner(p, static_cast<size_t>(bytes), GGR_DEVICE_MEMORY) == context->number) return true;
    wrong(0, std::string("cublasLtMatmul: ") + what + " is not device memory of this context");
    return false;
}

bool fits(const Operation& operation, const Layout& a, const Layout& b, const Layout& d) {
    return operation.plain && operation.transpose_a == BLAS_TRANSPOSED && a.type == b.type && a.type != BLAS_F32 &&
           d.type == BLAS_F32 && a.rows == b.rows && a.columns == d.rows && b.columns == d.columns &&
           a.batch == b.batch && a.batch == d.batch && a.stride >= a.rows && b.stride >= b.rows && d.stride >= d.rows;
}

}  // namespace

BlasStatus emu_cublasLtCreate(BlasObject* out) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    if (enter("cublasLtCreate") != 0) return NOT_INITIALISED;
    *out = new Handle{current};
    return 0;
}
BlasStatus emu_cublasLtDestroy(BlasObject handle) {
    delete static_cast<Handle*>(handle);
    return 0;
}
BlasStatus emu_cublasLtMatmulDescCreate(BlasObject* out, int compute, int scale) {
    Operation operation;
    operation.plain = compute == BLAS_COMPUTE_F32 && scale == BLAS_F32;
    *out = new Operation(operation);
    return 0;
}
BlasStatus emu_cublasLtMatmulDescDestroy(BlasObject operation) {
    delete static_cast<Operation*>(operation);
    return 0;
}
BlasStatus emu_cublasLtMatmulDescSetAttribute(BlasObject operation, int attribute, const void* from, size_t bytes) {
    if (attribute != BLAS_TRANSPOSE_A) return wrong_value("cublasLtMatmulDescSetAttribute: not emulated");
    return set(&static_cast<Operation*>(operation)->transpose_a, from, bytes, "cublasLtMatmulDescSetAttribute");
}
BlasStatus emu_cublasLtMatrixLayoutCreate(BlasObject* out, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *out = new Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), stride};
    return 0;
}
BlasStatus emu_cublasLtMatrixLayoutDestroy(BlasObject layout) {
    delete static_cast<Layout*>(layout);
    return 0;
}
BlasStatus emu_cublasLtMatrixLayoutSetAttribute(BlasObject layout, int attribute, const void* from, size_t bytes) {
    Layout& l = *static_cast<Layout*>(layout);
    if (attribute == BLAS_BATCH_COUNT) return set(&l.batch, from, bytes, "cublasLtMatrixLayoutSetAttribute");
    if (attribute == BLAS_BATCH_OFFSET) return set(&l.offset, from, bytes, "cublasLtMatrixLayoutSetAttribute");
    return wrong_value("cublasLtMatrixLayoutSetAttribute: not emulated");
}
BlasStatus emu_cublasLtMatmulPreferenceCreate(BlasObject* out) {
    *out = new Preference;
    return 0;
}
BlasStatus emu_cublasLtMatmulPreferenceDestroy(BlasObject preference) {
    delete static_cast<Preference*>(preference);
    return 0;
}
BlasStatus emu_cublasLtMatmulPreferenceSetAttribute(BlasObject preference, int attribute, const void* from,
                                                    size_t bytes) {
    Preference& p = *static_cast<Preference*>(preference);
    if (attribute == BLAS_WORKSPACE_BYTES)
        return set(&p.workspace, from, bytes, "cublasLtMatmulPreferenceSetAttribute");
    const int i = attribute - BLAS_FIRST_ALIGNMENT;
    if (i < 0 || i > 3) return wrong_value("cublasLtMatmulPreferenceSetAttribute: not emulated");
    return set(&p.alignment[i], from, bytes, "cublasLtMatmulPreferenceSetAttribute");
}
BlasStatus emu_cublasLtMatmulAlgoGetHeuristic(BlasObject handle, BlasObject operation, BlasObject a, BlasObject b,
                                              BlasObject c, BlasObject d, BlasObject preference, int wanted,
                                              BlasChoice* choices, int* found) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    *found = 0;
    if (enter("cublasLtMatmulAlgoGetHeuristic") != 0) return NOT_INITIALISED;
    if (static_cast<Handle*>(handle)->context != current) return wrong_value("a handle of another context");
    const Preference& p = *static_cast<Preference*>(preference);
    if (c != d || wanted < 1 ||
        !fits(*static_cast<Operation*>(operation), *static_cast<Layout*>(a), *static_cast<Layout*>(b),
              *static_cast<Layout*>(d)))
        return wrong_value("cublasLtMatmulAlgoGetHeuristic: shapes that do not fit");
    for (const uint32_t alignment : p.alignment)
        if (alignment > 16) return wrong_value("cublasLtMatmulAlgoGetHeuristic: no alignment was promised");
    choices[0] = BlasChoice{};
    choices[0].algorithm[0] = ALGORITHM;
    choices[0].workspace_bytes = WORKSPACE;
    *found = p.workspace >= WORKSPACE ? 1 : 0;
    return 0;
}
BlasStatus emu_cublasLtMatmul(BlasObject handle, BlasObject operation, const void* alpha, const void* a,
                              BlasObject a_layout, const void* b, BlasObject b_layout, const void* beta, const void* c,
                              BlasObject c_layout, void* d, BlasObject d_layout, const uint64_t* algorithm,
                              void* workspace, size_t workspace_bytes, CUstream stream) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    if (enter("cublasLtMatmul") != 0) return NOT_INITIALISED;
    if (static_cast<Handle*>(handle)->context != current) return wrong_value("a handle of another context");
    const Layout x = *static_cast<Layout*>(a_layout), y = *static_cast<Layout*>(b_layout),
                 z = *static_cast<Layout*>(d_layout);
    if (!fits(*static_cast<Operation*>(operation), x, y, z) || c != d || c_layout != d_layout ||
        algorithm[0] != ALGORITHM || workspace_bytes < WORKSPACE)
        return wrong_value("cublasLtMatmul: not what was asked for");
    if (!lies_on_device("A", a, x.bytes(), current) || !lies_on_device("B", b, y.bytes(), current) ||
        !lies_on_device("D", d, z.bytes(), current) ||
        !lies_on_device("the workspace", workspace, static_cast<int64_t>(workspace_bytes), current))
        return WRONG_VALUE;
    const float scale = *static_cast<const float*>(alpha);
    if (*static_cast<const float*>(beta) != 0.0f) return wrong_value("cublasLtMatmul: beta");
    const uint8_t *w = static_cast<const uint8_t*>(a), *v = static_cast<const uint8_t*>(b);
    float* const to = static_cast<float*>(d);
    uint8_t* const own = static_cast<uint8_t*>(workspace);
    Work work{Kind::call};
    work.call = [=] {
        std::memset(own, 0xcb, WORKSPACE);
        std::vector<float> row(static_cast<size_t>(x.rows)), columns(static_cast<size_t>(y.rows * y.columns));
        for (int32_t batch = 0; batch < z.batch; ++batch) {
            for (int64_t j = 0; j < y.columns; ++j)
                for (int64_t k = 0; k < y.rows; ++k)
                    columns[static_cast<size_t>(j * y.rows + k)] = value(y, v, k, j, batch);
            for (int64_t i = 0; i < z.rows; ++i) {
                for (int64_t k = 0; k < x.rows; ++k) row[static_cast<size_t>(k)] = value(x, w, k, i, batch);
                for (int64_t j = 0; j < z.columns; ++j) {
                    const float* column = columns.data() + j * y.rows;
                    float sum = 0.0f;
                    for (int64_t k = 0; k < x.rows; ++k) sum += row[static_cast<size_t>(k)] * column[k];
                    to[batch * z.offset + j * z.stride + i] = scale * sum;
                }
            }
        }
    };
    return put("cublasLtMatmul", stream, std::move(work)) == 0 ? 0 : WRONG_VALUE;
}

}  // namespace emulated

extern "C" void* ggr_blas_function(const char* name) {
    using namespace emulated;
#define GGR_NAMED(function, parameters) \
    if (std::strcmp(name, #function) == 0) return reinterpret_cast<void*>(&emu_##function);
    GGR_CUDA_BLAS(GGR_NAMED)
#undef GGR_NAMED
    return nullptr;
}
