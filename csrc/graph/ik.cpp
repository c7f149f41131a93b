#include "graph/ik.h"

#include <cstring>

namespace ggr {

namespace {

constexpr int32_t ROPE_OFFSET_WORD = 15;

// The gate with both halves in one tensor is an element-wise op there, a GLU here.
void gated_unary(Tensor* t, GluKind kind) {
    t->op = OP_GLU;
    t->params[0] = kind;
    t->params[1] = 0;  // not swapped; words 2 and 3 mean the same in both
}

// Zeros are appended in each dimension until the result's shape is reached; the amounts are not sent.
void pad_to_shape(Tensor* t) {
    std::memset(t->params, 0, sizeof t->params);
    for (int i = 0; i < MAX_DIMS; ++i) {
        const int64_t missing = t->ne[i] - t->src[0]->ne[i];
        // What does not fit a word breaks the op's rule about shapes as well.
        t->params[2 * i + 1] = missing == static_cast<int32_t>(missing) ? static_cast<int32_t>(missing) : -1;
    }
}

}  // namespace

bool apply_ik_meaning(Tensor* t, Error* err) {
    switch (t->op) {
        case OP_UNARY:
            if (t->params[0] == UNARY_SWIGLU)
                gated_unary(t, GLU_SWIGLU);
            else if (t->params[0] == UNARY_SWIGLU_OAI)
                gated_unary(t, GLU_SWIGLU_OAI);
            return true;
        case OP_ROPE:
        case OP_ROPE_BACK:
            // A flag there: rotate the last n_dims channels. The number of channels to pass over here.
            if (t->params[ROPE_OFFSET_WORD] == 1) {
                const int64_t skip = t->ne[0] - t->params[1];
                if (skip < 0 || skip > INT32_MAX)
                    return err->fail(Code::graph, "GRAPH_COMPUTE: tensor '%s': ROPE: %d channels of %lld are to turn",
                                     t->name, t->params[1], static_cast<long long>(t->ne[0]));
                t->params[ROPE_OFFSET_WORD] = static_cast<int32_t>(skip);
            } else {
                t->params[ROPE_OFFSET_WORD] = 0;
            }
            return true;
        case OP_FLASH_ATTN_EXT:
            if (t->src[5] != nullptr) t->op = OP_FLASH_ATTN_ROWS;
            return true;
        case OP_SUM_ROWS:
            if (t->params[0] != 0) t->op = OP_SUM_DIM;
            return true;
        case OP_GET_ROWS:
            if (t->params[0] == 1) t->op = OP_GATHER;
            t->flags |= FLAG_ABSENT_ROWS_ARE_ZERO;
            return true;
        case OP_ARGSORT:
            // Pairs of value and index are sorted there, so that the index falls with the value; but behind a softmax
            // the experts of a router are selected by a heap of values alone.
            if (t->params[0] == SORT_DESC) {
                const bool router =
                    t->src[0] != nullptr && t->src[0]->op == OP_SOFT_MAX && t->params[1] > 0 && t->params[1] < t->ne[0];
                t->flags |= router ? FLAG_HEAP_SELECTED : FLAG_LATER_EQUALS_FIRST;
            }
            return true;
        case OP_MUL_MAT:
        case OP_FUSED_UP_GATE:
            t->flags |= FLAG_BF16_SCALES;
            return true;
        case OP_MUL_MAT_ID:
        case OP_MOE_FUSED_UP_GATE:
            t->flags |= FLAG_ABSENT_ROWS_ARE_ZERO | FLAG_BF16_SCALES;
            return true;
        case OP_PAD:
            if (t->src[0] != nullptr) pad_to_shape(t);
            return true;
        default:
            return true;
    }
}

}  // namespace ggr
