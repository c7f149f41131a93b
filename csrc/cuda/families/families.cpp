// The families of kernels. Each file of this folder defines one; families.h declares it, its row stands here.
#include "cuda/families/families.h"

namespace ggr {
namespace cuda {

const Family* families(size_t* count) {
    static const std::vector<Family> list = {
        // clang-format off
        ELEMENTWISE,
        UNARY,
        NORM,
        MATMUL,
        GATED,
        IK,
        ROWS,
        COPY,
        SOFTMAX,
        ROPE,
        ATTENTION,
        SORT,
        SHAPE,
        REDUCE,
        RECURRENT,
        // clang-format on
    };
    *count = list.size();
    return list.data();
}

}  // namespace cuda
}  // namespace ggr
