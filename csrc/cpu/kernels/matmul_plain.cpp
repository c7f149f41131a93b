// Product engines of F32, F16 and BF16 weights.
#include "cpu/level.h"
#include "cpu/matmul/plain.h"
#if defined(GGR_AMX)
#include "cpu/matmul/tile_plain.h"
#endif

GGR_KERNELS_BEGIN

namespace {

constexpr int64_t FEW_PLAIN = 16;  // measured: converting panels pays from about 24 columns on

template <class W>
bool fill(Engine* engine) {
#if defined(GGR_AMX)
    if constexpr (W::FORMAT != ACT_F32) {
        *engine = {W::FORMAT, FEW_TILES, few_plain<W>, many_tiles<PlainTiles<W>>};
        return true;
    }
#endif
    *engine = {W::FORMAT, FEW_PLAIN, few_plain<W>, many<PlainPanel<W>>, 1, BLOCK_PANELS};
    return true;
}

}  // namespace

bool float_engine(int32_t type, Engine* engine) {
    switch (type) {
        case TYPE_F32:
            return fill<WeightF32>(engine);
        case TYPE_F16:
            return fill<WeightF16>(engine);
        case TYPE_BF16:
            return fill<WeightBF16>(engine);
        default:
            return false;
    }
}

GGR_KERNELS_END
