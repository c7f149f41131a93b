#include "cuda/library.h"

namespace ggr {
namespace cuda {

namespace {

constexpr size_t KEPT_SHAPES = 512;  // then all are forgotten; plans hold on to theirs
constexpr uint32_t ADDRESS_ALIGNMENT = 16;

}  // namespace

struct Library::Prepared {
    const Blas& blas;
    BlasObject operation = nullptr, w = nullptr, x = nullptr, dst = nullptr;
    BlasChoice choice = {};

    explicit Prepared(const Blas& table) : blas(table) {}
    Prepared(const Prepared&) = delete;
    Prepared& operator=(const Prepared&) = delete;
    ~Prepared() {
        if (operation != nullptr) blas.cublasLtMatmulDescDestroy(operation);
        for (const BlasObject layout : {w, x, dst})
            if (layout != nullptr) blas.cublasLtMatrixLayoutDestroy(layout);
    }

    bool layout(BlasObject* out, int type, int64_t rows, int64_t columns, int64_t stride, int64_t matrix,
                int32_t matrices) const {
        const int64_t size = type == BLAS_F32 ? 4 : 2;
        if (blas.cublasLtMatrixLayoutCreate(out, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                                            stride / size) != 0)
            return false;
        const int64_t offset = matrix / size;
        return matrices == 1 ||
               (blas.cublasLtMatrixLayoutSetAttribute(*out, BLAS_BATCH_COUNT, &matrices, sizeof matrices) == 0 &&
                blas.cublasLtMatrixLayoutSetAttribute(*out, BLAS_BATCH_OFFSET, &offset, sizeof offset) == 0);
    }
    // Its matrices have contiguous columns: rows of ours. So w is [k, m] and has to be transposed, x [k, n], dst [m,
    // n].
    bool describe(const ProductShape& s) {
        const int type = s.brain != 0 ? BLAS_BF16 : BLAS_F16;
        return blas.cublasLtMatmulDescCreate(&operation, BLAS_COMPUTE_F32, BLAS_F32) == 0 &&
               blas.cublasLtMatmulDescSetAttribute(operation, BLAS_TRANSPOSE_A, &BLAS_TRANSPOSED,
                                                   sizeof BLAS_TRANSPOSED) == 0 &&
               layout(&w, type, s.k, s.m, s.w_stride, s.w_matrix, s.matrices) &&
               layout(&x, type, s.k, s.n, s.x_stride, s.x_matrix, s.matrices) &&
               layout(&dst, BLAS_F32, s.m, s.n, s.dst_stride, s.dst_matrix, s.matrices);
    }
    bool choose(BlasObject handle, uint64_t workspace_bytes) {
        BlasObject preference = nullptr;
        if (blas.cublasLtMatmulPreferenceCreate(&preference) != 0) return false;
        bool ok = blas.cublasLtMatmulPreferenceSetAttribute(preference, BLAS_WORKSPACE_BYTES, &workspace_bytes,
                                                            sizeof workspace_bytes) == 0;
        for (int i = 0; i < 4; ++i)
            ok = ok && blas.cublasLtMatmulPreferenceSetAttribute(preference, BLAS_FIRST_ALIGNMENT + i,
                                                                 &ADDRESS_ALIGNMENT, sizeof ADDRESS_ALIGNMENT) == 0;
        int found = 0;
        ok = ok && blas.cublasLtMatmulAlgoGetHeuristic(handle, operation, w, x, dst, dst, preference, 1, &choice,
                                                       &found) == 0;
        blas.cublasLtMatmulPreferenceDestroy(preference);
        return ok && found > 0 && choice.state == 0 && choice.workspace_bytes <= workspace_bytes;
    }
};

std::unique_ptr<Library> Library::open(const Blas& blas) {
    BlasObject handle = nullptr;
    if (blas.cublasLtCreate(&handle) != 0) return nullptr;
    return std::unique_ptr<Library>(new Library(blas, handle));
}

Library::~Library() { blas_.cublasLtDestroy(handle_); }

std::shared_ptr<const Library::Prepared> Library::prepare(const ProductShape& shape, uint64_t workspace_bytes) {
    const std::string key(reinterpret_cast<const char*>(&shape), sizeof shape);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = prepared_.find(key);
    if (known != prepared_.end()) return known->second;
    auto made = std::make_shared<Prepared>(blas_);
    if (!made->describe(shape) || !made->choose(handle_, workspace_bytes)) made.reset();
    if (prepared_.size() >= KEPT_SHAPES) prepared_.clear();
    prepared_[key] = made;
    return made;
}

BlasStatus Library::run(const Prepared& p, const LibraryProduct& product, CUdeviceptr workspace,
                        uint64_t workspace_bytes, CUstream stream) {
    const float one = 1.0f, zero = 0.0f;
    return blas_.cublasLtMatmul(handle_, p.operation, &one, product.w, p.w, product.x, p.x, &zero, product.dst, p.dst,
                                product.dst, p.dst, p.choice.algorithm, reinterpret_cast<void*>(workspace),
                                static_cast<size_t>(workspace_bytes), stream);
}

}  // namespace cuda
}  // namespace ggr
