// Products of plain matrices by cuBLASLt: descriptors and an algorithm for each shape, chosen once.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "cuda/blas.h"
#include "cuda/plan.h"

namespace ggr {
namespace cuda {

class Library {
  public:
    struct Prepared;

    // For the context that is current. nullptr if the library does not start in it.
    static std::unique_ptr<Library> open(const Blas& blas);
    ~Library();
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;

    // nullptr if the library has no algorithm for it that needs `workspace_bytes` at most.
    std::shared_ptr<const Prepared> prepare(const ProductShape& shape, uint64_t workspace_bytes);
    // Put a product on a stream. Addresses are multiples of 16, that of the workspace of 256.
    BlasStatus run(const Prepared& prepared, const LibraryProduct& product, CUdeviceptr workspace,
                   uint64_t workspace_bytes, CUstream stream);

  private:
    Library(const Blas& blas, BlasObject handle) : blas_(blas), handle_(handle) {}

    const Blas& blas_;
    const BlasObject handle_;
    std::mutex mutex_;
    std::map<std::string, std::shared_ptr<const Prepared>> prepared_;  // by the bytes of the shape
};

}  // namespace cuda
}  // namespace ggr
